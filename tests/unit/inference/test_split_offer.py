"""What a node says of itself for splits, as bytes: nothing is too long, nothing that cannot be true is believed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmesh.inference.logic.split_limits import MAX_TERM
from agentmesh.inference.logic.split_offer import (
    MACHINE,
    MAX_SPLIT_OFFER_BYTES,
    MAX_WANTED,
    SplitOffer,
    WantedModel,
    WorkedModel,
    decode_split_offer,
    encode_split_offer,
    facts_of,
    says_something,
)
from agentmesh.inference.logic.split_values import Claim, DeviceFacts, Wish
from agentmesh.mesh.logic.kinds import SPLIT
from tests.fakes.split_world import GB, node_id

A, B = "a" * 32, "b" * 32
ME = node_id(1)


def through(offer: SplitOffer) -> SplitOffer:
    decoded = decode_split_offer(encode_split_offer(offer))
    assert decoded is not None
    return decoded


def raw(offer: SplitOffer) -> SplitOffer | None:
    """Sent by somebody who keeps to no bounds."""
    return decode_split_offer(msgspec.msgpack.encode(offer))


FULL = SplitOffer(
    name="anna",
    devices=(DeviceFacts("CUDA0", 4 * GB, 8 * GB),),
    machine_free_bytes=3 * GB,
    machine_total_bytes=16 * GB,
    rtt_ms=((node_id(2), 1.0), (node_id(3), 20.0)),
    engine_commit="0c1e570",
    rpc_version=(7, 0, 0),
    has_rpc=True,
    lends_to=(node_id(2),),
    wants=(WantedModel(A, "big", Wish(min_peers=2), Claim(4, "d", True), (("CUDA0", GB), (MACHINE, GB))),),
    works=(WorkedModel(B, 9, ((MACHINE, 2 * GB),)),),
)


def test_what_is_said_is_what_is_read() -> None:
    assert through(FULL) == FULL


def test_a_model_s_facts_have_free_what_its_own_part_takes() -> None:
    facts = facts_of(FULL, ME, A)
    assert (facts.devices[0].free_bytes, facts.machine_free_bytes) == (5 * GB, 4 * GB)
    assert (facts.claim, facts.seen_term, facts.files) == (Claim(4, "d", True), 0, (A,))
    assert (facts.takes_part, facts.may_host, facts.node) == (True, True, ME)
    assert facts.rtt_to(node_id(3)) == 20.0


def test_of_a_model_that_it_only_serves_it_is_a_worker() -> None:
    facts = facts_of(FULL, ME, B)
    assert (facts.machine_free_bytes, facts.devices[0].free_bytes) == (5 * GB, 4 * GB)
    assert (facts.takes_part, facts.may_host, facts.files, facts.claim, facts.seen_term) == (True, False, (), None, 9)


def test_who_wants_another_model_and_lends_nothing_takes_no_part() -> None:
    facts = facts_of(msgspec.structs.replace(FULL, lends_to=()), ME, B)
    assert not facts.takes_part


def test_nobody_has_more_free_than_there_is() -> None:
    offer = SplitOffer(
        devices=(DeviceFacts("CUDA0", 9 * GB, 8 * GB),),
        machine_free_bytes=GB,
        machine_total_bytes=2 * GB,
        wants=(WantedModel(A, "big", held=((MACHINE, 5 * GB), ("CUDA0", 1), ("CUDA7", GB))),),
    )
    facts = facts_of(through(offer), ME, A)
    assert (facts.devices[0].free_bytes, facts.machine_free_bytes) == (8 * GB, 2 * GB)


@pytest.mark.parametrize(
    "lie",
    [
        {"machine_free_bytes": -1},
        {"machine_total_bytes": 1 << 60},
        {"devices": (DeviceFacts("CUDA0", 1, -4),)},
        {"devices": tuple(DeviceFacts(f"CUDA{n}", 1, 1) for n in range(17))},
        {"devices": (DeviceFacts("CUDA0", 1, 1),) * 2},
        {"devices": (DeviceFacts("", 1, 1),)},
        {"devices": (DeviceFacts("a\nb", 1, 1),)},
        {"rpc_version": (7, 0, 300)},
    ],
)
def test_what_cannot_be_true_takes_no_part(lie: dict[str, object]) -> None:
    assert raw(msgspec.structs.replace(FULL, **lie)) is None


@pytest.mark.parametrize(
    "wish",
    [
        Wish(way="sideways"),
        Wish(tensor_split=(float("nan"),)),
        Wish(tensor_split=(1.0,) * 65),
        Wish(context_tokens=0),
        Wish(context_tokens=1 << 40),
        Wish(slots=1_000_000),
        Wish(host=b"short"),
        Wish(min_peers=-1),
        Wish(min_experts=1 << 20),
        Wish(host_extra_bytes=1 << 60),
    ],
)
def test_a_wish_that_cannot_be_is_none(wish: Wish) -> None:
    offer = raw(SplitOffer(wants=(WantedModel(A, "big", wish), WantedModel(B, "other"))))
    assert offer is not None
    assert [model.content for model in offer.wants] == [B]


@pytest.mark.parametrize(
    "model",
    [
        WantedModel("", "big"),
        WantedModel("c" * 65, "big"),
        WantedModel(A, ""),
        WantedModel(A, "two\nlines"),
        WantedModel(A, "x" * 201),
        WantedModel(A, "big", held=((MACHINE, -1),)),
        WantedModel(A, "big", held=((MACHINE, 1),) * 18),
    ],
)
def test_a_model_that_cannot_be_is_not_wanted(model: WantedModel) -> None:
    offer = raw(SplitOffer(wants=(model,)))
    assert offer is not None
    assert offer.wants == ()


def test_terms_that_nobody_can_have_reached_are_dropped_and_the_rest_stays() -> None:
    offer = raw(
        SplitOffer(
            wants=(WantedModel(A, "big", claim=Claim(MAX_TERM + 1, "d", True)),),
            works=(WorkedModel(A, MAX_TERM + 1, ((MACHINE, 5),)), WorkedModel(B, -3)),
            machine_total_bytes=GB,
        )
    )
    assert offer is not None
    facts = facts_of(offer, ME, A)
    assert (facts.claim, facts.seen_term, facts.machine_free_bytes) == (None, 0, 5)
    assert facts_of(offer, ME, B).seen_term == 0


def test_of_a_model_named_twice_the_first_counts() -> None:
    offer = raw(SplitOffer(wants=(WantedModel(A, "one"), WantedModel(A, "two"), WantedModel(B, "three"))))
    assert offer is not None
    assert {model.content: model.id for model in offer.wants} == {A: "one", B: "three"}


def test_round_trips_and_lenders_that_cannot_be_are_left_out() -> None:
    rtts = ((b"short", 1.0), (node_id(2), float("nan")), (node_id(3), -1.0), (node_id(4), 3.0), (node_id(4), 9.0))
    offer = raw(SplitOffer(rtt_ms=rtts, lends_to=(b"short", node_id(5))))
    assert offer is not None
    assert (offer.rtt_ms, offer.lends_to) == (((node_id(4), 3.0),), (node_id(5),))


def test_names_are_cut_and_made_harmless() -> None:
    offer = raw(SplitOffer(name="x\x1b[2J", engine_commit="c" * 65))
    assert offer is not None
    assert (offer.name, offer.engine_commit) == ("", "")
    assert len(through(SplitOffer(name="x" * 500)).name) == 64


HELD = tuple((f"CUDA{n}", GB) for n in range(12))


def test_far_round_trips_are_left_out_first() -> None:
    many = tuple((node_id(n), float(n)) for n in range(1, 65))
    offer = SplitOffer(
        rtt_ms=many,
        lends_to=tuple(node_id(n) for n in range(64)),
        wants=tuple(
            WantedModel(f"{n:032}", "m" * 200, Wish(host=ME), Claim(1, "d" * 16, True), HELD) for n in range(8)
        ),
    )
    payload = encode_split_offer(offer)
    kept = decode_split_offer(payload)
    assert kept is not None
    assert len(payload) <= MAX_SPLIT_OFFER_BYTES
    assert kept.rtt_ms == many[: len(kept.rtt_ms)]
    assert 10 < len(kept.rtt_ms) < 64
    assert (kept.lends_to, len(kept.wants)) == (offer.lends_to, MAX_WANTED)


def test_the_longest_record_there_can_be_fits_the_mesh_s_limit() -> None:
    held = tuple((f"{n:064}", (1 << 50) - 1) for n in range(17))
    offer = SplitOffer(
        name="ü" * 64,
        devices=tuple(DeviceFacts(f"{n:064}", 1 << 49, 1 << 49, 1 << 49) for n in range(16)),
        rtt_ms=tuple((node_id(n), 1 / 3) for n in range(64)),
        lends_to=tuple(node_id(n) for n in range(64)),
        wants=tuple(WantedModel(f"{n:064}", "ü" * 200, Wish(tensor_split=(1 / 3,) * 64), held=held) for n in range(8)),
        works=tuple(WorkedModel(f"{n:064}", MAX_TERM, held) for n in range(8)),
    )
    payload = encode_split_offer(offer)
    assert len(payload) <= MAX_SPLIT_OFFER_BYTES == SPLIT.max_payload_bytes
    assert decode_split_offer(payload) is not None


def test_one_that_wants_and_lends_nothing_says_nothing() -> None:
    assert not says_something(SplitOffer(name="anna", machine_free_bytes=GB))
    assert says_something(SplitOffer(lends_to_all=True))
    assert says_something(SplitOffer(works=(WorkedModel(A, 1),)))


def test_fields_that_a_later_version_appends_do_no_harm() -> None:
    fields: list[object] = msgspec.msgpack.decode(encode_split_offer(FULL))
    assert decode_split_offer(msgspec.msgpack.encode([*fields, {"new": 1}])) == FULL
    assert decode_split_offer(msgspec.msgpack.encode(fields[:3])) is not None


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.integers(1, 60).map(lambda cut: encode_split_offer(FULL)[:-cut]))
def test_bytes_that_are_no_offer_are_read_as_nothing(payload: bytes) -> None:
    offer = decode_split_offer(payload)
    if offer is not None:
        facts_of(offer, ME, A)
        assert through(offer) == offer


@given(st.integers(0, 400), st.data())
def test_a_changed_byte_breaks_nothing(place: int, data: st.DataObject) -> None:
    payload = bytearray(encode_split_offer(FULL))
    payload[place % len(payload)] = data.draw(st.integers(0, 255))
    offer = decode_split_offer(bytes(payload))
    if offer is not None:
        for content in (A, B):
            assert facts_of(offer, ME, content).free_bytes >= 0
        assert through(offer) == offer


def test_more_than_a_record_may_have_is_not_even_read() -> None:
    assert decode_split_offer(bytes(MAX_SPLIT_OFFER_BYTES + 1)) is None
    assert decode_split_offer(b"\x91" * 8_000) is None
