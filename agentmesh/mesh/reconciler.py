"""Computes reconciliation steps in a thread and keeps the sessions' state between them. Decides nothing about when.

State: one Session per (peer, session number), at most MAX_KEPT. Owner: the event loop; a session's state is with one
thread at a time, because its peer gets one answer before it sends the next message.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

from agentmesh.core.clock import Clock
from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic import reconcile
from agentmesh.mesh.logic.events import NodeId, ReconcileStepped
from agentmesh.mesh.logic.snapshot import Snapshot

_log = logging.getLogger(__name__)

# The machine bounds how many sessions are open; beyond this the oldest is one whose end was lost.
MAX_KEPT: Final = 64
_SALT_BYTES: Final = 16


class Reconciler:
    """Performs StepReconcile effects."""

    def __init__(self, snapshot: Callable[[int], Snapshot], clock: Clock) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._sessions: dict[tuple[NodeId, int], reconcile.Session] = {}
        self._one_at_a_time = asyncio.Semaphore(1)  # steps are pure Python: side by side they only delay each other

    async def step(self, peer: NodeId, session: int, body: bytes | None) -> ReconcileStepped:
        """One step; a message that no honest peer sends ends the session without an answer."""
        async with self._one_at_a_time:
            now_ms = self._clock.now_ms()
            state = self._sessions.pop((peer, session), None)
            snapshot = self._snapshot(now_ms)
            try:
                step = await asyncio.to_thread(_compute, snapshot, state, body, now_ms)
            except ProtocolError as error:
                _log.info("reconciliation with %s ended: %s", peer.hex()[:8], error)
                return ReconcileStepped(peer, session, reply=None, send=(), want=(), done=True)
        if step.state is not None and not step.done:
            self._sessions[peer, session] = step.state
            while len(self._sessions) > MAX_KEPT:
                del self._sessions[next(iter(self._sessions))]
        return ReconcileStepped(peer, session, step.reply, step.send, step.want, step.done)

    def end(self, peer: NodeId, session: int) -> None:
        """The machine gave this session up."""
        self._sessions.pop((peer, session), None)

    def forget(self, peer: NodeId) -> None:
        """Its connection ended, and its sessions with it."""
        for key in [key for key in self._sessions if key[0] == peer]:
            del self._sessions[key]


def _compute(snapshot: Snapshot, state: reconcile.Session | None, body: bytes | None, now_ms: int) -> reconcile.Step:
    if body is None:
        return reconcile.begin(snapshot, os.urandom(_SALT_BYTES), now_ms)
    return reconcile.respond(snapshot, state, body, now_ms)
