"""Which file a file is: the SHA-256 of its content, read from disk, never taken from a name.

Owns the cache of hashes, keyed by (device, inode, size, mtime): hashing 40 GB takes a minute, and the answer is asked for at every
start. Safe from several threads and processes: the last writer wins, and losing an entry costs a hash.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import threading
from pathlib import Path
from typing import Final

import msgspec

from agentmesh.core.paths import Home
from agentmesh.inference.models.errors import ModelFileUnusable

CHUNK_BYTES: Final = 4 * 1024 * 1024
MAX_ENTRIES: Final = 4096  # files; the oldest entries go first
MAX_CACHE_BYTES: Final = 4 * 1024 * 1024

_Key = tuple[int, int, int, int]


class FileIdentity(msgspec.Struct, frozen=True):
    """One file's content."""

    sha256: str
    size_bytes: int


class _Entry(msgspec.Struct, frozen=True):
    key: _Key
    sha256: str


class Stopped(Exception):
    """Hashing was stopped because nobody waits for it any more."""


class FileIdentities:
    """The identities of files, remembered in one small file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    @classmethod
    def of_home(cls, home: Home) -> FileIdentities:
        """The ones that a home remembers."""
        return cls(home.root / "cache" / "file-hashes.json")

    async def identify(self, path: Path) -> FileIdentity:
        """The identity, computed in a thread; cancelling the caller stops the thread at its next chunk."""
        stop = threading.Event()
        try:
            return await asyncio.to_thread(self.identify_now, path, stop)
        except asyncio.CancelledError:
            stop.set()
            raise

    def identify_now(self, path: Path, stop: threading.Event | None = None) -> FileIdentity:
        """The identity, in this thread.

        Raises:
            ModelFileUnusable: the file cannot be read, or changed while it was.
        """
        try:
            with path.open("rb") as file:
                before = _key(os.fstat(file.fileno()))
                known = self._recall(before)
                if known is None:
                    known = _digest(file.fileno(), stop)
                    if _key(os.fstat(file.fileno())) != before:
                        raise ModelFileUnusable(f"{path} changed while it was read.")
                    self._remember(before, known)
        except OSError as error:
            raise ModelFileUnusable(f"{path} cannot be read: {error.strerror}.") from error
        return FileIdentity(known, before[2])

    def _recall(self, key: _Key) -> str | None:
        with self._lock:
            return next((entry.sha256 for entry in reversed(self._load()) if entry.key == key), None)

    def _remember(self, key: _Key, sha256: str) -> None:
        with self._lock:
            entries = [entry for entry in self._load() if entry.key[:2] != key[:2]]
            entries = [*entries, _Entry(key, sha256)][-MAX_ENTRIES:]
            beside = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                beside.write_bytes(msgspec.json.encode(entries))
                beside.replace(self._path)
            except OSError:  # a cache: the hash is right without it
                with contextlib.suppress(OSError):
                    beside.unlink()

    def _load(self) -> list[_Entry]:
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_CACHE_BYTES), type=list[_Entry])
        except (OSError, msgspec.MsgspecError):
            return []


def _key(stat: os.stat_result) -> _Key:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _digest(descriptor: int, stop: threading.Event | None) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(descriptor, CHUNK_BYTES):
        if stop is not None and stop.is_set():
            raise Stopped
        digest.update(chunk)
    return digest.hexdigest()
