"""The way in for records: shape, signature, trust, index, in this order, cheapest first. Also what waits, and who is to blame.

Records of a peer, of our own and of the waiting pool are judged by the same rules. Owns the pool of "not yet" and the
ledger of blame. Must not know how records travel or where they go next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from agentmesh.core.errors import ProtocolError
from agentmesh.core.units import DAY_MS
from agentmesh.mesh.logic import trust as trusting
from agentmesh.mesh.logic.events import NodeId
from agentmesh.mesh.logic.limits import (
    BAN_MS,
    KNOWN_PEERS,
    MAX_BATCH_RECORDS,
    MAX_BLAME,
    MAX_CLOCK_SKEW_MS,
    PENDING_HORIZON_MS,
)
from agentmesh.mesh.logic.pending import PendingPool
from agentmesh.mesh.logic.record import (
    MAX_BODY_BYTES,
    Record,
    SignedRecord,
    Verify,
    parse_record,
    record_id,
    signature_is_good,
)
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.logic.snapshot import Snapshot
from agentmesh.mesh.logic.trust import TRUST_KINDS, Trust
from agentmesh.mesh.logic.verdict import Accepted, NotYet, Reason, Refused

_TRUST_KINDS = frozenset(TRUST_KINDS)


@dataclass(slots=True)
class Outcome:
    """What came of some records. `fresh` are new and came now; `revived` are new and had waited."""

    fresh: list[Record] = field(default_factory=list[Record])
    revived: list[Record] = field(default_factory=list[Record])
    dropped: dict[bytes, str] = field(default_factory=dict[bytes, str])
    repeats: list[bytes] = field(default_factory=list[bytes])
    waiting: int = 0  # put into the pool
    unplaced: int = 0  # of these, for want of a certificate
    refused: int = 0
    blame: dict[NodeId, int] = field(default_factory=dict[NodeId, int])  # records no honest node could have sent
    out: tuple[NodeId, ...] = ()  # authors that are out from now on

    def add_blame(self, source: NodeId, records: int) -> None:
        if records:
            self.blame[source] = self.blame.get(source, 0) + records


class Inbox:
    """Judges records. Its methods return an Outcome; acting on it is the caller's."""

    def __init__(self, mesh: bytes, index: RecordIndex, trust: Trust, verify: Verify) -> None:
        self._mesh = mesh
        self._index = index
        self._trust = trust
        self._verify = verify
        self._blame: dict[NodeId, tuple[int, int]] = {}  # -> (records, since when)
        self.pool = PendingPool()

    # ------------------------------------------------------------------ questions

    def has(self, id_: bytes, now_ms: int) -> bool:
        """Whether there is nothing to ask for: it is here, it waits here, or it was refused lately."""
        return id_ in self.pool or not self._index.wants(id_, now_ms)

    def snapshot(self, now_ms: int) -> Snapshot:
        """The index's, which must not be asked for what waits here either."""
        snapshot = self._index.snapshot(now_ms)
        if not self.pool:
            return snapshot
        return Snapshot(snapshot.items, (*snapshot.unwanted, *self.pool.ids()))

    # ------------------------------------------------------------------ records

    def receive(self, records: Sequence[SignedRecord], peer: NodeId, now_ms: int) -> Outcome:
        """Records that a peer sent. One message holds at most MAX_BATCH_RECORDS; what is beyond was not asked for."""
        outcome = Outcome()
        for signed in records[:MAX_BATCH_RECORDS]:
            if outcome.blame.get(peer, 0) > MAX_BLAME:
                break  # it is disconnected for these already; the rest would only cost signature checks
            record = self._parse(signed, peer, now_ms, outcome)
            if record is not None:
                self._judge(record, peer, outcome.fresh, now_ms, outcome)
        self._settle(now_ms, outcome)
        return outcome

    def own(self, record: Record, self_id: NodeId, now_ms: int) -> Outcome:
        """A record that this node made: its signature needs no check, its quota does."""
        outcome = Outcome()
        if record.id in self._index:
            outcome.repeats.append(record.id)
            return outcome
        self._judge(record, self_id, outcome.fresh, now_ms, outcome)
        self._settle(now_ms, outcome)
        return outcome

    def tick(self, now_ms: int) -> Outcome:
        """What became acceptable by time."""
        outcome = Outcome()
        for record, source in self.pool.take_ready(now_ms):
            self._judge(record, source, outcome.revived, now_ms, outcome)
        self._settle(now_ms, outcome)
        return outcome

    def expire(self, now_ms: int) -> Outcome:
        """What ended by its own signed time."""
        outcome = Outcome()
        _note_dropped(self._index.expire(now_ms), "expired", outcome)
        self._trust.expire(now_ms)
        self._settle(now_ms, outcome)
        return outcome

    def add_blame(self, peer: NodeId, records: int, now_ms: int) -> int:
        """How many records it has sent lately that no honest node could have sent."""
        count, since_ms = self._blame.pop(peer, (0, now_ms))
        if now_ms - since_ms > BAN_MS:
            count, since_ms = 0, now_ms
        while len(self._blame) >= KNOWN_PEERS:
            del self._blame[next(iter(self._blame))]
        self._blame[peer] = (count + records, since_ms)
        return count + records

    # ------------------------------------------------------------------ judging

    def _parse(self, signed: SignedRecord, peer: NodeId, now_ms: int, outcome: Outcome) -> Record | None:
        """The record, if it is new here and its author signed it."""
        if len(signed.body) > MAX_BODY_BYTES:
            outcome.add_blame(peer, 1)
            return None
        id_ = record_id(signed.body)
        if id_ in self._index or id_ in self.pool:
            outcome.repeats.append(id_)
            return None
        if not self._index.wants(id_, now_ms):
            outcome.refused += 1
            return None
        try:
            record = parse_record(signed, mesh=self._mesh)
        except ProtocolError:
            outcome.add_blame(peer, 1)
            return None
        # The id does not cover the signature: refusing the id of a forgery would refuse the real record with it.
        if not signature_is_good(record, self._verify):
            outcome.add_blame(peer, 1)
            return None
        return record

    def _judge(self, record: Record, source: NodeId, accepted: list[Record], now_ms: int, outcome: Outcome) -> None:
        early_ms = record.timestamp_ms - MAX_CLOCK_SKEW_MS - now_ms
        if early_ms > 0:
            self._hold_early(record, source, early_ms, now_ms, outcome)
            return
        if record.kind in _TRUST_KINDS and not self._is_trusted(record, source, now_ms, outcome):
            return
        verdict = self._index.offer(record, now_ms)
        if isinstance(verdict, Accepted):
            accepted.append(record)
            _note_dropped(verdict.dropped, "replaced, retracted or over quota", outcome)
        elif isinstance(verdict, NotYet):
            self._hold(record, source, outcome)
        elif isinstance(verdict, Refused):
            outcome.refused += 1
            # No clock that admission lets in is a day behind.
            expired_long_ago = verdict.reason is Reason.EXPIRED and now_ms - record.expires_ms > DAY_MS
            outcome.add_blame(source, verdict.blame or expired_long_ago)

    def _is_trusted(self, record: Record, source: NodeId, now_ms: int, outcome: Outcome) -> bool:
        """Trust's word on a certificate, revocation or policy."""
        verdict = self._trust.consider(record, now_ms)
        if verdict.outcome is trusting.Outcome.NOT_YET:
            self._hold(record, source, outcome)
        elif verdict.outcome is trusting.Outcome.REFUSED:
            self._index.refuse(record.id, now_ms)
            outcome.refused += 1
            outcome.add_blame(source, verdict.blame)
        return verdict.outcome is trusting.Outcome.ACCEPTED

    def _hold_early(self, record: Record, source: NodeId, early_ms: int, now_ms: int, outcome: Outcome) -> None:
        """Held while its time is near. Farther off it is forgotten, and refused so that it is not sent over and over."""
        if early_ms > PENDING_HORIZON_MS:
            self._index.refuse(record.id, now_ms)
            outcome.refused += 1
            outcome.add_blame(source, early_ms > DAY_MS)
            return
        self.pool.add(record, source, now_ms + early_ms)
        outcome.waiting += 1

    def _hold(self, record: Record, source: NodeId, outcome: Outcome) -> None:
        self.pool.add(record, source, None)
        outcome.waiting += 1
        outcome.unplaced += 1

    # ------------------------------------------------------------------ what follows from a change of trust

    def _settle(self, now_ms: int, outcome: Outcome) -> None:
        """Until nothing changes any more: what a new certificate brings may itself be a certificate."""
        while changes := self._trust.take_changes():
            outcome.out += changes.out
            for author in changes.out:
                self.pool.drop_author(author)
                _note_dropped(self._index.drop_author(author), "its author is no longer a member", outcome)
            _note_dropped(self._index.drop(changes.dropped, now_ms), "its certificate was revoked", outcome)
            if changes.policy:
                _note_dropped(self._index.requota(now_ms), "over quota", outcome)
            elif changes.moved:
                _note_dropped(self._index.follow(changes.moved, now_ms), "over quota", outcome)
            for author in changes.members:
                for record, source in self.pool.take_author(author):
                    self._judge(record, source, outcome.revived, now_ms, outcome)
            if changes.members:
                for record, source in self.pool.take_kinds(_TRUST_KINDS):
                    self._judge(record, source, outcome.revived, now_ms, outcome)


def _note_dropped(ids: Iterable[bytes], reason: str, outcome: Outcome) -> None:
    for id_ in ids:
        outcome.dropped[id_] = reason
