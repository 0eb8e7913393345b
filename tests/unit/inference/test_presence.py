"""When a node tells what it offers: soon after a change, seldom otherwise, and never without a reason."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.core.errors import QuotaExceeded
from agentmesh.core.units import MINUTE_MS, SECOND_MS
from agentmesh.inference.logic.presence import MAX_SLOTS, NodeOffer, decode_offer
from agentmesh.inference.logic.presence_timing import (
    CLOCKS_APART_MS,
    DEBOUNCE_MS,
    MAX_INTERVAL_MS,
    MIN_INTERVAL_MS,
    MIN_SPACING_MS,
    RETRY_MS,
    due_ms,
    interval_ms,
    lifetime_ms,
)
from agentmesh.inference.logic.target import ServedModel
from agentmesh.inference.presence import Publisher
from agentmesh.mesh.logic.kinds import NODE
from tests.fakes.virtual_time import virtually


def test_a_small_mesh_is_told_every_minute_and_a_large_one_every_ten() -> None:
    assert interval_ms(1, 600) == MINUTE_MS
    assert interval_ms(1_000, 600) == MAX_INTERVAL_MS
    assert interval_ms(200, 600) == 2 * MINUTE_MS


@given(nodes=st.integers(0, 900), payload=st.integers(0, 600))
def test_presence_costs_a_node_at_most_a_kilobyte_a_second(nodes: int, payload: int) -> None:
    interval = interval_ms(nodes, payload)
    assert MIN_INTERVAL_MS <= interval <= MAX_INTERVAL_MS
    if interval < MAX_INTERVAL_MS:
        assert nodes * payload * SECOND_MS <= 1000 * (interval + 1)
    assert lifetime_ms(nodes, payload) == 3 * interval + CLOCKS_APART_MS <= NODE.max_lifetime_ms


@given(now=st.integers(0, 10**9), changed=st.none() | st.integers(0, 10**9), published=st.integers(0, 10**9))
def test_a_change_is_told_after_a_moment_but_not_twice_at_once(now: int, changed: int | None, published: int) -> None:
    due = due_ms(now, changed_ms=changed, published_ms=published, every_ms=MINUTE_MS)
    assert due <= published + MINUTE_MS
    if changed is None:
        assert due == published + MINUTE_MS
    elif changed + DEBOUNCE_MS <= published + MINUTE_MS:
        assert due == max(changed + DEBOUNCE_MS, published + MIN_SPACING_MS)


def test_the_first_word_is_debounced() -> None:
    assert due_ms(50, changed_ms=10, published_ms=None, every_ms=MINUTE_MS) == 10 + DEBOUNCE_MS


LIFETIME_MS = 3 * MINUTE_MS + CLOCKS_APART_MS


class Mesh:
    """Takes what is published; the clock is the test's."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.models: tuple[ServedModel, ...] = ()
        self.told: list[tuple[NodeOffer, int]] = []
        self.refuse = False
        self.publisher = Publisher(
            self.publish, lambda: NodeOffer(1, "0", "cpu", 1, self.models), lambda: 3, now_ms=lambda: self.now_ms
        )

    async def publish(self, kind: str, subkey: bytes, payload: bytes, lifetime: int) -> None:
        if self.refuse:
            raise QuotaExceeded()
        offer = decode_offer(payload)
        assert (kind, subkey) == ("node", b"")
        assert offer is not None
        self.told.append((offer, lifetime))


async def test_a_node_that_never_offered_anything_says_nothing() -> None:
    mesh = Mesh()
    await mesh.publisher.publish_now()
    await mesh.publisher.stop()
    assert mesh.told == []


async def test_an_offer_is_told_once_until_it_changes_or_grows_old() -> None:
    mesh = Mesh()
    mesh.models = (ServedModel("a", ready=True),)
    await mesh.publisher.publish_now()
    mesh.publisher.changed()
    await mesh.publisher.publish_now()
    assert [(len(offer.models), lifetime) for offer, lifetime in mesh.told] == [(1, LIFETIME_MS)]
    mesh.now_ms += MINUTE_MS
    await mesh.publisher.publish_now()
    assert len(mesh.told) == 2
    mesh.models = (ServedModel("a"),)
    await mesh.publisher.publish_now()
    assert len(mesh.told) == 3


