"""A model's files on a worker: found here by what is in them, else fetched from members, else missing.

    opened = await files.open(ask.files, host, tell, fetch=True)
    opened.weights                   # to be closed by whoever opened it; None: the weights come from the host

Owns the folder `split-files` of the home: files that were fetched for a host and belong to no repository here. What is there is named by
its SHA-256, resumed after a break, and removed, the longest unused first, when another needs the room. Names that a host says are shown, and
nothing else is done with them. Owner: the event loop; disks are read and written in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from agentmesh.core.errors import AgentMeshError, StorageError
from agentmesh.core.paths import Home
from agentmesh.inference.blob_index import BlobIndex
from agentmesh.inference.blob_source import OpenBlobStream, PeerMemory, PeerSource
from agentmesh.inference.logic.fit import size
from agentmesh.inference.logic.job_wire import JobFile
from agentmesh.inference.models.cache import PARTIAL_SUFFIX, HubCache, make_folder, walk
from agentmesh.inference.models.download import SPACE_MARGIN_BYTES
from agentmesh.inference.models.errors import NoPeerHas, NoSpace
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.models.source import WantedFile
from agentmesh.inference.models.transfer import fetch as fetch_file
from agentmesh.inference.rpc.weights import WeightFiles
from agentmesh.inference.threads import in_daemon_thread

_log = logging.getLogger(__name__)

FOLDER: Final = "split-files"
# Fetched files lie as in the Hugging Face cache, in one repository that no hub has: the same code resumes, checks and places them.
REPO: Final = "split/files"
COMMIT: Final = "0" * 40
TURN_S: Final = 600.0  # that one host's files are waited for before another's weights travel: a host may give its own as slowly as it likes

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class OpenedFiles:
    """`weights` is None if the files are not here; then `sentence` says why."""

    weights: WeightFiles | None
    sentence: str = ""


class WorkerFiles(Protocol):
    """Where a worker has a model's files from."""

    async def open(self, files: Sequence[JobFile], host: bytes, tell: Tell, *, fetch: bool) -> OpenedFiles:
        """The parts, in order, checked against their SHA-256. `tell` is told what is being done. Raises nothing of AgentMeshError."""
        ...


