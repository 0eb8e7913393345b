"""Experts ranked by use, and dealt out to nodes."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.moe import (
    MAX_NODES,
    SOURCE_IMATRIX,
    SOURCE_NONE,
    NodeRoom,
    NotPlannable,
    minimum_experts,
    most_used,
    plan_outcome,
    plan_shards,
    rank,
    ranking_digest,
    routing_share,
    unranked,
)
from agentmesh.inference.logic.split_values import ShardRoom, Shards

COUNTS = {0: (5, 9, 0, 9), 3: (1, 2, 3, 4)}
RANKING = rank(COUNTS, (0, 3), 4, SOURCE_IMATRIX)
EIGHT = unranked((0,), 8)


def test_experts_are_ranked_by_use_and_equals_by_their_number() -> None:
    assert RANKING.order == ((1, 3, 0, 2), (3, 2, 1, 0))
    assert RANKING.source == SOURCE_IMATRIX
    assert RANKING.unranked_layers == ()


@pytest.mark.parametrize("counts", [{}, {0: (0, 0, 0, 0)}, {0: (1, 2, 3)}, {7: (1, 2, 3, 4)}])
def test_a_layer_without_usable_counts_keeps_the_files_order_and_is_said_to_be_unranked(
    counts: dict[int, tuple[int, ...]],
) -> None:
    ranking = rank(counts, (0, 3), 4, SOURCE_IMATRIX)
    assert ranking.order == ((0, 1, 2, 3), (0, 1, 2, 3))
    assert ranking.unranked_layers == (0, 3)
    assert ranking.source == SOURCE_NONE


def test_a_ranking_of_some_layers_names_the_others() -> None:
    ranking = rank({3: (1, 2, 3, 4)}, (0, 3), 4, SOURCE_IMATRIX)
    assert (ranking.source, ranking.unranked_layers) == (SOURCE_IMATRIX, (0,))


def test_kept_experts_are_in_the_files_order_in_each_layer() -> None:
    assert most_used(RANKING, 2) == ((1, 3), (2, 3))
    assert most_used(RANKING, 4) == ((0, 1, 2, 3), (0, 1, 2, 3))


def test_every_node_has_the_core_and_the_rest_is_dealt_out_once() -> None:
    plan = plan_shards(EIGHT, [NodeRoom("b"), NodeRoom("a")], 4)
    assert [(shard.name, shard.ranks) for shard in plan.shards] == [
        ("a", (0, 1, 2, 3, 4, 6)),
        ("b", (0, 1, 2, 3, 5, 7)),
    ]
    assert plan.left_out == ()


def test_a_node_with_less_room_takes_less_of_the_rest() -> None:
    plan = plan_shards(EIGHT, [NodeRoom("a", 5), NodeRoom("b", 100)], 4)
    assert [shard.expert_count for shard in plan.shards] == [5, 7]
    assert plan.left_out == ()


def test_experts_without_room_are_named_the_least_used_ones() -> None:
    plan = plan_shards(EIGHT, [NodeRoom("a", 5), NodeRoom("b", 5)], 4)
    assert plan.left_out == (6, 7)


def test_one_node_alone_holds_the_whole_model() -> None:
    assert plan_shards(EIGHT, [NodeRoom("a")], 4).shards[0].kept == (tuple(range(8)),)


@pytest.mark.parametrize(
    ("nodes", "minimum", "said"),
    [
        ([], 4, "0"),
        ([NodeRoom("a"), NodeRoom("a")], 4, "twice"),
        ([NodeRoom("a", 3)], 4, "a has room for 3 of 8 experts a layer; 4 are needed"),
        ([NodeRoom("a")], 9, "9"),
        ([NodeRoom(f"n{number}") for number in range(65)], 4, "65"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_is_missing(nodes: list[NodeRoom], minimum: int, said: str) -> None:
    with pytest.raises(NotPlannable, match=said):
        plan_shards(EIGHT, nodes, minimum)


@pytest.mark.parametrize(
    ("experts", "used", "asked", "least"),
    [(128, 8, None, 64), (7, 2, None, 4), (8, 6, None, 6), (128, 8, 46, 46), (128, 8, 4, 8), (16, 4, 99, 16)],
)
def test_a_node_needs_what_is_asked_else_half_and_never_less_than_a_token_uses(
    experts: int, used: int, asked: int | None, least: int
) -> None:
    assert minimum_experts(experts, used, asked) == least


def test_the_share_of_the_routing_is_that_of_the_counted_choices() -> None:
    assert routing_share(COUNTS, (0, 3), most_used(RANKING, 2)) == pytest.approx((18 + 7) / 33)
    assert routing_share(COUNTS, (0, 3), most_used(RANKING, 4)) == 1
    assert routing_share({}, (0, 3), most_used(RANKING, 2)) is None


# ---------------------------------------------------------------------- an outcome's nodes


def _outcome(rooms: dict[int, int], experts: int = 8) -> Shards:
    return Shards(tuple(ShardRoom(bytes([node]) * 32, room, 1) for node, room in rooms.items()), experts, 4096, 1)


def test_an_outcomes_rooms_are_what_its_nodes_hold() -> None:
    ranking = unranked((0,), 8)
    plan = plan_outcome(_outcome({1: 7, 2: 5}), b"\2" * 32, ranking, 2)
    assert [(shard.name[:2], shard.ranks) for shard in plan.shards] == [
        ("01", (0, 1, 2, 3, 4, 6, 7)),
        ("02", (0, 1, 2, 3, 5)),
    ]
    assert plan_outcome(_outcome({2: 5, 1: 7}), b"\1" * 32, ranking, 2) == plan, "whoever asks, in whatever order"
    assert plan_outcome(_outcome({1: 7, 2: 5}), b"\2" * 32, ranking, 2, 5).core_count == 5
    assert plan_outcome(_outcome({1: 7, 2: 3}), b"\2" * 32, ranking, 2, 5).core_count == 3, "who has less, has less"


def test_more_nodes_than_a_plan_takes_hold_the_model_several_times() -> None:
    ranking = unranked((0,), 8)
    many = _outcome(dict.fromkeys(range(1, 2 * MAX_NODES + 2), 5))
    plans = [
        plan_outcome(many, bytes([node]) * 32, ranking, 2) for node in (1, MAX_NODES, MAX_NODES + 1, 2 * MAX_NODES + 1)
    ]
    assert plans[0] == plans[1]
    assert [len(plan.shards) for plan in plans[1:]] == [MAX_NODES, MAX_NODES, 1]
    assert not any(plan.left_out for plan in plans[:3])


def test_an_outcome_of_another_model_or_without_this_node_is_refused() -> None:
    for outcome, node in ((_outcome({1: 8}, 16), 1), (_outcome({1: 8}), 2), (_outcome({1: 1, 2: 8}), 1)):
        with pytest.raises(NotPlannable):
            plan_outcome(outcome, bytes([node]) * 32, unranked((0,), 8), 2)


def test_rankings_are_named_by_their_order_only() -> None:
    counts = {0: (1.0, 5.0), 1: (3.0, 2.0)}
    one, same = rank(counts, (0, 1), 2, "imatrix"), rank({0: (0.0, 9.0), 1: (2.0, 1.0)}, (0, 1), 2, "calibration")
    other = rank({0: (9.0, 0.0), 1: (2.0, 1.0)}, (0, 1), 2, "imatrix")
    assert ranking_digest(one) == ranking_digest(same) != ranking_digest(other)
    assert ranking_digest(unranked((0, 1), 2)) == "-"
