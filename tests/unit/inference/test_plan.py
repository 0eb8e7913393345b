"""Plans: alone, in layers, in shards, or a wait that says what is missing."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from agentmesh.inference.logic.plan import plan_digest
from agentmesh.inference.logic.split_values import (
    Common,
    ExclusionCode,
    NodeFacts,
    Outcome,
    Shards,
    Solo,
    Split,
    Wait,
    WaitCode,
    Way,
    Wish,
)
from agentmesh.mesh.identity import encode_id
from tests.fakes.split_world import GB, TWO, a_model, a_node, near, node_id, plan, split, wait


def why(outcome: Outcome, number: int) -> tuple[ExclusionCode, str]:
    found = [one for one in outcome.common.excluded if one.node == node_id(number)]
    assert len(found) == 1, outcome
    return found[0].code, found[0].sentence


# ------------------------------------------------------------------ one node


@pytest.mark.parametrize("way", [Way.ANY, Way.LAYERS])
def test_a_model_that_one_node_can_hold_is_never_split(way: Way) -> None:
    outcome = plan([a_node(1, 16, rtts=near(2)), a_node(2, 40)], Wish(way=way))
    assert isinstance(outcome, Solo)
    assert outcome.node == node_id(2)


def test_of_nodes_that_can_hold_it_one_with_the_file_is_taken() -> None:
    outcome = plan([a_node(1, 40, files=("aa",)), a_node(2, 60), a_node(3, 60, files=("bb",))])
    assert isinstance(outcome, Solo)
    assert outcome.node == node_id(1)


def test_a_client_with_much_memory_holds_nothing() -> None:
    assert isinstance(plan([a_node(1, 200, client=True)]), Wait)


# ------------------------------------------------------------------ host and workers


def test_the_node_with_most_memory_is_host_and_ties_go_to_the_smaller_id() -> None:
    assert split(TWO).host == node_id(1)
    tie = [a_node(2, 15, rtts=near(1)), a_node(1, 15)]
    assert split(tie).host == node_id(1)


def test_the_user_s_host_is_taken_even_if_it_is_smaller() -> None:
    outcome = split(TWO, Wish(host=node_id(2)))
    assert (outcome.host, outcome.workers) == (node_id(2), (node_id(1),))
    assert "--host-node says so" in outcome.common.reasons[0]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([*TWO, a_node(9, 50, client=True)], "n9 is a client"),
        ([*TWO, a_node(9, 1, has_rpc=False)], "engine install"),
        (TWO, "no node"),
    ],
)
def test_a_host_of_the_user_s_that_cannot_be_one_is_said(nodes: list[NodeFacts], said: str) -> None:
    outcome = wait(nodes, Wish(host=node_id(9)))
    assert outcome.code is WaitCode.HOST_NODE
    assert said in outcome.sentence


def test_workers_come_by_round_trip_and_only_as_many_as_it_takes() -> None:
    nodes = [a_node(1, 16, rtts={2: 40, 3: 1, 4: 20}), a_node(2, 12), a_node(3, 12), a_node(4, 12)]
    assert split(nodes).workers == (node_id(3),)
    assert split(nodes, Wish(min_peers=2)).workers == (node_id(3), node_id(4))


def test_a_near_worker_that_is_not_needed_is_left_out_again() -> None:
    nodes = [a_node(1, 16, rtts={2: 1, 3: 10}), a_node(2, 2.0), a_node(3, 15)]
    assert split(nodes).workers == (node_id(3),)


def test_noise_in_round_trips_does_not_change_the_order_of_workers() -> None:
    def with_noise(a: float, b: float) -> Split:
        nodes = [a_node(1, 16, rtts={2: a, 3: b}), a_node(2, 8), a_node(3, 9)]
        return split(nodes, Wish(min_peers=2))

    assert plan_digest(with_noise(1.2, 1.9)) == plan_digest(with_noise(1.8, 1.1))


def test_at_most_fifteen_workers_take_part() -> None:
    others = range(2, 22)
    tiny = [a_node(number, 2.2) for number in others]
    model = a_model(layers=200, layer_bytes=GB // 10)
    outcome = plan([a_node(1, 4, rtts=near(*others)), *tiny], model=model)
    assert isinstance(outcome, Split)
    assert len(outcome.workers) <= 15
    assert isinstance(plan([a_node(1, 4, rtts=near(*others)), *tiny], Wish(min_peers=16), model), Wait)


def test_devices_are_counted_too_since_tensor_split_takes_fifteen_numbers() -> None:
    others = range(2, 7)
    nodes = [a_node(1, 3, rtts=near(*others)), *(a_node(n, 1, gpus=(2.0,) * 4) for n in others)]
    model = a_model(layers=38, layer_bytes=GB // 3)
    twelve = split(nodes, Wish(host=node_id(1), min_peers=3, context_tokens=4096), model)
    assert len(twelve.tensor_split) == 12
    assert isinstance(plan(nodes, Wish(host=node_id(1), min_peers=4, context_tokens=4096), model), Wait)


def test_of_workers_equally_near_the_larger_comes_first() -> None:
    nodes = [a_node(1, 16, rtts=near(2, 3)), a_node(2, 8), a_node(3, 9)]
    assert split(nodes, Wish(min_peers=2)).workers == (node_id(3), node_id(2))


# ------------------------------------------------------------------ who is left out, and why

LEFT_OUT = [
    (a_node(3, 14, client=True), ExclusionCode.CLIENT, "--client"),
    (a_node(3, 14, part=False), ExclusionCode.NO_PART, "--split"),
    (a_node(3, 14, has_rpc=False), ExclusionCode.NO_RPC, "engine install"),
    (a_node(3, 14, commit="fffffffff"), ExclusionCode.OTHER_ENGINE, "engine install"),
    (a_node(3, 14, rpc=(7, 0, 1)), ExclusionCode.OTHER_ENGINE, "RPC 7.0.1"),
    (a_node(3, 14, lends_all=False), ExclusionCode.NOT_LENT, f"--rpc-peers {encode_id(node_id(1))}"),
    (a_node(3, 14, lends_all=False, lends_to=(2,)), ExclusionCode.NOT_LENT, f"--rpc-peers {encode_id(node_id(1))}"),
    (a_node(3, 14, rtts=near(1, ms=81)), ExclusionCode.TOO_FAR, "81 ms"),
]


@pytest.mark.parametrize(("node", "code", "said"), LEFT_OUT, ids=[f"{c[1]}-{i}" for i, c in enumerate(LEFT_OUT)])
def test_a_node_is_left_out_with_a_sentence_that_says_what_to_do(
    node: NodeFacts, code: ExclusionCode, said: str
) -> None:
    outcome = wait([a_node(1, 16, rtts=near(2, 3), lends_all=False), a_node(2, 1), node])
    found, sentence = why(outcome, 3)
    assert found is code
    assert said in sentence


def test_eighty_milliseconds_are_near_enough_and_the_larger_direction_counts() -> None:
    assert split([a_node(1, 16, rtts=near(2, ms=80)), a_node(2, 14)]).workers == (node_id(2),)
    outcome = wait([a_node(1, 16, rtts=near(2, ms=2)), a_node(2, 14, rtts=near(1, ms=90))])
    assert why(outcome, 2)[0] is ExclusionCode.TOO_FAR


def test_a_host_to_whom_nobody_lends_is_passed_over_for_one_to_whom_somebody_does() -> None:
    nodes = [a_node(1, 16, rtts=near(2)), a_node(2, 14, lends_all=False)]
    outcome = split(nodes)
    assert (outcome.host, outcome.workers) == (node_id(2), (node_id(1),))


def test_an_unknown_round_trip_is_to_be_measured_before_it_is_judged() -> None:
    outcome = wait([a_node(1, 16), a_node(2, 14)])
    assert outcome.code is WaitCode.MEASURING
    assert outcome.common.to_measure == ((node_id(1), node_id(2)),)


def test_a_node_with_another_engine_forms_no_split_but_two_of_them_do() -> None:
    nodes = [a_node(1, 18, rtts=near(2, 3)), a_node(2, 16, commit="other", rtts=near(3)), a_node(3, 14, commit="other")]
    outcome = split(nodes)
    assert (outcome.host, outcome.workers) == (node_id(2), (node_id(3),))


def test_an_engine_for_whole_models_only_takes_no_part() -> None:
    outcome = wait([a_node(1, 16, has_rpc=False), a_node(2, 14, has_rpc=False)])
    assert outcome.code is WaitCode.NODES
    assert "engine install" in outcome.sentence


def lender(number: int, free_gb: float, **fields: object) -> NodeFacts:
    return msgspec.structs.replace(a_node(number, free_gb), may_host=False, **fields)


def test_a_node_that_lends_only_is_a_worker_and_never_host() -> None:
    outcome = split([a_node(1, 8, rtts=near(2)), lender(2, 20)])
    assert (outcome.host, outcome.workers) == (node_id(1), (node_id(2),))
    assert outcome.common.excluded == ()


def test_a_node_that_lends_only_holds_no_whole_model_and_no_shard() -> None:
    assert split([a_node(1, 8, rtts=near(2)), lender(2, 60)]).host == node_id(1)
    nodes = [a_node(1, 16, rtts=near(2)), lender(2, 16)]
    assert isinstance(plan(nodes, Wish(way=Way.EXPERTS, context_tokens=4096), a_model(experts=16)), Wait)


def test_a_node_that_lends_only_cannot_be_named_as_host() -> None:
    outcome = wait([a_node(1, 8, rtts=near(2)), lender(2, 20)], Wish(host=node_id(2)))
    assert outcome.code is WaitCode.HOST_NODE
    assert "n2 lends memory only" in outcome.sentence


def test_lenders_alone_host_nothing_and_the_sentence_says_why() -> None:
    outcome = wait([lender(1, 30), lender(2, 20)])
    assert outcome.code is WaitCode.NODES
    assert "with --split" in outcome.sentence


# ------------------------------------------------------------------ waiting


def test_too_little_memory_everywhere_is_said_in_bytes() -> None:
    outcome = wait([a_node(1, 10, rtts=near(2)), a_node(2, 5)])
    assert outcome.code is WaitCode.MEMORY
    assert 5 * GB < outcome.missing_bytes < 12 * GB
    assert "GB are missing" in outcome.sentence


def test_what_is_said_to_be_missing_is_enough() -> None:
    nodes = [a_node(1, 10, rtts=near(2)), a_node(2, 5)]
    missing_gb = wait(nodes, Wish(context_tokens=4096)).missing_bytes / GB
    assert isinstance(plan([nodes[0], a_node(2, 5 + missing_gb / 0.9 + 1.2)], Wish(context_tokens=4096)), Split)


def test_min_peers_waits_and_says_for_how_many() -> None:
    outcome = wait(TWO, Wish(min_peers=2))
    assert outcome.code is WaitCode.MIN_PEERS
    assert outcome.sentence.startswith("1 of 2 peers")


def test_without_any_node_there_is_a_sentence_too() -> None:
    assert wait([]).code is WaitCode.NODES


# ------------------------------------------------------------------ experts


def test_a_mixture_that_is_too_big_becomes_shards() -> None:
    outcome = plan([a_node(1, 16), a_node(2, 17)], model=a_model(experts=16))
    assert isinstance(outcome, Shards)
    assert all(8 <= room.experts <= 16 for room in outcome.nodes)
    assert sum(room.experts for room in outcome.nodes) >= 16


def test_layers_are_taken_when_shards_cannot_be_unless_experts_were_asked_for() -> None:
    nodes = [a_node(1, 19, rtts=near(2)), a_node(2, 8)]
    model = a_model(experts=16)
    assert isinstance(plan(nodes, model=model), Split)
    assert wait(nodes, Wish(way=Way.EXPERTS), model).code is WaitCode.MEMORY
    assert isinstance(plan([a_node(1, 16, rtts=near(2)), a_node(2, 17)], Wish(way=Way.LAYERS), model), Split)


def test_a_catalog_s_minimum_of_experts_counts() -> None:
    model = a_model(experts=16)
    assert not isinstance(plan([a_node(1, 16), a_node(2, 17)], Wish(min_experts=15), model), Shards)


@pytest.mark.parametrize(
    ("free_gb", "least"), [(9, 4), (6, 1)], ids=["not all are somewhere", "fewer than a token uses"]
)
def test_shards_need_all_experts_somewhere_and_as_many_as_a_token_uses(free_gb: float, least: int) -> None:
    nodes = [a_node(number, free_gb) for number in range(1, 3 if least > 1 else 12)]
    outcome = wait(nodes, Wish(way=Way.EXPERTS, min_experts=least, context_tokens=4096), a_model(experts=16))
    assert outcome.code is WaitCode.MEMORY


def test_expert_shards_of_a_model_without_experts_are_refused() -> None:
    assert wait(TWO, Wish(way=Way.EXPERTS)).code is WaitCode.NO_EXPERTS


# ------------------------------------------------------------------ names


def test_a_plan_s_name_does_not_depend_on_its_sentences() -> None:
    outcome = split(TWO)
    assert plan_digest(outcome) == plan_digest(replace(outcome, common=Common(("else",))))
    assert plan_digest(outcome) != plan_digest(split(TWO, Wish(context_tokens=4096)))


@pytest.mark.parametrize("small_gb", [0.1, 0.4])
def test_a_near_worker_that_holds_no_layer_keeps_nobody_else_out(small_gb: float) -> None:
    nodes = [a_node(1, 16, rtts={2: 1, 3: 10}), a_node(2, small_gb), a_node(3, 14)]
    assert split(nodes).workers == (node_id(3),)


def test_what_is_missing_is_said_where_no_worker_holds_a_layer() -> None:
    assert wait([a_node(1, 16, rtts=near(2)), a_node(2, 0.1)]).missing_bytes > GB
