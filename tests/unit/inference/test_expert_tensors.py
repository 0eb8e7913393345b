"""Which models can be cut by experts, and what is refused before anything is written."""

from __future__ import annotations

import io

import pytest

from agentmesh.inference.logic.expert_tensors import ExpertModel, NotSplittable, expert_model
from agentmesh.inference.logic.gguf_cut import KEYS_START, keys_end, shard_layout
from agentmesh.inference.logic.gguf_header import parse_header
from tests.fakes.expert_gguf import ExpertShape, expert_gguf


def model_of(shape: ExpertShape) -> ExpertModel:
    return expert_model((parse_header(io.BytesIO(expert_gguf(shape)).read),))


def test_the_tensors_of_experts_are_told_from_all_others() -> None:
    model = model_of(ExpertShape(dense_layers=1, layers=1, biases=True, shared=True))
    assert model.layers == (1,)
    assert set(model.cut) == {
        f"blk.1.{name}"
        for name in (
            "ffn_gate_inp.weight",
            "ffn_gate_inp.bias",
            "ffn_gate_exps.weight",
            "ffn_up_exps.weight",
            "ffn_down_exps.weight",
            "ffn_down_exps.bias",
            "ffn_down_exps.scale",
            "exp_probs_b.bias",
        )
    }, "not the shared experts, and not a norm that happens to be as long as there are experts"


def test_sizes_of_shards_are_the_core_and_so_many_experts() -> None:
    model = model_of(ExpertShape(experts=8, layers=2))
    assert model.expert_bytes == 2 * (3 * 64 * 32 + 32) * 4
    assert model.shared_bytes == (50 * 32 + 32 + 2 * 8) * 4
    assert model.shard_bytes(3) == model.shared_bytes + 3 * model.expert_bytes
    assert model.experts_in(model.shard_bytes(3)) == 3
    assert model.experts_in(model.shard_bytes(3) - 1) == 2
    assert model.experts_in(10**12) == 8
    assert model.experts_in(0) == 0


REFUSED = [
    (ExpertShape(experts=0, layers=0, dense_layers=2), "no mixture of experts"),
    (ExpertShape(architecture="novelmoe"), "how 'novelmoe' holds its experts is not known"),
    (ExpertShape(architecture="grovemoe"), "not known"),
    (ExpertShape(used=0), "use 0 of 8"),
    (ExpertShape(used=9), "use 9 of 8"),
    (ExpertShape(keys={"qwen3moe.expert_group_count": 4}), "4 groups"),
    (ExpertShape(keys={"agentmesh.shard.source_expert_count": 16}), "a part already, 8 of 16"),
    (ExpertShape(extra={"blk.0.ffn_gate_chexps.weight": (8, 4, 32)}), "blk.0.ffn_gate_chexps.weight"),
    (ExpertShape(extra={"blk.0.ffn_gate_tid2eid.weight": (50, 1)}), "tid2eid"),
    (ExpertShape(extra={"blk.0.ffn_up.3.weight": (64, 32)}), "ffn_up.3"),
    (ExpertShape(extra={"blk.0.ffn_strange.weight": (8, 4, 32)}), "has a piece for each expert"),
    (ExpertShape(extra={"blk.0.ffn_gate_inp.scale": (32,)}), "ffn_gate_inp.scale"),
    (ExpertShape(extra={"ffn_up_exps.weight": (8, 64, 32)}), "'ffn_up_exps.weight' seems to belong"),
    (ExpertShape(extra={"blk.0.ffn_up_exps.weight": (7, 64, 32)}), "32 x 64 x 7, which does not end in its 8"),
    (ExpertShape(extra={"blk.0.ffn_up_exps.weight": (8, 32)}), "does not end in its 8"),
    (ExpertShape(extra={"blk.1.ffn_gate_inp.weight": None}), "layer 1 has experts but no 'ffn_gate_inp'"),
    (ExpertShape(extra={"blk.1.ffn_down_exps.weight": None}), "no 'ffn_down_exps'"),
    (ExpertShape(extra={"blk.1.ffn_up_exps.weight": None}), "no 'ffn_up_exps'"),
    (ExpertShape(layers=0, dense_layers=2), "no tensor holds any"),
]


@pytest.mark.parametrize(("shape", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_not_understood_is_refused_with_the_reason(shape: ExpertShape, said: str) -> None:
    with pytest.raises(NotSplittable, match=said):
        model_of(shape)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (((0, 1),), "same number"),
        (((0, 1), (0,)), "same number"),
        (((0,), (1,)), "uses 2 experts of 8; 1"),
        (((1, 0), (0, 1)), "ascending"),
        (((0, 0), (0, 1)), "ascending"),
        (((0, 8), (0, 1)), "numbers of experts"),
        (((-1, 0), (0, 1)), "numbers of experts"),
        (((), ()), "0 cannot be kept"),
    ],
)
def test_a_choice_that_is_none_is_refused(kept: tuple[tuple[int, ...], ...], said: str) -> None:
    whole = expert_gguf(ExpertShape(used=2))
    header = parse_header(io.BytesIO(whole).read)
    keys = whole[KEYS_START : keys_end(header)]
    with pytest.raises(NotSplittable, match=said):
        shard_layout((header,), keys, expert_model((header,)), kept, "")
