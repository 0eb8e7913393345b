"""How many connections may be in their handshake at once: in all, and from one source. Counts only."""

from __future__ import annotations

from agentmesh.mesh.logic.limits import MAX_HANDSHAKES, MAX_HANDSHAKES_PER_SOURCE

_FOR_STRANGERS = MAX_HANDSHAKES - MAX_HANDSHAKES // 4  # a quarter is kept for addresses of known members


class HandshakeGate:
    """Call `enter` before anything is done for a connection and, if it answered True, `leave` when its handshake is over."""

    def __init__(self) -> None:
        self._by_source: dict[str, int] = {}
        self._strangers = 0
        self._known = 0

    def __len__(self) -> int:
        return self._strangers + self._known

    def enter(self, source: str, *, known: bool) -> bool:
        """Whether a handshake with `source` (an IP address) may begin. `known`: a member was seen there before."""
        if self._by_source.get(source, 0) >= MAX_HANDSHAKES_PER_SOURCE or len(self) >= MAX_HANDSHAKES:
            return False
        if not known and self._strangers >= _FOR_STRANGERS:
            return False
        self._by_source[source] = self._by_source.get(source, 0) + 1
        if known:
            self._known += 1
        else:
            self._strangers += 1
        return True

    def leave(self, source: str, *, known: bool) -> None:
        """The handshake is over, however it ended. `known` as it was given to `enter`."""
        self._by_source[source] -= 1
        if not self._by_source[source]:
            del self._by_source[source]
        if known:
            self._known -= 1
        else:
            self._strangers -= 1