class MeshWorkerFiles:
    """See the module.

    Args:
        index: what is here: the Hugging Face cache, and files that models are served from.
        open_stream: a `blob` stream to a member.
        peers: members that give files, nearest first; the host is asked in any case.
        margin_bytes: what stays free on the disk.
    """

    def __init__(
        self,
        home: Home,
        index: BlobIndex,
        identities: FileIdentities,
        open_stream: OpenBlobStream,
        peers: Callable[[], Sequence[bytes]] = tuple,
        *,
        margin_bytes: int = SPACE_MARGIN_BYTES,
    ) -> None:
        self._cache = HubCache(home.root / FOLDER)
        self._index = index
        self._identities = identities
        self._open_stream = open_stream
        self._peers = peers
        self._margin_bytes = margin_bytes
        self._fetching = asyncio.Lock()
        self._opened: weakref.WeakSet[WeightFiles] = weakref.WeakSet()

    async def open(self, files: Sequence[JobFile], host: bytes, tell: Tell, *, fetch: bool) -> OpenedFiles:
        """See WorkerFiles."""
        opened = await self._open(files, host, tell, fetch=fetch)
        if opened is None:  # what was damaged is gone now
            opened = await self._open(files, host, tell, fetch=fetch)
        return opened or OpenedFiles(None, "The model's files on this node are damaged.")

    async def _open(self, files: Sequence[JobFile], host: bytes, tell: Tell, *, fetch: bool) -> OpenedFiles | None:
        """None: one was not what it was, and those of our own are deleted."""
        try:
            paths = await self._paths(files)
            if fetch and None in paths:
                missing = [file for file, path in zip(files, paths, strict=True) if path is None]
                await self._fetch(missing, host, tell)
                paths = await self._paths(files)
            found = [path for path in paths if path is not None]
            if len(found) < len(files):
                return OpenedFiles(None, "This node has not got the model's files.")
            for number, path in enumerate(found, 1):
                tell(f"checking the model's files: {number} of {len(found)}")
                await self._identities.identify(path)
            weights = await WeightFiles.open_parts(found, self._identities)
        except (AgentMeshError, OSError) as error:
            return OpenedFiles(None, str(error))
        if weights.digests != tuple(file.sha256 for file in files):
            weights.close()
            await asyncio.to_thread(self._drop_damaged, files, found, weights.digests)
            return None
        self._opened.add(weights)
        return OpenedFiles(weights)

    def _drop_damaged(self, files: Sequence[JobFile], paths: Sequence[Path], digests: Sequence[bytes]) -> None:
        """Delete what was fetched for a host and is not what it was: else its weights would travel at each load from now on."""
        for file, path, digest in zip(files, paths, digests, strict=True):
            if digest != file.sha256 and path == self._cache.blob(_wanted(file)):
                _log.warning("%s is damaged, and deleted", path)
                with contextlib.suppress(OSError):
                    path.unlink()

    # ------------------------------------------------------------------ here

    async def _paths(self, files: Sequence[JobFile]) -> list[Path | None]:
        return [await self._path(file) for file in files]

    async def _path(self, file: JobFile) -> Path | None:
        wanted = _wanted(file)
        if await asyncio.to_thread(self._cache.has, wanted):
            with contextlib.suppress(
                OSError
            ):  # when it was used last; the file's own time is part of what it is known by
                os.utime(self._cache.pointer(wanted), follow_symlinks=False)
            return self._cache.blob(wanted)
        offered = await self._index.find(file.sha256)
        return offered.path if offered is not None and offered.size == file.size_bytes else None

    # ------------------------------------------------------------------ from others

    async def _fetch(self, missing: Sequence[JobFile], host: bytes, tell: Tell) -> None:
        """Raises: StorageError: they do not fit on the disk. NoPeerHas: nobody gives them."""
        tell("waiting for other files to be fetched" if self._fetching.locked() else "looking for the model's files")
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        whole = sum(file.size_bytes for file in missing)
        told = ""

        def seen(done: int) -> None:
            nonlocal told
            if stop.is_set():
                raise _Stopped
            text = f"fetching the model's files: {size(done)} of {size(whole)}"
            if text != told:
                told = text
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(tell, text)

        async with self._turn():
            try:
                await in_daemon_thread(
                    lambda: self._fetch_all(missing, self._sources(loop, host), seen, stop), name="fetch for a host"
                )
            except StorageError:
                raise
            except AgentMeshError as error:
                _log.info("files for %s cannot be fetched: %s", host.hex()[:8], error)
                raise NoPeerHas("No member of the mesh gives the model's files now.") from error
            finally:
                stop.set()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        """Raises: NoPeerHas: other files are being fetched for too long."""
        try:
            async with asyncio.timeout(TURN_S):
                await self._fetching.acquire()
        except TimeoutError:
            raise NoPeerHas("Files for another host are being fetched.") from None
        try:
            yield
        finally:
            self._fetching.release()

    def _sources(self, loop: asyncio.AbstractEventLoop, host: bytes) -> list[PeerSource]:
        def peers() -> list[bytes]:
            return list(dict.fromkeys((host, *self._peers())))

        memory = PeerMemory()
        return [PeerSource(loop, self._open_stream, peers, patient=patient, memory=memory) for patient in (False, True)]

    def _fetch_all(
        self,
        missing: Sequence[JobFile],
        sources: Sequence[PeerSource],
        seen: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        """In a thread."""
        make_folder(self._cache.root)
        self._make_room(missing)
        before = 0
        for file in missing:
            base = before
            fetch_file(_wanted(file), sources, self._cache, lambda _, done, base=base: seen(base + done), _pause(stop))
            before += file.size_bytes

    def _make_room(self, missing: Sequence[JobFile]) -> None:
        """Refuse what cannot fit, before the first byte; files that nobody uses now make room, if that is enough.

        Raises:
            NoSpace: with what is needed and what there is.
        """
        wanted = [_wanted(file) for file in missing]
        need = sum(file.size_bytes - _size(self._cache.partial(file)) for file in wanted) + self._margin_bytes
        free = shutil.disk_usage(self._cache.root).free
        if need <= free:
            return
        kept = {digest.hex() for weights in self._opened for digest in weights.digests}
        kept |= {file.digest for file in wanted}
        unused = self._unused(kept)
        if need > free + sum(map(_size, unused)):
            raise NoSpace(f"The model's files need {size(need)}; {self._cache.root} has {size(free)} free.")
        for path in unused:
            if need <= free:
                return
            free += _size(path)
            with contextlib.suppress(OSError):
                self._pointer(path).unlink()
            with contextlib.suppress(OSError):
                path.unlink()

    def _unused(self, kept: set[str]) -> list[Path]:
        """Files, whole or not, that may be removed, the longest unused first."""
        blobs = walk(self._cache.repo(REPO) / "blobs", depth=0)
        return sorted((path for path in blobs if _digest(path) not in kept), key=self._used_s)

    def _used_s(self, blob: Path) -> float:
        """What is broken off counts as never used."""
        try:
            return self._pointer(blob).lstat().st_mtime
        except OSError:
            return 0.0

    def _pointer(self, blob: Path) -> Path:
        return self._cache.repo(REPO) / "snapshots" / COMMIT / f"{_digest(blob)}.gguf"


class _Stopped(Exception):
    """Nobody waits for the files any more."""


def _pause(stop: threading.Event) -> Callable[[float], None]:
    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise _Stopped

    return pause


def _wanted(file: JobFile) -> WantedFile:
    digest = file.sha256.hex()
    return WantedFile(REPO, COMMIT, COMMIT, f"{digest}.gguf", file.size_bytes, digest, None)


def _digest(blob: Path) -> str:
    return blob.name.removesuffix(PARTIAL_SUFFIX)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
