"""The revocations that Trust holds: the newest of each (author, target), as many as have room. Which count is in revocation.py."""

from __future__ import annotations

from agentmesh.mesh.logic.limits import MAX_INNER_REVOCATIONS, MAX_SUBTREE_REVOCATIONS
from agentmesh.mesh.logic.revocation import Revocation
from agentmesh.mesh.logic.subtree_room import Path, SubtreeRoom

Key = tuple[bytes, bytes]


class RevocationBook:
    """`changed` says whether what counts has to be decided anew; its owner sets it back."""

    def __init__(self) -> None:
        self._held: dict[Key, Revocation] = {}
        self._authors: dict[bytes, int] = {}
        self._room = SubtreeRoom(MAX_SUBTREE_REVOCATIONS, MAX_INNER_REVOCATIONS)
        self._crowded_out: list[bytes] = []
        self.changed = False

    def all(self) -> tuple[Revocation, ...]:
        return tuple(self._held.values())

    def has_author(self, key: bytes) -> bool:
        return key in self._authors

    def is_newer(self, revocation: Revocation) -> bool:
        """Whether it would replace what its register holds."""
        known = self._held.get((revocation.author, revocation.target))
        return known is None or (revocation.timestamp_ms, revocation.record_id) > (known.timestamp_ms, known.record_id)

    def hold(self, revocation: Revocation, path: Path) -> bool:
        """Take it in, in the place of an older one of its register. False if there is no room for it in its subtree."""
        key = (revocation.author, revocation.target)
        loser = self._room.take(key, path, revocation.timestamp_ms, revocation.record_id)
        if loser == key:
            return False
        if loser is not None:
            self._crowded_out.append(self._held[loser].record_id)
            self._forget(loser)
        known = self._held.get(key)
        if known is None:
            self._authors[key[0]] = self._authors.get(key[0], 0) + 1
        self._held[key] = revocation
        # Whoever repeats itself must not make everything be weighed anew each time.
        weighs = (revocation.unconditional, revocation.lineages)
        self.changed |= known is None or (known.unconditional, known.lineages) != weighs
        return True

    def expire(self, now_ms: int) -> None:
        for key in [key for key, revocation in self._held.items() if revocation.expires_ms <= now_ms]:
            self._forget(key)

    def take_crowded_out(self) -> list[bytes]:
        """Ids of records that lost their place since the last call."""
        taken, self._crowded_out = self._crowded_out, []
        return taken

    def _forget(self, key: Key) -> None:
        del self._held[key]
        self._room.leave(key)
        self._authors[key[0]] -= 1
        if not self._authors[key[0]]:
            del self._authors[key[0]]
        self.changed = True
