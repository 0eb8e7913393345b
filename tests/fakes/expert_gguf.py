"""Files with experts in every shape that is cut: quantised, fused, with biases, with dense layers before. No engine loads them.

Written with the gguf package, in memory. For a model that real engines load see tiny_gguf.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

WIDTH = 32  # one block of the 32-element quantisations
HIDDEN = 64


@dataclass(frozen=True)
class ExpertShape:
    """What the file has. `extra`: more tensors, or others in the place of usual ones; None leaves one out."""

    architecture: str = "qwen3moe"
    experts: int = 8
    used: int = 1
    layers: int = 2
    dense_layers: int = 0
    kind: str = "F32"
    fused: bool = False
    biases: bool = False
    shared: bool = False
    alignment: int = 32
    seed: int = 1
    keys: Mapping[str, int] = field(default_factory=dict[str, int])
    extra: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict[str, "tuple[int, ...] | None"])


def expert_gguf(shape: ExpertShape = ExpertShape()) -> bytes:
    """The file's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experts.gguf"
        write_expert_gguf(path, shape)
        return path.read_bytes()


def write_expert_gguf(path: Path, shape: ExpertShape = ExpertShape(), *, tensors_a_part: int = 0) -> list[Path]:
    """Write it, to one file or to parts with so many tensors each. Returns the files."""
    writer = gguf.GGUFWriter(path, shape.architecture, split_max_tensors=tensors_a_part)
    writer.add_custom_alignment(shape.alignment)
    writer.add_block_count(shape.layers + shape.dense_layers)
    writer.add_embedding_length(WIDTH)
    writer.add_head_count(1)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used)
    writer.add_token_list([f"token {number}" for number in range(50)])
    for key, value in shape.keys.items():
        writer.add_uint32(key, value)
    rng = np.random.default_rng(shape.seed)
    for name, lengths in {**_names(shape), **shape.extra}.items():
        if lengths is None:
            continue
        values = rng.standard_normal(lengths).astype(np.float32)
        quantise = len(lengths) > 1 and name.endswith("weight") and shape.kind != "F32"
        if not quantise:
            writer.add_tensor(name, values)
        elif shape.kind == "F16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType[shape.kind]
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [path] if not tensors_a_part else sorted(path.parent.glob(f"{path.stem}-?????-of-?????.gguf"))


def _names(shape: ExpertShape) -> dict[str, tuple[int, ...] | None]:
    """Tensor -> lengths, the outermost first, as numpy has them."""
    names: dict[str, tuple[int, ...] | None] = {"token_embd.weight": (50, WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(shape.dense_layers):
        names[f"blk.{layer}.ffn_up.weight"] = (HIDDEN, WIDTH)
    n = shape.experts
    for layer in range(shape.dense_layers, shape.dense_layers + shape.layers):
        stem = f"blk.{layer}."
        names[f"{stem}attn_q_norm.weight"] = (max(n, 1),)  # as long as there are experts, and none of their business
        names[f"{stem}ffn_gate_inp.weight"] = (n, WIDTH)
        if shape.fused:
            names[f"{stem}ffn_gate_up_exps.weight"] = (n, 2 * HIDDEN, WIDTH)
        else:
            names[f"{stem}ffn_gate_exps.weight"] = (n, HIDDEN, WIDTH)
            names[f"{stem}ffn_up_exps.weight"] = (n, HIDDEN, WIDTH)
        names[f"{stem}ffn_down_exps.weight"] = (n, WIDTH, HIDDEN)
        if shape.biases:
            names[f"{stem}ffn_gate_inp.bias"] = (n,)
            names[f"{stem}exp_probs_b.bias"] = (n,)
            names[f"{stem}ffn_down_exps.bias"] = (n, WIDTH)
            names[f"{stem}ffn_down_exps.scale"] = (n,)
        if shape.shared:
            names[f"{stem}ffn_gate_inp_shexp.weight"] = (WIDTH,)
            names[f"{stem}ffn_up_shexp.weight"] = (HIDDEN, WIDTH)
    return names
