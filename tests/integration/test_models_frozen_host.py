"""A host of models that stands still for a while, as a suspended laptop does: noticed in seconds, and used again afterwards."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.fakes.fake_engine import write_fake_engine
from tests.fakes.node_process import NodeHome, Nodes, wait_for
from tests.fakes.tiny_gguf import write_tiny

READY_S = 90.0
# Probes every second, suspect after two: three seconds, and what the machine takes. By the probes, that is: the transport
# gives a silent connection up after ten.
NOTICED_S = 8.0
TOKENS = 300  # half a minute's: not a whole answer, streamed or not, is out before the host stands still


@pytest.fixture
def frozen() -> Iterator[list[NodeHome]]:
    """Nodes that must be able to end, whatever the test does."""
    homes: list[NodeHome] = []
    yield homes
    for home in homes:
        home.signal(signal.SIGCONT)


def ask(home: NodeHome, **more: object) -> httpx.Response:
    body = {"model": "alpha", "messages": [{"role": "user", "content": "Say."}], "max_tokens": 4} | more
    return httpx.post(f"http://127.0.0.1:{home.api_port}/v1/chat/completions", json=body, timeout=100)


def is_ready(home: NodeHome) -> bool:
    return any(model["id"] == "alpha" and model["state"] == "ready" for model in home.json("status")["models"])


def are_being_answered(log: Path, count: int) -> bool:
    """Whether so many long requests are with the engine."""
    entries = [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]
    bodies = [entry["body"].replace(" ", "") for entry in entries if entry["event"] == "began"]
    return sum(f'"max_tokens":{TOKENS}' in body for body in bodies) >= count


@pytest.mark.timeout(400)
def test_a_frozen_host_is_answered_for_with_503_within_seconds_and_asked_again_when_it_is_back(
    nodes: Nodes, frozen: list[NodeHome], tmp_path: Path
) -> None:
    alpha = str(write_tiny(tmp_path / "alpha.gguf")[0])
    log = tmp_path / "requests"
    write_fake_engine(tmp_path, "--tokens", str(TOKENS), "--tokens-per-second", "10", "--request-log", str(log))
    asking = nodes.start("--name", "asking")
    host = nodes.start("--gguf", alpha, "--bin-dir", str(tmp_path), "--ctx-size", "4096", "--join", asking.invite)
    frozen.append(host)
    wait_for(lambda: is_ready(asking), READY_S, "the model")
    assert ask(asking).status_code == 200

    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(ask, asking, stream=True, max_tokens=TOKENS)
        waiting = pool.submit(ask, asking, max_tokens=TOKENS)
        wait_for(lambda: are_being_answered(log, 2), READY_S, "both requests to be with the engine")
        host.signal(signal.SIGSTOP)
        began_s = time.monotonic()
        assert waiting.result(100).status_code == 503
        assert stream.result(100).status_code in (200, 503)
        assert time.monotonic() - began_s < NOTICED_S
    began_s = time.monotonic()
    refused = ask(asking)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert time.monotonic() - began_s < NOTICED_S

    host.signal(signal.SIGCONT)
    wait_for(lambda: ask(asking).status_code == 200, 90, "the host to be asked again")
    assert ask(host).status_code == 200, "the host itself never lost its model"
