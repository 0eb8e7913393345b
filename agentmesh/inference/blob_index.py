"""Which files this node gives to members, by their SHA-256: whole GGUF files of the Hugging Face cache, and those it serves.

Owns the way from a hash to an open file. Nothing that a peer sends becomes a path: hashes and names are looked up in what was
found on this disk. State: what was found, and when. Owner: the event loop; the disk is looked at in threads.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.blob_limits import INDEX_AGE_S, MAX_LISTED_FILES, MAX_OFFERED_FILES
from agentmesh.inference.logic.blob_wire import Found, FoundFile
from agentmesh.inference.logic.model_files import is_gguf, is_safe_path
from agentmesh.inference.models.cache import HubCache, walk
from agentmesh.inference.models.identity import FileIdentities

SHA256_CHARS: Final = 64
MAGIC: Final = b"GGUF"
_HEX: Final = frozenset("0123456789abcdef")

FileKey = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class OfferedFile:
    """One file, and what it looked like when its content was known: (device, inode, size, mtime)."""

    path: Path
    key: FileKey

    @property
    def size(self) -> int:
        """In bytes."""
        return self.key[2]


@dataclass(slots=True)
class _Scan:
    files: dict[str, OfferedFile] = field(default_factory=dict[str, OfferedFile])
    listings: dict[tuple[str, str], Found] = field(default_factory=dict[tuple[str, str], Found])


class BlobIndex:
    """See the module. `close` once.

    Args:
        cache: whose finished downloads are given.
        identities: hashes of files that are not named by theirs.
        served: files that models are served from, wherever the user keeps them.
    """

    def __init__(
        self,
        cache: HubCache,
        identities: FileIdentities,
        served: Callable[[], Sequence[Path]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._identities = identities
        self._served = served
        self._clock = clock
        self._scan = _Scan()
        self._scanned_s: float | None = None
        self._scanning = asyncio.Lock()
        self._own: dict[Path, tuple[str, OfferedFile]] = {}
        self._tasks = TaskSet("blob index")
        self._identifying: asyncio.Task[None] | None = None

    async def has_files(self) -> bool:
        """Whether there is anything to give: what presence says."""
        await self._refresh()
        return bool(self._scan.files or self._own)

    async def find(self, sha256: bytes) -> OfferedFile | None:
        """The file with this content."""
        await self._refresh()
        name = sha256.hex()
        known = self._scan.files.get(name)
        return known or next((file for digest, file in self._own.values() if digest == name), None)

    async def listing(self, repo: str, revision: str) -> Found:
        """What is here of a repository at a revision: a name that was fetched by, or a commit."""
        await self._refresh()
        return self._scan.listings.get((repo, revision), Found(""))

    async def close(self) -> None:
        """Stop hashing."""
        await self._tasks.close()

    async def _refresh(self) -> None:
        async with self._scanning:
            now_s = self._clock()
            if self._scanned_s is None or now_s - self._scanned_s >= INDEX_AGE_S:
                self._scan = await asyncio.to_thread(_scan, self._cache)
                self._scanned_s = self._clock()
                self._look_at_served()

    def _look_at_served(self) -> None:
        """Files outside the cache are hashed one after the other, in the background: until then they are not offered."""
        paths = [Path(os.path.realpath(path)) for path in self._served() if is_gguf(path.name)][:MAX_OFFERED_FILES]
        for path in set(self._own) - set(paths):
            del self._own[path]
        in_cache = {file.path for file in self._scan.files.values()}
        new = [path for path in paths if path not in in_cache and not self._is_known(path)]
        if new and (self._identifying is None or self._identifying.done()):
            self._identifying = self._tasks.spawn(self._identify(new), name="identify served files")

    def _is_known(self, path: Path) -> bool:
        known = self._own.get(path)
        return known is not None and known[1].key == key_of(path)

    async def _identify(self, paths: Sequence[Path]) -> None:
        for path in paths:
            key = key_of(path)
            if key is None:
                continue
            try:
                identity = await self._identities.identify(path)
            except AgentMeshError:
                continue  # unreadable, or growing: looked at again
            if key_of(path) == key:
                self._own[path] = (identity.sha256, OfferedFile(path, key))


def open_offered(file: OfferedFile) -> int | None:
    """A descriptor of the file, or None if it is not what it was when its content was known. To be called in a thread."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    if unchanged(descriptor, file) and os.pread(descriptor, len(MAGIC), 0) == MAGIC:
        return descriptor
    os.close(descriptor)
    return None


def unchanged(descriptor: int, file: OfferedFile) -> bool:
    """Whether an open file is still what was found."""
    return _key(os.fstat(descriptor)) == file.key


def key_of(path: Path) -> FileKey | None:
    """What a regular file looks like; None if it is none. A link is not followed."""
    try:
        return _key(path.lstat())
    except OSError:
        return None


def _key(status: os.stat_result) -> FileKey | None:
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _scan(cache: HubCache) -> _Scan:
    """Everything that is whole in the cache. Runs in a thread."""
    scan = _Scan()
    for repo in cache.repos():
        folder = cache.repo(repo)
        commits: dict[str, list[FoundFile]] = {}
        for pointer in walk(folder / "snapshots"):
            if not is_gguf(pointer.name) or len(scan.files) >= MAX_OFFERED_FILES:
                continue
            found = _blob_behind(pointer, folder / "blobs")
            if found is None:
                continue
            name, file = found
            scan.files[name] = file
            commit, _, path = pointer.relative_to(folder / "snapshots").as_posix().partition("/")
            if is_safe_path(path):
                commits.setdefault(commit, []).append(FoundFile(path, file.size, bytes.fromhex(name)))
        revisions = {**{commit: commit for commit in commits}, **cache.refs(repo)}
        for revision, commit in revisions.items():
            if commit in commits:
                scan.listings[repo, revision] = Found(commit, tuple(commits[commit][:MAX_LISTED_FILES]))
    return scan


def _blob_behind(pointer: Path, blobs: Path) -> tuple[str, OfferedFile] | None:
    """The blob that a name of a snapshot points to, if it is one of this repository and is named by its SHA-256."""
    try:
        target = Path(os.path.normpath(pointer.parent / pointer.readlink()))
    except OSError:
        return None  # no link: written by a tool on a system without links; it has no hash in its name
    key = key_of(target)
    if target.parent != blobs or key is None or len(target.name) != SHA256_CHARS or not _HEX.issuperset(target.name):
        return None
    return target.name, OfferedFile(target, key)
