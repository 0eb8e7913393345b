"""Nodes that share a model while something of them is killed, halted or stopped: who asked is told, one node hosts, nothing is left."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import psutil
import pytest

from tests.fakes.node_process import NodeHome, wait_for
from tests.fakes.split_nodes import (
    PLANNED_S,
    SOON_S,
    SplitNodes,
    Streamed,
    answers,
    are_gone,
    complete,
    llama_servers,
    model_of,
    programs_below,
    rpc_servers,
    wait_state,
)

STOP_S = 60.0  # 1.2 to 3.5 s alone; for how long it waits for workers' ends: test_split_running.py
GONE_S = 60.0  # 5 s for a guard, 10 s of a host's silence, and what a slow machine adds
SEEN_S = 5.0


def hosts(*nodes: NodeHome) -> list[str]:
    """Names of the nodes on which a llama-server runs."""
    return [node.root.name for node in nodes for _ in llama_servers(node)]


def answers_soon(node: NodeHome) -> None:
    wait_for(lambda: answers(node), PLANNED_S, "an answer")


def descriptors(node: NodeHome) -> int:
    return psutil.Process(node.pid).num_fds()


@pytest.mark.timeout(900)
def test_a_host_that_is_halted_and_one_that_is_killed_are_followed_by_one_other(sharing: SplitNodes) -> None:
    first = sharing.start("first", memory="0.2")
    second = sharing.start("second", memory="0.19")
    third = sharing.start("third", memory="0.18")
    wait_state(first, "ready")
    answers_soon(third)
    said = complete(third)
    answer = Streamed(third)
    first.signal(signal.SIGSTOP)  # neither dead nor alive: its connections stay open
    assert "error" in answer.end()
    wait_state(second, "ready")
    answers_soon(third)
    first.signal(signal.SIGCONT)
    wait_state(first, "standby")
    until = time.monotonic() + SEEN_S
    while time.monotonic() < until:
        assert hosts(second, third) == ["h1"]
        time.sleep(0.2)
    assert hosts(first) == []  # it has ended its own before it said that another hosts
    assert complete(third) == said
    engines = [one for node in (first, second, third) for one in programs_below(node)]
    assert len(engines) == 2
    answer = Streamed(third)
    second.kill()
    assert "error" in answer.end()
    wait_for(lambda: are_gone(engines), GONE_S, "what belonged to the dead host to end")
    wait_state(first, "ready")
    answers_soon(third)
    assert complete(third) == said


@pytest.mark.timeout(900)
def test_a_worker_that_is_halted_and_a_llama_server_that_is_killed_are_told_and_made_good(sharing: SplitNodes) -> None:
    host, worker = sharing.start("host", memory="0.2"), sharing.lend("worker")
    wait_state(host, "ready")
    answers_soon(host)
    said = complete(host)
    descriptors_before = [descriptors(node) for node in (host, worker)]
    lent = rpc_servers(worker)
    answer = Streamed(host)
    worker.signal(signal.SIGSTOP)
    assert "error" in answer.end()
    wait_for(lambda: model_of(host).get("state") != "ready", SOON_S, "the loss to be told")
    worker.signal(signal.SIGCONT)
    wait_for(lambda: are_gone(lent), GONE_S, "the old RPC server to end")
    answers_soon(host)
    for _ in range(4):
        programs = programs_below(host)
        answer = Streamed(host)  # 450 tokens take seconds; nothing is looked for meanwhile
        for one in programs:
            with suppress(psutil.NoSuchProcess):  # one that ended meanwhile
                one.kill()
        assert "error" in answer.end()
        answers_soon(host)
    assert complete(host) == said
    wait_for(lambda: len(rpc_servers(worker)) == 1, GONE_S, "one RPC server to be left")

    def added() -> int:
        after = [descriptors(node) for node in (host, worker)]
        return max(now - before for now, before in zip(after, descriptors_before, strict=True))

    wait_for(lambda: added() < 8, SOON_S, "connections to be closed")


@pytest.mark.timeout(900)
def test_a_host_ends_within_its_bound_whatever_it_does_and_gives_everything_back(sharing: SplitNodes) -> None:
    worker = sharing.lend("worker")
    host = sharing.start("host")

    def ends(what: str) -> None:
        lent, engines = rpc_servers(worker), programs_below(host)
        host.signal(signal.SIGINT)
        assert host.wait(STOP_S) == 0, what
        assert "did not end within" not in host.stderr_file.read_text(), what
        assert are_gone(engines), what
        wait_for(lambda: are_gone(lent), GONE_S, f"{what}: the RPC server to end")
        wait_for(lambda: worker.json("status")["lent"] == [], GONE_S, f"{what}: the part to be given back")

    wait_for(lambda: rpc_servers(worker), PLANNED_S, "the worker to be asked")
    ends("asking")
    sharing.start("host", home=host)
    wait_for(lambda: hosts(host), PLANNED_S, "the engine to load")
    ends("loading")
    sharing.start("host", home=host)
    wait_state(host, "ready")
    answer = Streamed(host)
    ends("answering")
    assert answer.end()
    sharing.start("host", home=host)
    wait_state(host, "ready")
    lent = rpc_servers(worker)
    worker.signal(signal.SIGSTOP)
    host.signal(signal.SIGINT)
    assert host.wait(STOP_S) == 0
    worker.signal(signal.SIGCONT)
    wait_for(lambda: are_gone(lent), GONE_S, "a halted worker's RPC server to end")


@pytest.mark.timeout(900)
def test_what_is_unloaded_leaves_nothing_and_is_loaded_again_at_once(sharing: SplitNodes) -> None:
    worker, host = sharing.lend("worker"), sharing.start("host")
    for stage, wait in enumerate((lambda: rpc_servers(worker), lambda: hosts(host), lambda: answers(host))):
        wait_for(wait, PLANNED_S, "the stage in which it is unloaded")
        lent, engines = rpc_servers(worker), programs_below(host)
        assert host.cli("unload", "dense").code == 0
        assert are_gone(engines)
        if stage == 0:  # the lease is not open yet: it is broken off, and what the worker has begun ends by itself
            wait_for(lambda lent=lent: are_gone(lent), GONE_S, "the RPC server to end")
            wait_for(lambda: worker.json("status")["lent"] == [], GONE_S, "the part to be given back")
        assert are_gone(lent)
        assert model_of(host) == {}
        assert worker.json("status")["lent"] == []
        loaded = host.cli("load", "--no-wait", str(sharing.file), "--split", "--ctx-size", "512")
        assert loaded.code == 0, loaded.err
    answers_soon(host)
