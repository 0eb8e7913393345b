"""Advisory locks on files: who is the node of a home, and who is starting one.

`run/lock` is held by a node for its whole life; only its holder binds or unlinks the socket and writes node.json.
`run/start.lock` is held by whoever starts a node, so that two starters at the same moment get the same one. The kernel
frees both when their holder dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from agentmesh.core.errors import HomeError

POLL_S: Final = 0.02


class FileLock:
    """A held lock. The file stays: removing it would let two processes hold "the" lock."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor: int | None = descriptor
        self._path = path

    @classmethod
    def acquire(cls, path: Path, timeout_s: float = 0.0) -> FileLock | None:
        """Take the lock, waiting up to `timeout_s`; None when somebody else holds it all that time.

        Raises:
            HomeError: the lock file cannot be opened.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            descriptor = _try(path)
            if descriptor is not None:
                return cls(descriptor, path)
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_S)

    def is_current(self) -> bool:
        """Whether the lock is held, and is the one that others find under its path."""
        try:
            return self._descriptor is not None and os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Free the lock. May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _try(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HomeError(f"The lock file {path} cannot be opened: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Somebody may have removed the file between open and flock; a lock on a nameless file excludes nobody.
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:  # some network file systems have no locks: waiting would never end
        os.close(descriptor)
        raise HomeError(f"The lock file {path} cannot be locked: {error.strerror}.") from error
    os.close(descriptor)
    return None


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock at this moment. Creates nothing, and is in no other looker's way."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def wait_until_free(path: Path, timeout_s: float) -> bool:
    """Whether nobody held the lock at some moment within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while is_held(path):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True
