"""What one peer may still do before it counts as a flood. Two token buckets."""

from __future__ import annotations

from dataclasses import dataclass

from agentmesh.mesh.logic.limits import (
    PEER_IDS_BURST,
    PEER_IDS_PER_SECOND,
    PEER_MESSAGES_BURST,
    PEER_MESSAGES_PER_SECOND,
)


@dataclass(slots=True)
class Allowance:
    refilled_ms: int
    messages: int = PEER_MESSAGES_BURST
    ids: int = PEER_IDS_BURST

    def message(self, now_ms: int) -> bool:
        """Take in one message; False if the peer has sent too many."""
        self._refill(now_ms)
        self.messages -= 1
        return self.messages >= 0

    def grant(self, ids: list[bytes], now_ms: int) -> list[bytes]:
        """As many of these as the peer may be sent now."""
        self._refill(now_ms)
        granted = ids[: max(0, self.ids)]
        self.ids -= len(granted)
        return granted

    def _refill(self, now_ms: int) -> None:
        elapsed_ms = now_ms - self.refilled_ms
        if elapsed_ms >= 1_000:
            self.refilled_ms = now_ms
            self.messages = min(PEER_MESSAGES_BURST, self.messages + elapsed_ms * PEER_MESSAGES_PER_SECOND // 1000)
            self.ids = min(PEER_IDS_BURST, self.ids + elapsed_ms * PEER_IDS_PER_SECOND // 1000)
