"""Records that are "not yet": good by themselves, but their time or their author's certificate has not come. Bounded.

Owns nothing but the waiting. Must not know why a record waits beyond the author it waits for or the time.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from agentmesh.mesh.logic.events import NodeId
from agentmesh.mesh.logic.limits import MAX_PENDING_SHARE, PENDING_BYTES, PENDING_RECORDS
from agentmesh.mesh.logic.record import Record


@dataclass(slots=True)
class _Waiting:
    record: Record
    source: NodeId
    by_time: bool


class PendingPool:
    """A peer that fills its share pushes out what it brought itself, never what others brought."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, _Waiting] = {}
        self._by_author: dict[bytes, dict[bytes, None]] = {}
        self._by_source: dict[NodeId, dict[bytes, None]] = {}
        self._bytes_of: dict[NodeId, int] = {}
        self._times: list[tuple[int, bytes]] = []
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, record_id: object) -> bool:
        return record_id in self._waiting

    @property
    def deadline_ms(self) -> int | None:
        return self._times[0][0] if self._times else None

    def ids(self) -> tuple[bytes, ...]:
        return tuple(self._waiting)

    def add(self, record: Record, source: NodeId, ready_ms: int | None) -> None:
        """Hold a record until `ready_ms`, or, if that is None, until its author is known or the record has expired."""
        if record.id in self._waiting:
            return
        self._make_room(record.size_bytes, source)
        self._waiting[record.id] = _Waiting(record, source, ready_ms is not None)
        self._by_author.setdefault(record.author, {})[record.id] = None
        self._by_source.setdefault(source, {})[record.id] = None
        self._bytes_of[source] = self._bytes_of.get(source, 0) + record.size_bytes
        self.bytes_held += record.size_bytes
        heapq.heappush(self._times, (record.expires_ms if ready_ms is None else ready_ms, record.id))
        if len(self._times) > 2 * PENDING_RECORDS:
            self._times = [entry for entry in self._times if entry[1] in self._waiting]
            heapq.heapify(self._times)

    def take_author(self, author: bytes) -> list[tuple[Record, NodeId]]:
        """What waits for this author to be known, with who brought it, no longer held."""
        ids = [record_id for record_id in self._by_author.get(author, ()) if not self._waiting[record_id].by_time]
        return [self._take(record_id) for record_id in ids]

    def take_kinds(self, kinds: frozenset[str]) -> list[tuple[Record, NodeId]]:
        """What waits for an author and is of one of these kinds, no longer held."""
        found = [waiting for waiting in self._waiting.values() if waiting.record.kind in kinds and not waiting.by_time]
        return [self._take(waiting.record.id) for waiting in found]

    def drop_author(self, author: bytes) -> None:
        for record_id in list(self._by_author.get(author, ())):
            self._take(record_id)

    def take_ready(self, now_ms: int) -> list[tuple[Record, NodeId]]:
        """What has become acceptable by time, no longer held; what expired is let go."""
        ready: list[tuple[Record, NodeId]] = []
        while self._times and self._times[0][0] <= now_ms:
            _, record_id = heapq.heappop(self._times)
            if record_id in self._waiting:
                taken = self._take(record_id)
                if taken[0].expires_ms > now_ms:
                    ready.append(taken)
        return ready

    def _make_room(self, size_bytes: int, source: NodeId) -> None:
        mine = self._by_source.get(source, {})
        while mine and (
            len(mine) >= PENDING_RECORDS // MAX_PENDING_SHARE
            or self._bytes_of[source] + size_bytes > PENDING_BYTES // MAX_PENDING_SHARE
        ):
            self._take(next(iter(mine)))
        while self._waiting and (len(self._waiting) >= PENDING_RECORDS or self.bytes_held + size_bytes > PENDING_BYTES):
            self._take(next(iter(self._waiting)))

    def _take(self, record_id: bytes) -> tuple[Record, NodeId]:
        waiting = self._waiting.pop(record_id)
        record, source = waiting.record, waiting.source
        self.bytes_held -= record.size_bytes
        self._bytes_of[source] -= record.size_bytes
        for table, key in ((self._by_author, record.author), (self._by_source, source)):
            ids: dict[bytes, None] = table[key]
            del ids[record_id]
            if not ids:
                del table[key]
        if source not in self._by_source:
            del self._bytes_of[source]
        return record, source
