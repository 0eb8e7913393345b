"""Range-based set reconciliation: two nodes find out what each lacks. (After Meyer, "Range-Based Set Reconciliation", 2023.)

A session is a strict alternation of messages. The initiator opens with fingerprints of a few time ranges. Each answer says, of
every cell that differs, what its sender has there: large time ranges are split by time once more (differences are mostly
recent, so this finds them at once), then dealt by salted hash into buckets whose number fits the estimated differences, and
small cells are listed as short ids. Who gets a listing says which of it is wanted and offers what was not in it.
Records travel only when wanted, so none that the receiver has, or has refused, is sent.

Costs at most one pass over the snapshot in each step, whatever the peer sends; run it off the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.fingerprint import HIGHEST, LOWEST, Fingerprints
from agentmesh.mesh.logic.limits import MAX_CLOCK_SKEW_MS, RECONCILE_MARGIN_MS, RECONCILE_STEPS
from agentmesh.mesh.logic.reconcile_cells import Cell, Range, Session, split_of, sub_ranges
from agentmesh.mesh.logic.reconcile_draft import SPLIT_DEPTH, Draft, Found
from agentmesh.mesh.logic.reconcile_wire import (
    BUCKET_PRINT_BYTES,
    RANGE_PRINT_BYTES,
    Buckets,
    Exchange,
    Opening,
    Restart,
    Split,
    decode,
    encode,
    pieces,
    set_bits,
)
from agentmesh.mesh.logic.snapshot import Snapshot

OPENING_RANGES = 8  # keeps the opening of two equal sets, with its answer, below 350 bytes


@dataclass(frozen=True, slots=True)
class Step:
    """What came of a step. `reply`: body for the peer; `send`: ids that it wants; `done`: nothing more is expected.

    `more`: differences were left over for want of room; another session should follow soon.
    `want` is always empty: what this side lacks is asked for within `reply`.
    """

    reply: bytes | None
    send: tuple[bytes, ...] = ()
    want: tuple[bytes, ...] = ()
    done: bool = False
    state: Session | None = None
    more: bool = False


def begin(snapshot: Snapshot, salt: bytes, now_ms: int) -> Step:
    """Open a session. `salt`: 16 fresh random bytes."""
    return _open(snapshot, salt, now_ms)


def respond(snapshot: Snapshot, state: Session | None, body: bytes, now_ms: int) -> Step:
    """Answer one message. `state` is the last step's, None for a message that opens a session.

    `snapshot` is used when a session starts; what arrives or goes later waits for the next exchange.

    Raises:
        ProtocolError: no honest peer sends this.
    """
    message = decode(body)
    if isinstance(message, Opening):
        if state is not None:
            raise ProtocolError("A reconciliation was opened twice.")
        return _answer_opening(snapshot, message, now_ms)
    if state is None:
        raise ProtocolError("A reconciliation message belongs to no session.")
    state.steps += 1
    if state.steps > RECONCILE_STEPS:
        raise ProtocolError("A reconciliation takes too many steps.")
    if isinstance(message, Restart):
        return _reopen(state, message, now_ms)
    return _answer(state, message)


def _open(snapshot: Snapshot, salt: bytes, horizon_ms: int, steps: int = 0) -> Step:
    session = _session(snapshot, salt, horizon_ms, initiator=True)
    session.steps = steps
    split, session.cells = split_of(session, 0, _everything(session), OPENING_RANGES)
    body = Opening(salt, horizon_ms, session.prints.root, split)
    return Step(encode(body), state=session)


def _session(snapshot: Snapshot, salt: bytes, horizon_ms: int, *, initiator: bool) -> Session:
    ends_ms = horizon_ms + RECONCILE_MARGIN_MS
    items = [item for item in snapshot.items if item.expires_ms > ends_ms]
    return Session(Fingerprints(items, salt), snapshot, horizon_ms, initiator)


def _everything(session: Session) -> Range:
    return Range(session.prints.whole(), LOWEST, HIGHEST, 0)


def _answer_opening(snapshot: Snapshot, message: Opening, now_ms: int) -> Step:
    if message.horizon_ms > now_ms + MAX_CLOCK_SKEW_MS:
        return Step(encode(Exchange()), done=True)  # one of the two clocks is wrong; nothing can be agreed on
    if message.horizon_ms + RECONCILE_MARGIN_MS < now_ms:
        return Step(encode(Restart(now_ms)))
    session = _session(snapshot, message.salt, message.horizon_ms, initiator=False)
    if session.prints.root == message.root:
        return Step(encode(Exchange()), done=True)
    session.cells = [_everything(session)]
    return _answer(session, Exchange(parts=(message.split,)))


def _reopen(state: Session, message: Restart, now_ms: int) -> Step:
    if not state.initiator or state.steps != 1 or message.horizon_ms <= state.horizon_ms:
        raise ProtocolError("A reconciliation cannot be restarted here.")
    if message.horizon_ms > now_ms + MAX_CLOCK_SKEW_MS:
        return Step(None, done=True)
    return _open(state.snapshot, state.prints.salt, message.horizon_ms, state.steps)


def _answer(session: Session, message: Exchange) -> Step:
    send = _wanted_ids(session, message.wanted)
    if not message.asks:
        return Step(None, send, done=True)
    draft = Draft(session)
    differing = _read_parts(session, message, draft)
    draft.read_offer(message.offered)
    differences = _differences_in_each(differing)
    for found in differing.cells:
        draft.lay_out(found, differences)
    reply = draft.finish()
    return Step(encode(reply), send, done=not reply.asks, state=session if reply.asks else None, more=draft.more)


def _wanted_ids(session: Session, wanted: bytes) -> tuple[bytes, ...]:
    if len(wanted) * 8 >= len(session.shown) + 8:
        raise ProtocolError("A reconciliation asks for more than was shown.")
    numbers = list(set_bits(wanted))
    if numbers and numbers[-1] >= len(session.shown):
        raise ProtocolError("A reconciliation asks for what was not shown.")
    items, shown = session.prints.items, session.shown
    return tuple(items[index].id for index in sorted(shown[number] for number in numbers))


# ------------------------------------------------------------------ reading: which cells differ


@dataclass(slots=True)
class _Differing:
    cells: list[Found] = field(default_factory=list[Found])
    ranges_compared: int = 0
    ranges_differing: int = 0


def _read_parts(session: Session, message: Exchange, draft: Draft) -> _Differing:
    differing = _Differing()
    number = 0  # of the peer's next cell
    for part in message.parts:
        if part.cell >= len(session.cells):
            raise ProtocolError("A reconciliation names a cell that there is not.")
        cell = session.cells[part.cell]
        if isinstance(part, Split):
            number = _compare_split(session, part, cell, number, differing)
        elif isinstance(part, Buckets):
            number = _compare_buckets(session, part, cell, number, differing)
        else:
            draft.read_listing(part, cell)
    return differing


def _compare_split(session: Session, part: Split, cell: Cell, number: int, differing: _Differing) -> int:
    bounds = part.positions()
    if isinstance(cell, list) or cell.depth > SPLIT_DEPTH:
        raise ProtocolError("A reconciliation splits what cannot be split.")
    if bounds and not cell.low < bounds[0] <= bounds[-1] < cell.high:
        raise ProtocolError("A reconciliation range leaves its cell.")
    ours = sub_ranges(session, cell, bounds)
    for sub_range, theirs, print_ in zip(ours, part.counts, pieces(part.prints, RANGE_PRINT_BYTES), strict=True):
        if len(sub_range.members) != theirs or session.prints.range_print(sub_range.members) != print_:
            differing.cells.append(Found(number, sub_range, theirs))
            differing.ranges_differing += 1
        number += 1
    differing.ranges_compared += len(ours)
    return number


def _compare_buckets(session: Session, part: Buckets, cell: Cell, number: int, differing: _Differing) -> int:
    if isinstance(cell, list):
        raise ProtocolError("A reconciliation deals out what was dealt already.")
    theirs = part.prints
    buckets = len(theirs) // BUCKET_PRINT_BYTES
    dealt, ours = session.prints.deal(cell.members, buckets)
    for bucket in range(buckets):
        start = bucket * BUCKET_PRINT_BYTES
        if ours[start : start + BUCKET_PRINT_BYTES] != theirs[start : start + BUCKET_PRINT_BYTES]:
            differing.cells.append(Found(number + bucket, dealt.get(bucket, []), None))
    return number + buckets


def _differences_in_each(differing: _Differing) -> float:
    """How many records differ in each differing range, judged by how many ranges do not (linear counting)."""
    compared, different = differing.ranges_compared, differing.ranges_differing
    if different == 0:
        return 1.0
    if different == compared:
        return log(compared) + 1
    return -log(1 - different / compared) * compared / different
