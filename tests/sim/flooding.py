"""What the broadcast tree is compared with: SWIM-style dissemination, each node telling a few random others for some rounds."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log10
from random import Random


@dataclass(frozen=True)
class FloodResult:
    reached: int
    copies_per_node: float
    rounds: int


def flood(nodes: int, *, loss: float, rng: Random, fan_out: int = 3) -> FloodResult:
    """One message. Each node that has it sends it to `fan_out` random nodes in each of its next ceil(4 log10 n) + 1 rounds."""
    repeats = ceil(4 * log10(nodes)) + 1
    since: dict[int, int] = {0: 0}
    copies, round_number, last_news = 0, 0, 0
    while any(round_number - start < repeats for start in since.values()):
        round_number += 1
        senders = [node for node, start in since.items() if round_number - start <= repeats]
        for _ in range(len(senders) * fan_out):
            if rng.random() < loss:
                continue
            copies += 1
            target = rng.randrange(nodes)
            if target not in since:
                since[target] = round_number
                last_news = round_number
    return FloodResult(len(since), copies / nodes, last_news)
