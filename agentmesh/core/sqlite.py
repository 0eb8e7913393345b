"""Opening SQLite databases the one way that this project does, and saying what went wrong with them.

Owns connection settings, the translation of sqlite3's errors into ours, and moving a damaged file aside. Knows no schema.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
from pathlib import Path

from agentmesh.core.errors import StorageError

_log = logging.getLogger(__name__)

# Memory for pages, per connection: 100,000 posts' hot index pages fit (measured: no gain beyond 8 MiB).
CACHE_KIB = 8 * 1024
# A write-ahead log is cut back to this after a checkpoint, so that one burst does not keep its space for ever.
JOURNAL_LIMIT_BYTES = 16 * 1024 * 1024
_SIDE_FILES = ("", "-wal", "-shm")

_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class DatabaseCorrupt(StorageError):
    """The database is damaged; nothing was acknowledged."""


def connect(path: Path, *, busy_timeout_ms: int, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode: WAL, every commit on disk when it returns, waits a bounded time for locks.

    Raises:
        StorageError: the file cannot be opened or created (DatabaseCorrupt when it is not a database).
    """
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(
            path, timeout=busy_timeout_ms / 1000, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: in WAL mode, NORMAL may lose the last commits to a power cut (sqlite.org/pragma.html#pragma_synchronous).
        connection.execute("PRAGMA synchronous = FULL")
        if sys.platform == "darwin":
            # fsync on macOS leaves the data in the drive's cache; F_FULLFSYNC does not (fsync(2)).
            connection.execute("PRAGMA fullfsync = 1")
            connection.execute("PRAGMA checkpoint_fullfsync = 1")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}")
        if read_only:
            connection.execute("PRAGMA query_only = 1")
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise translated(error, path) from error
    return connection


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether the error says that the file is damaged (and not that the disk is full, read-only or locked)."""
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(code, int):
        return code & 0xFF in _CORRUPT
    return "malformed" in str(error) or "not a database" in str(error)


def translated(error: sqlite3.Error, path: Path) -> StorageError:
    """The sentence that a user reads for an error of sqlite3."""
    if is_corrupt(error):
        return DatabaseCorrupt(f"The database {path} is damaged ({error}); nothing was acknowledged.")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageError(f"The disk is full: {path} could not be written; nothing was acknowledged.")
    if code == sqlite3.SQLITE_READONLY:
        return StorageError(f"{path} is read-only; nothing was acknowledged.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError(f"Another process holds {path} locked; nothing was acknowledged. Try again.")
    return StorageError(f"{path} could not be written or read ({error}); nothing was acknowledged.")


def damage(connection: sqlite3.Connection, path: Path, whole_up_to_bytes: int) -> str | None:
    """What is wrong with a database, or None. A small one is read whole, of a large one the schema (1.4 s at 300 MB)."""
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if path.stat().st_size > whole_up_to_bytes:
            return None
        verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if is_corrupt(error):
            return str(error)
        raise translated(error, path) from error
    return None if verdict == "ok" else verdict


def move_aside(path: Path, now_ms: int, keep: int) -> Path:
    """Rename a damaged database and its side files, and remove all but the newest `keep` moved before.

    Raises:
        StorageError: the file cannot be renamed.
    """
    target = path.with_name(f"{path.name}.damaged-{now_ms}")
    try:
        for suffix in _SIDE_FILES:
            source = path.with_name(path.name + suffix)
            if source.exists():
                source.rename(target.with_name(target.name + suffix))
        for old in _moved_before(path)[:-keep]:
            for suffix in _SIDE_FILES:
                old.with_name(old.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"The damaged database {path} cannot be moved aside: {error.strerror}.") from error
    _log.error("the database %s was damaged and is now %s; a new one takes its place", path, target)
    return target


def _moved_before(path: Path) -> list[Path]:
    found = [p for p in path.parent.glob(f"{path.name}.damaged-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))
