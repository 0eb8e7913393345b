"""Who may begin a handshake while many do: a limit in all, a limit per source, a share kept for members. Pure counting.

Whoever is over a limit waits in a room that is bounded too. Without it, peers behind one NAT that come back together
after an outage are turned away in step with each other's retransmissions, and some never get in (measured: 30 dials from
one address took 3 to 13 s; with the room 0.2 s).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from agentmesh.mesh.logic.limits import HANDSHAKE_TIMEOUT_MS, MAX_HANDSHAKES, MAX_HANDSHAKES_PER_SOURCE
from agentmesh.mesh.logic.transport_limits import MAX_WAITING, MAX_WAITING_PER_SOURCE, STRANGERS

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[T]):
    source: str
    known: bool
    item: T
    since_ms: int


class HandshakeGate(Generic[T]):
    """Counts handshakes in progress. Sources are proven addresses (after a Retry), so nobody can fill another's share."""

    def __init__(self) -> None:
        self.refused = 0  # found no place in the waiting room either
        self._sources: dict[str, int] = {}
        self._total = 0
        self._waiting: dict[bytes, _Waiting[T]] = {}

    @property
    def in_progress(self) -> int:
        return self._total

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, source: str, *, known: bool) -> bool:
        """Whether `source` may begin; if so, `leave` must follow."""
        mine = self._sources.get(source, 0)
        if self._total >= (MAX_HANDSHAKES if known else STRANGERS) or mine >= MAX_HANDSHAKES_PER_SOURCE:
            return False
        self._sources[source] = mine + 1
        self._total += 1
        return True

    def leave(self, source: str) -> None:
        """A handshake that had entered has ended, well or badly."""
        left = self._sources[source] - 1
        self._total -= 1
        if left:
            self._sources[source] = left
        else:
            del self._sources[source]

    def wait(self, key: bytes, source: str, item: T, *, known: bool, now_ms: int) -> None:
        """Keep `item` until there is room for its source; a repetition (the same `key`) keeps its place."""
        if key in self._waiting:
            return
        self._forget_old(now_ms)
        mine = sum(1 for entry in self._waiting.values() if entry.source == source)
        if len(self._waiting) >= MAX_WAITING or mine >= MAX_WAITING_PER_SOURCE:
            self.refused += 1
        else:
            self._waiting[key] = _Waiting(source, known, item, now_ms)

    def admit_next(self, now_ms: int) -> tuple[str, T] | None:
        """The longest waiting item that there is room for. It has entered: `leave` must follow."""
        self._forget_old(now_ms)
        for key, entry in self._waiting.items():
            if self.enter(entry.source, known=entry.known):
                del self._waiting[key]
                return entry.source, entry.item
        return None

    def _forget_old(self, now_ms: int) -> None:
        """Drop who has waited as long as a handshake may take: its dial is over or will be repeated."""
        while self._waiting:
            key, entry = next(iter(self._waiting.items()))
            if now_ms - entry.since_ms < HANDSHAKE_TIMEOUT_MS:
                return
            del self._waiting[key]
