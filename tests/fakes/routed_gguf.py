"""Tiny models that real engines load and whose routers are told what not to choose: minimax-m2 and gpt-oss shapes; qwen2moe with shared experts.

A bias keeps the router from all experts but the `allowed` ones. So the whole model must say exactly what a part with just these says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from tests.fakes import tiny_gguf
from tests.fakes.tiny_gguf import QWEN3_MOE, TinyModel

NEVER = -1e9
SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID
SHAPE = replace(QWEN3_MOE, experts=16, experts_used=4, context=1024)


def write_routed(path: Path, architecture: str, allowed: Sequence[Sequence[int]], *, seed: int = 3) -> Path:
    """Write the model; `allowed` has the experts of each layer that its router may choose (qwen2moe: it may choose any)."""
    model = replace(SHAPE, architecture=architecture, name=architecture, layers=len(allowed), seed=seed)
    writer = gguf.GGUFWriter(path, architecture)
    tiny_gguf._add_metadata(writer, model)
    if architecture == "minimax-m2":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType(SIGMOID))
    if architecture == "gpt-oss":
        writer.add_sliding_window(128)
    if architecture == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(model.feed_forward)
    tensors = dict(tiny_gguf._tensors(model))
    for layer, chosen in enumerate(allowed):
        _adapt(tensors, model, f"blk.{layer}.", list(chosen), np.random.default_rng([seed, layer]))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _adapt(
    tensors: dict[str, np.ndarray], model: TinyModel, stem: str, chosen: list[int], rng: np.random.Generator
) -> None:
    """Give a layer what its architecture has beyond qwen3moe's."""

    def some(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / 8).astype(np.float32)

    width, hidden, experts = model.embedding, model.feed_forward, model.experts
    bias = np.full(experts, NEVER, dtype=np.float32)
    bias[chosen] = some(len(chosen))
    heads, kv_heads = model.heads * model.head_length, model.kv_heads * model.head_length
    if model.architecture == "minimax-m2":
        tensors[f"{stem}attn_q_norm.weight"] = np.ones(heads, dtype=np.float32)
        tensors[f"{stem}attn_k_norm.weight"] = np.ones(kv_heads, dtype=np.float32)
        tensors[f"{stem}exp_probs_b.bias"] = bias
    elif model.architecture == "gpt-oss":
        tensors[f"{stem}post_attention_norm.weight"] = tensors.pop(f"{stem}ffn_norm.weight")
        tensors[f"{stem}attn_sinks.weight"] = some(model.heads)
        for name, length in (("attn_q", heads), ("attn_k", kv_heads), ("attn_v", kv_heads), ("attn_output", width)):
            tensors[f"{stem}{name}.bias"] = some(length)
        tensors[f"{stem}ffn_gate_inp.bias"] = bias
        for name, length in (("ffn_gate_exps", hidden), ("ffn_up_exps", hidden), ("ffn_down_exps", width)):
            tensors[f"{stem}{name}.bias"] = some(experts, length)
    else:
        tensors[f"{stem}ffn_gate_inp_shexp.weight"] = some(width)
        tensors[f"{stem}ffn_gate_shexp.weight"] = some(hidden, width)
        tensors[f"{stem}ffn_up_shexp.weight"] = some(hidden, width)
        tensors[f"{stem}ffn_down_shexp.weight"] = some(width, hidden)
