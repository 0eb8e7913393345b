"""How much memory a context takes: the KV cache and recurrent state that llama.cpp allocates, from a header alone.

Owns the arithmetic a layer: grouped-query heads, sliding windows, latent attention (MLA), recurrent layers, layers without a
cache. Follows llama.cpp's llama-hparams.cpp and llama-kv-cache*.cpp; where a header leaves something open the larger figure is taken.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agentmesh.inference.logic.gguf_header import Header

# KV types that llama-server takes (--cache-type-k/-v): elements and bytes a block.
KV_TYPES: Final[dict[str, tuple[int, int]]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}
DEFAULT_UBATCH_TOKENS: Final = 512
_PAD_TOKENS: Final = 256  # contexts and window caches are rounded up to this
_STATE_BYTES: Final = 4  # recurrent state is kept in f32

# Every n-th layer sees all; the header has the window but not always the pattern (llama-model.cpp, set_swa_pattern).
_FULL_EVERY: Final = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2, "exaone4": 4}
_FULL_EVERY_DEFAULT_HYBRID: Final = 4  # qwen3next and qwen35, when the header does not say
_HYBRIDS: Final = ("qwen3next", "qwen35", "qwen35moe")


class LayerCache(msgspec.Struct, frozen=True):
    """What one layer keeps: elements a token (of at most `window` tokens, 0: all), and bytes a sequence whatever its length."""

    k_elements: int
    v_elements: int
    window: int = 0
    state_bytes: int = 0


def layer_caches(header: Header) -> tuple[LayerCache, ...]:
    """The caches of all layers, in order."""
    arch = header.text("general.architecture")
    count = header.integer(f"{arch}.block_count")
    kv_heads = header.per_layer(
        f"{arch}.attention.head_count_kv", count, header.integer(f"{arch}.attention.head_count")
    )
    windows = _windows(header, arch, count)
    recurrent = _recurrent(header, arch, count, kv_heads)
    state = _state_bytes(header, arch)
    cached = _layers_with_a_cache(header, arch, count)
    mla = _mla_elements(header, arch)
    caches: list[LayerCache] = []
    for layer in range(count):
        if layer >= cached:
            caches.append(LayerCache(0, 0))
        elif recurrent[layer]:
            caches.append(LayerCache(0, 0, state_bytes=state))
        elif mla:
            caches.append(LayerCache(mla, 0))
        else:
            k_length, v_length = _head_lengths(header, arch, bool(windows[layer]))
            caches.append(LayerCache(kv_heads[layer] * k_length, kv_heads[layer] * v_length, windows[layer]))
    return tuple(caches)


def bytes_per_token(caches: tuple[LayerCache, ...], k_type: str = "f16", v_type: str = "f16") -> int:
    """Bytes that one more token takes once every window is full."""
    return sum(_token_bytes(cache, k_type, v_type) for cache in caches if not cache.window)


def context_bytes(
    caches: tuple[LayerCache, ...],
    context_tokens: int,
    *,
    k_type: str = "f16",
    v_type: str = "f16",
    sequences: int = 1,
    ubatch_tokens: int = DEFAULT_UBATCH_TOKENS,
) -> int:
    """Bytes of a whole context, shared by `sequences` slots (llama-server's unified cache)."""
    full = _padded(context_tokens)
    total = own = 0
    before: LayerCache | None = None
    for cache in caches:
        if cache != before:  # plans ask this very often, and most layers are like the one before
            tokens = min(full, _padded(cache.window * sequences + ubatch_tokens)) if cache.window else full
            own = tokens * _token_bytes(cache, k_type, v_type) + cache.state_bytes * sequences
            before = cache
        total += own
    return total


def _padded(tokens: int) -> int:
    return (tokens + _PAD_TOKENS - 1) // _PAD_TOKENS * _PAD_TOKENS


def _token_bytes(cache: LayerCache, k_type: str, v_type: str) -> int:
    return _row_bytes(cache.k_elements, k_type) + _row_bytes(cache.v_elements, v_type)


def _row_bytes(elements: int, kind: str) -> int:
    block, block_bytes = KV_TYPES[kind]
    return (elements + block - 1) // block * block_bytes


def _head_lengths(header: Header, arch: str, windowed: bool) -> tuple[int, int]:
    heads = max(header.per_layer(f"{arch}.attention.head_count", 1), default=0)
    usual = header.integer(f"{arch}.embedding_length") // heads if heads else 0
    k_length = header.integer(f"{arch}.attention.key_length", usual)
    v_length = header.integer(f"{arch}.attention.value_length", usual)
    if windowed:  # gemma4: the windowed layers' heads have a size of their own
        k_length = header.integer(f"{arch}.attention.key_length_swa", k_length)
        v_length = header.integer(f"{arch}.attention.value_length_swa", v_length)
    return k_length, v_length


def _mla_elements(header: Header, arch: str) -> int:
    """Latent attention keeps one compressed row a token and no values (their row is a part of it); files from before it do not
    have these keys and keep whole heads."""
    mla = header.integer(f"{arch}.attention.key_length_mla") and header.integer(f"{arch}.attention.value_length_mla")
    if not mla:
        return 0
    return header.integer(f"{arch}.attention.key_length") or (
        header.integer(f"{arch}.attention.kv_lora_rank") + header.integer(f"{arch}.rope.dimension_count")
    )


def _windows(header: Header, arch: str, count: int) -> tuple[int, ...]:
    window = header.integer(f"{arch}.attention.sliding_window")
    if not window:
        return (0,) * count
    pattern_key = f"{arch}.attention.sliding_window_pattern"
    pattern = header.arrays.get(pattern_key)
    if pattern is not None:
        return tuple(window if windowed else 0 for windowed in header.per_layer(pattern_key, count))
    every = header.integer(pattern_key) or _FULL_EVERY.get(arch, 0)
    if (
        not every
    ):  # others carry the key but attend to everything in llama.cpp (phi3, qwen2), or the header does not say
        return (0,) * count
    return tuple(window if layer % every < every - 1 else 0 for layer in range(count))


def _recurrent(header: Header, arch: str, count: int, kv_heads: tuple[int, ...]) -> tuple[bool, ...]:
    every = header.integer(f"{arch}.full_attention_interval") or (_FULL_EVERY_DEFAULT_HYBRID if arch in _HYBRIDS else 0)
    if every:
        return tuple((layer + 1) % every != 0 for layer in range(count))
    if not _state_bytes(header, arch):
        return (False,) * count
    per_layer = f"{arch}.attention.head_count_kv" in header.arrays
    return tuple(heads == 0 if per_layer else True for heads in kv_heads)


def _state_bytes(header: Header, arch: str) -> int:
    """Convolution and state of one recurrent layer: Mamba-like, RWKV-like or short convolution (LFM2)."""
    embedding = header.integer(f"{arch}.embedding_length")
    if inner := header.integer(f"{arch}.ssm.inner_size"):
        state, groups = header.integer(f"{arch}.ssm.state_size"), header.integer(f"{arch}.ssm.group_count")
        kernel = max(header.integer(f"{arch}.ssm.conv_kernel"), 1)
        return _STATE_BYTES * ((kernel - 1) * (inner + 2 * groups * state) + state * inner)
    if head_size := header.integer(f"{arch}.wkv.head_size"):
        return _STATE_BYTES * (header.integer(f"{arch}.token_shift_count", 2) * embedding + embedding * head_size)
    if kernel := header.integer(f"{arch}.shortconv.l_cache"):
        return _STATE_BYTES * embedding * (kernel - 1)
    return 0


def _layers_with_a_cache(header: Header, arch: str, count: int) -> int:
    """The last layers may share the cache of earlier ones (gemma3n, gemma4), or only predict ahead (GLM's next-n layers)."""
    without = header.integer(f"{arch}.attention.shared_kv_layers") + header.integer(f"{arch}.nextn_predict_layers")
    return max(count - without, 0)
