"""Requests that wait for room, by a model's name or for `auto`."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.inference.logic.route_limits import (
    MAX_NOBODY_WAIT_S,
    MAX_WAIT_S,
    MAX_WAITING_PER_MODEL,
    TICK_S,
)
from agentmesh.inference.proxy.ports import Lease, Outcome, Refused
from agentmesh.mesh.logic.events import PeerState
from tests.fakes.routing import ME, World, ask, fill, model, own, peer, refusal, settle, take, want

# ---------------------------------------------------------------------- waiting


async def test_those_who_wait_are_served_in_order() -> None:
    world = World(own())
    leases: list[Lease] = list(fill(world))
    tasks = [await ask(world) for _ in range(4)]
    for number, task in enumerate(tasks):
        leases.pop(0).release(Outcome.ANSWERED)
        leases.append(await task)
        assert [other.done() for other in tasks].count(True) == number + 1


async def test_a_new_request_does_not_overtake() -> None:
    world = World(own())
    leases = fill(world)
    task = await ask(world)
    leases[0].release(Outcome.ANSWERED)
    assert world.dispatcher.try_acquire(want()) is None
    assert (await task).target == own()


async def test_a_new_host_serves_those_who_wait() -> None:
    world = World(own())
    fill(world)
    task = await ask(world)
    await world.offer(1, model())
    assert (await task).target.node == peer(1)


async def test_who_leaves_the_queue_makes_room_in_it() -> None:
    world = World(own())
    leases = fill(world)
    tasks = [await ask(world) for _ in range(3)]
    tasks[0].cancel()
    tasks[1].cancel()
    await settle()
    leases[0].release(Outcome.ANSWERED)
    assert (await tasks[2]).target == own()


async def test_who_leaves_in_the_moment_of_being_served_gives_the_place_on() -> None:
    world = World(own())
    leases = fill(world)
    first, second = await ask(world), await ask(world)
    leases[0].release(Outcome.ANSWERED)
    first.cancel()
    await settle()
    assert first.cancelled()
    assert (await second).target == own()


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    world = World(own())
    fill(world)
    tasks = [await ask(world) for _ in range(MAX_WAITING_PER_MODEL)]
    refused = refusal(world, want())
    assert (refused.status, refused.error_code) == (429, "queue_full")
    assert refused.retry_after_s is not None and refused.retry_after_s >= 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert world.dispatcher.try_acquire(want()) is None
    assert world.time.waiting_timers() == []


async def test_one_models_queue_does_not_fill_anothers() -> None:
    world = World(own(), own(model("other")))
    fill(world)
    tasks = [await ask(world) for _ in range(MAX_WAITING_PER_MODEL)]
    assert take(world, want("other")).target.model.id == "other"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_waiting_ends_with_a_refusal() -> None:
    world = World(own())
    fill(world)
    task = await ask(world)
    world.time.advance(MAX_WAIT_S + TICK_S)
    with pytest.raises(Refused) as caught:
        await task
    assert (caught.value.status, caught.value.error_code) == (503, "waited_too_long")
    assert world.time.waiting_timers() == []


async def test_those_who_wait_for_a_model_that_goes_away_are_told_so() -> None:
    world = World(own(), own(model("other")))
    fill(world)
    task = await ask(world)
    world.directory.set_own([own(model("other"))])
    with pytest.raises(Refused) as caught:
        await task
    assert caught.value.status == 404


async def test_a_moments_suspicion_does_not_empty_the_queue() -> None:
    world = World()
    await world.offer(1, model())
    leases = fill(world)
    task = await ask(world)
    world.states[peer(1)] = PeerState.SUSPECT
    world.time.advance(MAX_NOBODY_WAIT_S / 2)
    world.states.clear()
    leases[0].release(Outcome.ANSWERED)
    world.time.advance(2 * TICK_S)
    assert (await task).target.node == peer(1)


async def test_hosts_that_stay_away_end_the_waiting_soon() -> None:
    world = World()
    await world.offer(1, model())
    fill(world)
    task = await ask(world)
    world.states[peer(1)] = PeerState.DEAD
    world.time.advance(MAX_NOBODY_WAIT_S + 3 * TICK_S)
    with pytest.raises(Refused) as caught:
        await task
    assert caught.value.error_code == "hosts_away"


async def test_one_that_avoids_a_host_does_not_hold_up_those_behind_it() -> None:
    world = World(own())
    await world.offer(1, model())
    leases = fill(world)
    picky = await ask(world, avoid=frozenset({own().key}))
    plain = await ask(world)
    next(lease for lease in leases if lease.target.node == ME).release(Outcome.ANSWERED)
    assert (await plain).target.node == ME
    assert not picky.done()
    next(lease for lease in leases if lease.target.node == peer(1)).release(Outcome.ANSWERED)
    assert (await picky).target.node == peer(1)


async def test_one_that_comes_behind_a_picky_one_is_served_at_once_if_it_can_be() -> None:
    world = World(own())
    await world.offer(1, model())
    leases = fill(world)
    picky = await ask(world, avoid=frozenset({own().key}))
    next(lease for lease in leases if lease.target.node == ME).release(Outcome.ANSWERED)
    plain = await ask(world)
    assert (await plain).target.node == ME
    picky.cancel()
    await settle()


# ---------------------------------------------------------------------- auto


def _auto_world() -> World:
    return World(
        own(model("big", parameters=9), 1),
        own(model("small", parameters=1), 2),
        own(model("embed", can=("embedding",)), 3),
    )


def test_auto_takes_the_best_model_with_a_free_slot() -> None:
    world = _auto_world()
    assert [take(world, want("auto")).target.model.id for _ in range(4)] == ["big", "small", "big", "small"]
    assert world.dispatcher.try_acquire(want("Auto")) is None


def test_auto_respects_the_endpoint() -> None:
    assert take(_auto_world(), want("auto", path="/v1/embeddings")).target.model.id == "embed"


def test_auto_without_a_suitable_model_says_what_there_is() -> None:
    refused = refusal(_auto_world(), want("auto", needs=frozenset({"vision"})))
    assert refused.status == 404
    assert "vision" in refused.message and "big" in refused.message


def test_a_model_that_is_called_auto_is_meant_by_its_name() -> None:
    world = World(own(model("auto")), own(model("big", parameters=9)))
    assert take(world, want("auto")).target.model.id == "auto"


async def test_who_waits_for_auto_is_served_in_turn_by_any_model() -> None:
    world = _auto_world()
    leases = [take(world, want("auto")) for _ in range(4)]
    first = await ask(world, want("auto"))
    second = await ask(world, want("big"))
    next(lease for lease in leases if lease.target.model.id == "big").release(Outcome.ANSWERED)
    assert (await first).target.model.id == "big"
    assert not second.done()
    second.cancel()
    await settle()
