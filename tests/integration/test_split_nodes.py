"""A model that no node can hold alone, shared by real nodes: the same answers as alone, on every node's API; who is lost is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agentmesh.inference.engine.engine import Engine
from tests.fakes.node_process import Nodes, wait_for
from tests.fakes.split_nodes import (
    ENOUGH,
    MODEL,
    PLANNED_S,
    SplitNodes,
    Streamed,
    a_dense,
    answers,
    complete,
    metrics_of,
    model_of,
    programs_below,
    rpc_servers,
    wait_state,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_dense(tmp_path_factory.mktemp("models"))


@pytest.fixture
def world(real_engine: Engine, nodes: Nodes, file: Path) -> Iterator[SplitNodes]:
    assert real_engine.has_rpc
    yield SplitNodes(nodes, file)


@pytest.fixture(scope="module")
def alone(real_engine: Engine, file: Path) -> str:
    """What the model says on one node that can hold it."""
    with Nodes() as nodes:
        node = SplitNodes(nodes, file).start("whole", memory=ENOUGH)
        told = wait_state(node, "ready")
        assert told["role"] == "alone"
        assert not told["workers"]
        return complete(node)


def test_two_nodes_share_it_and_every_node_answers_as_one_alone_does(world: SplitNodes, alone: str) -> None:
    first = world.start("first")
    second = world.start("second")
    client = world.nodes.start("--name", "client", "--join", first.invite)
    host, worker = (first, second) if wait_state(first, "ready", "standby")["state"] == "ready" else (second, first)
    told = wait_state(host, "ready")
    assert told["role"] == "host"
    assert told["nodes"] == [host.json("status")["node_id"], worker.json("status")["node_id"]]
    assert [one["has_files"] for one in told["workers"]] == [True]
    assert wait_state(worker, "standby")["reason"].endswith("hosts it.")
    for node in (host, worker, client):
        wait_for(lambda node=node: answers(node), 20, "an answer through every node")
        assert complete(node) == alone
    seen = model_of(host)["workers"][0]
    commands = seen["commands"]
    assert commands["get_tensor"][1] > 12  # a round trip for each token
    assert seen["referenced_bytes"] > 50_000_000
    assert seen["sent_bytes"] < 3_000_000
    assert 'agentmesh_rpc_round_trips_total{command="get_tensor",model="dense",peer=' in metrics_of(host)
    lent = worker.json("status")["lent"]
    assert [(part["model"], part["host"]) for part in lent] == [(MODEL, host.json("status")["node_id"])]
    engines = [*programs_below(host), *programs_below(worker)]
    assert len(engines) == 2
    for node in (host, worker, client):
        assert node.stop() == 0
    assert not [one for one in engines if psutil.pid_exists(one.pid) and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_worker_that_dies_ends_answers_cleanly_and_is_used_again(world: SplitNodes, alone: str) -> None:
    """Twenty times: its RPC server is killed while it answers; every later request is answered."""
    first = world.start("first")
    second = world.start("second")
    host, worker = (first, second) if wait_state(first, "ready", "standby")["state"] == "ready" else (second, first)
    wait_state(host, "ready")
    wait_state(worker, "standby")
    wait_for(lambda: answers(worker), PLANNED_S, "the worker to have heard that its host is ready")
    for _ in range(20):
        answer = Streamed(worker)
        for one in (*rpc_servers(worker), *rpc_servers(host)):  # the other one may have become host meanwhile
            one.kill()
        end = answer.end(10)
        assert "error" in end, end  # after the first tokens it cannot be begun anew: the client is told
        for node in (worker, host):
            wait_for(lambda node=node: answers(node), PLANNED_S, "an answer after the loss")
        assert complete(host) == alone
    assert host.process is not None
    assert host.process.poll() is None


def test_a_worker_node_that_dies_is_waited_for_and_used_when_it_is_back(world: SplitNodes, alone: str) -> None:
    first = world.start("first", memory="0.2")  # the larger one hosts
    second = world.start("second", memory="0.19")
    wait_state(first, "ready")
    second.kill()
    wait_for(
        lambda: "no other node can share it" in model_of(first)["reason"], PLANNED_S, "the node to say what is missing"
    )
    assert model_of(first)["state"] == "waiting"
    assert not rpc_servers(first)
    world.start("second", memory="0.19", home=second)
    wait_state(first, "ready")
    assert complete(first) == alone


def test_a_host_that_dies_is_followed_by_another_as_soon_as_there_is_enough(world: SplitNodes, alone: str) -> None:
    first = world.start("first", memory="0.2")
    second = world.start("second", memory="0.19")
    third = world.start("third", memory="0.18")
    wait_state(first, "ready")
    wait_for(lambda: answers(third), 30, "an answer")
    assert complete(third) == alone
    first.kill()
    wait_state(second, "ready")
    wait_for(lambda: answers(third), 30, "an answer")
    assert complete(third) == alone
    hosts = [node for node in (second, third) if model_of(node)["role"] == "host"]
    assert len(hosts) == 1
