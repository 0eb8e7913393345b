"""What a node says that it offers: it comes back as it was, and what cannot be read offers nothing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.inference.logic.presence import (
    MAX_MODELS,
    MAX_OFFER_BYTES,
    MAX_SLOTS,
    NodeOffer,
    decode_offer,
    encode_offer,
)
from agentmesh.inference.logic.target import ServedModel

MODEL = ServedModel("Tiny-Q4_K_M", ("tiny",), True, 4096, 2, ("chat",), 1_000, 2_000, "ab")


def offer(*models: ServedModel) -> NodeOffer:
    return NodeOffer(1, "0.1", "b100", 5, models, True)


def test_an_offer_comes_back_as_it_was() -> None:
    assert decode_offer(encode_offer(offer(MODEL))) == offer(MODEL)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_offer_or_none(payload: bytes) -> None:
    decode_offer(payload)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x91" * 8000, b"\x96\x01\xa1\xff\xa1e\x00\x90\xc2", b"\x97\x01\xa1p\xa1e\x00\x90\xc2" + b"\x91" * 8000],
)
def test_broken_text_and_deep_nesting_offer_nothing(payload: bytes) -> None:
    assert decode_offer(payload) is None


def test_what_a_later_version_appends_is_skipped() -> None:
    later = [*msgspec.msgpack.decode(encode_offer(offer(MODEL))), {"more": 1}]
    assert decode_offer(msgspec.msgpack.encode(later)) == offer(MODEL)


@pytest.mark.parametrize(
    "model",
    [
        ServedModel(""),
        ServedModel("a\nb"),
        ServedModel("x" * 201),
        ServedModel("m", ("",)),
        ServedModel("m", tuple("abcdefghi")),
        ServedModel("m", slots=0),
        ServedModel("m", context_tokens=-1),
        ServedModel("m", size_bytes=1 << 53),
    ],
)
def test_a_model_that_cannot_be_used_is_left_out_and_the_others_stay(model: ServedModel) -> None:
    assert decode_offer(encode_offer(offer(model, MODEL))) == offer(MODEL)


def test_an_offer_never_exceeds_its_record() -> None:
    many = [ServedModel(f"{number}-{'x' * 190}", ("y" * 190,) * 8) for number in range(MAX_MODELS + 9)]
    payload = encode_offer(offer(*many))
    assert len(payload) <= MAX_OFFER_BYTES
    kept = decode_offer(payload)
    assert kept is not None
    assert kept.models == tuple(many[: len(kept.models)])
    assert kept.models


def test_more_slots_than_any_engine_has_count_as_that_many() -> None:
    decoded = decode_offer(encode_offer(offer(msgspec.structs.replace(MODEL, slots=1 << 52))))
    assert decoded is not None
    assert [model.slots for model in decoded.models] == [MAX_SLOTS]


def test_an_offer_is_made_however_much_an_engine_says_of_itself() -> None:
    long = NodeOffer(1, "p" * 9_000, "e" * 9_000, 0, (MODEL,), addresses=("a" * 300 + ":1", *("b:1",) * 2_000))
    payload = encode_offer(long)
    assert len(payload) <= MAX_OFFER_BYTES
    decoded = decode_offer(payload)
    assert decoded is not None
    assert decoded.models == (MODEL,)
    assert set(decoded.addresses) == {"b:1"}
