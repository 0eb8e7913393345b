"""What other nodes say of themselves for splits: who counts, which record counts, and what is asked of them."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from agentmesh.core.units import SECOND_MS
from agentmesh.inference.logic.split_offer import MAX_WANTED, SplitOffer, WantedModel
from agentmesh.inference.logic.split_values import Claim, Wish
from agentmesh.inference.settings import Lending
from agentmesh.inference.split.heard import MAX_NODES, KnownFacts
from agentmesh.inference.split.paced import BURST, PER_S
from agentmesh.mesh.identity import encode_id
from agentmesh.mesh.logic.events import PeerState
from tests.fakes.records import record
from tests.fakes.split_offers import LENDER, ME, OTHER, THIRD, WANTER, A, B, OffersWorld, a_wanting_world
from tests.fakes.split_world import node_id
from tests.fakes.virtual_time import virtually


async def test_others_are_seen_as_lenders_and_as_those_who_want_it() -> None:
    world = OffersWorld()
    await world.hears(OTHER, LENDER)
    await world.hears(THIRD, WANTER)
    lender, wanter = sorted(world.offers.nodes(A), key=lambda facts: facts.node)
    assert (lender.takes_part, lender.may_host) == (True, False)
    assert (wanter.takes_part, wanter.may_host, wanter.files) == (True, True, (A,))
    assert [facts.takes_part for facts in world.offers.nodes(B)] == [True, False]


async def test_the_newest_record_counts_in_whatever_order_they_come() -> None:
    world = OffersWorld()
    await world.hears(OTHER, LENDER, at_ms=9)
    await world.hears(OTHER, WANTER, at_ms=7)
    assert [facts.name for facts in world.offers.nodes(A)] == ["bob"]
    assert world.changes == 1


async def test_a_renewal_is_no_change_and_its_end_is_the_end() -> None:
    world = OffersWorld()
    old = await world.hears(OTHER, LENDER, at_ms=5)
    new = await world.hears(OTHER, LENDER, at_ms=6)
    await world.offers.on_dropped([old.id], "replaced")
    assert (world.seen(), world.changes) == ([OTHER], 1)
    await world.offers.on_dropped([new.id, b"unknown"], "expired")
    assert (world.seen(), world.changes) == ([], 2)


async def test_a_node_that_took_back_what_it_said_is_gone() -> None:
    world = OffersWorld()
    await world.hears(OTHER, LENDER)
    said = await world.hears(OTHER, SplitOffer(), at_ms=6)
    assert (world.seen(), world.changes) == ([], 2)
    await world.offers.on_dropped([said.id], "expired")
    assert world.changes == 2


async def test_bytes_that_are_no_offer_take_no_part() -> None:
    world = OffersWorld()
    await world.hears(OTHER, LENDER)
    await world.offers.on_records([record("split", OTHER, 9, payload=b"\xff" * 8000), record("node", THIRD, 9)])
    assert world.seen() == []


@pytest.mark.parametrize("state", [PeerState.SUSPECT, PeerState.DEAD])
async def test_who_is_suspect_or_dead_does_not_count_until_it_is_back(state: PeerState) -> None:
    world = OffersWorld()
    await world.hears(OTHER, WANTER)
    world.states[OTHER] = state
    world.offers.on_peer_state(OTHER, state)
    world.offers.on_peer_state(THIRD, state)
    assert (world.seen(), world.offers.wishes(A), world.changes) == ([], {}, 2)
    assert world.offers.same_name("big", B) == []
    world.states[OTHER] = PeerState.ALIVE
    assert world.seen() == [OTHER]


async def test_who_cannot_be_reached_does_not_count() -> None:
    world = OffersWorld()
    await world.hears(OTHER, LENDER)
    world.trips.lost = {OTHER}
    assert world.seen() == []


async def test_a_bounded_number_of_nodes_is_remembered_and_who_is_silent_gives_way() -> None:
    world = OffersWorld()
    for number in range(MAX_NODES):
        await world.hears(node_id(number + 100), LENDER)
    await world.hears(OTHER, LENDER)
    assert (len(world.seen()), OTHER in world.seen()) == (MAX_NODES, False)
    await world.hears(node_id(150), SplitOffer(), at_ms=9)
    await world.hears(OTHER, LENDER, at_ms=9)
    assert (len(world.seen()), OTHER in world.seen()) == (MAX_NODES, True)


async def test_wishes_and_names_of_all_who_want_it() -> None:
    world = OffersWorld()
    world.offers.want(WantedModel(A, "big", Wish(slots=2)))
    await world.hears(OTHER, LENDER)
    await world.hears(THIRD, WANTER)
    assert world.offers.wishes(A) == {ME: Wish(slots=2), THIRD: Wish(min_peers=2)}
    assert world.offers.same_name("Big", A) == []
    assert world.offers.same_name("Big", B) == [
        f"carl ({encode_id(THIRD)[:8]}) has other files under the name Big; only equal files are split together."
    ]


async def test_its_own_claim_counts_from_the_moment_it_is_made() -> None:
    world = await a_wanting_world()
    changes = world.changes
    world.offers.want(WantedModel(A, "big", claim=Claim(2, "d", True)))
    assert (world.own().claim, world.changes) == (Claim(2, "d", True), changes + 1)
    world.offers.want(WantedModel(A, "big", claim=Claim(2, "d", True)))
    assert world.changes == changes + 1


@pytest.mark.parametrize(
    ("lending", "wants", "use"),
    [
        (Lending(), False, set[bytes]()),
        (Lending(), True, {OTHER}),
        (Lending(everyone=True), False, {THIRD}),
        (Lending(peers=frozenset({OTHER})), True, {OTHER}),
        (Lending(peers=frozenset({THIRD})), True, {OTHER, THIRD}),
    ],
)
async def test_round_trips_matter_between_a_host_and_who_lends_to_it(
    lending: Lending, wants: bool, use: set[bytes]
) -> None:
    world = OffersWorld(lending)
    await world.hears(OTHER, LENDER)
    await world.hears(THIRD, WANTER)
    if wants:
        world.offers.want(WantedModel(B, "mine"))
    assert set(world.trips.wanted()) == use


async def test_round_trips_are_said_the_nearest_first() -> None:
    world = await a_wanting_world()
    world.trips.known = {OTHER: 20.0, THIRD: 1.0}
    world.trips.changed()
    offer = await world.tell()
    assert offer is not None
    assert offer.rtt_ms == ((THIRD, 1.0), (OTHER, 20.0))
    assert world.now_ms < 1_000_000 + 3 * SECOND_MS


@virtually
async def test_a_flood_of_one_nodes_words_is_looked_at_a_few_times_a_second() -> None:
    world = OffersWorld()
    for number in range(500):
        world.now_ms += 2
        await world.hears(OTHER, msgspec.structs.replace(LENDER, machine_free_bytes=number), at_ms=number + 1)
    assert BURST <= world.changes <= BURST + PER_S + 1
    async with asyncio.timeout(10):
        while world.changes <= BURST + PER_S:
            await asyncio.sleep(0.001)
            world.now_ms += 100
            await world.hears(OTHER, msgspec.structs.replace(LENDER, name=str(world.now_ms)), at_ms=world.now_ms)
    [facts] = world.offers.nodes(A)
    assert facts.name == str(world.now_ms)  # what is asked for is answered by the newest word in any case
    await world.offers.stop()


async def test_who_is_back_is_told_again_who_hosts() -> None:
    """A machine that slept, or the other half of a mesh: what was said meanwhile never came, and it would begin to host as well."""
    world = await a_wanting_world(Claim(3, "d", True))
    await world.hears(OTHER, WANTER)
    assert await world.tell() is not None  # it is new here
    world.states[OTHER] = PeerState.DEAD
    world.offers.on_peer_state(OTHER, PeerState.DEAD)
    assert world.offers.telling.next_ms() > world.now_ms + 30 * SECOND_MS
    world.states[OTHER] = PeerState.ALIVE
    world.offers.on_peer_state(OTHER, PeerState.ALIVE)
    assert world.offers.telling.next_ms() <= world.now_ms + 2 * SECOND_MS
    said = await world.tell()
    assert said is not None
    assert said.wants[0].claim == Claim(3, "d", True)
    assert world.offers.telling.next_ms() > world.now_ms + 30 * SECOND_MS  # once


def test_what_a_node_is_for_a_model_is_reckoned_once_for_each_of_its_records() -> None:
    known = KnownFacts()
    [first] = known.of(A, [(OTHER, WANTER)], 9)
    [other_model] = known.of(B, [(OTHER, WANTER)], 9)
    assert known.of(A, [(OTHER, WANTER)], 9)[0] is first
    assert (first.may_host, other_model.may_host) == (True, False)
    [later] = known.of(A, [(OTHER, LENDER)], 9)
    assert later.name == "bob"
    assert known.of(A, [], 9) == ()


def test_a_term_that_nobody_can_have_yet_counts_when_its_time_has_come() -> None:
    known = KnownFacts()
    claim = Claim(10, "d", running=True)
    offers = [(OTHER, SplitOffer(name="carl", machine_total_bytes=1, wants=(WantedModel(A, "big", claim=claim),)))]
    assert [facts.claim for facts in known.of(A, offers, 9)] == [None]
    assert [facts.claim for facts in known.of(A, offers, 10)] == [claim]


def test_models_that_were_asked_about_are_remembered_within_bounds() -> None:
    known = KnownFacts()
    [first] = known.of("0", [(OTHER, WANTER)], 9)
    for number in range(1, 2 * MAX_WANTED):
        known.of(str(number), [(OTHER, WANTER)], 9)
    assert known.of("0", [(OTHER, WANTER)], 9)[0] is first
    for number in range(1, 2 * MAX_WANTED + 1):
        known.of(str(number), [(OTHER, WANTER)], 9)
    assert known.of("0", [(OTHER, WANTER)], 9)[0] is not first
