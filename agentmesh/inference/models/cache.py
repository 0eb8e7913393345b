"""The Hugging Face cache on disk, as huggingface_hub lays it out, so that every tool finds what any of them fetched.

Owns paths (`models--org--name/{blobs,refs,snapshots}`), placing a verified file, finding models, and deleting. Knows no hub.
A blob is written beside its place and renamed, a link and a ref too: a process that dies leaves nothing half-made but a `.incomplete`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from agentmesh.control.lock import FileLock
from agentmesh.core.errors import StorageError
from agentmesh.inference.logic.model_files import is_gguf, is_model, is_projector, is_safe_path, parts
from agentmesh.inference.models.errors import UnsafeName
from agentmesh.inference.models.source import WantedFile

PARTIAL_SUFFIX: Final = ".incomplete"
MAX_REF_BYTES: Final = 256
MAX_WALK_DEPTH: Final = 8


class CachedModel(msgspec.Struct, frozen=True):
    """A model in the cache: its first file, and all files of its set that are there."""

    repo: str
    commit: str
    path: str
    files: tuple[Path, ...]
    missing: tuple[str, ...]
    size_bytes: int
    current: bool

    @property
    def file(self) -> Path:
        """What an engine is given."""
        return self.files[0]


class HubCache:
    """The cache at one place."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def repo(self, repo: str) -> Path:
        """The folder of a repository."""
        return self.root / f"models--{repo.replace('/', '--')}"

    def blob(self, file: WantedFile) -> Path:
        """Where the content of a file is or will be."""
        return self.repo(file.repo) / "blobs" / file.digest

    def partial(self, file: WantedFile) -> Path:
        """What has arrived of it so far."""
        return self.repo(file.repo) / "blobs" / f"{file.digest}{PARTIAL_SUFFIX}"

    def pointer(self, file: WantedFile) -> Path:
        """Its name in the snapshot of its commit.

        Raises:
            UnsafeName: the name leads out of the snapshot.
        """
        if not is_safe_path(file.path):
            raise UnsafeName(f"'{file.path}' leads out of its folder.")
        return self.repo(file.repo) / "snapshots" / file.commit / file.path

    def lock(self, file: WantedFile, timeout_s: float) -> FileLock | None:
        """The lock that huggingface_hub takes for the same blob, too."""
        path = self.root / ".locks" / self.repo(file.repo).name / f"{file.digest}.lock"
        make_folder(path.parent)
        return FileLock.acquire(path, timeout_s)

    def has(self, file: WantedFile) -> bool:
        """Whether the whole content is there."""
        return _size(self.blob(file)) == file.size_bytes

    def link(self, file: WantedFile) -> Path:
        """Name a blob in its snapshot, and let the revision point to the commit. Returns the name.

        Raises:
            StorageError: the disk does not take it.
        """
        pointer, blob = self.pointer(file), self.blob(file)
        target = os.path.relpath(blob, pointer.parent)
        make_folder(pointer.parent)
        try:
            if not (pointer.is_symlink() and pointer.readlink() == Path(target)):
                beside = pointer.with_name(f".{secrets.token_hex(6)}")
                beside.symlink_to(target)
                beside.replace(pointer)
            if file.revision != file.commit:
                self._write_ref(file)
        except OSError as error:
            raise StorageError(f"{pointer} could not be written: {error.strerror}.") from error
        return pointer

    def _write_ref(self, file: WantedFile) -> None:
        ref = self.repo(file.repo) / "refs" / file.revision
        make_folder(ref.parent)
        if _read_ref(ref) != file.commit:
            beside = ref.with_name(f".{secrets.token_hex(6)}")
            beside.write_text(file.commit)
            beside.replace(ref)

    def refs(self, repo: str) -> dict[str, str]:
        """Revision -> commit, for what was fetched by a name."""
        folder = self.repo(repo) / "refs"
        return {name.name: commit for name in _entries(folder) if (commit := _read_ref(name))}

    def repos(self) -> list[str]:
        """All repositories of models in the cache, sorted."""
        names = [entry.name for entry in _entries(self.root) if entry.name.startswith("models--")]
        return sorted(name.removeprefix("models--").replace("--", "/", 1) for name in names)

    def models(self, repo: str | None = None) -> list[CachedModel]:
        """Every model of every snapshot: newest commits and others, sets with parts missing too."""
        return [model for name in ([repo] if repo else self.repos()) for model in self._models_of(name)]

    def _models_of(self, repo: str) -> Iterator[CachedModel]:
        current = set(self.refs(repo).values())
        for snapshot in sorted(_entries(self.repo(repo) / "snapshots")):
            paths = {path.relative_to(snapshot).as_posix() for path in walk(snapshot) if is_gguf(path.name)}
            firsts = {parts(path)[0] for path in paths if not is_projector(path)}
            for first in sorted(path for path in firsts if is_model(path)):
                wanted = parts(first)
                files = tuple(snapshot / path for path in wanted if _size(snapshot / path) is not None)
                missing = tuple(path for path in wanted if _size(snapshot / path) is None)
                size = sum(_size(file) or 0 for file in files)
                if files:
                    yield CachedModel(repo, snapshot.name, first, files, missing, size, snapshot.name in current)

    def projectors(self, model: CachedModel) -> list[str]:
        """Paths of the projectors beside a model in its snapshot."""
        snapshot = self.repo(model.repo) / "snapshots" / model.commit
        return sorted(path.relative_to(snapshot).as_posix() for path in walk(snapshot) if is_projector(path.name))


def make_folder(path: Path) -> None:
    """Create a folder of the cache.

    Raises:
        StorageError: the disk does not take it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path} could not be created: {error.strerror}. Set HF_HOME to a place that can be written."
        ) from error


def walk(folder: Path, depth: int = MAX_WALK_DEPTH) -> Iterator[Path]:
    """Files and links below a folder; does not follow links to folders."""
    for entry in _entries(folder):
        if entry.is_dir() and not entry.is_symlink():
            if depth > 0:
                yield from walk(entry, depth - 1)
        else:
            yield entry


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _read_ref(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_REF_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
