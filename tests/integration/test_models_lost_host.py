"""What becomes of requests when a host of models dies, stops or comes back; and that no engine outlives its node."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from agentmesh.inference.engine.engine import Engine
from tests.fakes.node_process import NodeHome, Nodes, wait_for
from tests.fakes.patient_node import PATIENT
from tests.fakes.split_nodes import are_gone
from tests.fakes.talking_gguf import write_talking
from tests.integration.test_models_on_the_mesh import ASK, READY_S, listed, open_ai, tiny

pytestmark = pytest.mark.timeout(400)  # three nodes and their engines

NOTICED_S = 8.0  # two seconds with the machine to itself; the transport gives a silent connection up after ten


@pytest.fixture
def nodes(tmp_path: Path):
    with Nodes() as made:
        yield made


def engines_of(home: NodeHome) -> list[psutil.Process]:
    """The processes that a node started, all generations, but for its Python workers."""
    found: list[psutil.Process] = []
    for child in psutil.Process(home.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # others, which only answer a question, come and go
            if "llama-server" in child.name() or "guard" in " ".join(child.cmdline()):
                found.append(child)
    return found


def serve(nodes: Nodes, engine: Engine, file: Path, *arguments: str) -> NodeHome:
    folder = str(Path(engine.command[0]).parent)
    words = ("--gguf", str(file), "--bin-dir", folder, "--ctx-size", "4096", *arguments)
    return nodes.home().start(*words, prefix=PATIENT)


def ask(home: NodeHome, model: str, **more: object) -> httpx.Response:
    body = {"model": model, "messages": ASK, "max_tokens": 4} | more
    return httpx.post(f"http://127.0.0.1:{home.api_port}/v1/chat/completions", json=body, timeout=100)


def test_a_killed_host_leaves_no_engine_and_its_models_answer_503_within_seconds(
    nodes: Nodes, real_engine: Engine, tmp_path: Path
) -> None:
    words = " ".join(f"word{number}" for number in range(400))
    first = serve(nodes, real_engine, tiny(tmp_path / "alpha.gguf"))
    talks = write_talking(tmp_path / "beta.gguf", answer=words, context=8_192)
    second = serve(nodes, real_engine, talks, "--join", first.invite)
    third = nodes.start("--join", first.invite)
    wait_for(lambda: listed(third) == {"alpha", "beta"}, READY_S, "both models")
    assert ask(third, "alpha").status_code == 200
    engines = engines_of(first)
    assert engines
    stream = open_ai(third).chat.completions.create(model="beta", messages=ASK, max_tokens=900, stream=True)
    events = iter(stream)
    next(events)
    first.kill()
    began = time.monotonic()
    answer = ask(third, "alpha")
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert time.monotonic() - began < NOTICED_S
    assert "word399" in "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert ask(second, "beta").status_code == 200
    wait_for(lambda: not any(engine.is_running() for engine in engines), 30, "the killed node's engines to end")


def test_a_host_that_stops_takes_its_models_off_the_list_and_leaves_nothing_behind(
    nodes: Nodes, real_engine: Engine, tmp_path: Path
) -> None:
    first = serve(nodes, real_engine, tiny(tmp_path / "alpha.gguf"))
    second = nodes.start("--join", first.invite)
    wait_for(lambda: listed(second) == {"alpha"}, READY_S, "the model")
    engines = engines_of(first)
    assert engines
    workers = [child for child in psutil.Process(first.pid).children(recursive=True) if child not in engines]
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    assert are_gone(engines)  # at once: a guard would end those of a node that leaves them behind, seconds later
    wait_for(lambda: are_gone(workers), 10, "its Python workers to have ended, too")
    wait_for(lambda: ask(second, "alpha").status_code == 404, 30, "the model to be unknown")


def test_two_hosts_of_one_model_stand_in_for_each_other(nodes: Nodes, real_engine: Engine, tmp_path: Path) -> None:
    file = tiny(tmp_path / "alpha.gguf")
    first = serve(nodes, real_engine, file)
    second = serve(nodes, real_engine, file, "--join", first.invite)
    third = nodes.start("--join", first.invite)
    wait_for(lambda: _hosts(third, "alpha") == 2, READY_S, "both hosts")
    first.kill()
    for _ in range(5):
        began = time.monotonic()
        assert ask(third, "alpha").status_code == 200
        print(f"{time.monotonic() - began:.3f} s")
        assert time.monotonic() - began < NOTICED_S
    assert ask(second, "alpha").status_code == 200


def _hosts(home: NodeHome, model: str) -> int:
    answer = httpx.get(f"http://127.0.0.1:{home.api_port}/v1/models", timeout=30).json()
    return next((entry["nodes"] for entry in answer["data"] if entry["id"] == model and entry["ready"]), 0)


def test_models_are_loaded_and_unloaded_while_the_node_runs(nodes: Nodes, real_engine: Engine, tmp_path: Path) -> None:
    first = serve(nodes, real_engine, tiny(tmp_path / "alpha.gguf"))
    wait_for(lambda: listed(first) == {"alpha"}, READY_S, "the model")
    beta = tiny(tmp_path / "beta.gguf", 2)
    loaded = first.cli("load", str(beta), "--ctx-size", "4096")
    assert loaded.code == 0, loaded.err
    assert listed(first) == {"alpha", "beta"}
    assert first.cli("unload", "alpha").code == 0
    assert listed(first) == {"beta"}
    assert ask(first, "beta").status_code == 200
    assert ask(first, "alpha").status_code == 404
    assert len(engines_of(first)) <= 2  # one engine and its guard


def test_a_client_node_serves_the_api_but_no_model(nodes: Nodes, tmp_path: Path) -> None:
    home = nodes.start()
    refused = home.cli("load", str(tiny(tmp_path / "alpha.gguf")))
    assert refused.code != 0
    assert "as a client" in refused.err
    assert ask(home, "alpha").status_code == 404
