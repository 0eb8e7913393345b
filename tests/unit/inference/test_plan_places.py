"""Plans in layers: which layers each place gets, what it takes there, and numbers that users give."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.fit import buffer_bytes
from agentmesh.inference.logic.split_values import Solo, Split, Wait, WaitCode, Wish
from tests.fakes.split_world import GB, MODEL, THREE, TWO, a_model, a_node, near, node_id, plan, split, wait

# ------------------------------------------------------------------ placing


def test_every_layer_is_somewhere_and_nobody_is_over_its_limit() -> None:
    outcome = split(THREE)
    assert sum(share.layers for share in outcome.shares) == 40
    assert [share.first for share in outcome.shares] == [0, *(s.first + s.layers for s in outcome.shares[:-1])]
    for share in outcome.shares:
        free = next(node.free_bytes for node in THREE if node.node == share.place.node)
        assert share.need_bytes <= free * 0.9


def test_a_host_without_accelerator_keeps_the_first_layers_and_the_output() -> None:
    outcome = split(TWO)
    assert [share.place.is_host for share in outcome.shares] == [True, False]
    assert outcome.output_on_cpu
    worker = outcome.shares[1].layers
    assert (outcome.tensor_split, outcome.gpu_layers) == ((worker + 1,), worker + 1)


def test_a_host_s_memory_holds_its_layers_the_embeddings_and_the_output_once() -> None:
    share = split(TWO, Wish(context_tokens=4096)).shares[0]
    weights = share.layers * GB // 2 + 200_000_000 + 300_000_000
    contexts = MODEL.facts.kv_bytes(4096) * share.layers // 40
    buffers = buffer_bytes(MODEL.facts, 4096, 1, ubatch_tokens=512, on_device=False)
    assert share.need_bytes == weights + contexts + buffers


def test_a_host_with_accelerators_comes_last_and_has_the_output() -> None:
    nodes = [a_node(1, 8, gpus=(8, 8), rtts=near(2)), a_node(2, 14)]
    outcome = split(nodes)
    assert [share.place.device for share in outcome.shares] == [None, "CUDA0", "CUDA1"]
    assert not outcome.output_on_cpu
    assert sum(outcome.tensor_split) == outcome.gpu_layers == 41


def test_a_host_whose_machine_memory_cannot_take_the_embeddings_is_no_host() -> None:
    nodes = [a_node(1, 0.1, gpus=(16,), rtts=near(2)), a_node(2, 14)]
    assert split(nodes).host == node_id(2)
    assert isinstance(plan(nodes, Wish(host=node_id(1))), Wait)


def test_a_draft_on_the_host_takes_of_its_memory() -> None:
    plain, drafted = split(TWO), split(TWO, Wish(host_extra_bytes=2 * GB))
    assert drafted.shares[0].layers < plain.shares[0].layers


def test_what_stands_beside_the_whole_model_counts_on_one_node_too() -> None:
    large = [a_node(1, 24, rtts=near(2)), a_node(2, 20)]
    assert isinstance(plan(large), Solo)
    assert isinstance(plan(large, Wish(alone_extra_bytes=4 * GB)), Split)


def test_the_context_is_halved_until_it_fits_and_one_that_was_asked_for_is_not() -> None:
    tight = [a_node(1, 13, rtts=near(2)), a_node(2, 12)]
    assert split(tight).context_tokens < 32_768
    assert wait(tight, Wish(context_tokens=32_768)).missing_bytes > 0


def test_who_lacks_the_file_is_said_and_another_file_of_that_name_is_none() -> None:
    nodes = [a_node(1, 16, rtts=near(2), files=("aa",)), a_node(2, 14, files=("other content",))]
    assert split(nodes).lacking == (node_id(2),)


# ------------------------------------------------------------------ --tensor-split


def test_the_user_s_numbers_are_for_workers_in_plan_order_and_the_host_last() -> None:
    outcome = split(TWO, Wish(tensor_split=(2, 3), context_tokens=4096))
    assert [(s.place.is_host, s.layers) for s in outcome.shares] == [(True, 24), (False, 16)]


def test_numbers_may_leave_the_host_without_layers() -> None:
    nodes = [a_node(1, 24.4, rtts=near(2)), a_node(2, 24.3)]
    model = a_model(layers=40, layer_bytes=GB // 2 + 20_000_000, output_bytes=GB * 3)
    outcome = split(nodes, Wish(tensor_split=(1, 0), context_tokens=4096), model)
    assert [s.layers for s in outcome.shares] == [0, 40]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((1.0, 2.0, 3.0), "3 numbers, but 2 nodes"),
        ((1.0,), "1 numbers"),
        ((1.0,) * 17, "17 numbers"),
        ((0.0, 0.0), "not all zero"),
        ((-1.0, 2.0), "not negative"),
        ((float("nan"), 2.0), "not negative"),
        ((float("inf"), 2.0), "not negative"),
        ((0.0, 2.0), "nothing to any worker"),
        ((9.0, 1.0), "By --tensor-split n2 would get more than it has"),
    ],
)
def test_numbers_that_cannot_be_are_refused(numbers: tuple[float, ...], said: str) -> None:
    outcome = wait(TWO, Wish(tensor_split=numbers, context_tokens=4096))
    assert outcome.code is WaitCode.TENSOR_SPLIT
    assert said in outcome.sentence


def test_numbers_for_fewer_nodes_than_min_peers_asks_for_are_refused() -> None:
    outcome = wait(THREE, Wish(tensor_split=(1, 1), min_peers=2))
    assert outcome.code is WaitCode.TENSOR_SPLIT
    assert "--min-peers asks for 2" in outcome.sentence
