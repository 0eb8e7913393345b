"""The header of a GGUF file, read without trusting it: bounded memory, bounded time, one sentence when it is wrong.

Owns the binary format (ggml's docs/gguf.md, versions 2 and 3, little-endian) and the limits of what is read. Knows no file: bytes
come from a function. Vocabularies are not kept, only counted and hashed: they are most of a header (10 MB for 262,144 tokens).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32
# The largest headers known hold 262,144 tokens and 514,906 merges in some 16 MB; four times that is room enough.
MAX_HEADER_BYTES: Final = 64 * 1024 * 1024
MAX_KEYS: Final = 4096  # models have 20 to 60
MAX_KEY_BYTES: Final = 1024
MAX_STRING_BYTES: Final = 1024 * 1024  # chat templates reach 20 kB
MAX_ARRAY_ITEMS: Final = 4_000_000  # of all arrays together; a pass over so many strings takes about a second
MAX_KEPT_ITEMS: Final = 4096  # arrays with an entry a layer are kept, vocabularies are not
MAX_TENSORS: Final = 65_536  # models with unmerged experts have some 20,000
MAX_TENSOR_NAME_BYTES: Final = 63  # GGML_MAX_NAME less its NUL
MAX_DIMENSIONS: Final = 4  # GGML_MAX_DIMS
MAX_ELEMENTS: Final = 1 << 50
MAX_ALIGNMENT: Final = 1 << 20
TAIL_ITEMS: Final = (
    128  # so much may two vocabularies differ in length for speculative decoding (common/speculative.cpp)
)
_CHUNK_BYTES: Final = 1024 * 1024

MetaValue: TypeAlias = int | float | bool | str
Read: TypeAlias = Callable[[int], bytes]

_SCALARS: Final = {
    0: ("<B", 1),
    1: ("<b", 1),
    2: ("<H", 2),
    3: ("<h", 2),
    4: ("<I", 4),
    5: ("<i", 4),
    6: ("<f", 4),
    7: ("<?", 1),
    10: ("<Q", 8),
    11: ("<q", 8),
    12: ("<d", 8),
}
_STRING: Final = 8
_ARRAY: Final = 9

# Type number -> (elements a block, bytes a block): ggml.h, type_traits. A test compares it with the gguf package.
TENSOR_TYPES: Final[dict[int, tuple[int, int]]] = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 40),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
    40: (64, 36),
    41: (128, 18),
}


class BadHeader(Exception):
    """The header is wrong; the text says how, without a name of the file."""


@dataclass(frozen=True, slots=True)
class ArrayFacts:
    """An array: its length, the SHA-256 of its strings (each after its length), and its numbers when there are few.

    `tails`: the digest's first 16 bytes after each of the last TAIL_ITEMS + 1 lengths, the whole one last: whether a list of
    strings begins with another can be told without either.
    """

    count: int
    digest: str | None
    values: tuple[MetaValue, ...] | None
    tails: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is: `offset` counts from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int
    elements: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """All of a header but the vocabulary's texts. `spans` says where each key with its value begins and ends in the file."""

    version: int
    values: dict[str, MetaValue]
    arrays: dict[str, ArrayFacts]
    tensors: tuple[Tensor, ...]
    data_offset: int
    file_end: int
    spans: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def integer(self, key: str, default: int = 0) -> int:
        """A whole number, not negative; else `default`."""
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default

    def text(self, key: str) -> str:
        """A string, or nothing."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def per_layer(self, key: str, layers: int, default: int = 0) -> tuple[int, ...]:
        """One whole number a layer, whether the header has one for all or one each."""
        facts = self.arrays.get(key)
        if facts is None or facts.values is None:
            return (self.integer(key, default),) * layers
        given = [int(v) if isinstance(v, int | float) and v >= 0 else default for v in facts.values[:layers]]
        return (*given, *([default] * (layers - len(given))))


class _Cursor:
    """Counts what is read; refuses to go past the limit or the file's end."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.position = 0
        self.items = 0

    def take(self, count: int) -> bytes:
        if self.position + count > MAX_HEADER_BYTES:
            raise BadHeader(f"its header is longer than {MAX_HEADER_BYTES} bytes")
        data = self._read(count)
        if len(data) != count:
            raise BadHeader("it ends in the middle of its header")
        self.position += count
        return data

    def skip(self, count: int) -> None:
        while count > 0:
            count -= len(self.take(min(count, _CHUNK_BYTES)))

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def raw_string(self, limit: int, what: str) -> bytes:
        length = self.u64()
        if length > limit:
            raise BadHeader(f"{what} of {length} bytes is longer than {limit}")
        return self.take(length)

    def string(self, limit: int, what: str) -> str:
        try:
            return self.raw_string(limit, what).decode("utf-8")
        except UnicodeDecodeError:
            raise BadHeader(f"{what} is no UTF-8") from None

    def count_items(self, count: int) -> None:
        self.items += count
        if self.items > MAX_ARRAY_ITEMS:
            raise BadHeader(f"its arrays have more than {MAX_ARRAY_ITEMS} entries")


