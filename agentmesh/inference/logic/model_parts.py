"""Which bytes of a model llama.cpp puts where when its layers are spread, and what a run of layers takes on a device.

Owns the classes of tensors (llama-arch.cpp, LLM_TENSOR_INFOS) and the arithmetic for a part of a model; for a whole one it is fit.py's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from agentmesh.inference.logic.fit import PROCESS_BYTES, batch_tokens, buffer_bytes
from agentmesh.inference.logic.gguf_facts import ModelFacts
from agentmesh.inference.logic.gguf_header import Header
from agentmesh.inference.logic.kv_cache import context_bytes
from agentmesh.inference.logic.split_values import ModelParts, Split

_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
_FIRST_LAYER: Final = ("token_embd_norm.",)
_EVERYWHERE: Final = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")
_INPUT: Final = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.", "mask")
_OUTPUT_WEIGHT: Final = "output.weight"
_TIED_WEIGHT: Final = "token_embd.weight"


def model_parts(headers: Sequence[Header]) -> ModelParts:
    """Where the weights of a model go whose parts have these headers. Names that are not known count as the output's: with
    the last device in the worst case, where a byte too many is planned and not one too few."""
    tensors = [tensor for header in headers for tensor in header.tensors]
    arch = headers[0].text("general.architecture")
    blocks = [0] * headers[0].integer(f"{arch}.block_count")
    inputs = outputs = everywhere = tied = 0
    for tensor in tensors:
        match = _BLOCK.match(tensor.name)
        if match is not None and int(match[1]) < len(blocks):
            blocks[int(match[1])] += tensor.size_bytes
        elif tensor.name.startswith(_FIRST_LAYER) and blocks:
            blocks[0] += tensor.size_bytes
        elif tensor.name.startswith(_EVERYWHERE):
            everywhere += tensor.size_bytes
        elif tensor.name.startswith(_INPUT):
            inputs += tensor.size_bytes
            tied = tensor.size_bytes if tensor.name == _TIED_WEIGHT else tied
        else:
            outputs += tensor.size_bytes
    is_tied = all(tensor.name != _OUTPUT_WEIGHT for tensor in tensors)
    return ModelParts(inputs, tuple(blocks), outputs + (tied if is_tied else 0), everywhere, is_tied)


def even_parts(facts: ModelFacts) -> ModelParts:
    """A guess for a model whose tensors are not known: all in the layers, evenly, and as much again for input and output as one
    layer has."""
    layer = -(-facts.weight_bytes // facts.layer_count)
    return ModelParts(layer, (layer,) * facts.layer_count, layer)


def is_on_workers(plan: Split) -> Callable[[str], bool]:
    """Says of a tensor's name whether it belongs to a layer that a worker has."""
    layers = {
        str(number)
        for share in plan.shares
        if not share.place.is_host
        for number in range(share.first, share.first + share.layers)
    }

    def is_theirs(name: str) -> bool:
        match = _BLOCK.match(name)
        return match is not None and match[1] in layers

    return is_theirs


def layers_bytes(facts: ModelFacts, parts: ModelParts, first: int, end: int, context_tokens: int, slots: int) -> int:
    """Weights and contexts of the layers `first` to before `end`, without buffers."""
    caches = facts.caches[first:end]
    return sum(parts.block_bytes[first:end]) + context_bytes(caches, context_tokens) * slots


def base_bytes(
    facts: ModelFacts, parts: ModelParts, context_tokens: int, slots: int, *, on_device: bool, with_output: bool
) -> int:
    """What a place takes whatever its layers: buffers, copies that each device has, and the output's weights and logits where
    those are."""
    ubatch = batch_tokens(facts, context_tokens)
    rows = slots if with_output else 0
    buffers = buffer_bytes(facts, context_tokens, rows, ubatch_tokens=ubatch, on_device=on_device)
    return buffers + parts.everywhere_bytes + (parts.output_bytes if with_output else 0)


def host_memory_bytes(parts: ModelParts, *, has_output: bool, host_is_cpu: bool) -> int:
    """What the host's machine memory holds beside layers: token embeddings, the program, and the output if it is kept there."""
    output = parts.output_bytes if has_output and not parts.output_is_input else 0
    return parts.input_bytes + output + (0 if host_is_cpu else PROCESS_BYTES)
