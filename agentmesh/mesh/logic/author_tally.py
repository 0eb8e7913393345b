"""Bytes kept of each author, and one shared object for each author's key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Tally:
    key: bytes
    size_bytes: int = 0


class AuthorTallies:
    """Who takes how much of the store."""

    def __init__(self) -> None:
        self._tallies: dict[bytes, _Tally] = {}
        self._sizes: dict[int, int] = {}  # grows to MAX_BODY_BYTES numbers at most

    def shared_key(self, author: bytes) -> bytes:
        """The key object that this author's entries share: 65 bytes an author instead of an entry."""
        tally = self._tallies.get(author)
        return tally.key if tally else author

    def shared_size(self, size_bytes: int) -> int:
        """One number object for each size: 28 bytes an entry saved."""
        return self._sizes.setdefault(size_bytes, size_bytes)

    def add(self, author: bytes, size_bytes: int) -> None:
        tally = self._tallies.get(author)
        if tally is None:
            tally = self._tallies[author] = _Tally(author)
        tally.size_bytes += size_bytes

    def subtract(self, author: bytes, size_bytes: int) -> None:
        tally = self._tallies[author]
        tally.size_bytes -= size_bytes
        if tally.size_bytes <= 0:
            del self._tallies[author]

    def total_bytes(self) -> int:
        return sum(tally.size_bytes for tally in self._tallies.values())

    def largest_first(self) -> list[bytes]:
        """Authors by bytes kept, largest first; keys break ties."""
        return sorted(self._tallies, key=lambda author: (-self._tallies[author].size_bytes, author))
