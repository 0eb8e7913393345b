"""Which tensors of a mixture of experts hold one piece an expert, and which models can be cut along them.

Owns the names that llama.cpp gives such tensors (src/llama-arch.cpp) and the list of architectures whose loaders were read: every tensor
of theirs that depends on the number of experts is known here. What is not understood is refused, never copied and hoped for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentmesh.inference.logic.gguf_header import TENSOR_TYPES, Header, Tensor

MAX_EXPERTS: Final = 1024  # LLAMA_MAX_EXPERTS
SOURCE_COUNT_KEY: Final = "agentmesh.shard.source_expert_count"  # in a shard's own header: how many there were
SOURCE_KEY: Final = "agentmesh.shard.source"  # and of which model, the hash of its parts' hashes

# Read in src/models/*.cpp of the pinned llama.cpp. Not among them: gemma4 (a scale on the router's input), arctic (a second feed-forward),
# grovemoe (groups of experts share parts), deepseek4 (a table from tokens to experts).
ARCHITECTURES: Final = frozenset(
    {
        "afmoe",
        "bailingmoe",
        "bailingmoe2",
        "dbrx",
        "deepseek2",
        "dots1",
        "ernie4_5-moe",
        "exaone-moe",
        "glm4moe",
        "gpt-oss",
        "granitemoe",
        "hunyuan-moe",
        "lfm2moe",
        "llada-moe",
        "llama",
        "llama4",
        "mimo2",
        "minimax-m2",
        "olmoe",
        "phimoe",
        "qwen2moe",
        "qwen35moe",
        "qwen3moe",
        "qwen3next",
        "qwen3vlmoe",
        "smallthinker",
    }
)

_EXPERT: Final = re.compile(r"blk\.(\d{1,4})\.(ffn_(?:gate|up|down|gate_up)_exps)\.(weight|bias|scale|input_scale)")
_ROUTER: Final = re.compile(r"blk\.(\d{1,4})\.(ffn_gate_inp)\.(weight|bias)")
_PROBABILITIES: Final = re.compile(r"blk\.(\d{1,4})\.(exp_probs_b)\.?(bias)?")
_DIMENSIONS: Final = {"ffn_gate_inp": {"weight": 2, "bias": 1}, "exp_probs_b": {"bias": 1, None: 1}}
_EXPERT_DIMENSIONS: Final = {"weight": 3, "bias": 2, "scale": 1, "input_scale": 1}
# Every token passes the shared experts: they belong to the core.
_SHARED: Final = re.compile(r"blk\.\d+\.ffn_(gate_inp|gate|up|down|gate_up)_shexp\.")
_SUSPICIOUS: Final = re.compile(r"exps|exp_probs|expert|gate_inp|router|tid2eid|\.ffn_(?:gate|up|down)\.\d+\.")


class NotSplittable(Exception):
    """The model cannot be cut by experts; the text says why, without a name of the file."""


@dataclass(frozen=True, slots=True)
class ExpertModel:
    """A mixture of experts that can be cut. `cut` has the layer of each tensor whose last dimension counts experts."""

    architecture: str
    expert_count: int
    used_count: int
    layers: tuple[int, ...]
    cut: dict[str, int]
    shared_bytes: int  # of all tensors that every shard holds whole
    expert_bytes: int  # of one expert over all layers, its rows of the routers with it

    def shard_bytes(self, experts: int) -> int:
        """The weights of a shard that keeps this many experts a layer."""
        return self.shared_bytes + experts * self.expert_bytes

    def experts_in(self, room_bytes: int) -> int:
        """How many experts a layer fit a room beside the core; 0 when not even the core does."""
        return max(0, min(self.expert_count, (room_bytes - self.shared_bytes) // max(self.expert_bytes, 1)))


def expert_model(headers: Sequence[Header]) -> ExpertModel:
    """What can be cut of a model whose parts have these headers.

    Raises:
        NotSplittable: it has no experts, is of an architecture that is not known, or holds its experts in another way.
    """
    header = headers[0]
    arch = header.text("general.architecture")
    count = header.integer(f"{arch}.expert_count")
    used = _used_count(header, arch)
    _check_keys(header, arch, count, used)
    tensors = [tensor for part in headers for tensor in part.tensors]
    cut: dict[str, int] = {}
    for tensor in tensors:
        layer = _layer_of(tensor, count)
        if layer is not None:
            cut[tensor.name] = layer
    layers = tuple(sorted(set(cut.values())))
    _check_layers(layers, cut)
    expert_bytes = sum(tensor.size_bytes for tensor in tensors if tensor.name in cut)
    whole_bytes = sum(tensor.size_bytes for tensor in tensors)
    return ExpertModel(arch, count, used, layers, cut, whole_bytes - expert_bytes, expert_bytes // count)


def why_uncut(headers: Sequence[Header]) -> str:
    """Why `expert_model` refuses the model; empty if it does not."""
    try:
        expert_model(headers)
    except NotSplittable as error:
        return str(error)
    return ""


def _used_count(header: Header, arch: str) -> int:
    """Models may use another number a layer: the largest counts."""
    facts = header.arrays.get(f"{arch}.expert_used_count")
    if facts is None or not facts.values:
        return header.integer(f"{arch}.expert_used_count")
    return max((value for value in facts.values if isinstance(value, int)), default=0)


def _check_keys(header: Header, arch: str, count: int, used: int) -> None:
    if count <= 1:
        raise NotSplittable("it is no mixture of experts")
    if arch not in ARCHITECTURES:
        raise NotSplittable(f"how '{arch}' holds its experts is not known here")
    if header.integer(SOURCE_COUNT_KEY):
        raise NotSplittable(
            f"it is a part already, {count} of {header.integer(SOURCE_COUNT_KEY)} experts; take the whole model"
        )
    if count > MAX_EXPERTS:
        raise NotSplittable(f"it says to have {count} experts; llama.cpp knows up to {MAX_EXPERTS}")
    if not 0 < used <= count:
        raise NotSplittable(f"it says to use {used} of {count} experts")
    groups = header.integer(f"{arch}.expert_group_count")
    if groups > 1:
        raise NotSplittable(
            f"its router chooses among {groups} groups of experts first, which a part would not have whole"
        )


def _layer_of(tensor: Tensor, count: int) -> int | None:
    """The layer whose experts the tensor holds; None for one that every shard keeps whole."""
    name = tensor.name
    for form in (_EXPERT, _ROUTER, _PROBABILITIES):
        match = form.fullmatch(name)
        if match is not None:
            base, kind = match[2], match[3]
            expected = _EXPERT_DIMENSIONS[kind] if form is _EXPERT else _DIMENSIONS[base][kind]
            _check_shape(tensor, count, expected)
            return int(match[1])
    if _SHARED.match(name):
        return None
    if _SUSPICIOUS.search(name):
        raise NotSplittable(f"the tensor '{name}' seems to belong to experts, but is not known here")
    if len(tensor.shape) >= 3 and tensor.shape[-1] == count:
        raise NotSplittable(f"the tensor '{name}' has a piece for each expert, but is not known here")
    return None


def _check_shape(tensor: Tensor, count: int, dimensions: int) -> None:
    if len(tensor.shape) != dimensions or tensor.shape[-1] != count:
        shape = " x ".join(str(length) for length in tensor.shape)
        raise NotSplittable(f"the tensor '{tensor.name}' is {shape}, which does not end in its {count} experts")
    if dimensions == 1 and TENSOR_TYPES[tensor.type_number][0] != 1:
        raise NotSplittable(f"the tensor '{tensor.name}' is quantised over its experts")


def _check_layers(layers: tuple[int, ...], cut: dict[str, int]) -> None:
    if not layers:
        raise NotSplittable("it says to have experts, but no tensor holds any")
    for layer in layers:
        stem = f"blk.{layer}."
        has_input = any(f"{stem}{name}.weight" in cut for name in ("ffn_up_exps", "ffn_gate_up_exps"))
        for name, there in (
            ("ffn_gate_inp", f"{stem}ffn_gate_inp.weight" in cut),
            ("ffn_down_exps", f"{stem}ffn_down_exps.weight" in cut),
            ("ffn_up_exps", has_input),
        ):
            if not there:
                raise NotSplittable(f"layer {layer} has experts but no '{name}'")
