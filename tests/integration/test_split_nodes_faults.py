"""Nodes that share a model while something of them is killed, halted or stopped: who asked is told, one node hosts, nothing is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

import psutil
import pytest

from tests.fakes.node_process import NodeHome, wait_for
from tests.fakes.split_nodes import (
    PLANNED_S,
    SplitNodes,
    Streamed,
    answers,
    complete,
    model_of,
    programs_below,
    rpc_servers,
    wait_state,
)

STOP_S = 5.0  # a node's own bound
GONE_S = 5.0


def are_gone(programs: Sequence[psutil.Process]) -> bool:
    return not [one for one in programs if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def hosts(*nodes: NodeHome) -> list[str]:
    """Names of the nodes on which a llama-server runs."""
    return [node.root.name for node in nodes for one in programs_below(node) if "llama" in one.name()]


def answers_soon(node: NodeHome) -> None:
    wait_for(lambda: answers(node), PLANNED_S, "an answer")


def descriptors(node: NodeHome) -> int:
    return psutil.Process(node.pid).num_fds()


@pytest.mark.timeout(400)
def test_a_host_that_is_halted_and_one_that_is_killed_are_followed_by_one_other(sharing: SplitNodes) -> None:
    first = sharing.start("first", memory="0.2")
    second = sharing.start("second", memory="0.19")
    third = sharing.start("third", memory="0.18")
    wait_state(first, "ready")
    answers_soon(third)
    said = complete(third)
    answer = Streamed(third)
    first.signal(signal.SIGSTOP)  # neither dead nor alive: its connections stay open
    assert "error" in answer.end(20)
    wait_state(second, "ready")
    answers_soon(third)
    first.signal(signal.SIGCONT)
    wait_state(first, "standby")
    until = time.monotonic() + 5
    while time.monotonic() < until:
        assert hosts(second, third) == ["h1"]
        time.sleep(0.2)
    assert hosts(first) == []  # it has ended its own before it said that another hosts
    assert complete(third) == said
    engines = [one for node in (first, second, third) for one in programs_below(node)]
    assert len(engines) == 2
    answer = Streamed(third)
    second.kill()
    assert "error" in answer.end(10)
    wait_for(lambda: are_gone(engines), GONE_S, "what belonged to the dead host to end")
    wait_state(first, "ready")
    answers_soon(third)
    assert complete(third) == said


@pytest.mark.timeout(400)
def test_a_worker_that_is_halted_and_a_llama_server_that_is_killed_are_told_and_made_good(sharing: SplitNodes) -> None:
    host, worker = sharing.start("host", memory="0.2"), sharing.lend("worker")
    wait_state(host, "ready")
    answers_soon(host)
    said = complete(host)
    descriptors_before = [descriptors(node) for node in (host, worker)]
    lent = rpc_servers(worker)
    answer = Streamed(host)
    worker.signal(signal.SIGSTOP)
    assert "error" in answer.end(20)
    wait_for(lambda: model_of(host)["state"] != "ready", 10, "the loss to be told")
    worker.signal(signal.SIGCONT)
    wait_for(lambda: are_gone(lent), 10, "the old RPC server to end")
    answers_soon(host)
    for _ in range(4):
        answer = Streamed(host)
        for one in programs_below(host):
            one.kill()
        assert "error" in answer.end(10)
        answers_soon(host)
    assert complete(host) == said
    assert len(rpc_servers(worker)) == 1
    after = [descriptors(node) for node in (host, worker)]
    assert max(now - before for now, before in zip(after, descriptors_before, strict=True)) < 8


@pytest.mark.timeout(400)
def test_a_host_ends_within_its_bound_whatever_it_does_and_gives_everything_back(sharing: SplitNodes) -> None:
    worker = sharing.lend("worker")
    host = sharing.start("host")

    def ends(what: str) -> None:
        lent, engines, began = rpc_servers(worker), programs_below(host), time.monotonic()
        assert host.stop() == 0, what
        assert time.monotonic() - began < STOP_S, what
        assert are_gone(engines), what
        wait_for(lambda: are_gone(lent), GONE_S, f"{what}: the RPC server to end")
        assert worker.json("status")["lent"] == [], what

    wait_for(lambda: rpc_servers(worker), PLANNED_S, "the worker to be asked")
    ends("asking")
    sharing.start("host", home=host)
    wait_for(lambda: hosts(host), PLANNED_S, "the engine to load")
    ends("loading")
    sharing.start("host", home=host)
    wait_state(host, "ready")
    answer = Streamed(host)
    ends("answering")
    assert answer.end(5)
    sharing.start("host", home=host)
    wait_state(host, "ready")
    lent = rpc_servers(worker)
    worker.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert host.stop() == 0
    assert time.monotonic() - began < STOP_S
    worker.signal(signal.SIGCONT)
    wait_for(lambda: are_gone(lent), GONE_S, "a halted worker's RPC server to end")


@pytest.mark.timeout(400)
def test_what_is_unloaded_leaves_nothing_and_is_loaded_again_at_once(sharing: SplitNodes) -> None:
    worker, host = sharing.lend("worker"), sharing.start("host")
    for wait in (lambda: rpc_servers(worker), lambda: hosts(host), lambda: answers(host)):
        wait_for(wait, PLANNED_S, "the stage in which it is unloaded")
        lent, engines = rpc_servers(worker), programs_below(host)
        assert host.cli("unload", "dense").code == 0
        assert are_gone([*lent, *engines])
        assert model_of(host) == {}
        assert worker.json("status")["lent"] == []
        loaded = host.cli("load", "--no-wait", str(sharing.file), "--split", "--ctx-size", "512")
        assert loaded.code == 0, loaded.err
    answers_soon(host)
