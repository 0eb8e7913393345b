"""Layers to places: in proportion to their memory, none over what it has, and the numbers for `--tensor-split` that give just that.

Owns llama.cpp's rounding (llama-model.cpp, load_tensors) and the way around it: whole numbers of layers are exact. Knows no nodes
and no models: costs and rooms are bytes.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise


def llama_layers(tensor_split: Sequence[float], offloaded: int) -> tuple[int, ...]:
    """How many of `offloaded` layers (the output is the last) llama.cpp gives each device, for these numbers.

    In float32, as there: running sums, divided by the whole; layer i goes to the first device whose running share is above
    i / offloaded. `tensor_split` must have a positive sum and nothing negative.
    """
    running = list(accumulate((_float32(one) for one in tensor_split), lambda a, b: _float32(a + b)))
    shares = [_float32(one / running[-1]) for one in running]
    counts = [0] * len(shares)
    for layer in range(offloaded):
        counts[min(bisect_right(shares, _float32(layer / offloaded)), len(shares) - 1)] += 1
    return tuple(counts)


def _float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def spread(costs: Sequence[int], rooms: Sequence[int], least: Sequence[int]) -> tuple[int, ...] | None:
    """How many of the layers, in order, each place gets; None if they do not fit.

    As near to the proportion of the rooms as whole layers and the rooms themselves allow.

    Args:
        costs: bytes of each layer.
        rooms: bytes for layers at each place; less than nothing counts as nothing.
        least: layers that each place gets at least.
    """
    prefix = [0, *accumulate(costs)]
    if prefix[-1] > sum(max(room, 0) for room in rooms):
        return None
    ways = _Ways(prefix, [max(room, 0) for room in rooms], least)
    if not ways.possible(0, 0):
        return None
    ends = [0]
    for place, target in enumerate(_targets(prefix, rooms)):
        ends.append(ways.nearest(place, ends[-1], target))
    return tuple(end - start for start, end in pairwise(ends))


class _Ways:
    """From which layer on which places can take all the rest: exact, since layers differ in size."""

    def __init__(self, prefix: Sequence[int], rooms: Sequence[int], least: Sequence[int]) -> None:
        self._prefix, self._rooms, self._least = prefix, rooms, least
        layers = len(prefix) - 1
        # next_ok[place][x]: the first layer >= x from which `place` and those after it can take the rest; layers + 1: none.
        none = layers + 1
        self._next_ok = [[none] * (layers + 3) for _ in range(len(rooms) + 1)]
        self._next_ok[len(rooms)] = [layers] * (layers + 1) + [none] * 2
        for place in range(len(rooms) - 1, -1, -1):
            row, after = self._next_ok[place], self._next_ok[place + 1]
            for start in range(layers, -1, -1):
                low = min(start + least[place], none)
                row[start] = start if after[low] <= self._fill(place, start) else row[start + 1]

    def _fill(self, place: int, start: int) -> int:
        """The end of what `place` can hold from `start` on."""
        return bisect_right(self._prefix, self._prefix[start] + self._rooms[place]) - 1

    def possible(self, place: int, start: int) -> bool:
        return self._next_ok[place][start] == start

    def nearest(self, place: int, start: int, target: int) -> int:
        """The end nearest to `target` from which the rest still fits; of two equally near the smaller."""
        low, high = start + self._least[place], self._fill(place, start)
        ends = [end for end in range(low, high + 1) if self.possible(place + 1, end)]
        return min(ends, key=lambda end: (abs(end - target), end))


def _targets(prefix: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """Where each place would end if only the proportion counted: the boundary nearest to it."""
    whole = sum(max(room, 0) for room in rooms) or 1
    targets: list[int] = []
    for running in accumulate(max(room, 0) for room in rooms):
        wanted = prefix[-1] * running
        after = min(bisect_right(prefix, wanted // whole), len(prefix) - 1)
        before = max(after - 1, 0)
        targets.append(min((before, after), key=lambda end: (abs(prefix[end] * whole - wanted), end)))
    return targets


def numbers_for(counts: Sequence[int], *, output_with_last: bool = True) -> tuple[int, ...]:
    """`--tensor-split` for devices that are to get these layers: the counts themselves, the output being one more."""
    if not output_with_last:
        return tuple(counts)
    return (*counts[:-1], counts[-1] + 1)
