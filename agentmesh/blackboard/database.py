"""One writer thread and a few reader threads over one SQLite file: nothing here waits on the event loop.

Owns the connections, group commit, time limits of reads, and what happens to a damaged file. State: the queue of writes
(the event loop appends, the writer takes), the file's generation (the writer changes it; readers reopen when it moved on).
Knows no table: what is read and written are functions of a connection.

Jobs may run twice (a batch that fails is repeated one by one), so they keep no state of their own.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from agentmesh.blackboard.logic.limits import (
    BUSY_TIMEOUT_MS,
    CORRUPT_KEPT,
    GROUP_COMMIT_JOBS,
    MAX_READ_QUEUE,
    MAX_WRITE_QUEUE,
    QUICK_CHECK_BYTES,
)
from agentmesh.core.clock import Clock
from agentmesh.core.errors import StorageError
from agentmesh.core.sqlite import DatabaseCorrupt, connect, damage, is_corrupt, move_aside, translated

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

READERS: Final = 2  # searches are bounded by the 2 cores that the smallest machine has
_PROGRESS_STEPS: Final = 2_000  # virtual machine steps between looks at the clock: some 50 us
_CLOSE_TIMEOUT_S: Final = 10.0


class Deadline:
    """When a read must stop: SQLite is interrupted then, and the read answers with what it has."""

    def __init__(self, budget_ms: int | None) -> None:
        self._ends = None if budget_ms is None else time.monotonic() + budget_ms / 1000
        self.passed = False

    def check(self) -> int:
        """SQLite's progress handler: non-zero interrupts."""
        self.passed = self.passed or (self._ends is not None and time.monotonic() > self._ends)
        return int(self.passed and self._ends is not None)

    def lift(self) -> None:
        """No limit from now on: what was found is fetched whole."""
        self._ends = None


@dataclass(slots=True)
class _Write:
    job: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


