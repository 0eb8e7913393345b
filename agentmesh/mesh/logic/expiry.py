"""When which record expires: lists by minute, so that an entry costs one reference."""

from __future__ import annotations

from heapq import heappop, heappush

from agentmesh.core.units import MINUTE_MS
from agentmesh.mesh.logic.entry import Entry


class ExpiryQueue:
    """Entries by the minute in which they expire."""

    def __init__(self) -> None:
        self._by_minute: dict[int, list[Entry]] = {}
        self._minutes: list[int] = []

    def add(self, entry: Entry) -> None:
        minute = entry.expires_ms // MINUTE_MS
        waiting = self._by_minute.get(minute)
        if waiting is None:
            self._by_minute[minute] = [entry]
            heappush(self._minutes, minute)
        else:
            waiting.append(entry)

    def remove(self, entry: Entry) -> None:
        """Take out an entry that was added and has not expired."""
        waiting = self._by_minute.get(entry.expires_ms // MINUTE_MS, [])
        if entry in waiting:
            waiting.remove(entry)

    def pop_expired(self, now_ms: int) -> list[Entry]:
        """Take out everything that has expired, in the order of expiry; ids break ties."""
        expired: list[Entry] = []
        later: list[Entry] = []
        while self._minutes and self._minutes[0] * MINUTE_MS <= now_ms:
            for entry in self._by_minute.pop(heappop(self._minutes)):
                (expired if entry.expires_ms <= now_ms else later).append(entry)
        for entry in later:  # the rest of the running minute
            self.add(entry)
        return sorted(expired, key=lambda entry: (entry.expires_ms, entry.id))
