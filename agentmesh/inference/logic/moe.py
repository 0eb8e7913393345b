"""Which experts go to which node: ranking by use, and the plan of a shared core and one own part a node.

Pure and deterministic: the same counts and the same nodes give the same plan everywhere, in whatever order they are named. A request is
answered by one node alone, so every node holds the most used experts (the core) and is usable by itself; the rest is dealt out, so that
the mesh together holds as many experts as its nodes have room for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentmesh.inference.logic.shard_name import UNRANKED
from agentmesh.inference.logic.split_values import Shards

MAX_NODES: Final = 64  # of one plan; each more makes the shards smaller by less than a percent

SOURCE_IMATRIX: Final = "imatrix"
SOURCE_CALIBRATION: Final = "calibration"
SOURCE_NONE: Final = "unranked"

Counts = Mapping[int, Sequence[float]]  # layer -> how often each expert was chosen
Kept = tuple[tuple[int, ...], ...]  # per layer of experts, in the order of the layers: experts, ascending


class NotPlannable(Exception):
    """No plan meets what is asked; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Experts by use. `order[i]` has all experts of `layers[i]`, the most used first."""

    source: str
    layers: tuple[int, ...]
    order: tuple[tuple[int, ...], ...]
    unranked_layers: tuple[int, ...]  # nothing was counted there: their order is the file's

    @property
    def expert_count(self) -> int:
        return len(self.order[0])


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """A node that may hold a shard. `most_experts`: how many a layer its memory takes; None: as many as there are."""

    name: str
    most_experts: int | None = None


@dataclass(frozen=True, slots=True)
class NodeShard:
    """What one node holds. `kept` is what is written; ranks count from 0, 0 the most used."""

    name: str
    ranks: tuple[int, ...]
    kept: Kept

    @property
    def expert_count(self) -> int:
        return len(self.ranks)


@dataclass(frozen=True, slots=True)
class MoePlan:
    """A shard a node, by the nodes' names. `core_count` experts are on all of them; `left_out` are the ranks that no node has room for."""

    core_count: int
    shards: tuple[NodeShard, ...]
    left_out: tuple[int, ...]


def rank(counts: Counts, layers: Sequence[int], experts: int, source: str) -> Ranking:
    """Order each layer's experts by how often they were chosen; equals by their number.

    A layer without counts, with counts of another number of experts, or with none above 0, is unranked.
    """
    order: list[tuple[int, ...]] = []
    unranked: list[int] = []
    for layer in layers:
        given = counts.get(layer, ())
        if len(given) == experts and any(count > 0 for count in given):
            order.append(tuple(sorted(range(experts), key=lambda expert: (-given[expert], expert))))
        else:
            unranked.append(layer)
            order.append(tuple(range(experts)))
    known = source if len(unranked) < len(layers) else SOURCE_NONE
    return Ranking(known, tuple(layers), tuple(order), tuple(unranked))


def unranked(layers: Sequence[int], experts: int) -> Ranking:
    """The file's order, for want of anything better."""
    return rank({}, layers, experts, SOURCE_NONE)


def ranking_digest(ranking: Ranking) -> str:
    """Names a ranking: nodes of which it is the same deal the experts out alike. UNRANKED: the file's order."""
    if ranking.source == SOURCE_NONE:
        return UNRANKED
    return hashlib.sha256(repr((ranking.layers, ranking.order)).encode()).hexdigest()[:8]


def minimum_experts(experts: int, used: int, asked: int | None = None) -> int:
    """How many experts each node must hold: what is asked (by the user or the catalog), else half, never less than a token uses."""
    least = asked if asked is not None else (experts + 1) // 2
    return min(experts, max(least, used))


