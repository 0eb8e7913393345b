"""When this node begins and ends its own expert shard. Pure.

A shard has no host and no claim: each node runs its own, and answers with it whatever becomes of the others. So one that runs is kept, for
writing another costs gigabytes, until the whole model answers somewhere, or a node is gone for long with experts that only it had; and
then the nodes change one after the other. Owns these rules, and the patience between tries. docs/expert-shards.md, "Nodes".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from agentmesh.inference.logic.split_limits import (
    BACKOFF_MS,
    MAX_BACKOFF_MS,
    SHARD_LOSS_MS,
    SHARD_TURN_MS,
    VOLUNTARY_MS,
)
from agentmesh.inference.logic.split_values import Outcome, Shards, Solo, Split, Wait, WaitCode

Serving = Mapping[bytes, str]
"""Other nodes that answer for the model now: the name of the shard, "" for the whole model."""


class ShardMove(StrEnum):
    """What is to be done now."""

    NOTHING = "nothing"
    BEGIN = "begin"
    END = "end"
    REPLAN = "replan"


@dataclass
class ShardKeeping:
    """See the module. `running` is the outcome whose shard this node runs, or tries to."""

    me: bytes
    running: Shards | None = None
    _is_ready: bool = False
    _left_ms: int | None = None  # since when another way is there
    _patience_ms: int = 0  # with it
    _own_since_ms: int | None = None  # since when this node should run it in another way
    _is_due: bool = False  # and it was told so
    _not_before_ms: int = 0
    _failures: int = 0
    _ending: bool = False

    def weigh(self, outcome: Outcome, now_ms: int, serving: Serving, *, is_wish: bool) -> Outcome:
        """The plan as this node should take it: shards that answer are given up only for something better that lasts.

        Args:
            is_wish: the user wants layers.
        """
        answers = (self.running is not None and self._is_ready) or any(serving.values())
        if isinstance(outcome, Split) and answers and not is_wish:
            self._let_be()
            sentence = "Nodes answer with parts of its experts; it is not split by layers as long as one does."
            return self.running or Wait(WaitCode.MEMORY, sentence)
        mine = isinstance(outcome, Solo | Split) and outcome.host == self.me
        if self.running is None or not self._is_ready or self._ending or not mine:
            self._let_be()
            return outcome
        self._own_since_ms = now_ms if self._own_since_ms is None else self._own_since_ms
        return outcome if now_ms >= self._own_since_ms + VOLUNTARY_MS else self.running

    def look(
        self, outcome: Outcome | None, now_ms: int, serving: Serving, *, is_free: bool, is_hosted: bool = False
    ) -> ShardMove:
        """Call after each change and at `next_wake_ms`.

        Args:
            is_free: this node hosts nothing of the model.
            is_hosted: another node runs it whole, or in layers.

        Returns:
            BEGIN: `running` is what to run. END: end it, once what it answers is finished. REPLAN: `weigh` would say something else.
        """
        if self.running is None:
            mine = isinstance(outcome, Shards) and self.me in _members(outcome)
            if not mine or not isinstance(outcome, Shards) or not is_free or is_hosted or now_ms < self._not_before_ms:
                return ShardMove.NOTHING
            self.running, self._is_ready, self._left_ms, self._ending = outcome, False, None, False
            return ShardMove.BEGIN
        patience_ms = self._patience(self.running, outcome, serving)
        if patience_ms is None:
            self._left_ms = None
            if self._own_since_ms is None or self._is_due or now_ms < self._own_since_ms + VOLUNTARY_MS:
                return ShardMove.NOTHING
            self._is_due = True
            return ShardMove.REPLAN
        self._patience_ms = patience_ms
        self._left_ms = now_ms if self._left_ms is None else self._left_ms
        if self._ending or now_ms < self._left_ms + patience_ms or not self._is_my_turn(self.running, outcome, serving):
            return ShardMove.NOTHING
        self._ending = True
        return ShardMove.END

    def _patience(self, running: Shards, outcome: Outcome | None, serving: Serving) -> int | None:
        """How long the other way must have been there before this node's shard ends; None: it is kept."""
        match outcome:
            case Solo(host) if host != self.me:
                return VOLUNTARY_MS if serving.get(host) == "" else None
            case Split() if outcome.host != self.me:
                return VOLUNTARY_MS
            case Shards():
                now = sorted(_members(outcome))
                is_lost = self.me in now and not _members(running) <= {*now}
                return SHARD_LOSS_MS + now.index(self.me) * SHARD_TURN_MS if is_lost else None
            case _:
                return None

    def _is_my_turn(self, running: Shards, outcome: Outcome | None, serving: Serving) -> bool:
        """Whether all others of the old plan answer: who changes to the new one does not."""
        if not isinstance(outcome, Shards):
            return True
        return all(node in serving for node in (_members(outcome) & _members(running)) - {self.me})

    def ready(self) -> None:
        """Its engine answers: the count of failures begins anew."""
        self._is_ready = True
        self._failures = 0

    def gives_way(self) -> None:
        """This node runs the model in another way from now on; `ended` follows."""
        self._ending = True

    def ended(self, now_ms: int) -> None:
        """It is gone, whoever ended it."""
        if not self._ending:
            self._failures += 1
            self._not_before_ms = now_ms + min(BACKOFF_MS << (self._failures - 1), MAX_BACKOFF_MS)
        self.running, self._is_ready, self._left_ms, self._ending = None, False, None, False
        self._let_be()

    def _let_be(self) -> None:
        self._own_since_ms, self._is_due = None, False

    def next_wake_ms(self, now_ms: int) -> int | None:
        """When `look` is due, if nothing else happens."""
        if self.running is None:
            return self._not_before_ms if self._not_before_ms > now_ms else None
        if self._own_since_ms is not None:
            return None if self._is_due else self._own_since_ms + VOLUNTARY_MS
        due_ms = self._left_ms + self._patience_ms if self._left_ms is not None and not self._ending else 0
        return due_ms if due_ms > now_ms else None  # after that, others' news decide


def _members(outcome: Shards) -> frozenset[bytes]:
    return frozenset(room.node for room in outcome.nodes)
