"""A model's host on a network of its own whose cable is pulled: before the first byte of an answer, and in the middle of one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fake_engine import write_fake_engine
from tests.fakes.network_hosts import NetworkHosts, can_make_hosts
from tests.fakes.node_process import NodeHome, Nodes, wait_for
from tests.fakes.tiny_gguf import write_tiny

pytestmark = pytest.mark.skipif(not can_make_hosts(), reason="network namespaces need root and iproute2")

# Probes every second, suspect after two: three seconds, and what the machine takes. By the probes, that is: the transport
# gives a silent connection up after ten.
NOTICED_S = 8.0
ANSWERED_S = 10.0  # and asked anew elsewhere, where an answer takes over a second
READY_S = 90.0
# Runs on a host: waits for a line, asks, says when the answer began and how it ended.
CLIENT = """
import http.client, json, sys, time
port, body = int(sys.argv[1]), sys.argv[2]
print("here", flush=True)
sys.stdin.readline()
began = time.monotonic()
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
answer = connection.getresponse()
text = answer.read1(65536)
print("begun", flush=True)
try:
    while piece := answer.read1(65536):
        text = (text + piece)[-4096:]
except (http.client.HTTPException, OSError) as error:
    text += repr(error).encode()
seconds = time.monotonic() - began
print(json.dumps([answer.status, answer.getheader("Retry-After"), text.decode(), seconds]), flush=True)
"""


class Asker:
    """One request made on a host."""

    def __init__(self, hosts: NetworkHosts, host: int, home: NodeHome, model: str, **more: object) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 60} | more
        command = hosts.command(host, [sys.executable, "-c", CLIENT, str(home.api_port), json.dumps(body)])
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line() == "here\n"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def begun(self) -> None:
        assert self._line() == "begun\n"

    def result(self, *, has_begun: bool = False) -> tuple[int, str | None, str, float]:
        """Status, Retry-After, the end of the text, seconds."""
        if not has_begun:
            self.begun()
        status, retry_after, text, seconds = json.loads(self._line())
        return status, retry_after, text, seconds

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


Ask = Callable[..., Asker]


@pytest.fixture
def hosts() -> Iterator[NetworkHosts]:
    with NetworkHosts(3) as made:
        yield made


@pytest.fixture
def askers() -> Iterator[list[Asker]]:
    made: list[Asker] = []
    yield made
    for asker in made:
        asker.close()


def asked(log: Path) -> int:
    """How many requests for answers the engines were given."""
    entries = [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]
    return sum(entry["event"] == "began" and entry["method"] == "POST" for entry in entries)


def ready(home: NodeHome) -> dict[str, int]:
    """How many nodes answer for each model, as `home` sees it."""
    models: list[dict[str, Any]] = home.json("status")["models"]
    return {model["id"]: len(model["nodes"]) for model in models if model["state"] == "ready"}


@pytest.mark.timeout(500)
def test_a_pulled_cable_ends_or_moves_what_a_models_host_was_asked_within_seconds(
    nodes: Nodes, hosts: NetworkHosts, askers: list[Asker], tmp_path: Path
) -> None:
    alpha, beta = (str(write_tiny(tmp_path / f"{name}.gguf")[0]) for name in ("alpha", "beta"))
    engine = ("--bin-dir", str(tmp_path), "--ctx-size", "4096")
    # An answer takes half a second to begin and, streamed, two minutes to end.
    log = tmp_path / "requests"
    pace = ("--tokens", "600", "--tokens-per-second", "5", "--first-token-after", "0.5")
    write_fake_engine(tmp_path, *pace, "--request-log", str(log))

    def start(host: int, *arguments: str) -> NodeHome:
        home = nodes.home({"AGENTMESH_BIND_HOST": ""})
        return home.start("--name", f"host{host}", *arguments, prefix=hosts.command(host, []))

    asking = start(0)
    start(1, "--gguf", alpha, "--gguf", beta, *engine, "--join", asking.invite)
    start(2, "--gguf", beta, *engine, "--join", asking.invite)
    wait_for(lambda: ready(asking) == {"alpha": 1, "beta": 2}, READY_S, "the models of both hosts")

    def ask(model: str, **more: object) -> Asker:
        askers.append(Asker(hosts, 0, asking, model, **more))
        return askers[-1]

    warm = ask("alpha", max_tokens=1)
    warm.go()
    assert warm.result()[0] == 200

    stream = ask("alpha", max_tokens=600, stream=True)
    waiting = [ask("beta", max_tokens=4) for _ in range(4)]  # some of them are with the host that is cut off
    gone = ask("alpha", max_tokens=4)
    moved = [ask("beta", max_tokens=4) for _ in range(4)]
    stream.go()
    stream.begun()
    for asker in waiting:
        asker.go()
    wait_for(lambda: asked(log) >= 1 + 1 + len(waiting), READY_S, "what was asked to be with the engines")
    hosts.unplug(1)
    cut_s = time.monotonic()
    for asker in (gone, *moved):
        asker.go()
    status, _, text, _ = stream.result(has_begun=True)
    assert time.monotonic() - cut_s < NOTICED_S, "the stream is ended"
    assert status == 200
    assert '"error"' in text, "and says that it broke off"
    status, retry_after, text, seconds = gone.result()
    assert status == 503, text
    assert retry_after is not None
    assert seconds < NOTICED_S
    for asker in (*waiting, *moved):
        status, _, text, seconds = asker.result()
        assert status == 200, text
        assert seconds < ANSWERED_S

    hosts.plug_in(1)

    def answers() -> bool:
        again = ask("alpha", max_tokens=1)
        again.go()
        return again.result()[0] == 200

    wait_for(answers, 100, "the host to be asked again")
