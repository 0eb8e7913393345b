"""What goes into the gossip machine and what comes out: the contract between pure logic and its drivers.

In-events are past tense, effects imperative. One entry: `GossipMachine.handle(event, now_ms) -> list[Effect]`. The
driver (driver.py on real connections, tests/sim in virtual time) feeds every event in the order it happened, performs
every effect in the order returned, and calls `handle(TimePassed(), now_ms)` no later than `next_deadline_ms()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentmesh.mesh.logic.messages import AnyMessage, PeerEntry
from agentmesh.mesh.logic.record import Record

NodeId = bytes


class PeerState(StrEnum):
    """What failure detection says of a peer that we were connected to."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


# ------------------------------------------------------------------ in-events


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """An authenticated connection is up (after admission), in either direction."""

    peer: NodeId
    addresses: tuple[str, ...]
    dialable: bool
    outbound: bool


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The connection ended, whoever ended it."""

    peer: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class LinkUsed:
    """Streams of a higher layer began (+1) or ended (-1) on the link: one that carries any is not closed as idle."""

    peer: NodeId
    streams: int


@dataclass(frozen=True, slots=True)
class DialFailed:
    peer: NodeId


@dataclass(frozen=True, slots=True)
class PeersLearned:
    """Addresses from a token, the known-peers file, or discovery."""

    entries: tuple[PeerEntry, ...]


@dataclass(frozen=True, slots=True)
class MessageReceived:
    peer: NodeId
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class RecordCreated:
    """This node signed and durably stored a record of its own; spread it."""

    record: Record


@dataclass(frozen=True, slots=True)
class ReconcileStepped:
    """A StepReconcile effect was computed (off the event loop).

    `reply` goes to the peer unless None; `send` are ids that the peer lacks; `want` ids (full, 16 bytes) to ask for; `done` ends the session.
    `more`: differences were left over, so another session should follow soon.
    """

    peer: NodeId
    session: int
    reply: bytes | None
    send: tuple[bytes, ...]
    want: tuple[bytes, ...]
    done: bool
    more: bool = False


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The machine's deadline has come (or the driver chose to look)."""


Event = (
    PeerConnected
    | PeerLost
    | LinkUsed
    | DialFailed
    | PeersLearned
    | MessageReceived
    | RecordCreated
    | ReconcileStepped
    | TimePassed
)

# ------------------------------------------------------------------ effects


@dataclass(frozen=True, slots=True)
class SendMessage:
    peer: NodeId
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class SendRecords:
    """Load these records from the store and send them, paced, as RecordBatch (or Gossip with hop when `hop` is given)."""

    peer: NodeId
    ids: tuple[bytes, ...]
    hop: int | None = None


@dataclass(frozen=True, slots=True)
class DialPeer:
    peer: NodeId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClosePeer:
    peer: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class StoreRecords:
    """Newly accepted records: persist them and hand them to their kind's service."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class DropRecords:
    """Records no longer kept (expired, over quota, replaced, retracted, author out): delete and tell their kind's service."""

    ids: tuple[bytes, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class StepReconcile:
    """Compute one reconciliation step on a snapshot of the index; `body` None begins a session as initiator.

    The driver keeps the session's state between steps. It forgets it after a step that says `done`, on EndReconcile, and when
    the peer's link ends. A (peer, session) that it does not know, with a body, begins a session as responder. Every
    StepReconcile is answered by one ReconcileStepped, also when the peer's body was malformed (then `done`, nothing else).
    """

    peer: NodeId
    session: int
    body: bytes | None


@dataclass(frozen=True, slots=True)
class EndReconcile:
    """The session is over without a last step (it timed out, or the peer had no room for it): forget its state."""

    peer: NodeId
    session: int


@dataclass(frozen=True, slots=True)
class ReportPeer:
    """A peer's state changed: for routing and status."""

    peer: NodeId
    state: PeerState


Effect = (
    SendMessage
    | SendRecords
    | DialPeer
    | ClosePeer
    | StoreRecords
    | DropRecords
    | StepReconcile
    | EndReconcile
    | ReportPeer
)