def plan_shards(ranking: Ranking, nodes: Sequence[NodeRoom], minimum: int) -> MoePlan:
    """The core of the `minimum` most used experts for every node, and the others dealt out one after the other, where there is room.

    Raises:
        NotPlannable: there is no node, one is named twice, or one has not the room for the core.
    """
    ordered = sorted(nodes, key=lambda node: node.name)
    _check_nodes(ordered, ranking, minimum)
    experts = ranking.expert_count
    room = [min(experts, experts if node.most_experts is None else node.most_experts) for node in ordered]
    ranks = [list(range(minimum)) for _ in ordered]
    left_out: list[int] = []
    turn = 0
    for place in range(minimum, experts):
        taker = _next_with_room(ranks, room, turn)
        if taker is None:
            left_out.append(place)
            continue
        ranks[taker].append(place)
        turn = (taker + 1) % len(ordered)
    shards = tuple(
        NodeShard(node.name, tuple(held), keep(ranking, held)) for node, held in zip(ordered, ranks, strict=True)
    )
    return MoePlan(minimum, shards, tuple(left_out))


def plan_outcome(outcome: Shards, me: bytes, ranking: Ranking, used: int, asked: int = 0) -> MoePlan:
    """What the nodes of an outcome hold, by node id in hexadecimal: the same wherever the ranking is. Of more than MAX_NODES, those that
    share with `me`: each MAX_NODES of them hold the model once more.

    Args:
        used: experts that a token uses.
        asked: how many each node must hold, by the user's wish; 0: half.

    Raises:
        NotPlannable: the outcome is of another model, or has no room for this node.
    """
    if outcome.expert_count != ranking.expert_count:
        raise NotPlannable(
            f"The plan is for {outcome.expert_count} experts a layer; this model has {ranking.expert_count}."
        )
    rooms = sorted(outcome.nodes, key=lambda room: room.node)
    place = next((number for number, room in enumerate(rooms) if room.node == me), None)
    if place is None:
        raise NotPlannable("The plan has no part for this node.")
    first = place - place % MAX_NODES
    rooms = rooms[first : first + MAX_NODES]
    least = minimum_experts(ranking.expert_count, used, asked or None)
    core = min([least, *(max(room.experts, used) for room in rooms)])
    return plan_shards(ranking, [NodeRoom(room.node.hex(), room.experts) for room in rooms], core)


def _check_nodes(nodes: Sequence[NodeRoom], ranking: Ranking, minimum: int) -> None:
    if not 0 < len(nodes) <= MAX_NODES:
        raise NotPlannable(f"A plan is for 1 to {MAX_NODES} nodes, not {len(nodes)}.")
    if len({node.name for node in nodes}) != len(nodes):
        raise NotPlannable("A node is named twice.")
    if not 0 < minimum <= ranking.expert_count:
        raise NotPlannable(
            f"The model has {ranking.expert_count} experts a layer; a minimum of {minimum} is none of it."
        )
    for node in nodes:
        if node.most_experts is not None and node.most_experts < minimum:
            raise NotPlannable(
                f"{node.name} has room for {max(node.most_experts, 0)} of {ranking.expert_count} experts a layer; {minimum} are needed."
            )


def _next_with_room(ranks: Sequence[Sequence[int]], room: Sequence[int], turn: int) -> int | None:
    """The next node from `turn` on that takes another expert."""
    places = [(turn + step) % len(room) for step in range(len(room))]
    return next((place for place in places if len(ranks[place]) < room[place]), None)


def keep(ranking: Ranking, ranks: Sequence[int]) -> Kept:
    """The experts of these ranks, per layer, in the file's order: keeping all of them changes nothing."""
    return tuple(tuple(sorted(order[place] for place in ranks)) for order in ranking.order)


def most_used(ranking: Ranking, experts: int) -> Kept:
    """The `experts` most used of each layer."""
    return keep(ranking, range(experts))


def routing_share(counts: Counts, layers: Sequence[int], kept: Kept) -> float | None:
    """The part of all counted choices that fell on the kept experts, 0 to 1; None when nothing was counted."""
    whole = held = 0.0
    for layer, experts in zip(layers, kept, strict=True):
        given = counts.get(layer, ())
        whole += sum(given)
        held += sum(given[expert] for expert in experts if expert < len(given))
    return held / whole if whole else None
