"""One file into the cache: resumed where it broke off, checked against its hash, moved into place in one step.

Owns the loop over sources and attempts, and what a full disk, a wrong body or a killed process leave behind: a `.incomplete`
whose bytes are hashed again before more are added, never a blob that was not verified.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from agentmesh.core.errors import AgentMeshError, StorageError
from agentmesh.inference.models.cache import HubCache, make_folder
from agentmesh.inference.models.errors import HubError, HubUnavailable, NoPeerHas, NoSpace, WrongContent
from agentmesh.inference.models.source import Backoff, Body, FileSource, Pause, WantedFile

HASH_CHUNK_BYTES: Final = 4 * 1024 * 1024
LOCK_TIMEOUT_S: Final = 2.0  # longer than any holder that only links; a download holds it for minutes

# Called with the file and the bytes of it that are on disk.
Progress = Callable[[WantedFile, int], None]


class _Partial:
    """The file that grows, and the hash of what is in it."""

    def __init__(self, handle: BinaryIO, file: WantedFile) -> None:
        self._handle = handle
        self._file = file
        self.size = 0
        self._hash = self._new_hash()

    def _new_hash(self) -> hashlib._Hash:  # pyright: ignore[reportPrivateUsage] - the only name that hashlib's stubs have
        if self._file.sha256:
            return hashlib.sha256()
        # What git names a blob by: files too small for LFS have no other hash at the hub.
        return hashlib.sha1(b"blob %d\0" % self._file.size_bytes, usedforsecurity=False)

    def read_back(self) -> None:
        """Hash what an earlier attempt left; what is too much is cut off."""
        self._handle.seek(0)
        while chunk := self._handle.read(HASH_CHUNK_BYTES):
            self._hash.update(chunk)
            self.size += len(chunk)
        if self.size > self._file.size_bytes:
            self.clear()

    def clear(self) -> None:
        self._handle.seek(0)
        self._handle.truncate()
        self.size, self._hash = 0, self._new_hash()

    def add(self, chunk: bytes) -> None:
        if self.size + len(chunk) > self._file.size_bytes:
            raise WrongContent(f"'{self._file.path}' came with more bytes than the {self._file.size_bytes} promised.")
        self._handle.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def verified(self) -> bool:
        self._handle.flush()
        os.fsync(self._handle.fileno())
        return self.size == self._file.size_bytes and self._hash.hexdigest() == self._file.digest


def fetch(
    file: WantedFile,
    sources: Sequence[FileSource],
    cache: HubCache,
    progress: Progress = lambda _file, _done: None,
    pause: Pause = time.sleep,
) -> Path:
    """The file's name in the cache, after fetching what is missing of it.

    Raises:
        HubError, HubUnavailable, WrongContent, NotFound: no source gave it; the last source's reason.
        NoSpace, StorageError: the disk does not take it, or another process is fetching it.
    """
    if not cache.has(file):
        make_folder(cache.blob(file).parent)
        lock = cache.lock(file, LOCK_TIMEOUT_S)
        if lock is None:
            raise StorageError(f"Another process is downloading '{file.path}' right now.")
        with lock:
            if not cache.has(file):
                _fetch_locked(file, sources, cache, progress, pause)
    progress(file, file.size_bytes)
    return cache.link(file)


def _fetch_locked(
    file: WantedFile, sources: Sequence[FileSource], cache: HubCache, progress: Progress, pause: Pause
) -> None:
    partial_path = cache.partial(file)
    try:
        with partial_path.open("a+b") as handle:  # appends, whatever the position: a truncated file grows from its end
            partial = _Partial(handle, file)
            partial.read_back()
            progress(file, partial.size)
            _from_any(file, sources, partial, progress, pause)
        partial_path.replace(cache.blob(file))
        _sync_folder(partial_path.parent)
    except WrongContent:
        with suppress(OSError):
            partial_path.unlink()
        raise
    except OSError as error:
        raise _translated(error, partial_path) from error


def _from_any(
    file: WantedFile, sources: Sequence[FileSource], partial: _Partial, progress: Progress, pause: Pause
) -> None:
    last: AgentMeshError = HubError(f"Nobody has '{file.path}'.")
    for source in sources:
        try:
            _from_source(file, source, partial, progress, pause)
        except StorageError:
            raise
        except NoPeerHas:
            continue  # what the hub says tells the user more
        except AgentMeshError as error:
            last = error
        else:
            return
    raise last


def _from_source(file: WantedFile, source: FileSource, partial: _Partial, progress: Progress, pause: Pause) -> None:
    """Fetch until the hash is right. What was there before may be wrong: then once more from the start.

    A source of many hands is asked again as long as it has others.
    """
    inherited = partial.size
    while True:
        try:
            _until_full(file, source, partial, progress, pause)
            if partial.verified():
                return
            raise WrongContent(
                f"'{file.path}' from {source.name} has not the hash that was promised; it was thrown away."
            )
        except WrongContent:
            partial.clear()
            if not inherited and not source.distrust(file):
                raise
            inherited = 0


def _until_full(file: WantedFile, source: FileSource, partial: _Partial, progress: Progress, pause: Pause) -> None:
    backoff = Backoff(pause)
    while partial.size < file.size_bytes:
        before = partial.size
        try:
            with source.open(file, partial.size) as body:
                _copy(file, body, partial, progress)
            if partial.size < file.size_bytes:
                raise HubUnavailable(f"'{file.path}' ended after {partial.size} of {file.size_bytes} bytes.")
        except HubUnavailable as error:
            if partial.size > before:
                backoff.progress()
            backoff.wait(error)


def _copy(file: WantedFile, body: Body, partial: _Partial, progress: Progress) -> None:
    if body.start != partial.size:  # the source began anew: so does the file, or the body would be appended to itself
        partial.clear()
    for chunk in body.chunks():
        partial.add(chunk)
        progress(file, partial.size)


def _translated(error: OSError, path: Path) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            f"The disk is full: {path.parent} takes no more. What arrived is kept and resumed; "
            "'agentmesh models prune' frees what nothing uses."
        )
    return StorageError(f"{path} could not be written: {error.strerror}.")


def _sync_folder(folder: Path) -> None:
    """Make the rename last (fsync(2): the folder needs its own)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
