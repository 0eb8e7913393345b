"""A host of models that stands still for a while, as a suspended laptop does: noticed in seconds, and used again afterwards."""

from __future__ import annotations

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

READY_S = 60.0
NOTICED_S = 3.5  # probes every second, suspect after two


@pytest.fixture
def frozen() -> Iterator[list[NodeHome]]:
    """Nodes that must be able to end, whatever the test does."""
    homes: list[NodeHome] = []
    yield homes
    for home in homes:
        home.signal(signal.SIGCONT)


def ask(home: NodeHome, **more: object) -> httpx.Response:
    body = {"model": "alpha", "messages": [{"role": "user", "content": "Say."}], "max_tokens": 4} | more
    return httpx.post(f"http://127.0.0.1:{home.api_port}/v1/chat/completions", json=body, timeout=60)


def is_ready(home: NodeHome) -> bool:
    return any(model["id"] == "alpha" and model["state"] == "ready" for model in home.json("status")["models"])


@pytest.mark.timeout(180)
def test_a_frozen_host_is_answered_for_with_503_within_seconds_and_asked_again_when_it_is_back(
    nodes: Nodes, frozen: list[NodeHome], tmp_path: Path
) -> None:
    alpha = str(write_tiny(tmp_path / "alpha.gguf")[0])
    write_fake_engine(tmp_path, "--tokens", "300", "--tokens-per-second", "10", "--first-token-after", "0.5")
    asking = nodes.start("--name", "asking")
    host = nodes.start("--gguf", alpha, "--bin-dir", str(tmp_path), "--ctx-size", "4096", "--join", asking.invite)
    frozen.append(host)
    wait_for(lambda: is_ready(asking), READY_S, "the model")
    assert ask(asking).status_code == 200

    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(ask, asking, stream=True, max_tokens=300)
        waiting = pool.submit(ask, asking)
        time.sleep(0.3)  # the request is there, its answer has not begun
        host.signal(signal.SIGSTOP)
        began_s = time.monotonic()
        assert waiting.result(30).status_code == 503
        assert stream.result(30).status_code in (200, 503)
        assert time.monotonic() - began_s < NOTICED_S
    began_s = time.monotonic()
    refused = ask(asking)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert time.monotonic() - began_s < NOTICED_S

    host.signal(signal.SIGCONT)
    wait_for(lambda: ask(asking).status_code == 200, 30, "the host to be asked again")
    assert ask(host).status_code == 200, "the host itself never lost its model"
