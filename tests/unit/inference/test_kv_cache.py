"""Memory of a context, against figures of real models worked out from their published shapes."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.gguf_header import ArrayFacts, Header, MetaValue
from agentmesh.inference.logic.kv_cache import bytes_per_token, context_bytes, layer_caches

MIB = 1024 * 1024


def header(arch: str, values: dict[str, MetaValue], arrays: dict[str, tuple[int, ...]] | None = None) -> Header:
    keyed: dict[str, MetaValue] = {f"{arch}.{key}": value for key, value in values.items()}
    kept = {f"{arch}.{key}": ArrayFacts(len(numbers), None, numbers) for key, numbers in (arrays or {}).items()}
    return Header(3, {"general.architecture": arch, **keyed}, kept, (), 0, 0)


def dense(arch: str, layers: int, heads: int, kv_heads: int, embedding: int, **more: MetaValue) -> dict[str, MetaValue]:
    return {
        "block_count": layers,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "embedding_length": embedding,
        **{key.replace("__", "."): value for key, value in more.items()},
    }


def test_grouped_query_attention_counts_key_value_heads() -> None:
    qwen = layer_caches(header("qwen2", dense("qwen2", 36, 16, 2, 2048)))  # Qwen2.5-3B
    assert bytes_per_token(qwen) == 36 * 2 * 128 * 2 * 2 == 36_864
    llama = layer_caches(header("llama", dense("llama", 80, 64, 8, 8192)))  # Llama-3.3-70B
    assert bytes_per_token(llama) == 327_680
    assert context_bytes(llama, 131_072) == 131_072 * 327_680


def test_quantised_caches_are_smaller_by_their_blocks() -> None:
    llama = layer_caches(header("llama", dense("llama", 80, 64, 8, 8192)))
    assert bytes_per_token(llama, "q8_0", "q8_0") == 327_680 // 2 * 34 // 32
    assert bytes_per_token(llama, "q4_0", "q4_0") == 327_680 // 2 * 18 // 32
    assert bytes_per_token(llama, "f16", "q8_0") == 327_680 // 2 + 327_680 // 4 * 34 // 32


def test_a_header_without_key_value_heads_has_as_many_as_heads() -> None:
    values = dense("llama", 2, 4, 4, 64)
    del values["attention.head_count_kv"]
    assert bytes_per_token(layer_caches(header("llama", values))) == 2 * 64 * 2 * 2


def test_a_sliding_window_bounds_the_layers_that_have_one() -> None:
    more = {"attention__sliding_window": 1024, "attention__key_length": 128, "attention__value_length": 128}
    gemma = layer_caches(header("gemma3", dense("gemma3", 62, 32, 16, 5376, **more)))  # Gemma-3-27B
    assert [cache.window for cache in gemma[:7]] == [1024] * 5 + [0, 1024]
    a_token = 2 * 16 * 128 * 2
    assert bytes_per_token(gemma) == 10 * a_token
    assert context_bytes(gemma, 131_072) == 10 * 131_072 * a_token + 52 * 1536 * a_token
    assert context_bytes(gemma, 1024) == 62 * 1024 * a_token


def test_a_pattern_in_the_header_goes_before_a_habit() -> None:
    values = dense("gemma4", 4, 4, 2, 64, attention__sliding_window=512, attention__key_length_swa=8)
    caches = layer_caches(header("gemma4", values, {"attention.sliding_window_pattern": (1, 1, 1, 0)}))
    assert [cache.window for cache in caches] == [512, 512, 512, 0]
    assert [cache.k_elements for cache in caches] == [16, 16, 16, 32]


def test_latent_attention_keeps_one_row_and_no_values() -> None:
    glm = dense("deepseek2", 47, 20, 1, 2048)  # GLM-4.7-Flash: 47 layers, 512 + 64
    glm |= {"attention.key_length": 576, "attention.value_length": 512}
    glm |= {"attention.key_length_mla": 256, "attention.value_length_mla": 256, "attention.kv_lora_rank": 512}
    caches = layer_caches(header("deepseek2", glm))
    assert bytes_per_token(caches) == 47 * 576 * 2
    assert context_bytes(caches, 16_384) == pytest.approx(0.89e9, rel=0.01)  # as its publishers measured


def test_layers_of_a_hybrid_without_attention_keep_a_state_of_fixed_size() -> None:
    values = dense("qwen3next", 48, 16, 2, 2048, attention__key_length=256, attention__value_length=256)
    values |= {"ssm.inner_size": 4096, "ssm.state_size": 128, "ssm.group_count": 16, "ssm.conv_kernel": 4}
    caches = layer_caches(header("qwen3next", values))
    assert [bool(cache.k_elements) for cache in caches[:4]] == [False, False, False, True]
    assert bytes_per_token(caches) == 12 * 2 * 2 * 256 * 2
    state = 4 * (3 * (4096 + 2 * 16 * 128) + 128 * 4096)
    assert context_bytes(caches, 256) - context_bytes(caches, 0) == 256 * bytes_per_token(caches)
    assert context_bytes(caches, 0, sequences=2) == 2 * 36 * state


def test_a_model_without_attention_keeps_only_states() -> None:
    values = {
        "block_count": 4,
        "embedding_length": 64,
        "ssm.inner_size": 128,
        "ssm.state_size": 16,
        "ssm.conv_kernel": 4,
    }
    caches = layer_caches(header("mamba", values))
    assert bytes_per_token(caches) == 0
    assert context_bytes(caches, 100_000) == 4 * 4 * (3 * 128 + 16 * 128)


def test_key_value_heads_may_differ_by_layer() -> None:
    values = dense("granitehybrid", 4, 4, 0, 64, ssm__inner_size=128, ssm__state_size=16, ssm__conv_kernel=4)
    del values["attention.head_count_kv"]
    caches = layer_caches(header("granitehybrid", values, {"attention.head_count_kv": (0, 0, 2, 0)}))
    assert [cache.k_elements for cache in caches] == [0, 0, 32, 0]
    assert [cache.state_bytes > 0 for cache in caches] == [True, True, False, True]


def test_layers_that_share_or_only_predict_have_no_cache() -> None:
    shared = layer_caches(header("gemma3n", dense("gemma3n", 35, 8, 2, 2048, attention__shared_kv_layers=15)))
    assert [cache.k_elements > 0 for cache in shared] == [True] * 20 + [False] * 15
    predicting = layer_caches(header("glm4moe", dense("glm4moe", 47, 96, 8, 4096, nextn_predict_layers=1)))
    assert [cache.k_elements > 0 for cache in predicting[-2:]] == [True, False]


def test_contexts_are_rounded_up_as_the_engine_does() -> None:
    caches = layer_caches(header("llama", dense("llama", 2, 4, 2, 64)))
    assert context_bytes(caches, 1) == context_bytes(caches, 256) < context_bytes(caches, 257)
