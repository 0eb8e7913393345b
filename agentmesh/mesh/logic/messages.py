"""Messages of the `gossip` stream: what they hold. How they are framed is in frames.py, what they mean in the machines.

Every message is a msgpack array whose first element is its tag. Elements that this version does not know are ignored at
the end of an array, and a message whose tag is unknown is skipped, so that two adjacent versions interoperate.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from agentmesh.mesh.logic.record import SignedRecord

# A number beyond what msgpack or JSON carry exactly could not be sent on: whoever added one to it would break.
Whole = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class PeerEntry(msgspec.Struct, array_like=True, frozen=True):
    """A node as peers tell each other of it. Addresses are `host:port`, best first; an undialable node has none."""

    node: bytes
    addresses: tuple[str, ...]
    dialable: bool


class Message(msgspec.Struct, array_like=True):
    """Base of all gossip messages."""


# ------------------------------------------------------------------ failure detection (SWIM)


class Ping(Message, tag=1):
    """Are you there? `now_ms` is the sender's wall clock.

    `neighbour`: whether the receiver is in the sender's active view, so that both ends come to agree on it.
    """

    sequence: Whole
    incarnation: Whole
    now_ms: Whole
    neighbour: bool | None = None


class Pong(Message, tag=2):
    sequence: Whole
    incarnation: Whole
    now_ms: Whole
    neighbour: bool | None = None


class ProbeRequest(Message, tag=3):
    """Please ping `target` for me, if you are connected to it."""

    sequence: Whole
    target: bytes


class ProbeResult(Message, tag=4):
    sequence: Whole
    target: bytes
    alive: bool
    incarnation: Whole


class Suspicion(Message, tag=5):
    """The sender suspects `node` at `incarnation`; the node itself refutes with a newer incarnation."""

    node: bytes
    incarnation: Whole


class Refutation(Message, tag=6):
    node: bytes
    incarnation: Whole


# ------------------------------------------------------------------ overlay (HyParView)


class Join(Message, tag=10):
    """The first message of a node that (re)joins the overlay: please spread me."""

    entry: PeerEntry


class ForwardJoin(Message, tag=11):
    entry: PeerEntry
    ttl: Whole


class Neighbour(Message, tag=12):
    """Make me your active neighbour. High priority (sender is isolated) may not be refused."""

    entry: PeerEntry
    high_priority: bool


class NeighbourReply(Message, tag=13):
    accepted: bool


class Disconnect(Message, tag=14):
    """The sender no longer has the receiver in its active view; `alive` says that it stays on the mesh."""

    alive: bool


class Shuffle(Message, tag=15):
    origin: PeerEntry
    entries: tuple[PeerEntry, ...]
    ttl: Whole


class ShuffleReply(Message, tag=16):
    """Goes back along the walk that its Shuffle took (the origin may be behind NAT), hop by hop towards `origin`."""

    entries: tuple[PeerEntry, ...]
    origin: bytes = b""


# ------------------------------------------------------------------ broadcast (Plumtree)


class Gossip(Message, tag=20):
    """Records pushed along the tree, with the hops each has travelled so far."""

    records: tuple[SignedRecord, ...]
    hop: Whole


class IHave(Message, tag=21):
    """16-byte ids, concatenated, that the sender can give.

    With `hop` > 0 the ids travel along the tree: a miss is repaired by Graft. With 0 the sender fetched them (from a
    reconciliation, or once an author became known): a miss is asked for by WantRecords and the tree stays as it is.
    """

    ids: bytes
    hop: Whole


class Graft(Message, tag=22):
    """Send me these (concatenated 16-byte ids, perhaps none) and make our link eager."""

    ids: bytes


class Prune(Message, tag=23):
    """Send me ids only."""


# ------------------------------------------------------------------ reconciliation and plain transfer


class Reconcile(Message, tag=30):
    """One step of a range-based set reconciliation; the body's format belongs to reconcile.py.

    The initiator with the smaller node id uses even session numbers, the other odd ones. An empty body from the responder
    means: all my sessions are taken, come back later.
    """

    session: Whole
    body: bytes


class RecordBatch(Message, tag=31):
    """Records the receiver asked for or was found to lack. Not forwarded eagerly; announced to others by IHave."""

    records: tuple[SignedRecord, ...]


class WantRecords(Message, tag=32):
    """Send me these (concatenated 16-byte ids) as RecordBatch. No id at all: all presence (what is never reconciled)."""

    ids: bytes


class Goodbye(Message, tag=40):
    """The sender leaves cleanly; do not suspect it, just forget the link."""

    reason: str


AnyMessage = (
    Ping
    | Pong
    | ProbeRequest
    | ProbeResult
    | Suspicion
    | Refutation
    | Join
    | ForwardJoin
    | Neighbour
    | NeighbourReply
    | Disconnect
    | Shuffle
    | ShuffleReply
    | Gossip
    | IHave
    | Graft
    | Prune
    | Reconcile
    | RecordBatch
    | WantRecords
    | Goodbye
)

KNOWN_TAGS: Final = frozenset((1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23, 30, 31, 32, 40))
