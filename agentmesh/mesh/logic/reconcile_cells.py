"""The parts of a reconciliation session's own set that its last message laid out, and how a time range is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentmesh.mesh.logic.fingerprint import HIGHEST, Fingerprints, position
from agentmesh.mesh.logic.reconcile_wire import Split
from agentmesh.mesh.logic.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Range:
    """A cell cut by time: items in [low, high)."""

    members: range
    low: int
    high: int
    depth: int


Cell = Range | list[int]
"""A time range, or the members of a bucket."""


@dataclass(slots=True)
class Session:
    """What one side remembers between two steps. Opaque to callers; owned by one step at a time."""

    prints: Fingerprints
    snapshot: Snapshot
    horizon_ms: int
    initiator: bool
    cells: list[Cell] = field(default_factory=list[Cell])
    shown: list[int] = field(default_factory=list[int])
    steps: int = 0


def sub_ranges(session: Session, cell: Range, bounds: Sequence[int]) -> list[Range]:
    result: list[Range] = []
    start, low = cell.members.start, cell.low
    for high in (*bounds, cell.high):
        stop = session.prints.index_of(high, range(start, cell.members.stop)) if high < HIGHEST else cell.members.stop
        result.append(Range(range(start, stop), low, high, cell.depth + 1))
        start, low = stop, high
    return result


def split_of(session: Session, number: int, cell: Range, ranges: int) -> tuple[Split, list[Cell]]:
    """Cut a range at other records' times into about equal parts, and an empty one after the newest record if it is open."""
    items, members = session.prints.items, cell.members
    cuts = range(1, ranges) if members else ()
    bounds = [position(items[members.start + len(members) * part // ranges]) for part in cuts]
    if members and cell.high == HIGHEST:
        bounds.append(position(items[members.stop - 1]) + 1)
    first = position(items[members.start]) if members else 0
    bounds = [bound for number, bound in enumerate(bounds) if bound > (bounds[number - 1] if number else first)]
    parts = sub_ranges(session, cell, bounds)
    distances = tuple(bound - (bounds[number - 1] if number else 0) for number, bound in enumerate(bounds))
    prints = b"".join([session.prints.range_print(sub_range.members) for sub_range in parts])
    counts = tuple(len(sub_range.members) for sub_range in parts)
    return Split(number, distances, counts, prints), [*parts]
