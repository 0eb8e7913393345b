"""Randomness as an argument: what the pure logic may ask of a random number generator (random.Random has all of it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Chance(Protocol):
    """A seeded generator in tests and simulation, the system's on a real node."""

    def random(self) -> float:
        """In [0, 1)."""
        ...

    def randrange(self, stop: int, /) -> int:
        """In [0, stop)."""
        ...

    def sample(self, population: Sequence[_T], k: int) -> list[_T]:
        """`k` different elements in random order."""
        ...
