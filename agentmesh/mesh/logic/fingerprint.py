"""Salted hashes of a snapshot's ids, and fingerprints of parts of it.

h(id) = BLAKE2b-256(id, salt of this exchange), read as a little-endian integer; the fingerprint of a set is the sum of its
h(id) mod 2^256, of which inner levels send the lowest bytes. Nobody who writes records knows the salt, so nobody can
write records whose sums cancel out (plain sums of ids can be forged).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from agentmesh.mesh.logic.reconcile_wire import (
    BUCKET_PRINT_BYTES,
    MAX_POSITION,
    RANGE_PRINT_BYTES,
    ROOT_BYTES,
    SHORT_ID_BYTES,
)
from agentmesh.mesh.logic.snapshot import Item

WORD_BITS = 64
WORDS = 4
_RANGE_MASK = (1 << 8 * RANGE_PRINT_BYTES) - 1
_BUCKET_MASK = (1 << 8 * BUCKET_PRINT_BYTES) - 1
_SHORT_MASK = (1 << 8 * SHORT_ID_BYTES) - 1
_BIG_ENDIAN = array("H", [1]).tobytes() == b"\x00\x01"
_CLASS_SHIFT = 53  # a timestamp is below 2^53


def position(item: Item) -> int:
    """Where an item stands in the order that ranges are cut from: its class, then its time."""
    return item.order_class << _CLASS_SHIFT | item.timestamp_ms


def short_id(id_: bytes, salt: bytes) -> bytes:
    return blake2b(id_, salt=salt, digest_size=32).digest()[:SHORT_ID_BYTES]


class Fingerprints:
    """Hashed items, addressed by their index. 24 bytes an item beside the items themselves."""

    def __init__(self, items: Sequence[Item], salt: bytes) -> None:
        self.items = items
        self.salt = salt
        words = array("Q", b"".join([blake2b(item.id, salt=salt, digest_size=32).digest() for item in items]))
        if _BIG_ENDIAN:
            words.byteswap()
        self._low = words[0::WORDS]
        self._deal = words[1::WORDS]
        total = sum(sum(words[word::WORDS]) << WORD_BITS * word for word in range(WORDS))
        self.root = (total % 2 ** (8 * ROOT_BYTES)).to_bytes(ROOT_BYTES, "little")

    def index_of(self, bound: int, within: range) -> int:
        """The first index in `within` whose item does not stand before `bound`."""
        return bisect_left(self.items, bound, within.start, within.stop, key=position)

    def range_print(self, members: range) -> bytes:
        total = sum(self._low[members.start : members.stop])
        return (total & _RANGE_MASK).to_bytes(RANGE_PRINT_BYTES, "little")

    def deal(self, members: Iterable[int], buckets: int) -> tuple[dict[int, list[int]], bytes]:
        """Deal items into buckets: (the members of each bucket that has any, all buckets' fingerprints)."""
        dealt: dict[int, list[int]] = {}
        sums = [0] * buckets
        low, deal = self._low, self._deal
        for index in members:
            bucket = deal[index] % buckets
            sums[bucket] += low[index]
            if bucket in dealt:
                dealt[bucket].append(index)
            else:
                dealt[bucket] = [index]
        prints = b"".join([(total & _BUCKET_MASK).to_bytes(BUCKET_PRINT_BYTES, "little") for total in sums])
        return dealt, prints

    def short(self, index: int) -> bytes:
        return (self._low[index] & _SHORT_MASK).to_bytes(SHORT_ID_BYTES, "little")

    def whole(self) -> range:
        return range(len(self.items))


LOWEST = -1
HIGHEST = MAX_POSITION