def _is_locked(error: Exception) -> bool:
    """Another process holds the lock: every job of the batch would wait for it again, one after the other."""
    code = getattr(error, "sqlite_errorcode", 0)
    return isinstance(error, sqlite3.Error) and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Database:
    """See the module. `prepare` brings the schema up to date, `repair` mends indexes (True: worth trying again)."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        prepare: Callable[[sqlite3.Connection], None],
        repair: Callable[[sqlite3.Connection], bool],
        on_reset: Callable[[str], None],
    ) -> None:
        self._path = path
        self._clock = clock
        self._prepare = prepare
        self._repair = repair
        self._on_reset = on_reset
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[_Write] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._writer: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._generation = 0
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="board-read")
        self._reading = 0
        self._local = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []

    # ------------------------------------------------------------------ opening and closing

    async def open(self) -> None:
        """Open or create the file; a damaged one is moved aside and a fresh one takes its place.

        Raises:
            StorageError: it cannot be created, or another process holds it.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)
        self._writer = threading.Thread(target=self._write_loop, name="board-write", daemon=True)
        self._writer.start()

    def _open(self) -> None:
        try:
            self._connection = self._connect()
        except DatabaseCorrupt as error:
            self._start_over(error.message)

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self._path, busy_timeout_ms=BUSY_TIMEOUT_MS)
        try:
            wrong = damage(connection, self._path, QUICK_CHECK_BYTES)
            if wrong is not None:
                raise DatabaseCorrupt(f"The database {self._path} is damaged ({wrong}).")
            self._prepare(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise translated(error, self._path) from error
            raise
        return connection

    async def close(self) -> None:
        """Finish what is queued, then close. Writes after this are refused."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._writer is not None:
            await asyncio.to_thread(self._writer.join, _CLOSE_TIMEOUT_S)
        self._readers.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._close_connections)

    def _close_connections(self) -> None:
        self._readers.shutdown(wait=True)
        for connection in self._reader_connections:
            connection.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ------------------------------------------------------------------ writing

    async def write(self, job: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `job` in a transaction on the writer thread; its changes are on disk when this returns.

        Raises:
            StorageError: they are not (disk full, locked, read-only, damaged, too many waiting). Also what the job raises.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._closing or self._writer is None:
                raise StorageError("The board is closed; nothing was acknowledged.")
            if len(self._queue) >= MAX_WRITE_QUEUE:
                raise StorageError("The disk does not keep up with what is to be written; try again.")
            self._queue.append(_Write(job, future))
            self._changed.notify()
        return await future

    def _write_loop(self) -> None:
        while batch := self._take():
            try:
                self._commit(batch)
            except Exception as error:  # noqa: BLE001 - the root of the writer thread: it must outlive any job
                _log.exception("the board's writer failed")
                for write in batch:
                    write.error = write.error or StorageError(f"The board's writer failed: {error}.")
            self._settle(batch)

    def _take(self) -> list[_Write]:
        """Everything that waits, up to one group; empty when closing."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            return [self._queue.popleft() for _ in range(min(len(self._queue), GROUP_COMMIT_JOBS))]

    def _commit(self, batch: list[_Write]) -> None:
        """One transaction for all; if a job fails, one for each, so that one's failure is no other's."""
        try:
            self._transact(batch)
        except Exception as error:  # noqa: BLE001 - the root of every job: what it raises goes to who asked for it
            if len(batch) > 1 and not _is_locked(error):
                for write in batch:
                    self._commit([write])
                return
            for write in batch:
                write.error = translated(error, self._path) if isinstance(error, sqlite3.Error) else error

    def _transact(self, batch: list[_Write]) -> None:
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            for write in batch:
                write.result = write.job(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            # A full disk may have rolled back already (sqlite.org/lang_transaction.html, "errors within a transaction").
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.DatabaseError) and is_corrupt(error) and self._mended(connection, error):
                raise StorageError("The search index was damaged and has been rebuilt; try again.") from error
            raise

    def _mended(self, connection: sqlite3.Connection, error: sqlite3.DatabaseError) -> bool:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CORRUPT_VTAB:
            with suppress(sqlite3.Error):
                return self._repair(connection)
        self._start_over(str(error))
        return False

    def _start_over(self, reason: str) -> None:
        """Move the damaged file aside and begin a fresh one; readers follow at their next read."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        aside = move_aside(self._path, self._clock.now_ms(), CORRUPT_KEPT)
        self._connection = self._connect()
        self._generation += 1
        sentence = f"The board's database was damaged ({reason}). It is kept as {aside.name}; a fresh one fills from the peers."
        self._on_loop(lambda: self._on_reset(sentence))

    def _settle(self, batch: list[_Write]) -> None:
        def settle() -> None:
            for write in batch:
                if write.future.done():
                    continue
                if write.error is not None:
                    write.future.set_exception(write.error)
                else:
                    write.future.set_result(write.result)

        self._on_loop(settle)

    def _on_loop(self, call: Callable[[], None]) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            _log.debug("the event loop ended before the board's writer")

    # ------------------------------------------------------------------ reading

    async def read(self, job: Callable[[sqlite3.Connection, Deadline], Result], budget_ms: int | None = None) -> Result:
        """Run `job` on a reader thread, interrupted after `budget_ms` (it then sees sqlite3's `interrupted` error).

        Raises:
            StorageError: the database cannot be read, or too many reads wait. Also what the job raises.
        """
        if self._closing:
            raise StorageError("The board is closed.")
        if self._reading >= MAX_READ_QUEUE:
            raise StorageError("Too many searches wait; try again.")
        self._reading += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._readers, self._read, job, budget_ms)
        except DatabaseCorrupt:
            # Only the writer may replace the file; it comes upon the damage itself or is led to it here.
            with suppress(StorageError):
                await self.write(self._look_for_damage)
            raise
        finally:
            self._reading -= 1

    def _read(self, job: Callable[[sqlite3.Connection, Deadline], Result], budget_ms: int | None) -> Result:
        connection = self._reader()
        deadline = Deadline(budget_ms)
        connection.set_progress_handler(deadline.check, _PROGRESS_STEPS)
        try:
            connection.execute("BEGIN")  # every statement of the job sees one state
            return job(connection, deadline)
        except sqlite3.Error as error:
            raise translated(error, self._path) from error
        finally:
            deadline.lift()
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _reader(self) -> sqlite3.Connection:
        current: tuple[int, sqlite3.Connection] | None = getattr(self._local, "reader", None)
        if current is not None and current[0] == self._generation:
            return current[1]
        if current is not None:
            self._reader_connections.remove(current[1])
            current[1].close()
            self._local.reader = None
        generation = self._generation
        connection = connect(self._path, busy_timeout_ms=BUSY_TIMEOUT_MS, read_only=True)
        self._local.reader = (generation, connection)
        self._reader_connections.append(connection)
        return connection

    def _look_for_damage(self, connection: sqlite3.Connection) -> None:
        verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        if verdict == "ok":
            # Tables are whole, so it is an index of the full-text search: its own error code leads to `repair`.
            self._repair(connection)
        else:
            raise sqlite3.DatabaseError(f"database disk image is malformed: {verdict}")
