"""Models for splits that real engines load: half precision and quantised, tied embeddings, many parts, drafts, an adapter, a fine-tuned twin.

Every weight is random and no two tensors are alike, norms too: a tensor put in another's place changes what the model says, and a
few bytes of one are found if they cross a network. What they say depends on the whole prompt, and does not become one token for ever.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from agentmesh.inference.engine.engine import Engine
from tests.fakes.tiny_gguf import vocabulary

Floats = npt.NDArray[np.float32]

BYTE_TOKENS = len(vocabulary()[0])  # the special ones and the bytes; words follow
# The output's rows are this much longer than usual: with logits that lie hundredths apart, rounding would choose the tokens.
OUTPUT_STRENGTH = 8.0
_POOL_VALUES = (1 << 24) + 4099  # normal values that all weights of a model are slices of; fast for models of 700 MB
_FILE_TYPES = {
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}


@dataclass(frozen=True)
class SplitModel:
    """A llama shape. Lengths in elements; `kind` is the type of all matrices, vectors are F32.

    Attributes:
        words: tokens beyond the special ones and the bytes.
        tied: the output is the embedding; the file has no output.weight.
        seed: of the weights.
        noise: how far the weights are moved from those of the seed, as a part of their size; a draft that often agrees has some.
    """

    kind: str = "F16"
    layers: int = 6
    width: int = 512
    heads: int = 8
    kv_heads: int = 2
    hidden: int = 1408
    words: int = 512
    context: int = 4096
    tied: bool = False
    seed: int = 1
    noise: float = 0.0

    @property
    def tokens(self) -> int:
        """The size of the vocabulary."""
        return BYTE_TOKENS + self.words


# Some 30 MB each: small enough for prompts of 3,000 tokens on one core.
HALF = SplitModel("F16", seed=11)
EIGHT_BITS = SplitModel("Q8_0", seed=12)
FOUR_BITS = SplitModel("Q4_0", seed=13)
# The embedding, which is the output as well, has 21 MB: llama-server asks for its hash. The rest is smaller than 10 MiB.
TIED = SplitModel("F16", layers=4, words=20_480, tied=True, seed=14)
# 725 MB: 18 tensors of 32 MiB, and attention below 10 MiB.
LARGE = SplitModel("F16", layers=6, width=2048, heads=16, kv_heads=4, hidden=8192, words=512, context=512, seed=15)


def write_split_model(path: Path, model: SplitModel) -> Path:
    """Write the model to `path`."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, path.stem, model)
    kind = gguf.GGMLQuantizationType[model.kind]
    for name, values in _tensors(model):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        elif model.kind == "F16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    return _finish(writer, path)


def write_parts(engine: Engine, model: Path, folder: Path, tensors_a_part: int) -> list[Path]:
    """The model in parts, made by the engine's own tool. Returns them in order."""
    assert engine.gguf_split is not None
    stem = folder / f"{model.stem}-parts"
    command = [str(engine.gguf_split), "--split", "--split-max-tensors", str(tensors_a_part), str(model), str(stem)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return sorted(folder.glob(f"{stem.name}-*-of-*.gguf"))


def write_adapter(path: Path, model: SplitModel, rank: int = 4) -> Path:
    """A LoRA adapter for attention and feed-forward of every layer, strong enough to change what the model says."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(2 * rank))
    rng = np.random.default_rng(model.seed + 1000)
    for layer in range(model.layers):
        for name, (rows, columns) in {
            "attn_q": (model.width, model.width),
            "ffn_down": (model.width, model.hidden),
        }.items():
            a = rng.standard_normal((rank, columns), dtype=np.float32) / math.sqrt(columns)
            b = rng.standard_normal((rows, rank), dtype=np.float32) / math.sqrt(rank)
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", a.astype(np.float32))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", b.astype(np.float32))
    return _finish(writer, path)


def prompt_tokens(model: SplitModel, length: int, seed: int = 0) -> list[int]:
    """Token numbers, no special ones among them."""
    rng = np.random.default_rng([seed, length])
    return [int(each) for each in rng.integers(3, model.tokens, length)]


def _finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_metadata(writer: gguf.GGUFWriter, name: str, model: SplitModel) -> None:
    head = model.width // model.heads
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[model.kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.hidden)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(model.tokens)
    texts, kinds = vocabulary()
    texts += [f"▁word{number}" for number in range(model.words)]
    kinds += [int(gguf.TokenType.NORMAL)] * model.words
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0] * len(texts))
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _tensors(model: SplitModel) -> Iterator[tuple[str, Floats]]:
    """(name, values), one after the other: a large model is never in memory twice."""
    rng = np.random.default_rng(model.seed)
    pool = rng.standard_normal(_POOL_VALUES, dtype=np.float32)
    moved = np.random.default_rng(model.seed + 500)

    def slices(count: int, at: int) -> Floats:
        whole, rest = divmod(at + count, _POOL_VALUES)
        return pool[at:rest] if not whole else np.concatenate([pool[at:], *[pool] * (whole - 1), pool[:rest]])

    def weights(rows: int, columns: int, strength: float = 1.0) -> Floats:
        values = slices(rows * columns, int(rng.integers(_POOL_VALUES))).reshape(rows, columns)
        if model.noise:
            values = values + np.float32(model.noise) * moved.standard_normal(values.shape, dtype=np.float32)
        return values * np.float32(strength / math.sqrt(columns))

    def norm() -> Floats:
        return rng.uniform(0.8, 1.2, model.width).astype(np.float32)

    yield "token_embd.weight", weights(model.tokens, model.width)
    yield "output_norm.weight", norm()
    if not model.tied:
        yield "output.weight", weights(model.tokens, model.width, OUTPUT_STRENGTH)
    for layer in range(model.layers):
        for name, make in _block(model, weights, norm).items():
            yield f"blk.{layer}.{name}.weight", make()


def _block(
    model: SplitModel, weights: Callable[[int, int], Floats], norm: Callable[[], Floats]
) -> dict[str, Callable[[], Floats]]:
    width, keys = model.width, model.width // model.heads * model.kv_heads
    return {
        "attn_norm": norm,
        "attn_q": lambda: weights(width, width),
        "attn_k": lambda: weights(keys, width),
        "attn_v": lambda: weights(keys, width),
        "attn_output": lambda: weights(width, width),
        "ffn_norm": norm,
        "ffn_gate": lambda: weights(model.hidden, width),
        "ffn_up": lambda: weights(model.hidden, width),
        "ffn_down": lambda: weights(width, model.hidden),
    }
