"""This node's record for splits: claims at once, other changes seldom, memory counted once, nothing said without a reason."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.core.units import MINUTE_MS
from agentmesh.inference.logic.presence_timing import CLOCKS_APART_MS, DEBOUNCE_MS, MIN_SPACING_MS, RETRY_MS
from agentmesh.inference.logic.split_limits import FREE_STEP_BYTES
from agentmesh.inference.logic.split_offer import MACHINE, SplitOffer, WantedModel, WorkedModel, encode_split_offer
from agentmesh.inference.logic.split_values import NO_RPC_VERSION, Claim, DeviceFacts
from agentmesh.inference.settings import Lending
from agentmesh.inference.split.facts import Measured, steady
from agentmesh.inference.split.telling import URGENT_MS, URGENT_RETRY_MS, URGENT_SPACING_MS, Telling
from tests.fakes.split_offers import ME, OTHER, THIRD, A, B, OffersWorld, a_wanting_world
from tests.fakes.split_world import GB
from tests.fakes.virtual_time import virtually

NOTHING = encode_split_offer(SplitOffer())

# ------------------------------------------------------------------ what is said


async def test_who_neither_wants_nor_lends_says_nothing() -> None:
    world = OffersWorld()
    await world.offers.measure_now()
    world.offers.telling.changed()
    assert await world.tell() is None
    await world.offers.stop()
    assert world.told == []


async def test_a_client_says_nothing_even_if_it_was_told_to_lend() -> None:
    world = OffersWorld(Lending(everyone=True), is_client=True)
    await world.offers.start()
    world.offers.telling.changed()
    assert await world.tell() is None
    await world.offers.measure_now()
    assert world.own().is_client
    await world.offers.stop()


async def test_nothing_is_said_before_this_machine_was_measured() -> None:
    world = OffersWorld(Lending(everyone=True))
    world.offers.telling.changed()
    assert await world.tell() is None
    await world.offers.measure_now()
    offer = await world.tell()
    assert offer is not None
    assert (offer.lends_to_all, offer.name, offer.engine_commit, offer.has_rpc) == (True, "anna", "0c1e570", True)


async def test_it_is_no_node_of_a_plan_before_it_was_measured() -> None:
    world = OffersWorld()
    world.offers.want(WantedModel(A, "big"))
    assert world.seen() == []
    assert world.offers.rpc_version == NO_RPC_VERSION
    changes = world.changes
    await world.offers.measure_now()
    assert (world.seen(), world.changes) == ([ME], changes + 1)
    assert world.offers.rpc_version == (7, 0, 0)


async def test_a_machine_that_cannot_be_measured_is_there_without_an_engine() -> None:
    world = OffersWorld()
    world.offers.want(WantedModel(A, "big"))
    world.engine_fails = True
    await world.offers.measure_now()
    assert (world.own().engine_commit, world.own().has_rpc) == ("", False)
    assert await world.tell() is None


async def test_it_lends_to_those_whom_the_user_named() -> None:
    world = OffersWorld(Lending(peers=frozenset({THIRD, OTHER})))
    await world.offers.measure_now()
    offer = await world.tell()
    assert offer is not None
    assert (offer.lends_to, offer.lends_to_all) == ((OTHER, THIRD), False)


async def test_a_changed_claim_goes_out_at_once_although_something_was_just_said() -> None:
    world = await a_wanting_world()
    world.now_ms += 1
    world.offers.want(WantedModel(A, "big", claim=Claim(1, "d", False)))
    assert world.offers.telling.next_ms() - world.now_ms <= URGENT_SPACING_MS + URGENT_MS <= 100
    offer = await world.tell()
    assert offer is not None
    assert offer.wants[0].claim == Claim(1, "d", False)


async def test_a_claim_that_is_given_up_with_the_model_goes_out_at_once() -> None:
    world = await a_wanting_world(Claim(1, "d", True))
    world.now_ms += 1
    world.offers.unwant(A)
    assert world.offers.telling.next_ms() - world.now_ms <= 100
    offer = await world.tell()
    assert offer is not None
    assert offer.wants == ()


async def test_other_changes_are_told_once_in_two_seconds() -> None:
    world = await a_wanting_world()
    began_ms = world.now_ms
    for term in range(1, 9):
        world.now_ms += 10
        world.offers.work(WorkedModel(B, term))
    assert world.offers.telling.next_ms() == began_ms + MIN_SPACING_MS
    offer = await world.tell()
    assert offer is not None
    assert offer.works == (WorkedModel(B, 8),)
    assert len(world.told) == 2


async def test_the_same_again_is_not_said_before_it_grows_old() -> None:
    world = await a_wanting_world()
    world.offers.want(WantedModel(A, "big"))
    world.offers.telling.changed()
    assert await world.tell() is None
    assert await world.tell() is not None  # the renewal
    assert world.now_ms >= 1_000_000 + MINUTE_MS
    assert {lifetime for _, lifetime in world.told} == {3 * MINUTE_MS + CLOCKS_APART_MS}


async def test_a_claim_that_could_not_be_told_is_tried_again_soon_and_the_rest_later() -> None:
    world = await a_wanting_world()
    world.refuse = True
    world.offers.want(WantedModel(A, "big", claim=Claim(1, "d", False)))
    for _ in range(2):
        assert await world.tell() is None
        assert world.offers.telling.next_ms() == world.now_ms + URGENT_RETRY_MS
    world.refuse = False
    assert await world.tell() is not None
    world.refuse = True
    world.offers.work(WorkedModel(B, 1))
    assert await world.tell() is None
    assert world.offers.telling.next_ms() == world.now_ms + RETRY_MS


async def test_a_claim_does_not_wait_for_the_retry_of_something_else() -> None:
    world = await a_wanting_world()
    world.refuse = True
    world.offers.work(WorkedModel(B, 1))
    assert await world.tell() is None
    world.offers.want(WantedModel(A, "big", claim=Claim(1, "d", False)))
    assert world.offers.telling.next_ms() - world.now_ms <= 100


async def test_the_first_word_and_the_last_when_the_node_stops() -> None:
    world = OffersWorld()
    assert world.offers.telling.next_ms() > world.now_ms + MINUTE_MS
    world.offers.want(WantedModel(A, "big"))
    assert world.offers.telling.next_ms() == world.now_ms + DEBOUNCE_MS
    await world.offers.measure_now()
    assert await world.tell() is not None
    await world.offers.stop()
    assert world.told[-1][0] == SplitOffer()
    assert len(world.told) == 2


@virtually
async def test_what_was_being_said_when_the_node_stops_is_taken_back() -> None:
    world = await a_wanting_world()
    world.told.clear()
    world.offers.want(WantedModel(A, "big", claim=Claim(1, "d", True)))
    going, never = asyncio.Event(), asyncio.Event()
    publish = world.publish

    async def hangs(kind: str, subkey: bytes, payload: bytes, lifetime_ms: int) -> None:
        await publish(kind, subkey, payload, lifetime_ms)
        if not going.is_set():
            going.set()
            await never.wait()

    telling = Telling(hangs, world.offers._payload, NOTHING, lambda: 3, lambda: world.now_ms)  # pyright: ignore[reportPrivateUsage]
    telling.start()
    world.now_ms += DEBOUNCE_MS
    async with asyncio.timeout(10):
        await going.wait()
    await telling.stop()
    assert [bool(offer.wants) for offer, _ in world.told] == [True, False]


async def test_a_publish_that_fails_in_a_way_that_nobody_expected_is_tried_again() -> None:
    world = await a_wanting_world()
    world.broken = True
    world.offers.work(WorkedModel(B, 1))
    with pytest.raises(RuntimeError):
        await world.tell()
    world.broken = False
    world.offers.telling.changed()
    assert await world.tell() is not None


async def test_a_stop_is_not_held_up_by_a_disk_that_is_full() -> None:
    world = await a_wanting_world()
    world.refuse = True
    await world.offers.stop()
    assert len(world.told) == 1


async def test_what_an_earlier_run_said_is_taken_back() -> None:
    world = OffersWorld()
    await world.hears(ME, SplitOffer(wants=(WantedModel(A, "big", claim=Claim(3, "d", True)),)))
    assert world.seen() == []
    assert await world.tell() == SplitOffer()
    assert await world.tell() is None


async def test_its_own_record_that_comes_back_changes_nothing() -> None:
    world = await a_wanting_world()
    world.offers.unwant(A)
    assert await world.tell() == SplitOffer()
    await world.hears(ME, SplitOffer(wants=(WantedModel(A, "big"),)))
    assert await world.tell() is None


@virtually
async def test_a_running_node_says_a_claim_by_itself() -> None:
    loop = asyncio.get_running_loop()
    world = OffersWorld()
    world.offers.telling._now_ms = lambda: int(loop.time() * 1000)  # pyright: ignore[reportPrivateUsage]
    await world.offers.start()
    world.offers.want(WantedModel(A, "big", claim=Claim(1, "d", False)))
    async with asyncio.timeout(10):
        while not world.told or not world.told[-1][0].wants:
            world.published.clear()
            await world.published.wait()
    await world.offers.stop()
    assert [offer.wants != () for offer, _ in world.told] == [True, False]


# ------------------------------------------------------------------ this machine


async def test_memory_counts_together_with_what_was_held_when_it_was_measured() -> None:
    world = await a_wanting_world()
    before = world.own().free_bytes
    world.offers.want(WantedModel(A, "big", held=((MACHINE, 6 * GB),)))
    assert world.own().free_bytes == before
    world.free_bytes = 2 * GB
    await world.offers.measure_now()
    assert before - FREE_STEP_BYTES < world.own().free_bytes <= before
    assert (
        world.offers.nodes(A)[0].free_bytes
        > 3
        * world.offers._offer(  # pyright: ignore[reportPrivateUsage]
            await world.measure()
        ).machine_free_bytes
    )


async def test_of_another_model_what_this_one_holds_is_not_free() -> None:
    world = OffersWorld(Lending(everyone=True))
    world.free_bytes = 2 * GB
    world.offers.work(WorkedModel(A, 1, ((MACHINE, 6 * GB),)))
    await world.offers.measure_now()
    assert world.own(A).free_bytes - world.own(B).free_bytes == 6 * GB
    assert world.own(A).seen_term == 1


async def test_noise_in_memory_changes_nothing() -> None:
    world = await a_wanting_world()
    changes = world.changes
    world.free_bytes += FREE_STEP_BYTES // 2
    await world.offers.measure_now()
    assert world.changes == changes
    world.free_bytes += 2 * FREE_STEP_BYTES
    await world.offers.measure_now()
    assert world.changes == changes + 1


async def test_a_machine_that_cannot_be_measured_stays_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    world = await a_wanting_world()
    before = world.own()
    world.engine_fails = True
    await world.offers.measure_now()
    await world.offers.measure_now()
    assert world.own() == before
    assert [r.getMessage() for r in caplog.records] == [
        "This machine's memory for splits is not known: It does not answer."
    ]


def test_figures_of_devices_hold_by_name() -> None:
    step = FREE_STEP_BYTES
    first = steady(None, Measured((DeviceFacts("CUDA0", 10 * step + 9, 99 * step), DeviceFacts("CUDA1", 5, 9))))
    assert [d.free_bytes for d in first.devices] == [10 * step, 0]
    swapped = Measured((DeviceFacts("CUDA1", 3 * step, 99 * step), DeviceFacts("CUDA0", 11 * step + 9, 99 * step)))
    assert [d.free_bytes for d in steady(first, swapped).devices] == [3 * step, 10 * step]


async def test_many_served_models_are_remembered_by_their_terms_within_bounds() -> None:
    world = OffersWorld(Lending(everyone=True))
    world.offers.work(WorkedModel(A, 4, ((MACHINE, 1),)))
    for number in range(500):
        world.offers.work(WorkedModel(f"{number:032}", 1))
    await world.offers.measure_now()
    offer = await world.tell()
    assert offer is not None
    assert [model.content for model in offer.works] == [A, *(f"{n:032}" for n in range(499, 492, -1))]


def test_little_memory_is_told_in_smaller_steps() -> None:
    told = steady(None, Measured(machine_free_bytes=150_000_000, machine_total_bytes=200_000_000))
    assert 145_000_000 < told.machine_free_bytes <= 150_000_000
