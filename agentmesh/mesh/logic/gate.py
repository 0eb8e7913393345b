"""Who may begin a handshake while many do: a limit in all, a limit per source, a share kept for members. Pure counting."""

from __future__ import annotations

from agentmesh.mesh.logic.limits import MAX_HANDSHAKES, MAX_HANDSHAKES_PER_SOURCE

STRANGERS = MAX_HANDSHAKES - MAX_HANDSHAKES // 4  # a quarter is kept for the addresses of known members


class HandshakeGate:
    """Counts handshakes in progress. Sources are proven addresses (after a Retry), so nobody can fill another's share."""

    def __init__(self) -> None:
        self._sources: dict[str, int] = {}
        self._total = 0
        self.refused = 0

    @property
    def in_progress(self) -> int:
        return self._total

    def enter(self, source: str, *, known: bool) -> bool:
        """Whether `source` may begin; if so, `leave` must follow."""
        room = MAX_HANDSHAKES if known else STRANGERS
        mine = self._sources.get(source, 0)
        if self._total >= room or mine >= MAX_HANDSHAKES_PER_SOURCE:
            self.refused += 1
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
