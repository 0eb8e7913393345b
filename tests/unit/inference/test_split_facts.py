"""What plans are made from: bytes by place from a header, what nodes publish, and whether a running plan is kept."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from agentmesh.inference.logic.election import steady_free_bytes, steady_rtt_ms
from agentmesh.inference.logic.fit import Wanted, need_of
from agentmesh.inference.logic.gguf_header import Header, Tensor
from agentmesh.inference.logic.keeping import better, broken
from agentmesh.inference.logic.model_parts import base_bytes, even_parts, host_memory_bytes, layers_bytes, model_parts
from agentmesh.inference.logic.plan import make_plan
from agentmesh.inference.logic.split_limits import FREE_STEP_BYTES, MAX_TERM
from agentmesh.inference.logic.split_values import (
    Claim,
    DeviceFacts,
    NodeFacts,
    PlanModel,
    Solo,
    Split,
    Wish,
    id_text,
    usable_facts,
)
from agentmesh.mesh.identity import encode_id
from tests.fakes.split_world import GB, a_model, a_node, near, node_id

# ------------------------------------------------------------------ bytes by place


def a_header(*tensors: tuple[str, int], blocks: int = 2) -> Header:
    values: dict[str, int | float | bool | str] = {"general.architecture": "llama", "llama.block_count": blocks}
    made = tuple(Tensor(name, (count,), 0, 0, count, count) for name, count in tensors)
    return Header(3, values, {}, made, 0, 0)


def test_weights_are_counted_where_llama_cpp_puts_them() -> None:
    parts = model_parts(
        [
            a_header(("token_embd.weight", 100), ("blk.0.attn_q.weight", 10), ("rope_freqs.weight", 3)),
            a_header(("blk.1.ffn_up.weight", 20), ("output_norm.weight", 1), ("output.weight", 50)),
        ]
    )
    assert (parts.input_bytes, parts.block_bytes, parts.output_bytes) == (100, (10, 20), 51)
    assert parts.everywhere_bytes == 3
    assert not parts.output_is_input


def test_an_output_that_is_the_input_costs_a_device_a_copy_and_the_host_s_memory_nothing() -> None:
    parts = model_parts(
        [a_header(("token_embd.weight", 100), ("blk.0.a", 1), ("blk.1.a", 1), ("output_norm.weight", 2))]
    )
    assert parts.output_is_input
    assert parts.output_bytes == 102
    assert host_memory_bytes(parts, has_output=True, host_is_cpu=True) == 100


def test_the_embeddings_norm_belongs_to_the_first_layer_and_unknown_names_to_the_output() -> None:
    parts = model_parts([a_header(("token_embd_norm.weight", 5), ("blk.0.a", 1), ("blk.7.a", 9), ("who.knows", 4))])
    assert parts.block_bytes == (6, 0)
    assert parts.output_bytes == 13


def test_a_model_whose_tensors_are_not_known_is_not_planned_too_small() -> None:
    facts = a_model().facts
    parts = even_parts(facts)
    assert sum(parts.block_bytes) >= facts.weight_bytes
    assert len(parts.block_bytes) == facts.layer_count


def test_the_layers_of_all_places_together_take_what_the_whole_model_takes() -> None:
    model = a_model()
    facts, parts = model.facts, model.parts
    halves = layers_bytes(facts, parts, 0, 13, 8192, 2) + layers_bytes(facts, parts, 13, 40, 8192, 2)
    base = base_bytes(facts, parts, 8192, 2, on_device=False, with_output=True)
    assert halves + base + parts.input_bytes == need_of(facts, Wanted(), 8192, 2, on_device=False).total


# ------------------------------------------------------------------ what is published


def test_noise_in_free_memory_is_not_published() -> None:
    step = FREE_STEP_BYTES
    published = steady_free_bytes(None, 10 * step + 5, step)
    assert published == 10 * step
    assert steady_free_bytes(published, 11 * step + 7, step) == published
    assert steady_free_bytes(published, 12 * step, step) == 12 * step
    assert steady_free_bytes(published, 10 * step - 1, step) == 9 * step


def test_never_more_is_published_than_there_is() -> None:
    assert steady_free_bytes(None, 0, FREE_STEP_BYTES) == 0
    assert steady_free_bytes(FREE_STEP_BYTES, -5, FREE_STEP_BYTES) == 0


@pytest.mark.parametrize(
    ("published", "measured", "expected"), [(None, 3, 5), (5, 6, 5), (5, 1.6, 5), (5, 1.4, 2), (5, 7, 10), (80, 99, 80)]
)
def test_round_trips_are_published_in_steps_that_hold(
    published: float | None, measured: float, expected: float
) -> None:
    assert steady_rtt_ms(published, measured) == expected


@pytest.mark.parametrize(
    "facts",
    [
        NodeFacts(b"n", machine_free_bytes=-1),
        NodeFacts(b"n", machine_total_bytes=1 << 60),
        NodeFacts(b"n", devices=(DeviceFacts("CUDA0", 1, -4),)),
        NodeFacts(b"n", devices=(DeviceFacts("CUDA0", 1, 1),) * 17),
    ],
)
def test_a_node_that_says_what_cannot_be_is_left_out(facts: NodeFacts) -> None:
    assert usable_facts(facts) is None


def test_what_a_node_says_is_cut_to_its_bounds() -> None:
    facts = NodeFacts(
        b"n",
        name="two\nlines",
        rtt_ms=((b"a", float("nan")), (b"b", -1.0), (b"c", 3.0), *((bytes([n]), 1.0) for n in range(99))),
        files=("f",) * 999,
        claim=Claim(MAX_TERM + 1, "", True),
    )
    usable = usable_facts(facts)
    assert usable is not None
    assert (usable.name, usable.claim, len(usable.files)) == ("", None, 64)
    assert len(usable.rtt_ms) == 62
    assert usable.rtt_to(b"c") == 3.0


def test_a_plan_s_model_and_a_node_go_through_a_record() -> None:
    model = a_model(layers=126)
    packed = msgspec.msgpack.encode(model)
    assert msgspec.msgpack.decode(packed, type=PlanModel) == model
    assert len(zlib.compress(packed)) < 1024
    node = msgspec.structs.replace(a_node(1, 9, gpus=(8, 8), rtts=near(2, 3)), claim=Claim(3, "d", True))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(node), type=NodeFacts) == node


def test_an_id_is_written_as_users_type_it() -> None:
    node = bytes(range(32))
    assert id_text(node) == encode_id(node)
    assert NodeFacts(node).shown == encode_id(node)[:8]


# ------------------------------------------------------------------ keeping

MODEL = a_model()
HOST, WORKER = a_node(1, 16, rtts=near(2)), a_node(2, 14)
Change = Callable[[NodeFacts], NodeFacts]


def changed(**fields: object) -> Change:
    return lambda node: msgspec.structs.replace(node, **fields)


def a_split() -> Split:
    outcome = make_plan(MODEL, Wish(), [HOST, WORKER])
    assert isinstance(outcome, Split)
    return outcome


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(is_client=True), "client"),
        (changed(lends_to_all=False), "--rpc-peers"),
        (changed(engine_commit="other"), "engine install"),
        (changed(rtt_ms=((node_id(1), 101.0),)), "101 ms"),
        (changed(machine_free_bytes=9 * GB), "memory"),
    ],
)
def test_a_split_ends_when_its_worker_cannot_go_on(change: Change, said: str) -> None:
    why = broken(a_split(), [HOST, change(WORKER)])
    assert why is not None
    assert said in why


@pytest.mark.parametrize(
    "change",
    [
        changed(rtt_ms=((node_id(1), 99.0),)),
        changed(machine_free_bytes=13 * GB),
        changed(files=("other",)),
        changed(rtt_ms=()),
    ],
)
def test_a_split_goes_on_through_small_changes(change: Change) -> None:
    assert broken(a_split(), [HOST, change(WORKER), a_node(9, 500, client=True)]) is None


def test_whether_a_worker_is_there_its_lease_says() -> None:
    """Failure detection suspects a machine after two silent seconds; a lease bears ten, and a split that runs takes minutes to load."""
    assert broken(a_split(), [HOST]) is None


def test_a_split_ends_when_its_host_is_gone_or_cannot_go_on() -> None:
    assert broken(a_split(), [WORKER]) is not None
    assert broken(a_split(), [replace_host(has_rpc=False), WORKER]) is not None
    assert broken(a_split(), [replace_host(may_host=False), WORKER]) is not None


def replace_host(**fields: object) -> NodeFacts:
    return msgspec.structs.replace(HOST, **fields)


def test_a_whole_model_ends_when_its_memory_is_gone() -> None:
    big = a_node(1, 40)
    solo = make_plan(MODEL, Wish(), [big])
    assert isinstance(solo, Solo)
    assert broken(solo, [big]) is None
    assert broken(solo, [a_node(1, 10)]) is not None
    assert broken(solo, []) is not None
    assert broken(solo, [msgspec.structs.replace(big, may_host=False)]) is not None


@pytest.mark.parametrize(
    "wish", [Wish(context_tokens=8192), Wish(tensor_split=(2, 3), context_tokens=4096), Wish(min_peers=2)]
)
def test_what_the_user_asks_for_is_worth_a_restart_once(wish: Wish) -> None:
    nodes = [a_node(1, 16, rtts=near(2, 3)), WORKER, a_node(3, 13)]
    before = make_plan(MODEL, Wish(), nodes)
    after = make_plan(MODEL, wish, nodes)
    assert isinstance(before, Split)
    assert isinstance(after, Split)
    assert better(before, after, wish) is not None
    assert better(after, after, wish) is None


def test_only_one_node_alone_and_the_user_s_host_are_worth_a_restart() -> None:
    split = a_split()
    other = make_plan(MODEL, Wish(host=node_id(2)), [HOST, WORKER])
    solo = make_plan(MODEL, Wish(), [HOST, WORKER, a_node(3, 60)])
    assert better(split, other, Wish()) is None
    assert better(split, other, Wish(host=node_id(2))) is not None
    assert better(split, replace(split, workers=(node_id(7),)), Wish()) is None
    assert better(split, solo, Wish()) is not None
    assert isinstance(solo, Solo)
    assert better(solo, split, Wish()) is None
