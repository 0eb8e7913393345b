"""When to reconcile and with whom; sessions in progress; asking for presence. The sets and their ranges are reconcile.py's.

A node begins one session at a time, so that the records it lacks come once and not from every peer at the same moment;
it answers RECONCILE_SESSIONS at once. Who dialled begins on a new link. Must not know records, the tree, or how a step is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentmesh.mesh.logic.chance import Chance
from agentmesh.mesh.logic.events import (
    Effect,
    EndReconcile,
    NodeId,
    ReconcileStepped,
    SendMessage,
    SendRecords,
    StepReconcile,
)
from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.limits import (
    PRESENCE_EVERY_MS,
    RECONCILE_AGAIN_MS,
    RECONCILE_ATTEMPTS,
    RECONCILE_BUSY_MS,
    RECONCILE_FOLLOW_UPS,
    RECONCILE_QUIET_MS,
    RECONCILE_SESSIONS,
)
from agentmesh.mesh.logic.messages import Reconcile, WantRecords
from agentmesh.mesh.logic.packing import join_ids

_TICK_MS = 500
_SPREAD_MS = 1_000  # news go on within this, spread by chance


@dataclass(slots=True)
class _Session:
    """`stepping`: a step is being computed; what the peer sends meanwhile is out of turn and ignored.

    `differs`: the two sets were not equal at the first look.
    """

    number: int
    deadline_ms: int
    stepping: bool = False
    steps: int = 0
    differs: bool = False


@dataclass(slots=True)
class _Link:
    """What reconciliation remembers of one connected peer."""

    due_ms: int | None = None  # when to begin a session with it
    attempts: int = 0
    follow_ups: int = 0
    began_ms: int = 0
    batch_ms: int = 0  # its last RecordBatch
    presence_ms: int = 0  # when we last gave it all presence
    answering: _Session | None = None


class Exchange:
    """`done` counts sessions that ended well, `failed` those that timed out."""

    def __init__(self, self_id: NodeId, config: GossipConfig, rng: Chance) -> None:
        self._self_id = self_id
        self._config = config
        self._rng = rng
        self._links: dict[NodeId, _Link] = {}
        self._own: tuple[NodeId, _Session] | None = None
        self._number = rng.randrange(1 << 24)
        self._regular_ms = 0
        self._presence_due = False
        self._presence_asked_ms = 0
        self.deadline_ms: int | None = None
        self.done = 0
        self.failed = 0

    # ------------------------------------------------------------------ links

    def connected(self, peer: NodeId, outbound: bool, now_ms: int, out: list[Effect]) -> None:
        if self.deadline_ms is None:
            self.deadline_ms = now_ms + 1
            self._regular_ms = now_ms + self._rng.randrange(self._config.reconcile_every_ms)
        if not self._links:
            self._presence_due = True
        self.lost(peer, out)
        self._links[peer] = _Link(due_ms=now_ms if outbound else None)
        self._stay_awake(now_ms)
        if outbound:
            self._begin_next(now_ms, out)

    def lost(self, peer: NodeId, out: list[Effect]) -> None:
        link = self._links.pop(peer, None)
        if link is not None and link.answering is not None:
            out.append(EndReconcile(peer, link.answering.number))
        if self._own is not None and self._own[0] == peer:
            out.append(EndReconcile(peer, self._own[1].number))
            self._own = None

    # ------------------------------------------------------------------ reasons to reconcile

    def want_soon(self, peer: NodeId, now_ms: int) -> None:
        """This peer seems to know something that we do not (a post whose author we cannot place)."""
        link = self._links.get(peer)
        if link is not None:
            self._schedule(link, now_ms)
            self._stay_awake(now_ms)

    def spread(self, peers: Sequence[NodeId], source: NodeId | None, now_ms: int) -> None:
        """Much news came at once: whoever else we are linked to is told by reconciliation, which costs what differs."""
        self._presence_due = True
        self._stay_awake(now_ms)
        for peer in peers:
            link = self._links.get(peer)
            if link is not None and peer != source:
                self._schedule(link, now_ms + self._rng.randrange(_SPREAD_MS))

    def batch_came(self, peer: NodeId, now_ms: int) -> None:
        link = self._links.get(peer)
        if link is not None:
            link.batch_ms = now_ms

    def may_have_presence(self, peer: NodeId, now_ms: int) -> bool:
        """Whether a peer that asks for all presence is given it now."""
        link = self._links.get(peer)
        if link is None or (link.presence_ms and now_ms - link.presence_ms < PRESENCE_EVERY_MS):
            return False
        link.presence_ms = now_ms
        return True

    # ------------------------------------------------------------------ sessions

    def on_reconcile(self, peer: NodeId, message: Reconcile, now_ms: int, out: list[Effect]) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        self._stay_awake(now_ms)
        if message.session & 1 == self._parity(self._self_id, peer):
            self._on_answer(peer, link, message, now_ms, out)
        elif message.body:
            self._on_question(peer, link, message, now_ms, out)

    def stepped(self, event: ReconcileStepped, now_ms: int, out: list[Effect]) -> None:
        """The driver computed a step. What it says of a session that is over meanwhile is still worth sending."""
        link = self._links.get(event.peer)
        if link is None:
            return
        self._stay_awake(now_ms)
        if event.send:
            out.append(SendRecords(event.peer, event.send))
        out.extend(SendMessage(event.peer, WantRecords(piece)) for piece in join_ids(event.want))
        session = self._find(event.peer, link, event.session)
        if session is None:
            return
        if event.reply is not None:
            session.differs |= session.steps > 0
            out.append(SendMessage(event.peer, Reconcile(event.session, event.reply)))
        session.steps += 1
        session.deadline_ms = now_ms + self._config.reconcile_timeout_ms
        session.stepping = False
        if event.more:
            self._schedule(link, now_ms)
        if event.done:
            self._finish(event.peer, link, session, now_ms, out)

    # ------------------------------------------------------------------ time

    def tick(self, now_ms: int, out: list[Effect]) -> None:
        if self.deadline_ms is None or now_ms < self.deadline_ms:
            return
        self._time_out(now_ms, out)
        if self._regular_ms <= now_ms:
            every_ms = self._config.reconcile_every_ms
            self._regular_ms = now_ms + every_ms // 2 + self._rng.randrange(every_ms)
            peers = list(self._links)
            if peers:
                self._schedule(self._links[peers[self._rng.randrange(len(peers))]], now_ms)
        self._begin_next(now_ms, out)
        busy = self._own is not None or any(
            link.due_ms is not None or link.answering is not None for link in self._links.values()
        )
        self.deadline_ms = now_ms + _TICK_MS if busy else self._regular_ms

    def _stay_awake(self, now_ms: int) -> None:
        """There is something to watch: tick soon."""
        if self.deadline_ms is not None:
            self.deadline_ms = min(self.deadline_ms, now_ms + _TICK_MS)

    # ------------------------------------------------------------------ parts

    def _parity(self, initiator: NodeId, responder: NodeId) -> int:
        return int(initiator > responder)

    def _schedule(self, link: _Link, due_ms: int) -> None:
        if link.due_ms is None:
            link.due_ms = max(due_ms, link.began_ms + RECONCILE_AGAIN_MS) if link.began_ms else due_ms
            link.attempts = 0

    def _begin_next(self, now_ms: int, out: list[Effect]) -> None:
        if self._own is not None:
            return
        ready: tuple[int, NodeId] | None = None
        for peer, link in self._links.items():
            if link.due_ms is None or link.due_ms > now_ms or now_ms - link.batch_ms < RECONCILE_QUIET_MS:
                continue
            if ready is None or link.due_ms < ready[0]:
                ready = (link.due_ms, peer)
        if ready is None:
            return
        peer = ready[1]
        link = self._links[peer]
        link.due_ms = None
        link.began_ms = now_ms
        link.attempts += 1
        self._number = (self._number + 1) % (1 << 30)
        session = _Session(
            2 * self._number + self._parity(self._self_id, peer), now_ms + self._config.reconcile_timeout_ms
        )
        session.stepping = True
        self._own = (peer, session)
        out.append(StepReconcile(peer, session.number, None))

    def _on_answer(self, peer: NodeId, link: _Link, message: Reconcile, now_ms: int, out: list[Effect]) -> None:
        if self._own is None or self._own[0] != peer or self._own[1].number != message.session:
            return
        if message.body:
            self._step(peer, self._own[1], message.body, now_ms, out)
            return
        self._own = None
        link.due_ms = now_ms + RECONCILE_BUSY_MS + self._rng.randrange(RECONCILE_BUSY_MS)
        out.append(EndReconcile(peer, message.session))
        self._begin_next(now_ms, out)

    def _on_question(self, peer: NodeId, link: _Link, message: Reconcile, now_ms: int, out: list[Effect]) -> None:
        if link.answering is None or link.answering.number != message.session:
            if link.answering is not None:
                out.append(EndReconcile(peer, link.answering.number))
                link.answering = None
            # While its records still come in we would ask for them again.
            receiving = link.batch_ms and now_ms - link.batch_ms < RECONCILE_QUIET_MS
            if (
                receiving
                or sum(1 for other in self._links.values() if other.answering is not None) >= RECONCILE_SESSIONS
            ):
                out.append(SendMessage(peer, Reconcile(message.session, b"")))
                return
            link.answering = _Session(message.session, 0)
        self._step(peer, link.answering, message.body, now_ms, out)

    def _step(self, peer: NodeId, session: _Session, body: bytes, now_ms: int, out: list[Effect]) -> None:
        if not session.stepping:
            session.stepping = True
            session.deadline_ms = now_ms + self._config.reconcile_timeout_ms
            out.append(StepReconcile(peer, session.number, body))

    def _find(self, peer: NodeId, link: _Link, number: int) -> _Session | None:
        if link.answering is not None and link.answering.number == number:
            return link.answering
        if self._own is not None and self._own[0] == peer and self._own[1].number == number:
            return self._own[1]
        return None

    def _finish(self, peer: NodeId, link: _Link, session: _Session, now_ms: int, out: list[Effect]) -> None:
        self.done += 1
        link.attempts = 0
        if link.answering is session:
            link.answering = None
        else:
            self._own = None
            self._follow_up(link, session, now_ms)
        # Presence is worth nothing before its authors' certificates are here, so it is asked for after a session.
        if self._presence_due and now_ms - self._presence_asked_ms >= PRESENCE_EVERY_MS:
            self._presence_due = False
            self._presence_asked_ms = now_ms
            out.append(SendMessage(peer, WantRecords(b"")))
        self._begin_next(now_ms, out)

    def _follow_up(self, link: _Link, session: _Session, now_ms: int) -> None:
        """Check whether what differed arrived. Some differences are meant to last, so this ends."""
        if not session.differs:
            link.follow_ups = 0
        elif link.follow_ups < RECONCILE_FOLLOW_UPS:
            self._schedule(link, now_ms + RECONCILE_AGAIN_MS * 2**link.follow_ups)
            link.follow_ups += 1

    def _time_out(self, now_ms: int, out: list[Effect]) -> None:
        for peer, link in self._links.items():
            if link.answering is not None and link.answering.deadline_ms <= now_ms:
                out.append(EndReconcile(peer, link.answering.number))
                link.answering = None
        if self._own is None or self._own[1].deadline_ms > now_ms:
            return
        peer, session = self._own
        self._own = None
        self.failed += 1
        out.append(EndReconcile(peer, session.number))
        link = self._links[peer]
        if link.attempts < RECONCILE_ATTEMPTS:
            link.due_ms = now_ms + self._rng.randrange(RECONCILE_BUSY_MS)
