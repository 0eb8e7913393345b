"""What waits for the disk, worked off in order, so that what was stored and then dropped ends dropped.

State: the queue, and ids that the disk would not delete yet. Owner: the event loop; one task runs `run`. Whatever a store
or a watcher does, the queue goes on: a step that fails is logged, and what was not stored is told to `on_not_stored`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from agentmesh.core.errors import AgentMeshError
from agentmesh.mesh.logic.events import DropRecords, StoreRecords
from agentmesh.mesh.logic.record import Record
from agentmesh.mesh.store import RecordStore

_log = logging.getLogger(__name__)

OnRecords = Callable[[Sequence[Record]], Awaitable[None]]
OnDropped = Callable[[Sequence[bytes], str], Awaitable[None]]

MAX_STORE_QUEUE: Final = 256  # steps waiting for the disk, each at most one message's records
_MAX_COMMIT: Final = 1_000  # records written at once
_MAX_UNDROPPED: Final = 100_000  # ids that a full disk did not let go of; more are deleted at the next start


class Stored(NamedTuple):
    """Records that are on disk already and that watchers have not heard of."""

    records: tuple[Record, ...]


Step = StoreRecords | DropRecords | Stored


class StoreQueue:
    """See the module."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._queue: deque[Step] = deque()
        self._waiting = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._watchers: list[tuple[OnRecords, OnDropped]] = []
        self._undropped: dict[bytes, None] = {}
        self.on_not_stored: Callable[[Sequence[Record]], None] | None = None

    def watch(self, on_records: OnRecords, on_dropped: OnDropped) -> None:
        """Be told of records once they are durable, and of ids once they are gone."""
        self._watchers.append((on_records, on_dropped))

    def add(self, step: Step) -> None:
        """Put a step at the end. Never waits."""
        self._queue.append(step)
        self._idle.clear()
        if len(self._queue) > MAX_STORE_QUEUE:
            self._room.clear()
        self._waiting.set()

    async def wait_for_room(self) -> None:
        """Return at once unless the disk is far behind."""
        await self._room.wait()

    async def settle(self, timeout_s: float) -> bool:
        """Wait until nothing is queued; False if that took too long."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            while self._queue:
                step = self._next()
                if len(self._queue) <= MAX_STORE_QUEUE // 2:
                    self._room.set()
                await self._work(step)
            self._idle.set()

    def _next(self) -> Step:
        """The next operation; neighbouring ones of one sort become one, for one commit."""
        first = self._queue.popleft()
        if not isinstance(first, StoreRecords):
            return first
        records = list(first.records)
        while self._queue and isinstance(more := self._queue[0], StoreRecords) and len(records) < _MAX_COMMIT:
            records += more.records
            self._queue.popleft()
        return StoreRecords(tuple(records))

    async def _work(self, step: Step) -> None:
        if isinstance(step, DropRecords):
            await self._drop(step.ids)
            for _, on_dropped in self._watchers:
                await _tell(on_dropped(step.ids, step.reason))
            return
        if isinstance(step, StoreRecords) and not await self._add(step.records):
            return
        for on_records, _ in self._watchers:
            await _tell(on_records(step.records))

    async def _add(self, records: tuple[Record, ...]) -> bool:
        try:
            await self._store.add(records)
        except Exception as error:  # noqa: BLE001 - whatever it is, these are not on disk and the next ones may be
            _report("records were not stored", error)
            if self.on_not_stored is not None:
                # What is not on disk must not be in the index either: reconciliation brings it again.
                self.on_not_stored(records)
            return False
        for record in records:
            self._undropped.pop(record.id, None)
        if self._undropped:
            await self._drop(())
        return True

    async def _drop(self, ids: Sequence[bytes]) -> None:
        """Delete these and what could not be deleted before."""
        for id_ in ids:
            self._undropped[id_] = None
        try:
            await self._store.drop(list(self._undropped))
        except Exception as error:  # noqa: BLE001 - as above
            _report("records were not deleted, which is tried again", error)
            while len(self._undropped) > _MAX_UNDROPPED:
                del self._undropped[next(iter(self._undropped))]
        else:
            self._undropped.clear()


async def _tell(watcher: Awaitable[None]) -> None:
    """One watcher's failure is neither the store's nor the next watcher's."""
    try:
        await watcher
    except Exception as error:  # noqa: BLE001 - the root of what the layers above do with a record
        _report("a watcher of records failed", error)


def _report(what: str, error: Exception) -> None:
    _log.error("%s: %s", what, error, exc_info=None if isinstance(error, AgentMeshError) else error)
