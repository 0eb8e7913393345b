"""Which of an author's records count: quotas as a function of the signed set, whatever order it arrived in.

The constraints nest: an author's minute within its UTC day, within the days of the subtrees that it was invited into, innermost
first. Sets kept within nested caps, smallest (timestamp, id) first, form a laminar matroid, and there the greedy choice may forget
what it rejected: keep(keep(A) | B) == keep(A | B). A cap per subtree and *minute* would cross the author's day and lose
that (tests/property/test_quota.py shows arrival order then deciding). So would a subtree that lies in two others, which is
why a subtree is named here by its whole path of ancestors.

Knows slots (timestamp, id) only. A slot stays when its record expires, is retracted or evicted, until its day is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from agentmesh.core.units import DAY_MS, MINUTE_MS
from agentmesh.mesh.logic.entry import Entry, first_since, place_of
from agentmesh.mesh.logic.limits import SUBTREE_QUOTA_FACTOR

Path = tuple[bytes, ...]
Scopes = Callable[[bytes], Path]
"""The subtrees that an author is in, innermost first."""


class Quotas(Protocol):
    """The part of the mesh's policy that is needed here."""

    @property
    def posts_per_minute(self) -> int: ...

    @property
    def posts_per_day(self) -> int: ...


class _Day:
    """The slots of one UTC day, sorted, by author and by subtree."""

    __slots__ = ("authors", "subtrees")

    def __init__(self) -> None:
        self.authors: dict[bytes, list[Entry]] = {}
        self.subtrees: dict[Path, list[Entry]] = {}


class QuotaBook:
    """All slots in use. `place` decides, and says which other slot had to make room."""

    def __init__(self, scopes: Scopes, policy: Callable[[], Quotas]) -> None:
        self._scopes = scopes
        self._policy = policy
        self._days: dict[int, _Day] = {}
        self._subtrees_of: dict[bytes, tuple[Path, ...]] = {}
        self._interned: dict[Path, tuple[Path, ...]] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Every slot's entry by day, author and time; the authors of a day in the order in which they came."""
        for number in sorted(self._days):
            for mine in self._days[number].authors.values():
                yield from mine

    def holder(self, entry: Entry) -> Entry | None:
        """Who holds the slot that `entry` would take."""
        day = self._days.get(entry.timestamp_ms // DAY_MS)
        mine = day.authors.get(entry.author) if day else None
        if mine is None:
            return None
        place = place_of(entry, mine)
        return mine[place] if place < len(mine) and mine[place].slot == entry.slot else None

    def replace(self, old: Entry, new: Entry) -> None:
        """Put `new` into the slot of `old`."""
        day = self._days[old.timestamp_ms // DAY_MS]
        for slots in self._lists(day, old):
            slots[place_of(old, slots)] = new

    def place(self, entry: Entry) -> Entry | None:
        """Take a slot for `entry`, whose slot is free. Returns the entry that loses its slot, perhaps `entry` itself, or None."""
        loser = self._loser(entry)
        if loser is entry:
            return entry
        if loser is not None:
            self.remove(loser)
        day = self._days.setdefault(entry.timestamp_ms // DAY_MS, _Day())
        day.authors.setdefault(entry.author, [])
        for subtree in self._subtrees(entry.author):
            day.subtrees.setdefault(subtree, [])
        for slots in self._lists(day, entry):
            slots.insert(place_of(entry, slots), entry)
        return loser

    def remove(self, entry: Entry) -> None:
        """Free the slot of `entry`, which holds one."""
        number = entry.timestamp_ms // DAY_MS
        day = self._days[number]
        for slots in self._lists(day, entry):
            del slots[place_of(entry, slots)]
        if not day.authors[entry.author]:
            del day.authors[entry.author]
        for subtree in self._subtrees(entry.author):
            if not day.subtrees[subtree]:
                del day.subtrees[subtree]
        if not day.authors:
            del self._days[number]

    def moved(self, author: bytes) -> bool:
        """Whether the author's subtrees are no longer those that its slots were placed under."""
        known = self._subtrees_of.get(author)
        return known is not None and known is not self._suffixes(self._scopes(author))

    def take_author(self, author: bytes) -> list[Entry]:
        """Free and return all slots of one author, oldest first."""
        taken = [entry for number in sorted(self._days) for entry in self._days[number].authors.get(author, ())]
        for entry in taken:
            self.remove(entry)
        self._subtrees_of.pop(author, None)
        return taken

    def take_all(self) -> list[Entry]:
        """Free and return all slots, oldest first."""
        taken = sorted(self, key=lambda entry: entry.slot)
        self._days.clear()
        self._subtrees_of.clear()
        self._interned.clear()
        return taken

    def end_days(self, before_ms: int) -> None:
        """Forget the days that ended before this time."""
        ended = [number for number in self._days if (number + 1) * DAY_MS <= before_ms]
        for number in ended:
            del self._days[number]
        if ended:
            present = {author for day in self._days.values() for author in day.authors}
            self._subtrees_of = {author: known for author, known in self._subtrees_of.items() if author in present}

    def used(self, author: bytes, now_ms: int) -> tuple[int, int, int]:
        """How many slots an author holds in this minute, on this day, and the fullest of its subtrees on this day."""
        day = self._days.get(now_ms // DAY_MS)
        if day is None:
            return 0, 0, 0
        mine = day.authors.get(author, [])
        minute_ms = now_ms - now_ms % MINUTE_MS
        start = first_since(mine, minute_ms)
        end = first_since(mine, minute_ms + MINUTE_MS)
        return end - start, len(mine), max((len(day.subtrees.get(s, ())) for s in self._subtrees(author)), default=0)

    def _loser(self, entry: Entry) -> Entry | None:
        """The largest slot of the innermost full constraint that `entry` would overfill, else None."""
        policy = self._policy()
        day = self._days.get(entry.timestamp_ms // DAY_MS)
        if day is None:
            return entry if min(policy.posts_per_minute, policy.posts_per_day) < 1 else None
        mine = day.authors.get(entry.author, [])
        minute_ms = entry.timestamp_ms - entry.timestamp_ms % MINUTE_MS
        start = first_since(mine, minute_ms)
        end = first_since(mine, minute_ms + MINUTE_MS)
        if end - start >= policy.posts_per_minute:
            return _larger(mine[end - 1], entry) if end > start else entry
        if len(mine) >= policy.posts_per_day:
            return _larger(mine[-1], entry) if mine else entry
        cap = policy.posts_per_day * SUBTREE_QUOTA_FACTOR
        for subtree in self._subtrees(entry.author):
            slots = day.subtrees.get(subtree)
            if slots is not None and len(slots) >= cap:
                return _larger(slots[-1], entry)
        return None

    def _lists(self, day: _Day, entry: Entry) -> Iterator[list[Entry]]:
        yield day.authors[entry.author]
        for subtree in self._subtrees(entry.author):
            yield day.subtrees[subtree]

    def _subtrees(self, author: bytes) -> tuple[Path, ...]:
        known = self._subtrees_of.get(author)
        if known is None:
            known = self._subtrees_of[author] = self._suffixes(self._scopes(author))
        return known

    def _suffixes(self, path: Path) -> tuple[Path, ...]:
        """The subtrees along a path, each named by itself and its ancestors; the same object for the same path."""
        known = self._interned.get(path)
        if known is None:
            known = self._interned[path] = tuple(path[start:] for start in range(len(path)))
        return known


def _larger(one: Entry, other: Entry) -> Entry:
    return one if one.slot > other.slot else other
