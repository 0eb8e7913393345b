"""The bodies of Reconcile messages: their format, and every check that needs no records.

A body is one msgpack array. What is laid out in a message is numbered, and the answer refers to the numbers:
- *cells*: the sub-ranges of its splits and the buckets of its bucket parts, in order;
- *shown ids*: the ids of its listings, in order, then its offered ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

import msgspec

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.limits import MAX_SPLIT_RANGES

SALT_BYTES: Final = 16  # what BLAKE2b takes as its salt
ROOT_BYTES: Final = 32  # fingerprint of everything, in full
RANGE_PRINT_BYTES: Final = 8  # inner levels: a false match (2^-64) would only wait for the next exchange's salt
BUCKET_PRINT_BYTES: Final = 6
SHORT_ID_BYTES: Final = 5  # compared within one cell or listing only
MAX_POSITION: Final = 2**60


class Split(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """A time range of the receiver's `cell`, cut in sub-ranges by k-1 bounds; each bound starts the next sub-range.

    `bounds`: positions, the first in full, each other as the distance from the one before.
    """

    cell: int
    bounds: tuple[int, ...]
    counts: tuple[int, ...]
    prints: bytes

    def positions(self) -> list[int]:
        return list(accumulate(self.bounds))


class Buckets(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The receiver's `cell`, dealt by salted hash into as many buckets as there are fingerprints."""

    cell: int
    prints: bytes


class Listing(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The short ids of everything that the sender has in the receiver's `cell`."""

    cell: int
    ids: bytes


Part = Split | Buckets | Listing


class Opening(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The first message: everything that the initiator has and that does not expire soon after `horizon_ms`."""

    salt: bytes
    horizon_ms: int
    root: bytes
    split: Split


class Exchange(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Every later message. Cells of the message before that it does not name are equal.

    `wanted`: a bit for each id shown in the message before, lowest bit first; missing bits are 0.
    `offered`: short ids that the receiver was found to lack.
    """

    parts: tuple[Part, ...] = ()
    wanted: bytes = b""
    offered: bytes = b""

    @property
    def asks(self) -> bool:
        """Whether it needs an answer."""
        return bool(self.parts or self.offered)


class Restart(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The responder's clock is so much later that it has dropped what the opening covers; open again with this horizon."""

    horizon_ms: int


Body = Opening | Exchange | Restart

_decoder = msgspec.msgpack.Decoder[Body](Body)
_encoder = msgspec.msgpack.Encoder()


def encode(body: Body) -> bytes:
    return _encoder.encode(body)


def decode(raw: bytes) -> Body:
    """Read and check a body. Raises: ProtocolError."""
    try:
        body = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"A reconciliation message is malformed: {error}") from error
    if isinstance(body, Opening):
        _check_opening(body)
    elif isinstance(body, Exchange):
        _check_exchange(body)
    elif not 0 < body.horizon_ms < 2**53:
        raise ProtocolError("A reconciliation horizon is impossible.")
    return body


def _check_opening(body: Opening) -> None:
    if len(body.salt) != SALT_BYTES or len(body.root) != ROOT_BYTES:
        raise ProtocolError("A reconciliation salt or fingerprint has the wrong size.")
    if not 0 < body.horizon_ms < 2**53 or body.split.cell != 0:
        raise ProtocolError("A reconciliation opening is impossible.")
    _check_split(body.split)


def _check_exchange(body: Exchange) -> None:
    previous = -1
    for part in body.parts:
        if part.cell <= previous:
            raise ProtocolError("Reconciliation cells are not in order.")
        previous = part.cell
        if isinstance(part, Split):
            _check_split(part)
        elif isinstance(part, Buckets):
            if not part.prints or len(part.prints) % BUCKET_PRINT_BYTES:
                raise ProtocolError("Reconciliation buckets have the wrong size.")
        elif len(part.ids) % SHORT_ID_BYTES:
            raise ProtocolError("A reconciliation listing has the wrong size.")
    if len(body.offered) % SHORT_ID_BYTES:
        raise ProtocolError("A reconciliation offer has the wrong size.")


def _check_split(split: Split) -> None:
    ranges = len(split.counts)
    if (
        not 1 <= ranges <= MAX_SPLIT_RANGES
        or len(split.bounds) != ranges - 1
        or len(split.prints) != ranges * RANGE_PRINT_BYTES
    ):
        raise ProtocolError("A reconciliation split does not add up.")
    if any(distance <= 0 for distance in split.bounds) or sum(split.bounds) >= MAX_POSITION:
        raise ProtocolError("Reconciliation ranges are not in order.")
    if any(count < 0 for count in split.counts):
        raise ProtocolError("A reconciliation range has fewer than no records.")


def pieces(blob: bytes, size: int) -> Iterator[bytes]:
    """The blob cut into values of `size` bytes."""
    return (blob[start : start + size] for start in range(0, len(blob), size))


def bits(flags: list[bool]) -> bytes:
    """Flags as a bitmap, lowest bit first, without trailing zero bytes."""
    value = int("".join("1" if flag else "0" for flag in reversed(flags)) or "0", 2)
    return value.to_bytes((value.bit_length() + 7) // 8, "little")


def set_bits(bitmap: bytes) -> Iterator[int]:
    """The numbers of the set bits, ascending."""
    for number, byte in enumerate(bitmap):
        if byte:
            for bit in range(8):
                if byte >> bit & 1:
                    yield number * 8 + bit
