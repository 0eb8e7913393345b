"""The directory: own engines and peers' records."""

from __future__ import annotations

import logging

import pytest

from agentmesh.inference.logic import roster as roster_module
from agentmesh.inference.logic.target import Target
from agentmesh.inference.proxy.directory import STATES_AGE_S, Directory
from agentmesh.mesh.logic.events import PeerState
from tests.fakes.routing import ME, Time, World, model, node_record, own, peer


async def test_what_a_peer_publishes_can_be_found() -> None:
    world = World()
    await world.offer(1, model("a"), model("b", aliases=("bee",)))
    assert world.directory.resolve("bee") == ("b",)
    assert world.directory.targets("b") == (Target(peer(1), model("b", aliases=("bee",))),)
    assert world.directory.target((peer(1), "a")) == Target(peer(1), model("a"))


async def test_of_several_records_of_a_node_the_newest_counts_in_whatever_order_they_come() -> None:
    world = World()
    old, new = node_record(peer(1), model("old"), timestamp_ms=1), node_record(peer(1), model("new"), timestamp_ms=2)
    await world.directory.on_records([new, old])
    assert (world.directory.resolve("old"), world.directory.resolve("new")) == ((), ("new",))
    await world.directory.on_dropped([old.id], "replaced")
    assert world.directory.resolve("new") == ("new",)


async def test_what_expired_is_gone_and_the_node_may_come_back() -> None:
    world = World()
    record = await world.offer(1, model("a"))
    await world.directory.on_dropped([b"unknown", record.id], "expired")
    assert world.directory.resolve("a") == ()
    await world.directory.on_records([record])
    assert world.directory.resolve("a") == ("a",)


async def test_what_cannot_be_read_offers_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    await world.offer(1, model("a"))
    with caplog.at_level(logging.WARNING):
        await world.directory.on_records([node_record(peer(1), timestamp_ms=9, payload=b"\xc1junk")])
    assert world.directory.resolve("a") == ()
    assert "offer nothing" in caplog.text


async def test_records_of_other_kinds_and_own_ones_are_none_of_its_business() -> None:
    world = World(own(model("mine")))
    record = node_record(ME, model("ghost"))
    await world.directory.on_records([record])
    assert world.directory.resolve("ghost") == ()
    assert world.directory.resolve("mine") == ("mine",)


async def test_watchers_hear_of_changes_and_of_nothing_else() -> None:
    world = World()
    heard: list[int] = []
    world.directory.on_change(lambda: heard.append(1))
    first = await world.offer(1, model("a"))
    assert len(heard) == 1
    renewed = await world.offer(1, model("a"))
    await world.directory.on_dropped([first.id], "replaced")
    assert len(heard) == 1
    await world.directory.on_dropped([renewed.id], "expired")
    world.directory.set_own([own()])
    world.directory.on_peer_state(peer(1), PeerState.DEAD)
    assert len(heard) == 4


async def test_an_own_engine_without_an_address_is_not_ready() -> None:
    world = World(Target(ME, model("a")))
    assert [entry.ready for entry, _ in world.directory.models()] == [False]


def test_peers_states_are_asked_for_once_in_a_while_and_after_a_change() -> None:
    time, asked = Time(), list[int]()

    def states() -> dict[bytes, PeerState]:
        asked.append(1)
        return {peer(1): PeerState.ALIVE, peer(2): PeerState.SUSPECT, peer(3): PeerState.DEAD}

    directory = Directory(ME, states, time.now_s)
    for _ in range(10):
        assert directory.out() == {peer(2), peer(3)}
    assert len(asked) == 1
    time.advance(2 * STATES_AGE_S)
    directory.out()
    assert len(asked) == 2
    directory.on_peer_state(peer(2), PeerState.ALIVE)
    directory.out()
    assert len(asked) == 3


async def test_more_offers_than_are_kept_are_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(roster_module, "MAX_TARGETS", 1)
    world = World()
    first = await world.offer(1, model("a"))
    with caplog.at_level(logging.WARNING):
        await world.offer(2, model("b"))
        await world.offer(3, model("c"))
    assert caplog.text.count("not taken up") == 1
    await world.directory.on_dropped([first.id], "expired")
    await world.offer(2, model("b"))
    assert world.directory.resolve("b") == ("b",)


async def test_a_model_whose_hosts_cannot_be_reached_is_listed_but_not_as_ready() -> None:
    world = World(own(model("mine")))
    await world.offer(1, model("a"), model("both"))
    await world.offer(2, model("both"))
    world.directory.on_peer_state(peer(1), PeerState.SUSPECT)
    world.states[peer(1)] = PeerState.SUSPECT
    listed = {entry.id: (entry.ready, tuple(nodes)) for entry, nodes in world.directory.models()}
    assert listed == {"both": (True, (peer(2),)), "mine": (True, (ME,)), "a": (False, (peer(1),))}
    assert [entry.id for entry, _ in world.directory.models()] == ["both", "mine", "a"]
    world.directory.on_peer_state(peer(1), PeerState.ALIVE)
    world.states[peer(1)] = PeerState.ALIVE
    assert {entry.id: len(nodes) for entry, nodes in world.directory.models() if entry.ready} == {
        "a": 1,
        "both": 2,
        "mine": 1,
    }


async def test_hosts_that_cannot_be_reached_do_not_count_as_ready_in_the_metrics() -> None:
    world = World()
    await world.offer(1, model("a"))
    world.states[peer(1)] = PeerState.DEAD
    assert b'agentmesh_ready_targets{model="a"} 0.0' in world.metrics.render()
