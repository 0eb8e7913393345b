"""How often each peer may ask for something that costs work: a token bucket per peer. Values in, values out."""

from __future__ import annotations

from typing import Final

from agentmesh.mesh.logic.limits import KNOWN_PEERS

_MAX_PEERS: Final = KNOWN_PEERS


class RequestRate:
    """`burst` requests at once, refilled at `per_ms`. Peers that asked for nothing lately cost nothing."""

    def __init__(self, burst: int, per_ms: float) -> None:
        self._burst = burst
        self._per_ms = per_ms
        self._buckets: dict[bytes, tuple[float, int]] = {}

    def take(self, peer: bytes, now_ms: int) -> bool:
        """Whether `peer` may ask now; if so, it has."""
        left, at_ms = self._buckets.pop(peer, (float(self._burst), now_ms))
        left = min(float(self._burst), left + max(0, now_ms - at_ms) * self._per_ms)
        while len(self._buckets) >= _MAX_PEERS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[peer] = (left - 1 if left >= 1 else left, now_ms)
        return left >= 1
