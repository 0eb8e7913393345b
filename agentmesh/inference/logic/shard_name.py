"""What a shard is called in presence: how many experts of each layer it keeps, of how many, and which ranking chose them. Pure.

64/128 1f09a3c2      64 of 128 experts a layer, by the ranking of that digest
64/128 -             the same in the file's order, for nothing was counted
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MAX_SHARD_CHARS: Final = 64  # of what members call their shards; ours take 18
UNRANKED: Final = "-"

_NAME: Final = re.compile(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3}) (-|[0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class ShardName:
    """A shard as its node tells of it. `ranking`: eight hexadecimal digits, or UNRANKED."""

    experts: int
    expert_count: int
    ranking: str

    @property
    def kept_of(self) -> str:
        """For people."""
        return f"{self.experts} of {self.expert_count}"

    def __str__(self) -> str:
        return f"{self.experts}/{self.expert_count} {self.ranking}"


def is_shard_name(text: str) -> bool:
    """Whether a peer may call a shard so. Later versions may have other forms: only length and characters count. Empty: no shard."""
    return len(text) <= MAX_SHARD_CHARS and (not text or text.isprintable())


def parse_shard_name(text: str) -> ShardName | None:
    """None: it is no shard, or is called in a way that this version does not know."""
    match = _NAME.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]):
        return None
    return ShardName(int(match[1]), int(match[2]), match[3])


def ranking_warning(names: Iterable[str]) -> str:
    """What there is to say of the shards of one model that run side by side; empty: nothing.

    Shards of different rankings answer as well as ever, each by itself, but some experts may be on no node and others on more than planned.
    """
    rankings = {name.ranking for text in names if (name := parse_shard_name(text)) is not None}
    if len(rankings) > 1:
        return (
            "The nodes ranked the experts by different counts, so some experts may be on none. Copy one node's home/shards/rankings to "
            "the others and load the model anew there."
        )
    if rankings == {UNRANKED}:
        return (
            "The experts are unranked: the file's order is taken, which is as good as chance. 'agentmesh moe rank' measures, on a "
            "machine that can hold the model."
        )
    return ""
