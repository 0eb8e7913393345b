"""What one reader has not read yet, as ranges of arrival numbers.

Arrival numbers count up as posts become visible on this node, so a post with an old timestamp that arrives late is new here.
Pages are newest first; what a page leaves over stays unread below it, and what arrives meanwhile above it: nothing is shown
twice, nothing is missed, however far behind the reader is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from agentmesh.blackboard.logic.limits import MAX_UNREAD_RANGES

FOREVER: Final = 2**62


@dataclass(frozen=True, slots=True)
class Unread:
    """Half-open ranges [start, stop) of arrival numbers, newest first, apart from each other; the first is open-ended."""

    ranges: tuple[tuple[int, int], ...] = ((0, FOREVER),)

    @property
    def crowded(self) -> bool:
        """No further gap may open: pages of the newest range then come oldest first."""
        return len(self.ranges) >= MAX_UNREAD_RANGES

    def contains(self, arrival: int) -> bool:
        return any(start <= arrival < stop for start, stop in self.ranges)

    def without(self, start: int, stop: int) -> Unread:
        """After reading everything that was wanted in [start, stop)."""
        kept: list[tuple[int, int]] = []
        for low, high in self.ranges:
            kept.extend(r for r in ((max(low, stop), high), (low, min(high, start))) if r[0] < r[1])
        return Unread(tuple(kept))

    def forgetting_below(self, oldest: int) -> Unread:
        """Without ranges in which no post lives any more."""
        kept = [(max(low, oldest), high) for low, high in self.ranges if high > oldest]
        return Unread(tuple(kept) or ((oldest, FOREVER),))


def encode_unread(unread: Unread) -> bytes:
    return msgspec.msgpack.encode(unread.ranges)


def decode_unread(raw: bytes) -> Unread:
    """What was stored for the reader; damaged bytes mean a reader of whom nothing is known."""
    try:
        ranges = msgspec.msgpack.decode(raw, type=tuple[tuple[int, int], ...])
    except msgspec.MsgspecError:
        return Unread()
    return Unread(ranges) if ranges else Unread()
