"""The end of a node that serves: in time, and nothing of its engines is left, whatever clients and engines do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from agentmesh.inference.engine import run_program
from agentmesh.inference.engine.run_program import ask
from tests.fakes.engine_programs import program
from tests.fakes.fake_engine import write_fake_engine
from tests.fakes.node_process import NodeHome, Nodes, wait_for
from tests.fakes.patient_node import PATIENT, STOP_S
from tests.fakes.tiny_gguf import write_tiny

READY_S = 90.0
END_S = 50.0  # a node needs 2 s alone; a client or a part of it that could hold it up would do so for longer
QUESTION_END_S = 25.0  # as a question would: its own time is 30 s


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")[0]


def becomes(home: NodeHome, state: str) -> None:
    wait_for(lambda: state in [model["state"] for model in home.json("status")["models"]], READY_S, state)


def processes_of(home: NodeHome) -> list[list[str]]:
    """Command lines of all that works in this home."""
    every = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return [words for words in every if any(str(home.root) in word for word in words)]


def ended_cleanly(home: NodeHome) -> None:
    """As the process and its log tell, at the moment of its end."""
    code = home.wait(END_S)
    assert processes_of(home) == []
    assert list((home.root / "run" / "engines").iterdir()) == []
    assert "did not end within" not in home.stderr_file.read_text()
    assert code == 0


def deaf_client(home: NodeHome) -> socket.socket:
    """It asks for more than it takes in."""
    body = json.dumps({"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", home.api_port))
    client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    return client


def test_a_client_that_takes_nothing_in_holds_up_no_engines_end(nodes: Nodes, tiny: Path, tmp_path: Path) -> None:
    log = tmp_path / "requests"
    write_fake_engine(tmp_path, "--ignore-sigterm", "--tokens", "10000000", "--request-log", str(log))
    home = nodes.home().start("--gguf", str(tiny), "--bin-dir", str(tmp_path), prefix=PATIENT)
    becomes(home, "ready")
    with deaf_client(home):
        wait_for(lambda: log.exists() and "began" in log.read_text(), READY_S, "the request to reach the engine")
        home.signal(signal.SIGTERM)
        ended_cleanly(home)


def test_an_engine_that_hangs_when_it_is_asked_what_it_is_ends_with_the_node(
    nodes: Nodes, tiny: Path, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    program(tmp_path / "llama-server", f"echo $$ > {pid}; exec sleep 600")
    home = nodes.home().start("--gguf", str(tiny), "--bin-dir", str(tmp_path), prefix=PATIENT)
    wait_for(lambda: pid.exists() and pid.read_text().strip(), READY_S, "the question")
    home.signal(signal.SIGTERM)
    assert home.wait(QUESTION_END_S) == 0
    assert not psutil.pid_exists(int(pid.read_text()))


async def test_a_question_that_nobody_waits_for_any_more_ends_its_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_program, "END_S", STOP_S)
    told = tmp_path / "told"
    os.mkfifo(told)
    asking = asyncio.get_running_loop().create_task(
        ask((str(program(tmp_path / "x", f"echo $$ > {told}; exec sleep 600")),), timeout_s=STOP_S)
    )
    pid = int(await asyncio.to_thread(told.read_text))
    began = time.monotonic()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not psutil.pid_exists(pid)
    assert time.monotonic() - began < STOP_S / 2
