"""A model cut by experts, as a file: the new header's bytes, and which bytes of the old files follow it.

Owns the layout of a shard. Keys are copied as they stand in the file (a vocabulary is never unpacked), only the number of experts and
the place in a set are set anew; every tensor keeps its type and its bytes, a cut one those of its kept experts: ggml puts the last
dimension outermost, so an expert is one run of bytes, whatever the quantisation. Reads no file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from agentmesh.inference.logic.expert_tensors import SOURCE_COUNT_KEY, SOURCE_KEY, ExpertModel, NotSplittable
from agentmesh.inference.logic.gguf_header import DEFAULT_ALIGNMENT, MAGIC, Header, Tensor
from agentmesh.inference.logic.moe import Kept

# GGUF: magic, version, number of tensors, number of keys; then the keys.
KEYS_START: Final = 24
_U32: Final = 4
_STRING: Final = 8
_SPLIT_KEYS: Final = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class Copy:
    """`length` bytes from `offset` on of a part of the model."""

    part: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Placed:
    tensor: Tensor  # as in the shard
    part: int
    source: Tensor
    kept: tuple[int, ...] | None  # None: whole


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """A shard's file: `header`, then what `body` says, `size_bytes` in all."""

    header: bytes
    size_bytes: int
    _placed: tuple[_Placed, ...]
    _data_offsets: tuple[int, ...]
    _expert_count: int

    def body(self) -> Iterator[Copy | int]:
        """What follows the header, in order: bytes to copy, or a number of zero bytes. Neighbours are joined."""
        at = 0
        for placed in self._placed:
            if placed.tensor.offset > at:
                yield placed.tensor.offset - at
            at = placed.tensor.offset + placed.tensor.size_bytes
            yield from self._copies(placed)
        if self.size_bytes > len(self.header) + at:
            yield self.size_bytes - len(self.header) - at

    def _copies(self, placed: _Placed) -> Iterator[Copy]:
        start = self._data_offsets[placed.part] + placed.source.offset
        if placed.kept is None:
            yield Copy(placed.part, start, placed.source.size_bytes)
            return
        stride = placed.source.size_bytes // self._expert_count
        for first, count in _runs(placed.kept):
            yield Copy(placed.part, start + first * stride, count * stride)

    @property
    def copied_bytes(self) -> int:
        """All that is copied from the model's data."""
        return sum(placed.tensor.size_bytes for placed in self._placed)


def keys_end(header: Header) -> int:
    """Where the keys of a file end."""
    return max((end for _, end in header.spans.values()), default=KEYS_START)


def shard_layout(
    headers: Sequence[Header], keys: bytes, model: ExpertModel, kept: Kept, source_digest: str
) -> ShardLayout:
    """The file that holds the kept experts. `keys` are the first part's bytes from KEYS_START to `keys_end`.

    Raises:
        NotSplittable: `kept` is no choice of this model's experts.
    """
    count = _check_kept(model, kept)
    of_layer = dict(zip(model.layers, kept, strict=True))
    alignment = headers[0].integer("general.alignment", DEFAULT_ALIGNMENT)
    placed: list[_Placed] = []
    at = 0
    for part, header in enumerate(headers):
        for tensor in header.tensors:
            layer = model.cut.get(tensor.name)
            mine = None if layer is None else of_layer[layer]
            new = replace(tensor, offset=at) if mine is None else _smaller(tensor, at, len(mine), model.expert_count)
            placed.append(_Placed(new, part, tensor, mine))
            at = _aligned(at + new.size_bytes, alignment)
    head = _header_bytes(headers[0], keys, model, count, source_digest, [each.tensor for each in placed])
    head += bytes(_aligned(len(head), alignment) - len(head))
    offsets = tuple(header.data_offset for header in headers)
    return ShardLayout(head, len(head) + at, tuple(placed), offsets, model.expert_count)


def _check_kept(model: ExpertModel, kept: Kept) -> int:
    sizes = {len(experts) for experts in kept}
    if len(kept) != len(model.layers) or len(sizes) != 1:
        raise NotSplittable("every layer must keep the same number of experts: the header has room for one number")
    count = sizes.pop()
    if not model.used_count <= count <= model.expert_count:
        raise NotSplittable(f"a token uses {model.used_count} experts of {model.expert_count}; {count} cannot be kept")
    for experts in kept:
        ascending = all(left < right for left, right in pairwise(experts))
        if not ascending or experts[0] < 0 or experts[-1] >= model.expert_count:
            raise NotSplittable("the kept experts must be numbers of experts, ascending")
    return count


def _smaller(tensor: Tensor, offset: int, kept: int, experts: int) -> Tensor:
    return replace(
        tensor,
        shape=(*tensor.shape[:-1], kept),
        offset=offset,
        elements=tensor.elements // experts * kept,
        size_bytes=tensor.size_bytes // experts * kept,
    )


def _header_bytes(
    first: Header, keys: bytes, model: ExpertModel, count: int, source_digest: str, tensors: Sequence[Tensor]
) -> bytes:
    count_key = f"{model.architecture}.expert_count"
    new = [
        _number_key(SOURCE_COUNT_KEY, model.expert_count),
        _key(SOURCE_KEY, _STRING) + _text(source_digest),
    ]
    written: list[bytes] = []
    for key, (start, end) in first.spans.items():
        if key == count_key:
            written.append(_number_key(key, count))
        elif key not in _SPLIT_KEYS:
            written.append(keys[start - KEYS_START : end - KEYS_START])
    written += new
    infos = b"".join(_tensor_info(tensor) for tensor in tensors)
    return MAGIC + struct.pack("<IQQ", first.version, len(tensors), len(written)) + b"".join(written) + infos


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _key(key: str, type_number: int) -> bytes:
    return _text(key) + struct.pack("<I", type_number)


def _number_key(key: str, value: int) -> bytes:
    return _key(key, _U32) + struct.pack("<I", value)


def _tensor_info(tensor: Tensor) -> bytes:
    shape = tensor.shape
    return _text(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.type_number, tensor.offset)


def _aligned(position: int, alignment: int) -> int:
    return (position + alignment - 1) // alignment * alignment


def _runs(kept: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of each run of neighbours."""
    first, count = kept[0], 1
    for expert in kept[1:]:
        if expert == first + count:
            count += 1
            continue
        yield first, count
        first, count = expert, 1
    yield first, count
