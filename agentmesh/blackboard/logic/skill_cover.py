"""Which folders get a copy of the skill, so that each agent sees exactly one. Pure.

Several agents read the same folders, so one copy may serve many, and two copies may meet in one agent, which then lists
the skill twice. This is an exact cover over a handful of folders: all choices are tried, the best is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Final

MAX_FOLDERS: Final = 16  # choices are 2 to this power; there are nine folders


def choose_folders(
    reads: Mapping[str, Sequence[str]],
    required: Collection[str],
    present: Collection[str],
    existing: Collection[str],
) -> tuple[str, ...]:
    """The folders to install into, in a fixed order.

    `reads`: what each known agent reads, its own folder first. Every agent of `required` will see exactly one copy, every
    other agent of `present` at most one. Fewest copies win; then folders of agents that are here, then those that hold a
    copy already (`existing`), then agents' own folders.
    """
    folders = tuple(dict.fromkeys(folder for agent in sorted(required) for folder in reads[agent]))[:MAX_FOLDERS]
    best: tuple[tuple[int, ...], tuple[str, ...]] | None = None
    for count in range(1, len(folders) + 1):
        for chosen in combinations(folders, count):
            if not _fits(reads, required, present, chosen):
                continue
            key = _cost(reads, required, present, existing, chosen)
            if best is None or key < best[0]:
                best = (key, chosen)
        if best is not None:
            return best[1]
    # No exact cover (a folder of an agent was linked to that of another): every agent sees one at least.
    return tuple(dict.fromkeys(reads[agent][0] for agent in sorted(required)))


def _fits(
    reads: Mapping[str, Sequence[str]], required: Collection[str], present: Collection[str], chosen: tuple[str, ...]
) -> bool:
    seen = {agent: sum(folder in folders for folder in chosen) for agent, folders in reads.items()}
    return all(seen[agent] == 1 for agent in required) and all(seen[agent] <= 1 for agent in present)


def _cost(
    reads: Mapping[str, Sequence[str]],
    required: Collection[str],
    present: Collection[str],
    existing: Collection[str],
    chosen: tuple[str, ...],
) -> tuple[int, ...]:
    # A folder that belongs to an agent which is not here: to create it would make that agent look installed.
    owners = {folders[0]: agent for agent, folders in reads.items()}
    strange = sum(folder in owners and owners[folder] not in (*required, *present) for folder in chosen)
    new = sum(folder not in existing for folder in chosen)
    order = sum(min(reads[agent].index(folder) for agent in required if folder in reads[agent]) for folder in chosen)
    return (strange, new, order)
