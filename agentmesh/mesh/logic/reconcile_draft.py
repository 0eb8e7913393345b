"""One answer of a reconciliation being put together: what this side has where the two differ, as cheaply as it can be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

from agentmesh.mesh.logic.fingerprint import short_id
from agentmesh.mesh.logic.limits import RECONCILE_BODY_BYTES
from agentmesh.mesh.logic.reconcile_cells import Cell, Range, Session, split_of
from agentmesh.mesh.logic.reconcile_wire import (
    BUCKET_PRINT_BYTES,
    RANGE_PRINT_BYTES,
    SHORT_ID_BYTES,
    Buckets,
    Exchange,
    Listing,
    Part,
    bits,
    pieces,
)

SPLIT_RANGES = 16
SPLIT_DEPTH = 2  # 8 x 16 time ranges; then buckets cost less than further ranges
SPLIT_FROM = 512  # records: below it, splitting costs more bytes than dealing at once
LIST_UP_TO = 32  # records: listing them costs less than another round trip's framing
MAX_BUCKETS = 16_384  # dealt from one cell
PART_OVERHEAD_BYTES = 16  # array header, tag, cell number, and the headers of its fields


@dataclass(frozen=True, slots=True)
class Found:
    """A cell of the peer's message that differs: its number there, ours of it, and how many the peer has, if it said so."""

    number: int
    ours: Cell
    theirs: int | None


class Draft:
    """The answer being put together, never larger than RECONCILE_BODY_BYTES."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._prints = session.prints
        self._parts: list[Part] = []
        self._cells: list[Cell] = []
        self._listed: list[int] = []
        self._offered: list[int] = []
        self._wanted: list[bool] = []
        self._room = RECONCILE_BODY_BYTES
        self._unwanted: frozenset[bytes] | None = None
        self.more = False

    def read_listing(self, part: Listing, cell: Cell) -> None:
        """The peer told all that it has in a cell: want what we lack, offer what it lacks."""
        ours = cell.members if isinstance(cell, Range) else cell
        theirs = set(pieces(part.ids, SHORT_ID_BYTES))
        ours_short = {self._prints.short(index): index for index in ours}
        for short in pieces(part.ids, SHORT_ID_BYTES):
            self._wanted.append(short not in ours_short and short not in self._refused())
        self._offer([index for short, index in ours_short.items() if short not in theirs])

    def read_offer(self, offered: bytes) -> None:
        self._wanted += [short not in self._refused() for short in pieces(offered, SHORT_ID_BYTES)]

    def lay_out(self, found: Found, differences: float) -> None:
        """Say what we have in a cell that differs, as cheaply as its size and the estimate allow."""
        cell, theirs = found.ours, found.theirs
        members = cell.members if isinstance(cell, Range) else cell
        if theirs == 0:
            self._offer(members)
        elif isinstance(cell, list) or len(members) <= LIST_UP_TO:
            self._list(found.number, members)
        elif cell.depth < SPLIT_DEPTH and len(members) >= SPLIT_FROM:
            self._split(found.number, cell)
        else:
            expected = max(differences, abs(len(members) - (theirs or 0)))
            self._deal(found.number, cell, expected)

    def finish(self) -> Exchange:
        session = self._session
        session.cells = self._cells
        session.shown = self._listed + self._offered
        offered = b"".join([self._prints.short(index) for index in self._offered])
        return Exchange(tuple(self._parts), bits(self._wanted), offered)

    def _refused(self) -> frozenset[bytes]:
        if self._unwanted is None:
            salt = self._prints.salt
            self._unwanted = frozenset(short_id(id_, salt) for id_ in self._session.snapshot.unwanted)
        return self._unwanted

    def _takes(self, size_bytes: int) -> bool:
        if size_bytes > self._room:
            self.more = True
            return False
        self._room -= size_bytes
        return True

    def _offer(self, members: Sequence[int]) -> None:
        fitting = members[: self._room // SHORT_ID_BYTES]
        self.more = self.more or len(fitting) < len(members)
        self._room -= len(fitting) * SHORT_ID_BYTES
        self._offered += fitting

    def _list(self, number: int, members: Sequence[int]) -> None:
        if self._takes(PART_OVERHEAD_BYTES + len(members) * SHORT_ID_BYTES):
            self._parts.append(Listing(number, b"".join([self._prints.short(index) for index in members])))
            self._listed += members

    def _split(self, number: int, cell: Range) -> None:
        part, parts = split_of(self._session, number, cell, SPLIT_RANGES)
        if len(parts) < 2:
            self._deal(number, cell, 1.0)
        elif self._takes(PART_OVERHEAD_BYTES + len(parts) * (RANGE_PRINT_BYTES + 9 + 5)):
            self._parts.append(part)
            self._cells += parts

    def _deal(self, number: int, cell: Range, differences: float) -> None:
        """b buckets cost 6b bytes and then 5dn/b for listing those that differ: least at b = sqrt(5dn/6)."""
        count = len(cell.members)
        ideal = sqrt(differences * count * SHORT_ID_BYTES / BUCKET_PRINT_BYTES)
        buckets = min(ceil(ideal), MAX_BUCKETS)
        if ideal * BUCKET_PRINT_BYTES * 2 >= count * SHORT_ID_BYTES and count <= MAX_BUCKETS:
            self._list(number, cell.members)
        elif self._takes(PART_OVERHEAD_BYTES + buckets * BUCKET_PRINT_BYTES):
            dealt, prints = self._prints.deal(cell.members, buckets)
            self._parts.append(Buckets(number, prints))
            self._cells += [dealt.get(bucket, []) for bucket in range(buckets)]
