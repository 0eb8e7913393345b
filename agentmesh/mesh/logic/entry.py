"""One kept record as the index remembers it, without its payload, and a sorted sequence of many.

Made for 100,000 live records: an entry costs about 170 bytes and the sequences hold references to it only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from agentmesh.mesh.logic.kinds import KindRule

MAX_CHUNK = 1_024  # entries in one chunk: inserting moves at most 8 KiB of references

Order = tuple[int, int, bytes]
Slot = tuple[int, bytes, bytes]


@dataclass(slots=True, eq=False)
class Entry:
    """A kept record. Never changed once made: other threads read it."""

    id: bytes
    rule: KindRule
    author: bytes
    subkey: bytes
    timestamp_ms: int
    lifetime_ms: int
    size_bytes: int

    @property
    def kind(self) -> str:
        return self.rule.name

    @property
    def expires_ms(self) -> int:
        return self.timestamp_ms + self.lifetime_ms

    @property
    def order_class(self) -> int:
        return self.rule.order_class

    @property
    def order(self) -> Order:
        """Certificates first, then by time; ids break ties."""
        return self.rule.order_class, self.timestamp_ms, self.id

    @property
    def slot_id(self) -> bytes:
        """The quota slot's id: a retraction sits in the slot of what it retracts."""
        return self.subkey if self.rule.retracts else self.id

    @property
    def slot(self) -> Slot:
        """Its place among all quota slots. The author is part of it: others may claim to retract what is not theirs."""
        return self.timestamp_ms, self.slot_id, self.author


class StoredEntry(msgspec.Struct, array_like=True, frozen=True):
    """What the store gives back of one record at start; payloads stay on disk."""

    id: bytes
    kind: str
    author: bytes
    subkey: bytes
    timestamp_ms: int
    expires_ms: int
    size_bytes: int


class Tombstone(msgspec.Struct, array_like=True, frozen=True):
    """A quota slot whose record is gone (expired, retracted, evicted) and which still counts until its day is over."""

    author: bytes
    timestamp_ms: int
    slot_id: bytes


def _order(entry: Entry) -> Order:
    return entry.order


class SortedEntries:
    """Entries by `order`, in chunks, so that insertion in the middle stays cheap."""

    def __init__(self) -> None:
        self._chunks: list[list[Entry]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Entry]:
        for chunk in self._chunks:
            yield from chunk

    def copy(self) -> list[Entry]:
        """All of them, in order: a snapshot that later changes do not touch."""
        result: list[Entry] = []
        for chunk in self._chunks:
            result += chunk
        return result

    def add(self, entry: Entry) -> None:
        self._count += 1
        if not self._chunks:
            self._chunks.append([entry])
            return
        number = self._chunk_of(entry)
        chunk = self._chunks[number]
        chunk.insert(bisect_left(chunk, entry.order, key=_order), entry)
        if len(chunk) > MAX_CHUNK:
            half = len(chunk) // 2
            self._chunks[number : number + 1] = [chunk[:half], chunk[half:]]

    def remove(self, entry: Entry) -> None:
        """Take out an entry that was added; does nothing when it is not there."""
        if not self._chunks:
            return
        number = self._chunk_of(entry)
        chunk = self._chunks[number]
        position = bisect_left(chunk, entry.order, key=_order)
        if position < len(chunk) and chunk[position] is entry:
            del chunk[position]
            self._count -= 1
            if not chunk:
                del self._chunks[number]

    def _chunk_of(self, entry: Entry) -> int:
        """The first chunk whose last entry is not before `entry`, else the last chunk."""
        return min(bisect_left(self._chunks, entry.order, key=_last_order), len(self._chunks) - 1)


def _last_order(chunk: list[Entry]) -> Order:
    return chunk[-1].order
