"""The dispatcher: places at targets, queues, refusals."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.inference.logic.route_limits import (
    BACKOFF_FIRST_S,
    BUSY_DEFAULT_S,
    BUSY_MAX_S,
    FAILURES_TO_OPEN,
    MAX_NOBODY_WAIT_S,
    MAX_WAIT_S,
    MAX_WAITING_PER_MODEL,
    TICK_S,
)
from agentmesh.inference.logic.target import Target
from agentmesh.inference.proxy.lease import HeldLease
from agentmesh.inference.proxy.ports import Lease, Outcome, Refused, Wanted
from agentmesh.mesh.logic.events import PeerState
from tests.fakes.routing import ME, World, at, model, own, peer

CHAT = "/v1/chat/completions"


def want(
    name: str = "tiny", *, local_only: bool = False, path: str = CHAT, needs: frozenset[str] = frozenset()
) -> Wanted:
    return Wanted(name, path, needs, local_only=local_only)


def take(world: World, wanted: Wanted | None = None, avoid: frozenset[tuple[bytes, str]] = frozenset()) -> HeldLease:
    lease = world.dispatcher.try_acquire(wanted or want(), avoid)
    assert lease is not None
    return lease


def refusal(world: World, wanted: Wanted, avoid: frozenset[tuple[bytes, str]] = frozenset()) -> Refused:
    with pytest.raises(Refused) as caught:
        world.dispatcher.try_acquire(wanted, avoid)
    return caught.value


def fill(world: World) -> list[HeldLease]:
    leases = list[HeldLease]()
    while (lease := world.dispatcher.try_acquire(want())) is not None:
        leases.append(lease)
    return leases


async def ask(
    world: World, wanted: Wanted | None = None, **more: frozenset[tuple[bytes, str]]
) -> asyncio.Task[HeldLease]:
    """A request that is in the queue when this returns, unless it was answered at once."""
    task = asyncio.ensure_future(world.dispatcher.acquire(wanted or want(), **more))
    await asyncio.sleep(0)
    return task


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


# ---------------------------------------------------------------------- refusals


def test_an_unknown_model_is_refused_with_the_list_of_what_there_is() -> None:
    refused = refusal(World(own(model("a")), own(model("b"))), want("c"))
    assert (refused.status, refused.error_code, refused.retry_after_s) == (404, "model_not_found", None)
    assert "There is: a, b." in refused.message


def test_without_any_model_the_refusal_says_how_to_start_one() -> None:
    for name in ("tiny", "auto"):
        refused = refusal(World(), want(name))
        assert refused.status == 404
        assert "agentmesh load" in refused.message


@pytest.mark.parametrize("name", ["tin", "tiny-2", "", "TINY.gguf"])
def test_no_other_model_answers_for_a_similar_name(name: str) -> None:
    assert refusal(World(own()), want(name)).status == 404


def test_a_model_that_is_loading_is_refused_with_a_time_to_come_back() -> None:
    refused = refusal(World(own(model(ready=False))), want())
    assert (refused.status, refused.error_code) == (503, "model_loading")
    assert refused.retry_after_s is not None and refused.retry_after_s > 0


async def test_a_model_whose_hosts_are_away_is_refused_at_once() -> None:
    world = World()
    await world.offer(1, model())
    world.states[peer(1)] = PeerState.SUSPECT
    assert refusal(world, want()).error_code == "hosts_away"


async def test_a_model_whose_record_expired_is_unknown() -> None:
    world = World(own(model("other")))
    record = await world.offer(1, model())
    assert take(world).target.node == peer(1)
    await world.directory.on_dropped([record.id], "expired")
    assert refusal(world, want()).status == 404


async def test_a_request_that_failed_everywhere_is_refused() -> None:
    world = World(own())
    await world.offer(1, model())
    refused = refusal(world, want(), frozenset({own().key, at(1).key}))
    assert (refused.status, refused.error_code) == (503, "all_hosts_failed")


def test_an_engine_that_does_not_answer_is_refused_until_its_back_off_ends() -> None:
    world = World(own())
    take(world).release(Outcome.UNREACHABLE)
    refused = refusal(world, want())
    assert (refused.status, refused.error_code, refused.retry_after_s) == (503, "hosts_failing", 1)
    world.time.advance(BACKOFF_FIRST_S)
    probe = take(world)
    assert refusal(world, want()).status == 503
    probe.release(Outcome.ANSWERED)
    take(world)


def test_mistakes_of_clients_never_open_a_breaker() -> None:
    world = World(own())
    for _ in range(10 * FAILURES_TO_OPEN):
        take(world).release(Outcome.ANSWERED)  # what a 4xx is released with
    take(world)


def test_the_only_host_is_asked_on_although_it_answers_with_5xx() -> None:
    world = World(own())
    for _ in range(3 * FAILURES_TO_OPEN):
        take(world).release(Outcome.FAILED)
    assert take(world).target == own()


# ---------------------------------------------------------------------- places


def test_a_lease_names_the_served_id_for_any_name_of_the_model() -> None:
    world = World(own(model("file-Q4", aliases=("Nice Name",))))
    assert take(world, want("nice name")).target.model.id == "file-Q4"


def test_a_second_release_does_nothing() -> None:
    world = World(own())
    leases = fill(world)
    for _ in range(3):
        leases[0].release(Outcome.ANSWERED)
    assert len(fill(world)) == 1


async def test_a_request_that_failed_at_one_host_goes_to_another() -> None:
    world = World(own())
    await world.offer(1, model())
    lease = take(world)
    lease.release(Outcome.UNREACHABLE)
    assert take(world, avoid=frozenset({lease.target.key})).target.node == peer(1)


async def test_the_first_byte_of_a_probe_lets_others_in() -> None:
    world = World(own(model(slots=4)))
    take(world).release(Outcome.UNREACHABLE)
    world.time.advance(BACKOFF_FIRST_S)
    probe = take(world)
    assert refusal(world, want()).status == 503
    probe.first_byte()
    take(world)


def test_a_probe_that_is_cancelled_leaves_the_probe_to_the_next() -> None:
    world = World(own())
    take(world).release(Outcome.UNREACHABLE)
    world.time.advance(BACKOFF_FIRST_S)
    take(world).release(Outcome.CANCELLED)
    take(world)


async def test_a_busy_peer_is_not_asked_again_at_once_but_waited_for() -> None:
    world = World()
    await world.offer(1, model())
    take(world).release(Outcome.BUSY)
    assert world.dispatcher.try_acquire(want()) is None
    task = await ask(world)
    world.time.advance(BUSY_DEFAULT_S + TICK_S)
    assert (await task).target.node == peer(1)


async def test_an_answer_of_a_busy_peer_shows_that_it_has_room_again() -> None:
    world = World()
    await world.offer(1, model())
    first, second = fill(world)
    second.release(Outcome.BUSY, retry_after_s=BUSY_MAX_S)
    task = await ask(world, avoid=frozenset({second.target.key}))
    first.release(Outcome.ANSWERED)
    assert (await task).target.node == peer(1)


async def test_a_peer_cannot_say_to_be_busy_for_longer_than_the_bound() -> None:
    world = World()
    await world.offer(1, model())
    take(world).release(Outcome.BUSY, retry_after_s=1e9)
    world.time.advance(BUSY_MAX_S)
    take(world)


async def test_an_engine_that_was_started_anew_is_asked_at_once() -> None:
    world = World(own(port=1))
    take(world).release(Outcome.UNREACHABLE)
    assert refusal(world, want()).status == 503
    world.directory.set_own([own(port=2)])
    assert take(world).target.engine == own(port=2).engine


def test_what_runs_while_an_engine_is_started_anew_takes_places_but_its_failures_are_the_old_ones() -> None:
    world = World(own(port=1))
    old = fill(world)
    world.directory.set_own([own(port=2)])
    assert world.dispatcher.try_acquire(want()) is None
    for lease in old:
        lease.release(Outcome.UNREACHABLE)
    assert take(world).target.engine == own(port=2).engine


def test_a_lease_outlives_its_model() -> None:
    world = World(own(), own(model("other")))
    lease = take(world)
    world.directory.set_own([own(model("other"))])
    lease.first_byte()
    lease.release(Outcome.BROKEN)
    assert refusal(world, want()).status == 404


# ---------------------------------------------------------------------- requests of peers


def test_a_request_of_a_peer_never_leaves_again() -> None:
    world = World(own())
    lease = take(world, want(local_only=True))
    assert lease.target.node == ME


async def test_a_peer_is_told_busy_or_not_served_but_never_404() -> None:
    world = World(own())
    await world.offer(1, model("theirs"))
    fill(world)
    busy = refusal(world, want(local_only=True))
    assert (busy.status, busy.error_code) == (429, "busy")
    for name in ("theirs", "unknown", "auto"):
        refused = refusal(world, want(name, local_only=True))
        assert (refused.status, refused.error_code) == (503, "not_served_here")
    world.directory.set_own([own(model(ready=False))])
    assert refusal(world, want(local_only=True)).error_code == "model_loading"


async def test_a_request_of_a_peer_does_not_overtake_those_that_wait_here() -> None:
    world = World(own())
    leases = fill(world)
    task = await ask(world)
    with pytest.raises(Refused, match="no room"):
        await world.dispatcher.acquire(want(local_only=True))
    leases[0].release(Outcome.ANSWERED)
    assert (await task).target == own()


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


# ---------------------------------------------------------------------- what can be seen


async def test_metrics_show_queues_breakers_and_decisions() -> None:
    world = World(own())
    await world.offer(1, model("theirs"))
    take(world, want("theirs")).release(Outcome.UNREACHABLE)
    fill(world)
    task = await ask(world)
    text = world.metrics.render().decode()
    assert 'agentmesh_queue_length{model="tiny"} 1.0' in text
    assert 'agentmesh_breakers{state="open"} 1.0' in text
    assert 'agentmesh_ready_targets{model="theirs"} 1.0' in text
    assert 'agentmesh_route_decisions_total{route="peer"} 1.0' in text
    assert 'agentmesh_route_decisions_total{route="local"} 2.0' in text
    assert 'agentmesh_route_decisions_total{route="queued"} 1.0' in text
    task.cancel()
    await settle()


def test_models_are_those_of_the_directory() -> None:
    world = World(own(), Target(ME, model("loading", ready=False)))
    assert [(entry.id, entry.ready) for entry, _ in world.dispatcher.models()] == [("tiny", True), ("loading", False)]
