"""Estimates, and the sentences about other ways."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.inference.logic.advice import Advice, advise, estimate
from agentmesh.inference.logic.plan import make_plan
from agentmesh.inference.logic.split_values import DeviceFacts, NodeFacts, PlanModel, Split, Wish
from agentmesh.mesh.identity import decode_id
from tests.fakes.split_world import GB, a_model, a_node, near

MODEL = a_model()
SMALL = msgspec.structs.replace(
    a_model(layer_bytes=GB // 4), facts=msgspec.structs.replace(a_model(layer_bytes=GB // 4).facts, quant="Q2_K")
)
TWO = [a_node(1, 16, rtts=near(2, ms=20)), a_node(2, 14)]


def advice(nodes: list[NodeFacts], model: PlanModel = MODEL, smaller: tuple[PlanModel, ...] = ()) -> Advice:
    return advise(model, Wish(), nodes, make_plan(model, Wish(), nodes), smaller)


def with_speed(node: NodeFacts, gb_per_s: int) -> NodeFacts:
    devices = tuple(DeviceFacts(d.name, d.free_bytes, d.total_bytes, gb_per_s * GB) for d in node.devices)
    return msgspec.structs.replace(node, devices=devices, machine_bytes_per_s=gb_per_s * GB)


def test_a_token_takes_its_bytes_at_each_memory_s_speed_and_a_round_trip_for_each_worker() -> None:
    nodes = [with_speed(TWO[0], 50), with_speed(TWO[1], 50)]
    split = make_plan(MODEL, Wish(), nodes)
    assert isinstance(split, Split)
    found = estimate(MODEL, split, nodes)
    assert found.compute_ms == pytest.approx(20.3e9 / 50e9 * 1000)  # all but the token embeddings
    assert found.network_ms == 20
    assert found.tokens_per_s == pytest.approx(1000 / 426)
    assert not found.is_guess


def test_of_experts_only_those_that_are_used_are_read() -> None:
    model = a_model(experts=16)
    nodes = [a_node(1, 60)]
    outcome = make_plan(model, Wish(), nodes)
    assert not isinstance(outcome, Split)
    dense = advice([a_node(1, 60)]).estimate
    mixture = advice([a_node(1, 60)], model).estimate
    assert dense is not None
    assert mixture is not None
    assert mixture.compute_ms < dense.compute_ms * 0.4  # 10 % + 90 % x 4/16, and the output


def test_the_plan_s_own_speed_is_said_and_that_it_is_a_guess() -> None:
    said = advice(TWO).sentences[0]
    assert "tokens/s" in said
    assert "20 ms for the way to 1 worker" in said
    assert "guesses" in said


def test_a_smaller_quant_on_one_node_is_named_when_it_is_faster() -> None:
    sentences = advice(TWO, smaller=(SMALL,)).sentences
    assert "The smaller quant Q2_K would fit on n1 alone, and be about 2.1 x as fast" in " ".join(sentences)


def test_a_smaller_quant_that_is_hardly_faster_is_not_named() -> None:
    hardly = a_model(layer_bytes=GB * 2 // 5)
    nodes = [with_speed(a_node(1, 18, rtts=near(2)), 100), with_speed(a_node(2, 8), 1_000)]
    assert not [one for one in advice(nodes, smaller=(hardly,)).sentences if "quant" in one]


def test_where_nothing_fits_a_quant_that_does_is_named() -> None:
    [said] = advice([a_node(1, 14)], smaller=(SMALL,)).sentences
    assert "would fit on n1 alone" in said


def test_a_small_host_beside_one_large_worker_is_named_when_it_is_faster() -> None:
    # n1 has most memory, but its own is slow and everybody is far from it; n2 and n3 have fast memory, side by side.
    nodes = [
        with_speed(a_node(1, 18, rtts=near(2, 3, ms=60)), 50),
        with_speed(a_node(2, 17, rtts=near(3, ms=1)), 300),
        with_speed(a_node(3, 12), 300),
    ]
    [said] = [one for one in advice(nodes).sentences if "--host-node" in one]
    outcome = make_plan(MODEL, Wish(host=decode_id(said.split("--host-node ")[1].split(")", 1)[0])), nodes)
    assert isinstance(outcome, Split)
    assert estimate(MODEL, outcome, nodes).network_ms == 1


def test_more_layers_on_the_faster_node_are_named_with_numbers_that_fit() -> None:
    nodes = [with_speed(a_node(1, 18, rtts=near(2)), 40), with_speed(a_node(2, 17), 400)]
    [said] = [one for one in advice(nodes).sentences if "--tensor-split" in one]
    numbers = tuple(float(one) for one in said.split("--tensor-split ")[1].split(")", 1)[0].split(","))
    context = make_plan(MODEL, Wish(), nodes)
    assert isinstance(context, Split)
    wish = Wish(tensor_split=numbers, context_tokens=context.context_tokens)
    faster = make_plan(MODEL, wish, nodes)
    assert isinstance(faster, Split)
    assert estimate(MODEL, faster, nodes).tokens_per_s > 1.2 * estimate(MODEL, context, nodes).tokens_per_s


def test_on_one_node_there_is_nothing_to_advise() -> None:
    [said] = advice([a_node(1, 60)], smaller=(SMALL,)).sentences
    assert said == "About 2.5 tokens/s on one node."
