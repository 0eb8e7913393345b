"""`agentmesh claude` and its siblings as processes: exit codes, signals, the terminal, and several at once."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fakes.fake_agent import FakeAgent
from tests.fakes.model_api import ModelApi, model
from tests.fakes.node_process import ROOT, wait_for

WAIT_S = 60.0
# As the console script, whether or not main.py has the commands already.
PROGRAM = """
import sys
from agentmesh.cli.launch import launch_commands
from agentmesh.cli.main import cli, run
for command in launch_commands:
    cli.add_command(command)
sys.exit(run())
"""


class User:
    """A user's machine: home directory, PATH, and an API on a port."""

    def __init__(self, root: Path, api: ModelApi) -> None:
        self.root = root
        self.home = root / "user"
        self.home.mkdir()
        self.api = api
        self.environment = {
            "PATH": f"{root / 'bin'}:{os.defpath}",
            "HOME": str(self.home),
            "AGENTMESH_HOME": str(root / "mesh"),
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
        }

    def agent(self, name: str) -> FakeAgent:
        return FakeAgent(self.root / "bin", name)

    def command(self, *arguments: str) -> list[str]:
        name, *rest = arguments
        return [sys.executable, "-c", PROGRAM, name, "--port", str(self.api.port), *rest]

    def run(self, *arguments: str, behaviour: str = "exit 0") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env={**self.environment, "FAKE_AGENT": behaviour},
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    def start(self, *arguments: str, behaviour: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments),
            env={**self.environment, "FAKE_AGENT": behaviour},
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    with ModelApi([model("big", parameters=70), model("small", parameters=3)]) as api:
        yield User(tmp_path, api)


def end(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(WAIT_S)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("behaviour", "code"), [("exit 0", 0), ("exit 17", 17), ("exit 3", 3), ("die 9", 137), ("die 2", 130)]
)
def test_the_exit_code_is_the_agents(user: User, behaviour: str, code: int) -> None:
    user.agent("claude")
    done = user.run("claude", "-p", "hi", behaviour=behaviour)
    assert done.returncode == code, done.stderr
    assert done.stdout == "answer of the agent\n"
    assert done.stderr == "agentmesh: Claude Code with big\n"


def test_no_model_is_exit_code_3_with_two_commands(user: User) -> None:
    agent = user.agent("claude")
    user.api.models.clear()
    done = user.run("claude")
    assert done.returncode == 3
    assert "agentmesh --model qwen2.5-3b" in done.stderr
    assert "agentmesh --join TOKEN --client" in done.stderr
    assert not agent.ran


def test_an_unknown_model_is_exit_code_2_with_a_suggestion(user: User) -> None:
    user.agent("codex")
    done = user.run("codex", "--model", "bigg")
    assert done.returncode == 2
    assert "Did you mean big?" in done.stderr


def test_an_agent_that_is_not_installed_is_exit_code_1_with_its_install_command(user: User) -> None:
    done = user.run("opencode")
    assert done.returncode == 1
    assert done.stderr == (
        "agentmesh: opencode is not installed: there is no 'opencode' on the PATH. Install it: npm install -g opencode-ai\n"
    )


def test_a_file_that_does_not_parse_is_exit_code_1_and_stays(user: User) -> None:
    agent = user.agent("pi")
    file = user.home / ".pi" / "agent" / "models.json"
    file.parent.mkdir(parents=True)
    file.write_text('{\n  "providers": {,}\n}')
    done = user.run("pi")
    assert done.returncode == 1
    assert f"{file} does not parse: line 2, column 17" in done.stderr
    assert file.read_text() == '{\n  "providers": {,}\n}'
    assert not agent.ran


def test_printing_as_json_is_one_object_on_stdout(user: User) -> None:
    done = user.run("codex", "--print-config", "--json", "exec", "hi")
    assert done.returncode == 0
    assert json.loads(done.stdout)["command"][-2:] == ["exec", "hi"]
    assert not (user.root / "mesh").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_to_us_reach_the_agent(user: User, number: signal.Signals) -> None:
    agent = user.agent("claude")
    process = user.start("claude", behaviour="wait")
    wait_for(agent.ready.exists, WAIT_S, "the agent to wait")
    process.send_signal(number)
    assert end(process) == 40 + number
    assert agent.record()["signal"] == number


def test_a_signal_before_the_agent_runs_ends_the_wait(user: User) -> None:
    agent = user.agent("claude")
    user.api.models = [model("slow", ready=False)]
    process = user.start("claude", behaviour="exit 0")
    wait_for(lambda: user.api.asked >= 3, WAIT_S, "the launcher to wait for the model")
    process.send_signal(signal.SIGTERM)
    assert end(process) == 128 + signal.SIGTERM
    assert not agent.ran


def test_ctrl_c_is_the_agents_and_we_wait_for_it(user: User) -> None:
    agent = user.agent("claude")
    process = user.start("claude", behaviour="wait")
    wait_for(agent.ready.exists, WAIT_S, "the agent to wait")
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: the whole group at once
    assert end(process) == 40 + signal.SIGINT
    assert "default_int_handler" in agent.record()["sigint"]


def test_the_agent_has_the_terminal(user: User) -> None:
    agent = user.agent("claude")
    master, slave = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        user.command("claude"),
        env={**user.environment, "FAKE_AGENT": "wait"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=user.root,
        preexec_fn=own_terminal,
    )
    os.close(slave)
    try:
        wait_for(agent.ready.exists, WAIT_S, "the agent to wait")
        assert agent.record()["group"] == process.pid == os.tcgetpgrp(master)
        os.write(master, b"\x03")
        assert process.wait(WAIT_S) == 40 + signal.SIGINT
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_an_agent_that_is_suspended_suspends_us_and_goes_on_with_us(user: User) -> None:
    agent = user.agent("claude")
    process = user.start("claude", behaviour="wait")
    wait_for(agent.ready.exists, WAIT_S, "the agent to wait")
    ours, theirs = psutil.Process(process.pid), psutil.Process(agent.record()["pid"])
    theirs.suspend()
    wait_for(lambda: ours.status() == psutil.STATUS_STOPPED, WAIT_S, "the launcher to stop too")
    ours.resume()
    wait_for(lambda: theirs.status() != psutil.STATUS_STOPPED, WAIT_S, "the agent to go on")
    process.send_signal(signal.SIGTERM)
    assert end(process) == 40 + signal.SIGTERM


def test_the_exit_code_survives_a_parent_that_ignores_the_ends_of_children(user: User) -> None:
    user.agent("claude")
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", ignoring, *user.command("claude")],
        env={**user.environment, "FAKE_AGENT": "exit 17"}, capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 17, done.stderr


def test_launchers_at_once_write_one_whole_file(user: User) -> None:
    user.agent("pi")
    file = user.home / ".pi" / "agent" / "models.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"providers": {"work": {"apiKey": "s"}}}')
    processes = [user.start("pi", "--model", name, behaviour="exit 0") for name in ("big", "small") * 3]
    assert [end(process) for process in processes] == [0] * 6
    assert set(json.loads(file.read_text())["providers"]) == {"work", "mesh"}
    assert sorted(path.name for path in file.parent.iterdir()) == ["models.json", "models.json.agentmesh-backup"]
    assert file.with_name("models.json.agentmesh-backup").read_text() == '{"providers": {"work": {"apiKey": "s"}}}'
