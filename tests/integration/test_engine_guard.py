"""What is left of engines when the node that had them is killed: nothing, within five seconds or at the next start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agentmesh.inference.engine import guard
from agentmesh.inference.engine.address import socket_path
from agentmesh.inference.engine.guarded import ORPHAN_GRACE_MS
from agentmesh.inference.engine.leftovers import cleanup_leftovers
from tests.fakes.fake_engine import ROOT, fake_command

# A killed node leaves no engine after it: within five seconds on a free machine, and before its engine's forks end by themselves.
LIMIT_S = 40.0
WAIT_S = 60.0

# What a node does with an engine, and nothing else; its arguments are the folder and the engine's options.
NODE = """
import asyncio, sys
from pathlib import Path
from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.process import EngineProcess
from tests.fakes.fake_engine import fake_engine

async def main(folder, *options):
    plan = ServerPlan(Path("/m.gguf"), "m", 1024, 1)
    engine = EngineProcess(fake_engine(*options), plan, folder=folder / "run", log=folder / "m.log")
    await engine.start()
    await engine.wait_ready()
    print(engine.status.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="am-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Node:
    """A process that runs one engine, and the processes that belong to it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODE, str(folder), *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.engine = int(self.process.stdout.readline())
        self.guard = int(self.record()["guard"]["pid"])

    def record(self) -> dict[str, Any]:
        [path] = (self.folder / "run").glob("*.json")
        return json.loads(path.read_text())

    def forked(self) -> list[int]:
        def said() -> list[int]:
            text = (self.folder / "m.log").read_text()
            return [int(pid) for pid in re.findall(r"^lingering process (\d+)$", text, re.MULTILINE)]

        eventually(lambda: len(said()) == 2, WAIT_S, "both forks to say so")
        return said()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


@pytest.fixture
def node(folder: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(*options: str) -> Node:
        made.append(Node(folder, *options))
        return made[-1]

    yield make
    for each in made:
        each.close()
    cleanup_leftovers(folder / "run")


@pytest.mark.parametrize(
    "options",
    [[], ["--ignore-sigterm"], ["--fork"], ["--fork", "--hold-pipes", "--ignore-sigterm"]],
    ids=["obedient", "ignoring SIGTERM", "forking", "all at once"],
)
def test_a_killed_node_leaves_no_engine(node: Callable[..., Node], options: list[str]) -> None:
    running = node(*options)
    all_of_it = [running.engine, running.guard, *(running.forked() if "--fork" in options else [])]
    assert all(lives(pid) for pid in all_of_it)
    running.kill()
    eventually(lambda: not any(lives(pid) for pid in all_of_it), LIMIT_S, "the engine to end")
    assert list((running.folder / "run").glob("*.json")) == []


def test_what_ends_an_orphaned_engine_takes_less_than_five_seconds() -> None:
    """Its looks at the parent, the grace, and the first rounds of SIGKILL: measured above it would say how busy the machine is."""
    assert guard.LOOK_MS + ORPHAN_GRACE_MS + 10 * guard.KILL_PAUSE_S * 1000 < 5_000


def test_a_killed_node_and_guard_leave_no_engine(node: Callable[..., Node]) -> None:
    running = node("--ignore-sigterm")
    os.kill(running.process.pid, signal.SIGSTOP)  # so that it cannot do anything about it
    os.kill(running.guard, signal.SIGKILL)
    eventually(lambda: not lives(running.engine), LIMIT_S, "the engine to end with its guard")


def test_the_next_start_ends_what_the_last_one_recorded(node: Callable[..., Node]) -> None:
    running = node("--fork", "--ignore-sigterm")
    forked = running.forked()
    os.kill(running.process.pid, signal.SIGSTOP)
    os.kill(running.guard, signal.SIGKILL)
    running.kill()
    assert all(lives(pid) for pid in forked)  # nobody is left who could know of them
    assert cleanup_leftovers(running.folder / "run") == 1
    assert not any(lives(pid) for pid in (running.engine, *forked))
    assert list((running.folder / "run").glob("*.json")) == []
    assert cleanup_leftovers(running.folder / "run") == 0


def write_record(folder: Path, process: subprocess.Popen[bytes], **changes: object) -> Path:
    named = {"pid": process.pid, "start": guard.start_mark(process.pid)}
    record = {"boot": guard.boot_id(), "guard": {"pid": 0, "start": ""}, "engine": named, "mark": ""} | changes
    path = folder / "e.json"
    path.write_text(json.dumps(record))
    return path


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_recorded_process_is_ended(folder: Path, bystander: subprocess.Popen[bytes]) -> None:
    write_record(folder, bystander)
    assert cleanup_leftovers(folder) == 1
    assert bystander.wait(WAIT_S) == -signal.SIGKILL


@pytest.mark.parametrize("field", ["start", "boot"])
def test_a_process_that_got_the_number_later_is_left_alone(
    folder: Path, bystander: subprocess.Popen[bytes], field: str
) -> None:
    changed: dict[str, object] = {"boot": "another boot"}
    if field == "start":
        changed = {"engine": {"pid": bystander.pid, "start": "12345"}}
    path = write_record(folder, bystander, **changed)
    assert cleanup_leftovers(folder) == 0
    assert bystander.poll() is None
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"boot": 1}', '{"boot": "", "guard": {"pid": "x"}, "engine": {}, "mark": ""}', "x" * 100_000],
)
def test_a_record_that_cannot_be_read_names_nobody(folder: Path, content: str) -> None:
    (folder / "e.json").write_text(content)
    assert cleanup_leftovers(folder) == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("depth", [0, 100])
def test_sockets_that_nobody_listens_on_any_more_are_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "runtime"))
    engines = folder / ("d" * depth)
    left = socket_path(engines, "e-00000001")
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_text("")
    assert cleanup_leftovers(engines) == 0
    assert not left.exists()


def test_a_folder_that_is_not_there_has_no_leftovers(folder: Path) -> None:
    assert cleanup_leftovers(folder / "none") == 0


# ------------------------------------------------------------------ the guard by itself


def run_guard(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    options = ["--folder", str(folder), "--name", "g", "--log", str(folder / "g.log"), "--log-bytes", "10000"]
    words = [sys.executable, "-I", "-S", guard.__file__, *options, "--orphan-grace-ms", "200", "--", *command]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def said(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize(
    ("script", "expected", "status"),
    [
        ("exit 0", {"code": 0, "signal": None}, 0),
        ("exit 7", {"code": 7, "signal": None}, 7),
        ("kill -SEGV $$", {"code": None, "signal": 11}, 139),
    ],
)
def test_the_guard_passes_on_how_its_engine_ended(
    folder: Path, script: str, expected: dict[str, Any], status: int
) -> None:
    with run_guard(folder, "/bin/sh", "-c", f"echo words; {script}") as process:
        assert set(said(process)) == {"spawned"}
        assert said(process) == {"exited": expected}
        assert process.wait(WAIT_S) == status
    assert (folder / "g.log").read_text() == "words\n"


def test_the_guard_says_that_a_program_cannot_be_started(folder: Path) -> None:
    (folder / "not-executable").write_text("x")
    with run_guard(folder, str(folder / "not-executable")) as process:
        assert said(process) == {"failed": "Permission denied"}
        assert process.wait(WAIT_S) == guard.EXIT_NOT_STARTED
    assert list(folder.glob("*.json")) == []


def test_the_guard_starts_nothing_that_it_cannot_record(folder: Path) -> None:
    with run_guard(folder / "none", "/bin/sh", "-c", f"touch {folder}/ran") as process:
        assert said(process) == {"failed": f"{folder}/none cannot be written (No such file or directory)"}
        process.wait(WAIT_S)
    assert not (folder / "ran").exists()


def test_sigterm_to_the_guard_ends_its_engine(folder: Path) -> None:
    with run_guard(folder, *fake_command("--port", "0", "--ignore-sigterm")) as process:
        engine = said(process)["spawned"]["pid"]
        eventually(lambda: "model loaded" in (folder / "g.log").read_text(), WAIT_S, "the engine to run")
        process.send_signal(signal.SIGTERM)
        assert said(process) == {"exited": {"code": None, "signal": 9}}
        assert not lives(engine)


def test_a_terminals_interrupt_does_not_reach_the_engine(folder: Path) -> None:
    with run_guard(folder, *fake_command("--port", "0")) as process:
        engine = said(process)["spawned"]["pid"]
        eventually(lambda: "model loaded" in (folder / "g.log").read_text(), WAIT_S, "the engine to run")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert lives(engine)
        assert os.getsid(engine) == engine
        assert process.stdin is not None
        process.stdin.write(b"nonsense\nstop x\nstop 60000\n")
        process.stdin.flush()
        assert said(process) == {"exited": {"code": 0, "signal": None}}