async def test_a_node_that_stops_serving_takes_its_offer_back_and_then_says_nothing() -> None:
    mesh = Mesh()
    mesh.models = (ServedModel("a", ready=True),)
    await mesh.publisher.publish_now()
    mesh.models = ()
    await mesh.publisher.publish_now()
    mesh.now_ms += 10 * MINUTE_MS
    await mesh.publisher.publish_now()
    await mesh.publisher.stop()
    assert [(len(offer.models), lifetime) for offer, lifetime in mesh.told] == [(1, LIFETIME_MS), (0, LIFETIME_MS)]


async def test_a_node_that_ends_takes_its_offer_back() -> None:
    mesh = Mesh()
    mesh.models = (ServedModel("a", ready=True),)
    await mesh.publisher.publish_now()
    await mesh.publisher.stop()
    assert [len(offer.models) for offer, _ in mesh.told] == [1, 0]


async def test_what_could_not_be_told_is_told_later() -> None:
    mesh = Mesh()
    mesh.models, mesh.refuse = (ServedModel("a", ready=True),), True
    await mesh.publisher.publish_now()
    assert mesh.publisher.next_ms() == mesh.now_ms + RETRY_MS
    mesh.refuse = False
    await mesh.publisher.publish_now()
    assert len(mesh.told) == 1


@virtually
async def test_changes_in_a_row_are_one_word_of_the_running_publisher() -> None:
    mesh = Mesh()
    told = asyncio.Event()

    async def publish(kind: str, subkey: bytes, payload: bytes, lifetime: int) -> None:
        await mesh.publish(kind, subkey, payload, lifetime)
        told.set()

    loop = asyncio.get_running_loop()
    publisher = Publisher(
        publish,
        lambda: NodeOffer(1, "0", "cpu", 1, (ServedModel("a", ready=True),)),
        lambda: 3,
        now_ms=lambda: int(loop.time() * 1000),
    )
    publisher.start()
    for _ in range(20):
        publisher.changed()
    async with asyncio.timeout(5):
        await told.wait()
    await publisher.stop()
    assert [len(offer.models) for offer, _ in mesh.told] == [1, 0]


@pytest.mark.parametrize("behind_ms", [0, 2 * MINUTE_MS, 5 * MINUTE_MS])
async def test_what_a_node_says_is_good_until_it_says_it_again_for_those_whose_clocks_are_minutes_ahead(
    behind_ms: int,
) -> None:
    mesh = Mesh()
    mesh.models = (ServedModel("a", ready=True),)
    await mesh.publisher.publish_now()
    await mesh.publisher.stop()
    for _, lifetime in mesh.told:  # the offer, and the goodbye that must outlive it
        assert lifetime - behind_ms > 2 * MIN_INTERVAL_MS
    assert mesh.told[-1][1] >= mesh.told[0][1]


@pytest.mark.parametrize(
    ("shard", "usable"),
    [("", True), ("64/128 1f09a3c2", True), ("later form", True), ("x" * 65, False), ("a\nb", False)],
)
def test_what_a_peer_calls_its_part_is_bounded(shard: str, usable: bool) -> None:
    models = (ServedModel("m", ready=True, shard=shard), ServedModel("other"))
    offer = decode_offer(msgspec.msgpack.encode(NodeOffer(1, "0", "", 0, models)))
    assert offer is not None
    assert offer.models == (models if usable else models[1:])


@pytest.mark.parametrize(
    ("waits", "kept"), [("", True), ("10 MB are missing.", True), ("x" * 501, False), ("a\x1b[2J", False)]
)
def test_what_a_peer_says_that_a_model_waits_for_is_bounded(waits: str, kept: bool) -> None:
    model = ServedModel("m", slots=MAX_SLOTS + 1, waits=waits)
    offer = decode_offer(msgspec.msgpack.encode(NodeOffer(1, "0", "", 0, (model,))))
    assert offer is not None
    assert offer.models == (ServedModel("m", slots=MAX_SLOTS, waits=waits if kept else ""),)


def test_a_node_of_before_there_were_parts_offers_whole_models() -> None:
    old = msgspec.msgpack.encode([1, "0", "", 0, [["m", [], True, 0, 1, [], 0, 0, "ab"]]])
    offer = decode_offer(old)
    assert offer is not None
    assert (offer.models[0].sha256, offer.models[0].shard) == ("ab", "")
