"""Whether a model fits: need, room, the choice of context and slots, and the sentence that says why."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.inference.logic.capabilities import capabilities_of
from agentmesh.inference.logic.fit import (
    DEVICE_CONTEXT_BYTES,
    MAX_SLOTS,
    PROCESS_BYTES,
    DraftModel,
    Room,
    Wanted,
    batch_tokens,
    buffer_bytes,
    embeds,
    fit_model,
    need_of,
    size,
)
from agentmesh.inference.logic.gguf_facts import ModelFacts, VocabularyFacts
from agentmesh.inference.logic.kv_cache import LayerCache
from agentmesh.inference.models.gguf import read_model
from tests.fakes.tiny_gguf import write_tiny

GB = 1_000_000_000
MIB = 1024 * 1024


def facts(
    *, weights: int = 4 * GB, context: int = 131_072, layers: int = 32, architecture: str = "llama", pooling: int = 0
) -> ModelFacts:
    """A model as 8 billion parameters in 4 bits have it: 128 KiB of context a token."""
    return ModelFacts(
        architecture=architecture,
        name="m",
        quant="Q4_K_M",
        parameter_count=8 * GB,
        weight_bytes=weights,
        tensor_count=1,
        layer_count=layers,
        context_length=context,
        embedding_length=4096,
        head_count=32,
        head_count_kv=8,
        key_length=128,
        value_length=128,
        sliding_window=0,
        expert_count=0,
        expert_used_count=0,
        expert_bytes=0,
        vocabulary=VocabularyFacts("gpt2", "x", 128_000, "", None, None, False),
        chat_template=True,
        caches=(LayerCache(1024, 1024),) * layers,
        feed_forward_length=14_336,
        pooling_type=pooling,
    )


def room(free: float, total: float = 64, device: str | None = None) -> Room:
    return Room(device, int(total * GB), int(free * GB))


def test_a_model_that_fits_gets_its_whole_context_in_several_slots() -> None:
    fit = fit_model("m", facts(context=32_768), Wanted(), [room(60)])
    assert fit.fits
    assert (fit.need.context_tokens, fit.need.slots) == (32_768, MAX_SLOTS)


def test_the_context_is_halved_until_two_requests_fit_into_half_of_what_is_left() -> None:
    fit = fit_model("m", facts(), Wanted(), [room(30)])
    assert fit.fits
    assert (fit.need.context_tokens, fit.need.slots) == (32_768, 2)
    assert fit.need.total <= 4 * GB + 13 * GB


def test_with_little_memory_one_request_gets_all_that_is_left() -> None:
    fit = fit_model("m", facts(), Wanted(), [room(7)])
    assert (fit.fits, fit.need.slots, fit.need.context_tokens) == (True, 1, 16_384)


def test_an_explicit_context_is_never_lowered() -> None:
    fit = fit_model("m", facts(), Wanted(context_tokens=131_072), [room(12)])
    assert not fit.fits
    assert (fit.need.context_tokens, fit.need.slots) == (131_072, 1)


def test_an_explicit_context_may_be_longer_than_the_models_own() -> None:
    fit = fit_model("m", facts(context=8192), Wanted(context_tokens=16_384), [room(60)])
    assert (fit.fits, fit.need.context_tokens) == (True, 16_384)


def test_explicit_slots_are_kept() -> None:
    fit = fit_model("m", facts(context=8192), Wanted(slots=7), [room(60)])
    assert (fit.fits, fit.need.slots) == (True, 7)


def test_a_short_model_is_served_with_its_short_context() -> None:
    fit = fit_model("m", facts(context=512), Wanted(), [room(60)])
    assert (fit.fits, fit.need.context_tokens) == (True, 512)


def test_the_projector_counts_as_weights() -> None:
    assert need_of(facts(), Wanted(projector_bytes=7), 512, 1, on_device=False).weights == 4 * GB + 7


def test_a_draft_takes_weights_contexts_and_buffers_of_its_own_and_rows_of_the_targets_logits() -> None:
    small = facts(weights=GB // 2, layers=4)
    need = need_of(facts(), Wanted(draft=DraftModel(small, 8)), 4096, 2, on_device=False)
    own = need_of(small, Wanted(), 4096, 2, on_device=False)
    assert need.draft == own.total + 2 * 8 * 128_000 * 4
    assert need.total == need_of(facts(), Wanted(), 4096, 2, on_device=False).total + need.draft


def test_a_draft_shortens_the_context_and_is_part_of_the_arithmetic() -> None:
    draft = DraftModel(facts(weights=GB, layers=16), 8)
    with_it, without = (fit_model("m", facts(), Wanted(draft=one), [room(8)]) for one in (draft, None))
    assert (with_it.fits, without.fits) == (True, True)
    assert with_it.need.context_tokens < without.need.context_tokens
    assert f" + draft {size(with_it.need.draft)};" in with_it.sentence


def test_texts_are_not_embedded_by_a_model_with_a_draft() -> None:
    draft = DraftModel(facts(weights=GB, layers=1), 8)
    assert fit_model("m", facts(), Wanted(), [room(60)]).need.embeddings
    assert not fit_model("m", facts(), Wanted(draft=draft), [room(60)]).need.embeddings


def test_the_first_room_in_which_it_fits_is_taken() -> None:
    rooms = [room(2, 8, "CUDA0"), room(30, 64)]
    assert fit_model("m", facts(), Wanted(), rooms).room.device is None
    assert fit_model("m", facts(weights=GB // 2), Wanted(), rooms).room.device == "CUDA0"


def test_a_refusal_speaks_of_the_room_with_most_memory_and_of_the_least_need() -> None:
    fit = fit_model("m", facts(), Wanted(), [room(2, 8, "CUDA0"), room(3, 16)])
    assert not fit.fits
    assert (fit.room.free_bytes, fit.need.context_tokens, fit.need.slots) == (3 * GB, 4096, 1)


def test_the_sentence_has_the_whole_arithmetic() -> None:
    fit = fit_model("tiny", facts(), Wanted(context_tokens=32_768, slots=2), [room(3.9, 8, "CUDA0")])
    assert fit.sentence == (
        "tiny needs 13.4 GB: weights 4.0 GB + context 8.6 GB (32,768 tokens x 2 slots) + buffers 760 MB; "
        "3.9 GB are free of 8.0 GB on CUDA0"
    )


def test_sizes_are_readable() -> None:
    assert [size(n) for n in (0, 428_800, 22_000_000, 999_000_000, 5_200_000_000)] == [
        "0.0 MB",
        "0.4 MB",
        "22 MB",
        "999 MB",
        "5.2 GB",
    ]


# Measured with llama-server 0c1e570 on a CPU, generated models: output and compute buffers as it logs them, in MiB.
@pytest.mark.parametrize(
    ("width", "hidden", "vocabulary", "context", "slots", "measured_mib"),
    [
        (1024, 2816, 32_000, 4096, 1, 28.63),
        (1024, 2816, 32_000, 16_384, 4, 41.0),
        (1024, 2816, 32_000, 131_072, 1, 152.63),
        (2048, 5632, 151_936, 4096, 1, 53.59),
        (2048, 5632, 151_936, 131_072, 1, 177.59),
        (64, 128, 259, 131_072, 1, 129.01),
    ],
)
def test_buffers_are_those_that_llama_server_logs(
    width: int, hidden: int, vocabulary: int, context: int, slots: int, measured_mib: float
) -> None:
    shape = msgspec.structs.replace(
        facts(),
        embedding_length=width,
        feed_forward_length=hidden,
        vocabulary=VocabularyFacts("x", "", vocabulary, "", None, None, False),
    )
    ours = buffer_bytes(shape, context, slots, ubatch_tokens=512, on_device=False) - PROCESS_BYTES
    assert 0.99 * measured_mib <= ours / MIB <= 1.02 * measured_mib


def test_a_device_needs_room_for_its_driver_too() -> None:
    needs = [need_of(facts(), Wanted(), 4096, 1, on_device=on_device).buffers for on_device in (False, True)]
    assert needs[1] - needs[0] == DEVICE_CONTEXT_BYTES


def test_the_cpu_of_an_engine_with_devices_is_no_device() -> None:
    assert not Room("none", 1, 1).on_device
    assert "none" not in fit_model("m", facts(), Wanted(), [room(1, 2, "none")]).sentence


sizes = st.integers(0, 200 * GB)


@given(free=sizes, more=sizes, weights=st.integers(1, 100 * GB), context=st.integers(1, 1 << 20))
def test_what_fits_goes_on_fitting_with_more_memory(free: int, more: int, weights: int, context: int) -> None:
    model = facts(weights=weights, context=context)
    small = fit_model("m", model, Wanted(), [Room(None, 300 * GB, free)])
    large = fit_model("m", model, Wanted(), [Room(None, 300 * GB, free + more)])
    assert large.fits or not small.fits


@given(
    free=sizes,
    context=st.integers(0, 1 << 21),
    asked=st.none() | st.integers(1, 1 << 21),
    slots=st.none() | st.integers(1, 64),
)
def test_a_fit_is_within_memory_training_and_what_was_asked(
    free: int, context: int, asked: int | None, slots: int | None
) -> None:
    fit = fit_model("m", facts(context=context), Wanted(asked, slots), [Room(None, 300 * GB, free)])
    assert fit.fits == (fit.need.total <= free)
    assert fit.need.context_tokens == asked if asked is not None else fit.need.context_tokens <= max(context, 4096)
    assert fit.need.slots == slots if slots is not None else 1 <= fit.need.slots <= MAX_SLOTS


@given(context=st.integers(1, 1 << 20), slots=st.integers(1, 16), weights=st.integers(0, GB))
def test_need_grows_with_context_slots_and_weights(context: int, slots: int, weights: int) -> None:
    base = need_of(facts(), Wanted(), context, slots, on_device=False).total
    assert need_of(facts(), Wanted(), context + 256, slots, on_device=False).total > base
    assert need_of(facts(), Wanted(), context, slots + 1, on_device=False).total > base
    assert need_of(facts(), Wanted(projector_bytes=weights), context, slots, on_device=False).total == base + weights


# ------------------------------------------------------------------ what it can be asked for


@pytest.mark.parametrize(
    ("architecture", "pooling", "expected"),
    [("bert", 0, True), ("nomic-bert-moe", 1, True), ("qwen3", 3, True), ("qwen3", 4, False), ("llama", 0, False)],
)
def test_embedding_models_are_told_by_architecture_or_pooling(architecture: str, pooling: int, expected: bool) -> None:
    model = facts(architecture=architecture, pooling=pooling)
    assert embeds(model) is expected
    assert ("embedding" in capabilities_of(model, (), projector=False)) is expected


def test_a_text_to_embed_is_one_batch() -> None:
    assert batch_tokens(facts(architecture="bert"), 2048) == 2048
    assert batch_tokens(facts(architecture="bert"), 1 << 20) == 8192
    assert batch_tokens(facts(), 1 << 20) == 512


def test_capabilities_come_from_the_template_the_projector_and_the_catalog() -> None:
    plain = msgspec.structs.replace(facts(), chat_template=False)
    assert capabilities_of(plain, (), projector=False) == ("completion",)
    assert capabilities_of(facts(), (), projector=False) == ("chat", "completion")
    assert capabilities_of(facts(), ("tools", "unheard-of"), projector=True) == (
        "chat",
        "completion",
        "tools",
        "vision",
    )
    able = msgspec.structs.replace(facts(), template_tools=True, template_reasoning=True)
    assert capabilities_of(able, (), projector=False) == ("chat", "completion", "reasoning", "tools")


def test_vision_without_a_projector_is_not_claimed() -> None:
    assert "vision" not in capabilities_of(facts(), ("chat", "vision"), projector=False)


def test_facts_of_a_file_hold_what_the_estimate_needs(tmp_path: Path) -> None:
    (path,) = write_tiny(tmp_path / "tiny.gguf")
    read = read_model(path).facts
    assert (read.feed_forward_length, read.pooling_type, read.template_tools) == (128, 0, False)
