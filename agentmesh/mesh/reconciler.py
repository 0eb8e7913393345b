"""Computes reconciliation steps in a thread and keeps the sessions' state between them. Decides nothing about when.

State: one Session per (peer, session number), at most MAX_KEPT; which sessions are alive; how often each peer may still
open one. Owner: the event loop; a session's state is with one thread at a time, because its peer gets one answer before it
sends the next message. Opening costs a pass over everything kept, so a peer that opens session after session is told that
we are busy, and what waits for a session that is over is not computed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Final

from agentmesh.core.clock import Clock
from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic import reconcile
from agentmesh.mesh.logic.events import NodeId, ReconcileStepped
from agentmesh.mesh.logic.snapshot import Snapshot

_log = logging.getLogger(__name__)

# The machine bounds how many sessions are open; beyond this the oldest is one whose end was lost.
MAX_KEPT: Final = 64
# Openings of one peer within OPENINGS_EVERY_S. An honest one opens every five seconds at most, and repeats one twice.
MAX_OPENINGS: Final = 12
OPENINGS_EVERY_S: Final = 30.0
_SALT_BYTES: Final = 16
_BUSY: Final = b""  # an empty body asks the peer to come back later


class Reconciler:
    """Performs StepReconcile effects."""

    def __init__(self, snapshot: Callable[[int], Snapshot], clock: Clock) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._sessions: dict[tuple[NodeId, int], reconcile.Session] = {}
        self._alive: dict[tuple[NodeId, int], object] = {}  # sessions with a step in progress, and which step it is
        self._openings: Counter[NodeId] = Counter()
        self._openings_since_s = 0.0
        self._one_at_a_time = asyncio.Semaphore(1)  # steps are pure Python: side by side they only delay each other

    @property
    def sessions(self) -> int:
        """Whose state is kept."""
        return len(self._sessions)

    def step(self, peer: NodeId, session: int, body: bytes | None) -> Coroutine[None, None, ReconcileStepped]:
        """One step; a message that no honest peer sends ends the session without an answer.

        It counts as begun when this returns: `end` finds it, although nobody awaits it yet.
        """
        turn = object()
        self._alive[peer, session] = turn
        return self._step((peer, session), turn, body)

    async def _step(self, key: tuple[NodeId, int], turn: object, body: bytes | None) -> ReconcileStepped:
        try:
            if body is not None and key not in self._sessions and not self._may_open(key[0]):
                return ReconcileStepped(*key, _BUSY, (), (), done=True)
            return await self._step_in_turn(key, turn, body)
        finally:
            if self._alive.get(key) is turn:
                del self._alive[key]

    async def _step_in_turn(self, key: tuple[NodeId, int], turn: object, body: bytes | None) -> ReconcileStepped:
        over = ReconcileStepped(*key, None, (), (), done=True)
        async with self._one_at_a_time:
            if self._alive.get(key) is not turn:
                return over
            now_ms = self._clock.now_ms()
            state = self._sessions.pop(key, None)
            snapshot = self._snapshot(now_ms) if state is None else state.snapshot
            try:
                step = await asyncio.to_thread(_compute, snapshot, state, body, now_ms)
            except ProtocolError as error:
                _log.info("reconciliation with %s ended: %s", key[0].hex()[:8], error)
                return over
        if step.state is not None and not step.done and self._alive.get(key) is turn:
            self._sessions[key] = step.state
            while len(self._sessions) > MAX_KEPT:
                del self._sessions[next(iter(self._sessions))]
        return ReconcileStepped(*key, step.reply, step.send, step.want, step.done, step.more)

    def _may_open(self, peer: NodeId) -> bool:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._openings_since_s >= OPENINGS_EVERY_S:
            self._openings.clear()
            self._openings_since_s = now_s
        self._openings[peer] += 1
        return self._openings[peer] <= MAX_OPENINGS

    def end(self, peer: NodeId, session: int) -> None:
        """The machine gave this session up."""
        self._sessions.pop((peer, session), None)
        self._alive.pop((peer, session), None)

    def forget(self, peer: NodeId) -> None:
        """Its connection ended, and its sessions with it."""
        for kept in (self._sessions, self._alive):
            for key in [key for key in kept if key[0] == peer]:
                del kept[key]


def _compute(snapshot: Snapshot, state: reconcile.Session | None, body: bytes | None, now_ms: int) -> reconcile.Step:
    if body is None:
        return reconcile.begin(snapshot, os.urandom(_SALT_BYTES), now_ms)
    return reconcile.respond(snapshot, state, body, now_ms)
