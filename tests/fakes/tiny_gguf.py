"""Tiny models that real engines load: random weights from a seed, a vocabulary of single bytes, llama and qwen3moe shapes.

Written with the gguf package, so that our own reader is tested against somebody else's writer. Run it to make one by hand:

python -m tests.fakes.tiny_gguf PATH [--architecture qwen3moe] [--context 131072] [--parts N]
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL_TOKENS = (("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL))


@dataclass(frozen=True)
class TinyModel:
    """A shape. All lengths in elements; weights are F32, or Q8_0 when `quantised`."""

    architecture: str = "llama"
    name: str = "tiny"
    context: int = 512
    layers: int = 2
    embedding: int = 64
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 128
    experts: int = 0
    experts_used: int = 0
    quantised: bool = False
    seed: int = 1
    sliding_window: int = 0

    @property
    def head_length(self) -> int:
        return self.embedding // self.heads


LLAMA = TinyModel()
LONG_CONTEXT = TinyModel(name="tiny-long", context=131_072)
QWEN3_MOE = TinyModel(architecture="qwen3moe", name="tiny-moe", experts=8, experts_used=2)


def vocabulary() -> tuple[list[str], list[int]]:
    """(texts, kinds): three special tokens, then the 256 bytes."""
    tokens = [*SPECIAL_TOKENS, *((f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256))]
    return [text for text, _ in tokens], [int(kind) for _, kind in tokens]


def write_tiny(path: Path, model: TinyModel = LLAMA, *, parts: int = 1) -> list[Path]:
    """Write the model to `path`, or to `parts` files beside it with -00001-of-0000N in their names. Returns the files."""
    tensors = _tensors(model)
    writer = gguf.GGUFWriter(
        path, model.architecture, split_max_tensors=math.ceil(len(tensors) / parts) if parts > 1 else 0
    )
    _add_metadata(writer, model)
    for name, values in tensors:
        if model.quantised and values.ndim > 1:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if parts == 1:
        return [path]
    files = sorted(path.parent.glob(f"{path.stem}-?????-of-?????.gguf"))
    assert len(files) == parts, f"{len(tensors)} tensors cannot be put into {parts} files"
    return files


def _add_metadata(writer: gguf.GGUFWriter, model: TinyModel) -> None:
    writer.add_name(model.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if model.quantised else gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.embedding)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_length)
    writer.add_value_length(model.head_length)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(model.head_length)
    writer.add_vocab_size(len(vocabulary()[0]))
    if model.sliding_window:
        writer.add_sliding_window(model.sliding_window)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(model.experts_used)
        writer.add_expert_feed_forward_length(model.feed_forward)
    texts, kinds = vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0] * len(texts))
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(model: TinyModel) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(model.seed)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / math.sqrt(shape[-1])).astype(np.float32)

    def ones(length: int) -> np.ndarray:
        return np.ones(length, dtype=np.float32)

    width, head, hidden, experts = model.embedding, model.head_length, model.feed_forward, model.experts
    tokens = len(vocabulary()[0])
    result = [("token_embd.weight", weights(tokens, width)), ("output_norm.weight", ones(width))]
    result.append(("output.weight", weights(tokens, width)))
    for layer in range(model.layers):
        block = [
            ("attn_norm", ones(width)),
            ("attn_q", weights(model.heads * head, width)),
            ("attn_k", weights(model.kv_heads * head, width)),
            ("attn_v", weights(model.kv_heads * head, width)),
            ("attn_output", weights(width, model.heads * head)),
            ("ffn_norm", ones(width)),
        ]
        if model.architecture.startswith("qwen3"):
            block += [("attn_q_norm", ones(head)), ("attn_k_norm", ones(head))]
        if experts:
            block += [
                ("ffn_gate_inp", weights(experts, width)),
                ("ffn_gate_exps", weights(experts, hidden, width)),
                ("ffn_up_exps", weights(experts, hidden, width)),
                ("ffn_down_exps", weights(experts, width, hidden)),
            ]
        else:
            block += [
                ("ffn_gate", weights(hidden, width)),
                ("ffn_up", weights(hidden, width)),
                ("ffn_down", weights(width, hidden)),
            ]
        result += [(f"blk.{layer}.{name}.weight", values) for name, values in block]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--architecture", choices=("llama", "qwen3moe"), default="llama")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--parts", type=int, default=1)
    chosen = parser.parse_args()
    shape = QWEN3_MOE if chosen.architecture == "qwen3moe" else LLAMA
    for file in write_tiny(chosen.path, replace(shape, context=chosen.context), parts=chosen.parts):
        print(file)


if __name__ == "__main__":
    main()
