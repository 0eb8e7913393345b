"""Whatever the counts and the nodes: every node usable alone, no expert lost that has room, the same plan everywhere."""

from __future__ import annotations

import io
import random

import gguf
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmesh.inference.logic.expert_tensors import expert_model
from agentmesh.inference.logic.gguf_cut import KEYS_START, Copy, keys_end, shard_layout
from agentmesh.inference.logic.gguf_header import parse_header
from agentmesh.inference.logic.moe import SOURCE_IMATRIX, NodeRoom, NotPlannable, plan_shards, rank, unranked
from tests.fakes.expert_gguf import ExpertShape, expert_gguf

EXPERTS = st.integers(2, 24)


@st.composite
def tasks(draw: st.DrawFn) -> tuple[dict[int, tuple[int, ...]], tuple[int, ...], int, list[NodeRoom], int]:
    experts = draw(EXPERTS)
    layers = tuple(sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=4))))
    counts = {
        layer: tuple(draw(st.lists(st.integers(0, 50), min_size=experts, max_size=experts)))
        for layer in layers
        if draw(st.booleans())
    }
    names = draw(st.sets(st.text(max_size=3), min_size=1, max_size=6))
    nodes = [NodeRoom(name, draw(st.none() | st.integers(0, experts + 3))) for name in sorted(names)]
    return counts, layers, experts, nodes, draw(st.integers(1, experts))


@given(tasks(), st.randoms(use_true_random=False))
def test_a_plan_gives_each_node_the_core_and_loses_no_expert_that_has_room(
    task: tuple[dict[int, tuple[int, ...]], tuple[int, ...], int, list[NodeRoom], int], shuffle: random.Random
) -> None:
    counts, layers, experts, nodes, minimum = task
    ranking = rank(counts, layers, experts, SOURCE_IMATRIX)
    assert all(sorted(order) == list(range(experts)) for order in ranking.order)
    room = {node.name: experts if node.most_experts is None else node.most_experts for node in nodes}
    try:
        plan = plan_shards(ranking, nodes, minimum)
    except NotPlannable:
        assert min(room.values()) < minimum
        return
    core = set(range(minimum))
    held: list[int] = []
    for shard in plan.shards:
        assert core <= set(shard.ranks)
        assert len(set(shard.ranks)) == shard.expert_count <= room[shard.name]
        assert all(list(kept) == sorted(set(kept)) and len(kept) == shard.expert_count for kept in shard.kept)
        for order, kept in zip(ranking.order, shard.kept, strict=True):
            assert {order[place] for place in shard.ranks} == set(kept)
        held += shard.ranks[minimum:]
    assert sorted([*held, *plan.left_out]) == list(range(minimum, experts)), "each of the others once, or named"
    if plan.left_out:
        assert all(shard.expert_count == min(room[shard.name], experts) for shard in plan.shards)
        assert min(plan.left_out) > max(held, default=-1), "the least used ones are left out"
    again = list(nodes)
    shuffle.shuffle(again)
    assert plan_shards(ranking, again, minimum) == plan


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_cut_file_holds_exactly_the_kept_rows_of_every_tensor(data: st.DataObject) -> None:
    shape = ExpertShape(
        experts=data.draw(EXPERTS),
        layers=data.draw(st.integers(1, 3)),
        dense_layers=data.draw(st.integers(0, 1)),
        kind=data.draw(st.sampled_from(["F32", "F16", "Q8_0", "Q4_0", "Q5_1"])),
        fused=data.draw(st.booleans()),
        biases=data.draw(st.booleans()),
        alignment=data.draw(st.sampled_from([32, 64, 256])),
        seed=data.draw(st.integers(0, 5)),
    )
    whole = expert_gguf(shape)
    header = parse_header(io.BytesIO(whole).read)
    model = expert_model((header,))
    count = data.draw(st.integers(1, shape.experts))
    kept = tuple(
        tuple(sorted(data.draw(st.permutations(range(shape.experts)))[:count])) for _ in unranked(model.layers, 1).order
    )
    layout = shard_layout((header,), whole[KEYS_START : keys_end(header)], model, kept, "ab")
    body = [whole[p.offset : p.offset + p.length] if isinstance(p, Copy) else bytes(p) for p in layout.body()]
    cut = layout.header + b"".join(body)
    assert len(cut) == layout.size_bytes
    ours = parse_header(io.BytesIO(cut).read)
    assert ours.integer("qwen3moe.expert_count") == count
    assert ours.integer("qwen3moe.expert_used_count") == 1
    check_tensors(whole, cut, dict(zip(model.layers, kept, strict=True)), shape.experts)


def check_tensors(whole: bytes, cut: bytes, kept: dict[int, tuple[int, ...]], experts: int) -> None:
    """Read both with the gguf package and compare."""
    before, after = _tensors(whole), _tensors(cut)
    assert list(before) == list(after)
    for name, old in before.items():
        new = after[name]
        assert old.tensor_type == new.tensor_type
        expected = np.asarray(old.data)
        if any(piece in name for piece in ("_exps.", "gate_inp.", "exp_probs_b")):
            assert old.shape[-1] == experts
            expected = expected[list(kept[int(name.split(".")[1])])]
        assert np.asarray(new.data).tobytes() == expected.tobytes(), name


def _tensors(data: bytes) -> dict[str, gguf.ReaderTensor]:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(data)
        return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
