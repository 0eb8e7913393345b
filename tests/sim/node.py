"""One simulated node: the real machine, index and trust, and a driver that performs effects in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic import reconcile
from agentmesh.mesh.logic.entry import StoredEntry, Tombstone
from agentmesh.mesh.logic.events import (
    ClosePeer,
    DialPeer,
    DropRecords,
    Effect,
    EndReconcile,
    Event,
    PeersLearned,
    PeerState,
    ReconcileStepped,
    RecordCreated,
    ReportPeer,
    SendMessage,
    SendRecords,
    StepReconcile,
    StoreRecords,
    TimePassed,
)
from agentmesh.mesh.logic.gossip import GossipMachine
from agentmesh.mesh.logic.messages import Gossip, PeerEntry, RecordBatch
from agentmesh.mesh.logic.packing import batches
from agentmesh.mesh.logic.record import Record
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.logic.trust import TRUST_KINDS, Trust
from tests.sim.keys import RULES

if TYPE_CHECKING:
    from tests.sim.network import Conn, Simulator

STEP_MS = 3  # a reconciliation step's time off the event loop


class SimNode:
    """`store` is what is on disk; `deliveries` counts StoreRecords per id in this life; `life` counts starts."""

    def __init__(self, sim: Simulator, number: int, *, dialable: bool, skew_ms: int, inviter: int) -> None:
        self.sim = sim
        self.number = number
        self.key, self.chain = sim.mint.member(number, inviter)
        self.id = self.key.public
        self.dialable = dialable
        self.skew_ms = skew_ms
        self.entry = PeerEntry(self.id, (f"10.0.{number >> 8}.{number & 255}:4800",) if dialable else (), dialable)
        self.group = 0
        self.slow_ms = 0
        self.is_up = False
        self.is_stuck = False
        self.life = 0
        self.store: dict[bytes, Record] = {}
        self.tombstones: list[Tombstone] = []
        self.conns: dict[bytes, Conn] = {}
        self.sent_bytes = 0
        self.sent_messages = 0
        self.deliveries: dict[bytes, int] = {}
        self.states: dict[bytes, PeerState] = {}
        self.closed: list[tuple[bytes, str]] = []
        self._sessions: dict[tuple[bytes, int], Any] = {}
        self._wake_ms = 0
        self._held: list[Event] = []
        self._perform: dict[type, Callable[[Any], None]] = {
            SendMessage: self._send_message,
            SendRecords: self._send_records,
            DialPeer: self._dial,
            ClosePeer: self._close,
            StoreRecords: self._store,
            DropRecords: self._drop,
            StepReconcile: self._step_reconcile,
            EndReconcile: self._end_reconcile,
            ReportPeer: self._report,
        }

    # ------------------------------------------------------------------ life

    def start(self, *bootstrap: SimNode) -> None:
        """(Re)start from what is in the store."""
        sim = self.sim
        self.life += 1
        self.is_up = True
        self.conns, self._sessions, self.deliveries, self.states = {}, {}, {}, {}
        self._wake_ms = 0
        rng = Random(f"{sim.seed} {self.number} {self.life}")
        self._make_state()
        self.machine = GossipMachine(self.entry, self.index, self.trust, sim.mint.verify, rng=rng, config=sim.config)
        member = sim.mint.member_record(self.number)
        if not sim.shared_trust and member.id not in self.index:
            self.create(member)
        self.feed(PeersLearned(tuple(node.entry for node in bootstrap)))

    def _make_state(self) -> None:
        sim = self.sim
        if sim.shared_trust:
            self.trust = sim.nodes[0].trust if self.number else _full_trust(sim)
        else:
            self.trust = Trust(sim.mint.mesh, sim.mint.verify)
            for kind in TRUST_KINDS:
                for record in [record for record in self.store.values() if record.kind == kind]:
                    self.trust.consider(record, self.local_ms(), from_store=True)
            self.trust.take_changes()
        trust = self.trust
        self.index = RecordIndex(RULES, trust.standing, trust.scopes, trust.policy)
        entries = [
            StoredEntry(r.id, r.kind, r.author, r.subkey, r.timestamp_ms, r.expires_ms, r.size_bytes)
            for r in self.store.values()
        ]
        for id_ in self.index.restore(entries, self.tombstones, self.local_ms()):
            self.store.pop(id_, None)

    def crash(self, *, lose_store: bool = False) -> None:
        """The process is gone; nobody is told."""
        self.is_up = False
        self.tombstones = [] if lose_store else self.index.tombstones()
        if lose_store:
            self.store = {}
        for conn in self.conns.values():
            conn.is_open = False

    def unstick(self) -> None:
        """A process that hung goes on where it was; what was sent to it meanwhile is lost, the rest is seen now."""
        self.is_stuck = False
        held, self._held = self._held, []
        for event in held:
            self.feed(event)

    def leave(self) -> None:
        """A clean end: goodbyes, then the connections."""
        self._do(self.machine.farewell("leaving"))
        for conn in list(self.conns.values()):
            self.sim.after(100, self.sim.close, self, conn)
        self.sim.after(101, self.crash)

    def local_ms(self) -> int:
        return self.sim.now_ms + self.skew_ms

    # ------------------------------------------------------------------ events in

    def feed(self, event: Event) -> None:
        if self.is_stuck:
            self._held.append(event)
            return
        now_ms = self.sim.now_ms + self.skew_ms
        self._do(self.machine.handle(event, now_ms))
        deadline_ms = self.machine.next_deadline_ms()
        if deadline_ms is None:
            return
        wake_ms = max(deadline_ms - self.skew_ms, self.sim.now_ms)
        if wake_ms < self._wake_ms or self._wake_ms <= self.sim.now_ms:
            self._wake_ms = wake_ms
            self.sim.at(wake_ms, self._wake, wake_ms, self.life)

    def _wake(self, wake_ms: int, life: int) -> None:
        if self.is_up and life == self.life and wake_ms == self._wake_ms:
            self._wake_ms = 0
            self.feed(TimePassed())

    def create(self, record: Record) -> None:
        """A record of our own: on disk first, then spread."""
        self.store[record.id] = record
        self.deliveries[record.id] = self.deliveries.get(record.id, 0) + 1
        self.feed(RecordCreated(record))

    def post(self, text: str) -> Record:
        timestamp_ms = self.index.next_timestamp(self.id, self.local_ms())
        record = self.sim.mint.post(self.number, text, timestamp_ms)
        self.create(record)
        return record

    # ------------------------------------------------------------------ effects out

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._perform[type(effect)](effect)

    def _send_message(self, effect: SendMessage) -> None:
        self.sim.send(self, effect.peer, effect.message)

    def _send_records(self, effect: SendRecords) -> None:
        signed = [self.store[id_].signed for id_ in effect.ids if id_ in self.store]
        for piece in batches(signed):
            message = RecordBatch(piece) if effect.hop is None else Gossip(piece, effect.hop)
            self.sim.send(self, effect.peer, message)

    def _dial(self, effect: DialPeer) -> None:
        self.sim.dial(self, effect.peer)

    def _close(self, effect: ClosePeer) -> None:
        self.closed.append((effect.peer, effect.reason))
        conn = self.conns.get(effect.peer)
        if conn is not None:
            self.sim.close(self, conn)

    def _store(self, effect: StoreRecords) -> None:
        for record in effect.records:
            self.store[record.id] = record
            self.deliveries[record.id] = self.deliveries.get(record.id, 0) + 1

    def _drop(self, effect: DropRecords) -> None:
        for id_ in effect.ids:
            self.store.pop(id_, None)

    def _report(self, effect: ReportPeer) -> None:
        self.states[effect.peer] = effect.state

    # ------------------------------------------------------------------ reconciliation

    def _step_reconcile(self, effect: StepReconcile) -> None:
        key = (effect.peer, effect.session)
        now_ms = self.local_ms()
        snapshot = self.machine.snapshot(now_ms)
        try:
            if effect.body is None:
                salt = self.sim.rng.randbytes(16)
                step = reconcile.begin(snapshot, salt, now_ms)
            else:
                step = reconcile.respond(snapshot, self._sessions.get(key), effect.body, now_ms)
        except ProtocolError:
            step = reconcile.Step(None, done=True)
        if step.done:
            self._sessions.pop(key, None)
        else:
            self._sessions[key] = step.state
        event = ReconcileStepped(*key, step.reply, step.send, step.want, step.done, step.more)
        self.sim.after(STEP_MS, self._stepped, event, self.life)

    def _stepped(self, event: ReconcileStepped, life: int) -> None:
        if self.is_up and life == self.life:
            self.feed(event)

    def _end_reconcile(self, effect: EndReconcile) -> None:
        self._sessions.pop((effect.peer, effect.session), None)


def _full_trust(sim: Simulator) -> Trust:
    """One evaluated trust that knows everybody, shared by all nodes of a large run."""
    trust = Trust(sim.mint.mesh, sim.mint.verify)
    for number in range(len(sim.nodes)):
        trust.consider(sim.mint.member_record(number), sim.now_ms)
    trust.take_changes()
    return trust
