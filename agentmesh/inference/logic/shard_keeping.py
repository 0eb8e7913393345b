"""When this node begins and ends its own expert shard. Pure.

A shard has no host and no claim: each node runs its own. One that runs is kept while the same nodes share the model, whatever their
memory does meanwhile: writing another costs gigabytes. Owns that rule, and the patience between tries.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentmesh.inference.logic.split_limits import BACKOFF_MS, MAX_BACKOFF_MS, VOLUNTARY_MS
from agentmesh.inference.logic.split_values import Outcome, Shards


class ShardMove(StrEnum):
    """What is to be done now."""

    NOTHING = "nothing"
    BEGIN = "begin"
    END = "end"


@dataclass
class ShardKeeping:
    """See the module. `running` is the outcome whose shard this node runs, or tries to."""

    me: bytes
    running: Shards | None = None
    _left_ms: int | None = None  # since when the mesh wants something else
    _not_before_ms: int = 0
    _failures: int = 0
    _ending: bool = False

    def look(self, outcome: Outcome | None, now_ms: int, *, is_free: bool) -> ShardMove:
        """Call after each change and at `next_wake_ms`. `is_free`: this node hosts nothing of the model. BEGIN: `running` is what to run."""
        if self.running is None:
            mine = isinstance(outcome, Shards) and self.me in _members(outcome)
            if not mine or not isinstance(outcome, Shards) or not is_free or now_ms < self._not_before_ms:
                return ShardMove.NOTHING
            self.running, self._left_ms, self._ending = outcome, None, False
            return ShardMove.BEGIN
        if isinstance(outcome, Shards) and _members(outcome) == _members(self.running):
            self._left_ms = None
            return ShardMove.NOTHING
        self._left_ms = now_ms if self._left_ms is None else self._left_ms
        if self._ending or now_ms < self._left_ms + VOLUNTARY_MS:
            return ShardMove.NOTHING
        self._ending = True
        return ShardMove.END

    def ready(self) -> None:
        """Its engine answers: the count of failures begins anew."""
        self._failures = 0

    def ended(self, now_ms: int) -> None:
        """It is gone, whoever ended it."""
        if not self._ending:
            self._failures += 1
            self._not_before_ms = now_ms + min(BACKOFF_MS << (self._failures - 1), MAX_BACKOFF_MS)
        self.running, self._left_ms, self._ending = None, None, False

    def next_wake_ms(self, now_ms: int) -> int | None:
        """When `look` is due, if nothing else happens."""
        if self.running is None:
            return self._not_before_ms if self._not_before_ms > now_ms else None
        return self._left_ms + VOLUNTARY_MS if self._left_ms is not None and not self._ending else None


def _members(outcome: Shards) -> frozenset[bytes]:
    return frozenset(room.node for room in outcome.nodes)
