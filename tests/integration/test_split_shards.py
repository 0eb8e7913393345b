"""A mixture of experts that no node can hold, shared by expert shards of real nodes: each answers alone, sessions stay, losses go unnoticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.models.gguf import read_model
from tests.fakes.node_process import NodeHome, Nodes, wait_for
from tests.fakes.shard_nodes import (
    ANSWER_S,
    ENOUGH,
    EXPERTS,
    MODEL,
    SHARED_EXPERTS,
    ShardNodes,
    a_moe,
    answered_by,
    ask,
    asked,
    hosts_of,
    model_of,
    shards_on_disk,
    wait_role,
    wait_shard,
)
from tests.fakes.split_nodes import SOON_S, are_gone, programs_below

USERS = [f"user {number}" for number in range(12)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_moe(tmp_path_factory.mktemp("models"))


@pytest.fixture
def world(real_engine: Engine, nodes: Nodes, file: Path) -> Iterator[ShardNodes]:
    assert not real_engine.is_embedded
    yield ShardNodes(nodes, file)


def routes(node: NodeHome, user: str, times: int = 1) -> set[str]:
    """By whom this node had a session answered: "local", "peer"."""
    before = answered_by(node)
    for _ in range(times):
        ask(node, user)
    after = answered_by(node)
    assert sum(after.values()) - sum(before.values()) == times
    return {route for route, count in after.items() if count > before.get(route, 0)}


def settled_routes(node: NodeHome, times: int) -> dict[str, set[str]]:
    """Of every user. A node that stands still is passed over for a moment: sessions that went two ways are asked again, once."""
    found = {user: routes(node, user, times) for user in USERS}
    wandered = [user for user, ways in found.items() if len(ways) > 1]
    if wandered:
        print(f"went more than one way: {wandered}")
        found |= {user: routes(node, user, times) for user in wandered}
    return found


class Asking:
    """Asks through a node, several at once, in many sessions, until the block ends; all that failed is in `lost`."""

    def __init__(self, node: NodeHome, at_once: int = 1) -> None:
        self._node = node
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(at_once)]
        self.answered = 0
        self.lost: list[str] = []

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * ANSWER_S)
            assert not thread.is_alive()

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            number = (number + 1) % len(USERS)
            if asked(self._node, USERS[number], tokens=16) is None:
                self.lost.append(f"{USERS[number]} after {self.answered}")
            else:
                self.answered += 1


@pytest.mark.timeout(900)
def test_two_nodes_hold_a_part_each_and_sessions_stay_with_theirs(world: ShardNodes) -> None:
    first, second = world.two()
    client = world.nodes.start("--name", "client", "--join", first.invite)
    for node in (first, second):
        told = model_of(node)
        assert sorted(told["nodes"]) == sorted(one.json("status")["node_id"] for one in (first, second))
        assert f"It holds {SHARED_EXPERTS} of {EXPERTS} experts" in told["plan"], told
        assert any("unranked" in one for one in told["advice"]), told
        (shard,) = shards_on_disk(node)
        assert shard.stem == MODEL
        assert read_model(shard).facts.expert_count == SHARED_EXPERTS
    assert shards_on_disk(first)[0].read_bytes() != shards_on_disk(second)[0].read_bytes()
    at_first = settled_routes(first, 3)
    assert all(len(found) == 1 for found in at_first.values()), at_first  # each stays where it is
    mine = [user for user, found in at_first.items() if found == {"local"}]
    theirs = [user for user in USERS if user not in mine]
    assert mine, "all went away"
    assert theirs, "nobody went away"
    at_second = {user: {"peer"} if user in mine else {"local"} for user in USERS}  # the same choice on every node
    wait_for(lambda: settled_routes(second, 1) == at_second, SOON_S, f"the second node to choose {at_second}")
    wait_for(lambda: hosts_of(client) == 2, SOON_S, "the client to hear of both")
    said = {user: ask(client, user) for user in (mine[0], theirs[0])}
    for node in (first, second):
        assert said == {user: ask(node, user) for user in said}
    assert said[mine[0]] != said[theirs[0]], "other experts, other words"
    engines = [*programs_below(first), *programs_below(second)]
    assert len(engines) == 2
    for node in (first, second, client):
        assert node.stop() == 0
    assert are_gone(engines)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_shards_sessions_move_and_those_that_are_left_go_on(world: ShardNodes) -> None:
    """Also for longer than anything is waited for: a shard answers alone, though no plan would begin it."""
    first, second = world.two()
    client = world.nodes.start("--name", "client", "--join", first.invite)
    wait_for(lambda: hosts_of(client) == 2, SOON_S, "the client to hear of both")
    (shard,) = shards_on_disk(second)
    written = shard.stat().st_mtime_ns
    second.kill()
    for user in USERS:
        wait_for(lambda user=user: asked(client, user) is not None, SOON_S, "an answer to every session")
    with Asking(client) as asking:
        time.sleep(75)  # more than split_limits.VOLUNTARY_MS: what would end then has ended
        assert (model_of(first)["role"], model_of(first)["state"]) == ("shard", "ready")
    assert not asking.lost
    world.start("second", home=second)
    wait_shard(second)
    wait_for(lambda: hosts_of(client) == 2, SOON_S, "the client to hear of both")
    assert shard.stat().st_mtime_ns == written, "it was found again"
    assert model_of(first)["role"] == "shard"
    for user in USERS:
        assert asked(client, user) is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_who_can_hold_it_whole_takes_over_without_a_lost_request(world: ShardNodes) -> None:
    first, second = world.two()
    client = world.nodes.start("--name", "client", "--join", first.invite)
    wait_for(lambda: hosts_of(client) == 2, SOON_S, "the client to hear of both")
    with Asking(client, at_once=2) as asking:  # more than the large node takes at once: the shards are needed, too
        large = world.start("large", memory=ENOUGH)
        wait_role(large, "alone")
        wait_for(lambda: hosts_of(client) == 3, SOON_S, "the client to hear of it")
        assert {model_of(node)["role"] for node in (first, second)} == {"shard"}, "nobody hurries"
        for node in (first, second):
            wait_role(node, "standby", "standby")
            assert model_of(node)["reason"] == "large hosts it."
            assert not programs_below(node)
    assert not asking.lost
    assert asking.answered > 4
    large.kill()
    for node in (first, second):
        wait_shard(node)
        assert len(shards_on_disk(node)) == 1
    wait_for(lambda: hosts_of(client) == 2, SOON_S, "the client to hear of both")
    for user in USERS:
        assert asked(client, user) is not None


@pytest.mark.timeout(900)
def test_who_joins_makes_a_part_of_its_own_and_disturbs_nobody(world: ShardNodes) -> None:
    first, second = world.two(split="--split")  # which means shards where they can be
    before = [(shards_on_disk(node), [one.pid for one in programs_below(node)]) for node in (first, second)]
    with Asking(first) as asking:
        third = world.start("third", split="--split", counts=True)
        told = wait_shard(third)
        assert len(told["nodes"]) == 3
        assert f"It holds 11 of {EXPERTS} experts" in told["plan"] or f"It holds 10 of {EXPERTS}" in told["plan"], told
        for node in (first, second, third):
            wait_for(lambda node=node: hosts_of(node) == 3, SOON_S, "each to hear of all shards")
    assert not asking.lost
    assert before == [(shards_on_disk(node), [one.pid for one in programs_below(node)]) for node in (first, second)]
    assert {route for user in USERS for route in routes(third, user)} == {"local", "peer"}
    assert "of the counted routing" in model_of(third)["plan"]
    for node in (first, second, third):
        advice = model_of(node)["advice"]
        assert any("ranked the experts by different counts" in one for one in advice), advice
