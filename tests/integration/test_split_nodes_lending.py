"""Nodes that lend memory to a model's host: where its weights are from, who may use it, and what users say about it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.fakes.node_process import NodeHome, wait_for
from tests.fakes.split_cases import load, parts_lent, refused, wait_reason
from tests.fakes.split_nodes import (
    MODEL,
    PLANNED_S,
    SOON_S,
    SplitNodes,
    answers,
    complete,
    model_of,
    rpc_servers,
    wait_state,
)

pytestmark = pytest.mark.timeout(900)  # 15 to 40 s each where nothing else runs

WEIGHTS = 50_000_000  # bytes: less than the half of them that a worker has, more than all else that crosses


def fetched_files(node: NodeHome) -> list[Path]:
    return [path for path in (node.root / "split-files").rglob("blobs/*") if path.is_file()]


def test_a_worker_without_the_file_fetches_it_and_what_is_damaged_there_is_fetched_again(
    sharing: SplitNodes, dense_alone: str
) -> None:
    host = sharing.start("host")
    worker = sharing.lend("worker")
    told = wait_state(host, "ready")["workers"][0]
    assert complete(host) == dense_alone
    assert told["has_files"]
    assert told["sent_bytes"] < 3_000_000
    [kept] = fetched_files(worker)
    assert kept.stat().st_size == sharing.file.stat().st_size
    assert worker.stop() == 0
    with kept.open("r+b") as damaged:
        damaged.seek(60_000_000)
        damaged.write(bytes(64))
    worker.start("--name", "worker", "--rpc-peers", "all", "--max-vram", "0.2")
    wait_state(host, "ready")
    wait_for(lambda: [p["state"] for p in parts_lent(worker)] == ["serving"], PLANNED_S, "the part")
    assert complete(host) == dense_alone
    assert model_of(host)["workers"][0]["has_files"]
    assert kept.read_bytes() == sharing.file.read_bytes()


def test_a_worker_that_was_told_so_lets_the_weights_come(sharing: SplitNodes, dense_alone: str) -> None:
    host = sharing.start("host")
    worker = sharing.lend("worker", "--weights", "stream")
    wait_state(host, "ready")
    assert complete(host) == dense_alone
    told = model_of(host)["workers"][0]
    [lent] = parts_lent(worker)
    assert not told["has_files"]
    assert told["sent_bytes"] > WEIGHTS
    assert "sends it the weights: This node has not got the model's files" in told["state"]
    assert "weights come from the host" in lent["reason"]
    assert lent["received_bytes"] > WEIGHTS
    assert not fetched_files(worker)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted")
def test_a_worker_whose_disk_is_full_lets_the_weights_come(sharing: SplitNodes, dense_alone: str) -> None:
    host = sharing.start("host")
    home = sharing.nodes.home()
    folder = home.root / "split-files"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        home.environment |= {k: v for k, v in host.environment.items() if k != "AGENTMESH_HOME"}
        worker = home.start("--join", host.invite, "--name", "worker", "--rpc-peers", "all", "--max-vram", "0.2")
        wait_state(host, "ready")
        assert complete(host) == dense_alone
        assert "free" in parts_lent(worker)[0]["reason"]
        assert not model_of(host)["workers"][0]["has_files"]
        worker.stop()
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def test_memory_that_is_lent_to_somebody_else_is_not_used_and_the_id_to_give_is_named(sharing: SplitNodes) -> None:
    host = sharing.start("host")
    other = sharing.nodes.start("--name", "other", "--join", host.invite)
    worker = sharing._start(  # pyright: ignore[reportPrivateUsage]
        ["--name", "worker", "--rpc-peers", other.json("status")["node_id"], "--max-vram", "0.2"], (), None
    )
    me = host.json("status")["node_id"]
    seen = wait_reason(host, "worker", "does not lend to", f"--rpc-peers {me}")
    assert seen["state"] == "waiting"
    wait_for(lambda: f"--rpc-peers {me}" in refused(other)[1]["message"], SOON_S, "the reason on every node's API")
    status, error = refused(other)
    assert (status, error["code"]) == (503, "model_waiting")
    assert not parts_lent(worker)
    assert not rpc_servers(worker)


def test_loads_with_numbers_and_peers_are_done_or_said_to_be_impossible_and_remembered(
    sharing: SplitNodes, dense_alone: str
) -> None:
    first = sharing.lend("first", memory="0.2")
    second = sharing.lend("second", memory="0.19")

    assert load(first, sharing.file, "--tensor-split", "1,1,1").code == 0
    seen = wait_reason(first, "--tensor-split has 3 numbers, but 2 nodes")
    assert seen["state"] == "waiting"
    assert first.cli("unload", MODEL).code == 0

    assert load(first, sharing.file, "--min-peers", "2").code == 0
    wait_reason(first, "1 of 2 peers (--min-peers) can share")
    assert not rpc_servers(second)
    assert first.cli("drop", MODEL).code == 0

    done = load(first, sharing.file, "--tensor-split", "5,3")
    assert done.code == 0, done.err
    told = wait_state(first, "ready")
    assert [one["layers"] for one in told["workers"]] == [5]
    assert complete(first) == dense_alone

    assert first.stop() == 0
    wait_for(lambda: not rpc_servers(second), SOON_S, "the worker to be free")
    first.start("--name", "first", "--rpc-peers", "all", "--max-vram", "0.2")
    told = wait_state(first, "ready")
    assert [one["layers"] for one in told["workers"]] == [5]  # with its flags
    assert complete(first) == dense_alone


def test_the_named_host_is_waited_for_and_what_is_dropped_does_not_come_back(
    sharing: SplitNodes, dense_alone: str
) -> None:
    first = sharing.lend("first", memory="0.2")
    second = sharing.lend("second", memory="0.19")
    named = second.json("status")["node_id"]
    assert load(first, sharing.file, "--host-node", named).code == 0
    wait_reason(first, "The node of --host-node cannot be host: second lends memory only")
    assert load(second, sharing.file).code == 0
    assert wait_state(second, "ready")["role"] == "host"  # though the other has more memory
    wait_state(first, "standby")
    wait_for(lambda: answers(first), SOON_S, "an answer through the other node")
    assert complete(first) == dense_alone

    for node in (first, second):
        assert node.cli("drop", MODEL).code == 0
    assert not answers(first)
    wait_for(lambda: not rpc_servers(first) and not rpc_servers(second), SOON_S, "everything to be gone")
    assert first.stop() == 0
    first.start("--name", "first", "--rpc-peers", "all", "--max-vram", "0.2")
    assert not model_of(first)
