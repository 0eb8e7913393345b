"""A model that no node can hold alone, shared by real nodes: the same answers as alone, on every node's API; who is lost is replaced."""

from __future__ import annotations

from contextlib import suppress

import psutil
import pytest

from tests.fakes.node_process import wait_for
from tests.fakes.split_cases import wait_reason
from tests.fakes.split_nodes import (
    MODEL,
    PLANNED_S,
    SOON_S,
    SplitNodes,
    Streamed,
    answers,
    are_gone,
    complete,
    metrics_of,
    model_of,
    programs_below,
    rpc_servers,
    wait_state,
)

pytestmark = pytest.mark.timeout(900)  # 25 to 50 s each where nothing else runs


def test_two_nodes_share_it_and_every_node_answers_as_one_alone_does(sharing: SplitNodes, dense_alone: str) -> None:
    first = sharing.start("first")
    second = sharing.start("second")
    client = sharing.nodes.start("--name", "client", "--join", first.invite)
    host, worker = (first, second) if wait_state(first, "ready", "standby")["state"] == "ready" else (second, first)
    told = wait_state(host, "ready")
    assert told["role"] == "host"
    assert told["nodes"] == [host.json("status")["node_id"], worker.json("status")["node_id"]]
    assert [one["has_files"] for one in told["workers"]] == [True]
    assert wait_state(worker, "standby")["reason"].endswith("hosts it.")
    for node in (host, worker, client):
        wait_for(lambda node=node: answers(node), SOON_S, "an answer through every node")
        assert complete(node) == dense_alone
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
    assert are_gone(engines)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_worker_that_dies_ends_answers_cleanly_and_is_used_again(sharing: SplitNodes, dense_alone: str) -> None:
    """Twenty times: its RPC server is killed while it answers; every later request is answered."""
    first = sharing.start("first")
    second = sharing.start("second")
    host, worker = (first, second) if wait_state(first, "ready", "standby")["state"] == "ready" else (second, first)
    wait_state(host, "ready")
    wait_state(worker, "standby")
    wait_for(lambda: answers(worker), PLANNED_S, "the worker to have heard that its host is ready")
    for _ in range(20):
        servers = (*rpc_servers(worker), *rpc_servers(host))  # the other one may have become host meanwhile
        answer = Streamed(worker)  # 450 tokens take seconds; nothing is looked for meanwhile
        for one in servers:
            with suppress(psutil.NoSuchProcess):  # one that ended meanwhile
                one.kill()
        end = answer.end()
        assert "error" in end, end  # after the first tokens it cannot be begun anew: the client is told
        for node in (worker, host):
            wait_for(lambda node=node: answers(node), PLANNED_S, "an answer after the loss")
        assert complete(host) == dense_alone
    assert host.process is not None
    assert host.process.poll() is None


def test_a_worker_node_that_dies_is_waited_for_and_used_when_it_is_back(sharing: SplitNodes, dense_alone: str) -> None:
    first = sharing.start("first", memory="0.2")  # the larger one hosts
    second = sharing.start("second", memory="0.19")
    wait_state(first, "ready")
    second.kill()
    assert wait_reason(first, "no other node can share it")["state"] == "waiting"
    assert not rpc_servers(first)
    sharing.start("second", memory="0.19", home=second)
    wait_state(first, "ready")
    assert complete(first) == dense_alone


def test_a_host_that_dies_is_followed_by_another_as_soon_as_there_is_enough(
    sharing: SplitNodes, dense_alone: str
) -> None:
    first = sharing.start("first", memory="0.2")
    second = sharing.start("second", memory="0.19")
    third = sharing.start("third", memory="0.18")
    wait_state(first, "ready")
    wait_for(lambda: answers(third), SOON_S, "an answer")
    assert complete(third) == dense_alone
    first.kill()
    wait_state(second, "ready")
    wait_for(lambda: answers(third), SOON_S, "an answer")
    assert complete(third) == dense_alone
    hosts = [node for node in (second, third) if model_of(node)["role"] == "host"]
    assert len(hosts) == 1
