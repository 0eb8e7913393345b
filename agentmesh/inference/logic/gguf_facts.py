"""What a model is, as its file's header says it: the facts that serving, splitting and drafting decide from.

Owns which keys mean what. Reads no file.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agentmesh.inference.logic.gguf_header import BadHeader, Header
from agentmesh.inference.logic.kv_cache import LayerCache, bytes_per_token, context_bytes, layer_caches

MAX_LAYERS: Final = 4096  # the deepest models known have 126
MAX_PARTS: Final = 1024  # split.count; the largest sets known have some 50

# general.file_type (llama.h, enum llama_ftype); a test compares it with the gguf package.
FILE_TYPES: Final = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
}


class VocabularyFacts(msgspec.Struct, frozen=True):
    """What a draft model must share with its target: same kind, same texts, same special tokens."""

    model: str
    pre: str
    size: int
    digest: str
    bos: int | None
    eos: int | None
    adds_bos: bool


class SplitFacts(msgspec.Struct, frozen=True):
    """The place of a file in a set: `number` counts from 0."""

    number: int
    count: int
    tensor_count: int


class ModelFacts(msgspec.Struct, frozen=True):
    """A model, over all its parts."""

    architecture: str
    name: str
    quant: str
    parameter_count: int
    weight_bytes: int
    tensor_count: int
    layer_count: int
    context_length: int
    embedding_length: int
    head_count: int
    head_count_kv: int
    key_length: int
    value_length: int
    sliding_window: int
    expert_count: int
    expert_used_count: int
    expert_bytes: int
    vocabulary: VocabularyFacts
    chat_template: bool
    caches: tuple[LayerCache, ...]
    feed_forward_length: int = 0
    expert_feed_forward_length: int = 0
    template_tools: bool = False
    template_reasoning: bool = False
    pooling_type: int = 0

    def kv_bytes_per_token(self, k_type: str = "f16", v_type: str = "f16") -> int:
        """Bytes that one more token of context takes."""
        return bytes_per_token(self.caches, k_type, v_type)

    def kv_bytes(self, context_tokens: int, k_type: str = "f16", v_type: str = "f16", sequences: int = 1) -> int:
        """Bytes that a context of this length takes."""
        return context_bytes(self.caches, context_tokens, k_type=k_type, v_type=v_type, sequences=sequences)


def split_facts(header: Header) -> SplitFacts | None:
    """The file's place in its set, or None for a model in one file.

    Raises:
        BadHeader: the place is impossible.
    """
    count = header.integer("split.count")
    if count <= 1:
        return None
    number = header.integer("split.no")
    if count > MAX_PARTS or number >= count:
        raise BadHeader(f"it says to be part {number + 1} of {count}")
    return SplitFacts(number, count, header.integer("split.tensors.count"))


def model_facts(headers: tuple[Header, ...]) -> ModelFacts:
    """The facts of a model whose parts have these headers, the first part's first.

    Raises:
        BadHeader: the header has no architecture, no layers, or no weights.
    """
    header = headers[0]
    arch = header.text("general.architecture")
    if not arch:
        raise BadHeader("it does not say which architecture it has")
    layers = header.integer(f"{arch}.block_count")
    if not 0 < layers <= MAX_LAYERS:
        raise BadHeader(f"it says to have {layers} layers" if layers else "it holds no model that can be run")
    tensors = [tensor for part in headers for tensor in part.tensors]
    heads = max(header.per_layer(f"{arch}.attention.head_count", layers))
    usual = header.integer(f"{arch}.embedding_length") // heads if heads else 0
    template = header.text("tokenizer.chat_template")
    return ModelFacts(
        architecture=arch,
        name=header.text("general.name"),
        quant=FILE_TYPES.get(header.integer("general.file_type", -1), ""),
        parameter_count=sum(tensor.elements for tensor in tensors),
        weight_bytes=sum(tensor.size_bytes for tensor in tensors),
        tensor_count=len(tensors),
        layer_count=layers,
        context_length=header.integer(f"{arch}.context_length"),
        embedding_length=header.integer(f"{arch}.embedding_length"),
        head_count=heads,
        head_count_kv=max(header.per_layer(f"{arch}.attention.head_count_kv", layers, heads)),
        key_length=header.integer(f"{arch}.attention.key_length", usual),
        value_length=header.integer(f"{arch}.attention.value_length", usual),
        sliding_window=header.integer(f"{arch}.attention.sliding_window"),
        expert_count=header.integer(f"{arch}.expert_count"),
        expert_used_count=header.integer(f"{arch}.expert_used_count"),
        expert_bytes=sum(tensor.size_bytes for tensor in tensors if "_exps." in tensor.name),
        vocabulary=_vocabulary(header, arch),
        chat_template=bool(template),
        caches=layer_caches(header),
        feed_forward_length=max(header.per_layer(f"{arch}.feed_forward_length", layers)),
        expert_feed_forward_length=header.integer(f"{arch}.expert_feed_forward_length"),
        template_tools="tools" in template,
        template_reasoning="enable_thinking" in template or "reasoning" in template or "<think>" in template,
        pooling_type=header.integer(f"{arch}.pooling_type"),
    )


def _vocabulary(header: Header, arch: str) -> VocabularyFacts:
    tokens = header.arrays.get("tokenizer.ggml.tokens")
    bos, eos = header.integer("tokenizer.ggml.bos_token_id", -1), header.integer("tokenizer.ggml.eos_token_id", -1)
    return VocabularyFacts(
        model=header.text("tokenizer.ggml.model"),
        pre=header.text("tokenizer.ggml.pre"),
        size=tokens.count if tokens else header.integer(f"{arch}.vocab_size"),
        digest=(tokens.digest or "") if tokens else "",
        bos=bos if bos >= 0 else None,
        eos=eos if eos >= 0 else None,
        adds_bos=header.values.get("tokenizer.ggml.add_bos_token") is True,
    )
