"""Who may begin a handshake on the fast path: the gate's counting, with a bounded wait in front of it. Knows no TLS."""

from __future__ import annotations

import asyncio
from collections import Counter

from agentmesh.mesh.logic.handshake_gate import HandshakeGate
from agentmesh.mesh.logic.limits import HANDSHAKE_TIMEOUT_MS
from agentmesh.mesh.logic.transport_limits import MAX_WAITING, MAX_WAITING_PER_SOURCE
from agentmesh.mesh.wakeup import Wakeup


class HandshakeDoor:
    """The same numbers as for QUIC: 64 at once, 4 from one source, a quarter kept for members, a bounded waiting room."""

    def __init__(self) -> None:
        self._gate: HandshakeGate[None] = HandshakeGate()
        self._waiting: Counter[str] = Counter()
        self._left = Wakeup()

    async def enter(self, source: str, *, known: bool) -> bool:
        """Whether a place was found in time; if so, `leave` must follow."""
        if self._gate.enter(source, known=known):
            return True
        if self._waiting.total() >= MAX_WAITING or self._waiting[source] >= MAX_WAITING_PER_SOURCE:
            return False
        self._waiting[source] += 1
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_MS / 1000):
                while not self._gate.enter(source, known=known):
                    await self._left.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting[source] -= 1
            if not self._waiting[source]:
                del self._waiting[source]
        return True

    def leave(self, source: str) -> None:
        """A handshake that had entered has ended, well or badly."""
        self._gate.leave(source)
        self._left.wake()
