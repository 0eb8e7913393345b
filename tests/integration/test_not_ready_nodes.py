"""What users read of models that do not answer: through the API why a load failed, in status whom a split does without. Real nodes and engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from agentmesh.inference.engine.engine import Engine
from tests.fakes.engines import ENGINE_CACHE
from tests.fakes.node_process import NodeHome, Nodes, wait_for
from tests.fakes.patient_node import PATIENT
from tests.fakes.split_cases import refused
from tests.fakes.split_nodes import PLANNED_S, SplitNodes, model_of, post, rpc_servers, wait_state
from tests.fakes.tiny_gguf import write_tiny

MODEL = "tiny"
READY_S = 120.0

pytestmark = pytest.mark.timeout(900)


def serving(nodes: Nodes, file: Path, *more: str) -> NodeHome:
    home = nodes.home({"AGENTMESH_ENGINE_CACHE": str(ENGINE_CACHE), "OMP_NUM_THREADS": "1"})
    return home.start("--gguf", str(file), "--ctx-size", "512", *more, prefix=PATIENT)


def state_of(node: NodeHome) -> str:
    models: list[dict[str, Any]] = node.json("status")["models"]
    return next((one["state"] for one in models if one["id"] == MODEL), "")


def answered(node: NodeHome) -> bool:
    try:
        answer = httpx.post(
            f"http://127.0.0.1:{node.api_port}/v1/completions",
            json={"model": MODEL, "prompt": "a", "max_tokens": 1},
            timeout=100,
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def test_a_model_that_could_not_be_loaded_says_why_and_another_node_answers_for_it(
    real_engine: Engine, nodes: Nodes, tmp_path: Path
) -> None:
    assert not real_engine.is_embedded
    good, cut = tmp_path / "good files" / f"{MODEL}.gguf", tmp_path / "cut files" / f"{MODEL}.gguf"
    for file in (good, cut):
        file.parent.mkdir()
        write_tiny(file)
    cut.write_bytes(cut.read_bytes()[:-100])
    first = serving(nodes, cut)
    wait_for(lambda: state_of(first) == "failed", READY_S, "the load to fail")
    client = nodes.start("--name", "client", "--join", first.invite)

    status, error = refused(first, MODEL)
    assert (status, error["code"]) == (500, "model_failed")
    assert f"{MODEL}.gguf is cut short" in error["message"]
    assert "agentmesh load" in error["message"]
    assert "files" not in error["message"]  # where it lies is nobody's business
    answer = httpx.post(
        f"http://127.0.0.1:{first.api_port}/v1/messages",
        json={"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]},
        timeout=100,
    )
    assert (answer.status_code, answer.headers.get("retry-after")) == (500, None)
    assert answer.headers["x-should-retry"] == "false"  # or agents try it for minutes before they show why
    assert "is cut short" in answer.json()["error"]["message"]
    looked_up = httpx.get(f"http://127.0.0.1:{first.api_port}/v1/models/{MODEL}", timeout=100)
    assert looked_up.status_code == 404
    assert "is cut short" in looked_up.json()["error"]["message"]
    status, error = refused(client, MODEL)  # what failed elsewhere was never offered
    assert (status, error["code"]) == (404, "model_not_found")
    assert "cut short" not in error["message"]

    second = serving(nodes, good, "--join", first.invite)
    wait_for(lambda: answered(first), READY_S, "the other node's answer")
    assert state_of(first) == "failed"
    assert post(first, "/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 1})["choices"]
    assert second.stop() == 0
    wait_for(lambda: refused_why(first) == "model_failed", READY_S, "the reason again")


def refused_why(node: NodeHome) -> str:
    try:
        return str(refused(node, MODEL)[1]["code"])
    except AssertionError:  # it was answered
        return ""


@pytest.mark.usefixtures("real_engine")
def test_a_worker_that_was_lost_twice_is_shown_as_doubted(sharing: SplitNodes) -> None:
    host = sharing.start("host")
    lenders = [sharing.lend(name) for name in ("left", "right")]
    ids = {lender.json("status")["node_id"]: lender for lender in lenders}
    wait_state(host, "ready")
    assert model_of(host)["doubts"] == []
    lost: list[str] = []
    while not model_of(host)["doubts"]:
        assert len(lost) < 3  # there are two, so one of them was lost twice
        [worker] = model_of(host)["nodes"][1:]
        [program] = rpc_servers(ids[worker])
        program.kill()
        lost.append(worker)
        wait_for(
            lambda gone=program: model_of(host)["doubts"] or is_ready_without(host, ids, gone), PLANNED_S, "another run"
        )
    lines = host.cli("status").out.splitlines()
    [doubt] = model_of(host)["doubts"]
    assert doubt["node"] in lost
    name = "left" if ids[doubt["node"]] is lenders[0] else "right"
    assert (doubt["name"], doubt["role"]) == (name, "worker")
    assert doubt["times"] >= 2
    assert 0 < doubt["left_s"] <= 120
    assert doubt["why"]
    [line] = [one for one in lines if "is passed over" in one and " more: " in one]
    assert line.startswith(f"dense: {name} is passed over as a worker where another can do, for ")
    assert f"it ended {doubt['times']} runs of this node, the last with: " in line
    told = wait_state(host, "ready")
    assert told["nodes"][1:] == [other for other in ids if other != doubt["node"]]


def is_ready_without(host: NodeHome, ids: dict[str, NodeHome], gone: psutil.Process) -> bool:
    """Whether a run goes on in which the RPC server that was killed has no part."""
    told = model_of(host)
    if told.get("state") != "ready" or len(told["nodes"]) != 2:
        return False
    return gone.pid not in [one.pid for one in rpc_servers(ids[told["nodes"][1]])]
