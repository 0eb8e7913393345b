"""The dispatcher: places at targets and refusals."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.inference.logic.route_limits import (
    BACKOFF_FIRST_S,
    BUSY_DEFAULT_S,
    BUSY_MAX_S,
    FAILURES_TO_OPEN,
    TICK_S,
)
from agentmesh.inference.logic.target import Target
from agentmesh.inference.proxy.ports import Outcome, Refused
from agentmesh.mesh.logic.events import PeerState
from tests.fakes.routing import ME, World, ask, at, fill, model, own, peer, refusal, settle, take, want

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


async def test_a_model_that_waits_is_refused_with_what_it_waits_for_unless_one_host_is_loading_it() -> None:
    world = World(own(msgspec.structs.replace(model(ready=False), waits="10 MB are missing.")))
    await world.offer(1, msgspec.structs.replace(model(ready=False), waits="20 MB are missing."))
    refused = refusal(world, want())
    assert (refused.status, refused.error_code, refused.retry_after_s) == (503, "model_waiting", 30)
    assert refused.message == "'tiny' cannot be loaded yet. 10 MB are missing."
    await world.offer(2, model(ready=False))
    assert refusal(world, want()).error_code == "model_loading"


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


async def test_a_peer_that_calls_a_model_auto_does_not_get_what_is_asked_of_auto() -> None:
    world = World(own(model("mine", parameters=7, slots=4)))
    await world.offer(1, model("auto"), model("trap", aliases=("AUTO",)))
    assert take(world, want("auto")).target.model.id == "mine"
    assert take(world, want("Auto")).target.model.id == "mine"


def test_an_own_model_that_is_really_called_auto_is_what_auto_means_here() -> None:
    assert take(World(own(model("auto")), own(model("mine"))), want("auto")).target.model.id == "auto"


async def test_a_host_that_was_only_busy_is_asked_again_once_it_was_started_anew() -> None:
    world = World()
    await world.offer(1, model())
    lease = take(world)
    lease.release(Outcome.BUSY, retry_after_s=1)
    await world.offer(1, model(ready=False))
    await world.offer(1, model(ready=True))
    assert take(world, avoid=frozenset((lease.target.key,))).target == lease.target


# ---------------------------------------------------------------------- what is remembered of a lone host


async def test_a_lone_host_shares_the_load_as_soon_as_a_peer_offers_the_model_too() -> None:
    world = World(own(model(slots=2)))
    for _ in range(2):
        assert take(world).target.node == ME
    await world.offer(1, model(slots=2))
    assert take(world).target.node == peer(1)


def test_a_lone_host_that_is_no_longer_ready_or_was_started_anew_is_not_asked_from_memory() -> None:
    world = World(own())
    for _ in range(2):
        take(world).release(Outcome.ANSWERED)
    world.directory.set_own([own(model(ready=False))])
    assert refusal(world, want()).error_code == "model_loading"
    world.directory.set_own([own(model(slots=1))])
    world.dispatcher.try_acquire(want())
    assert len(fill(world)) < 10  # as many as the new one takes
    world.directory.set_own([])
    assert refusal(world, want()).status == 404


def test_a_lone_host_that_fails_or_is_busy_is_left_alone_all_the_same() -> None:
    world = World(own())
    take(world).release(Outcome.ANSWERED)
    take(world).release(Outcome.BUSY)
    assert world.dispatcher.try_acquire(want()) is None
    world.time.advance(BUSY_MAX_S)
    take(world).release(Outcome.UNREACHABLE)
    assert refusal(world, want()).error_code == "hosts_failing"


async def test_nobody_overtakes_those_who_wait_for_a_lone_host() -> None:
    world = World(own())
    take(world).release(Outcome.ANSWERED)
    leases = fill(world)
    waiting = await ask(world)
    leases[0].release(Outcome.ANSWERED)
    assert world.dispatcher.try_acquire(want()) is None
    await settle()
    assert waiting.done()
    waiting.result().release(Outcome.ANSWERED)


# ---------------------------------------------------------------------- parts of a model


async def test_conversations_are_asked_for_only_where_hosts_are_parts() -> None:
    world = World(own(model("whole")))
    asked = [world.dispatcher.by_session(name) for name in ("whole", "parts", "auto")]
    await world.offer(1, model("parts", aliases=("p",), shard="8/16 -"))
    later = [world.dispatcher.by_session(name) for name in ("whole", "parts", "P", "auto", "other")]
    assert asked == [False] * 3
    assert later == [False, True, True, True, False]


async def test_a_session_stays_on_its_part_moves_with_its_loss_and_comes_back() -> None:
    world = World()
    for number in (1, 2, 3):
        await world.offer(number, model(slots=4, shard="8/16 -"))
    wanted = want(session=b"talk")
    first = take(world, wanted).target
    assert {take(world, wanted).target.node for _ in range(3)} == {first.node}
    world.states[first.node] = PeerState.SUSPECT
    world.directory.on_peer_state(first.node, PeerState.SUSPECT)
    second = {take(world, wanted).target.node for _ in range(2)}
    assert len(second) == 1
    assert first.node not in second
    world.states[first.node] = PeerState.ALIVE
    world.directory.on_peer_state(first.node, PeerState.ALIVE)
    assert take(world, wanted).target == first


async def test_who_waits_while_all_parts_are_full_gets_the_first_place_that_is_free() -> None:
    world = World()
    for number in (1, 2):
        await world.offer(number, model(shard="8/16 -"))
    leases = fill(world)
    waiting = await ask(world, want(session=b"talk"))
    leases[0].release(Outcome.ANSWERED)
    await settle()
    assert waiting.result().target == leases[0].target


async def test_a_part_of_this_node_answers_a_peers_request_whatever_the_session() -> None:
    world = World(own(model(shard="8/16 -")))
    await world.offer(1, model(shard="8/16 -"))
    assert take(world, want(local_only=True)).target.node == ME