def parse_header(read: Read) -> Header:
    """The header at the start of what `read(n)` gives; less than n bytes mean the end.

    Raises:
        BadHeader: it is no GGUF header, a cut one, or one beyond the limits.
    """
    cursor = _Cursor(read)
    version, tensor_count, key_count = _preamble(cursor)
    values: dict[str, MetaValue] = {}
    arrays: dict[str, ArrayFacts] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        start = cursor.position
        key = cursor.string(MAX_KEY_BYTES, "a key")
        if key in values or key in arrays:
            raise BadHeader(f"the key '{key}' comes twice")
        type_number = cursor.u32()
        if type_number == _ARRAY:
            arrays[key] = _array(cursor)
        else:
            values[key] = _value(cursor, type_number)
        spans[key] = (start, cursor.position)
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise BadHeader(f"its alignment is {alignment}")
    tensors = tuple(_tensor(cursor, alignment) for _ in range(tensor_count))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise BadHeader("a tensor comes twice")
    data_offset = (cursor.position + alignment - 1) // alignment * alignment
    end = max((tensor.offset + tensor.size_bytes for tensor in tensors), default=0)
    file_end = data_offset + end if tensors else cursor.position
    return Header(version, values, arrays, tensors, data_offset, file_end, spans)


def _preamble(cursor: _Cursor) -> tuple[int, int, int]:
    if cursor.take(4) != MAGIC:
        raise BadHeader("it does not begin with GGUF")
    version = cursor.u32()
    if version & 0xFFFF == 0 and version:
        raise BadHeader("it is written for big-endian machines")
    if version not in VERSIONS:
        raise BadHeader(f"it has version {version} of the format; readable are {' and '.join(map(str, VERSIONS))}")
    tensor_count, key_count = cursor.u64(), cursor.u64()
    if tensor_count > MAX_TENSORS:
        raise BadHeader(f"it claims {tensor_count} tensors")
    if key_count > MAX_KEYS:
        raise BadHeader(f"it claims {key_count} keys")
    return version, tensor_count, key_count


def _value(cursor: _Cursor, type_number: int) -> MetaValue:
    if type_number == _STRING:
        return cursor.string(MAX_STRING_BYTES, "a text")
    if type_number not in _SCALARS:
        raise BadHeader(f"a value has the unknown type {type_number}")
    form, width = _SCALARS[type_number]
    value: MetaValue = struct.unpack(form, cursor.take(width))[0]
    return value


def _array(cursor: _Cursor) -> ArrayFacts:
    type_number, count = cursor.u32(), cursor.u64()
    cursor.count_items(count)
    if type_number == _STRING:
        tails = _hash_strings(cursor, count)
        return ArrayFacts(count, tails[-1].hex(), None, tuple(tail[:16] for tail in tails))
    if type_number not in _SCALARS:  # arrays of arrays are in the format, but in no model
        raise BadHeader(f"an array has entries of type {type_number}")
    form, width = _SCALARS[type_number]
    if count > MAX_KEPT_ITEMS:
        cursor.skip(count * width)
        return ArrayFacts(count, None, None)
    return ArrayFacts(count, None, struct.unpack(f"<{count}{form[1]}", cursor.take(count * width)))


def _hash_strings(cursor: _Cursor, count: int) -> list[bytes]:
    """The digests after each of the last lengths, at least the whole one's."""
    digest = hashlib.sha256()
    tails: list[bytes] = []
    for number in range(count):
        if count - number <= TAIL_ITEMS:
            tails.append(digest.digest())
        text = cursor.raw_string(MAX_STRING_BYTES, "a text")
        digest.update(len(text).to_bytes(8, "little") + text)
    return [*tails, digest.digest()]


def _tensor(cursor: _Cursor, alignment: int) -> Tensor:
    name = cursor.string(MAX_TENSOR_NAME_BYTES, "the name of a tensor")
    dimensions = cursor.u32()
    if dimensions > MAX_DIMENSIONS:
        raise BadHeader(f"the tensor '{name}' has {dimensions} dimensions")
    shape = tuple(cursor.u64() for _ in range(dimensions))
    type_number, offset = cursor.u32(), cursor.u64()
    elements = 1
    for length in shape:
        elements *= length
        if not 0 < length <= MAX_ELEMENTS or elements > MAX_ELEMENTS:
            raise BadHeader(f"the tensor '{name}' has an impossible size")
    if type_number not in TENSOR_TYPES:
        raise BadHeader(f"the tensor '{name}' has the unknown type {type_number}")
    block, block_bytes = TENSOR_TYPES[type_number]
    if (shape[0] if shape else 1) % block:
        raise BadHeader(f"a row of the tensor '{name}' is not a whole number of blocks")
    if offset % alignment:
        raise BadHeader(f"the tensor '{name}' is not aligned")
    return Tensor(name, shape, type_number, offset, elements, elements // block * block_bytes)
