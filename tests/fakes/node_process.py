"""Real nodes in temporary homes: started, awaited with a bound, and ended by their own process ids.

    def test_something(nodes: Nodes) -> None:
        first = nodes.start("--name", "first")          # runs `agentmesh --client` until the end of the test
        second = nodes.start("--join", first.invite)
        assert first.cli("blackboard", "hi").code == 0  # any command in that home
        assert second.json("status")["peers"]

`nodes` is the fixture in tests/integration/conftest.py; elsewhere use `with Nodes() as nodes:`.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 90.0  # 2 s alone on two cores; 30 and more where a dozen others compute
END_TIMEOUT_S = 30.0  # a node cuts itself off after 5; the machine may stand still meanwhile
COMMAND_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Result:
    """What one command gave."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, f"exit {self.code}: {self.err}"
        return json.loads(self.out)


@dataclass
class NodeHome:
    """One home, and the node that runs in the foreground there, if one does."""

    root: Path
    environment: dict[str, str]
    process: subprocess.Popen[str] | None = None
    invite: str = ""
    started_in_s: float = 0.0
    output: list[str] = field(default_factory=list[str])

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def api_port(self) -> int:
        """Where its model API listens."""
        return int(self.node_json()["api_port"])

    @property
    def stderr_file(self) -> Path:
        return self.root / "foreground.err"

    def node_json(self) -> dict[str, Any]:
        return json.loads((self.root / "run" / "node.json").read_text())

    def cli(self, *arguments: str | bytes, stdin: bytes = b"", timeout_s: float = COMMAND_TIMEOUT_S) -> Result:
        """Run one `agentmesh` command in this home."""
        done = subprocess.run(
            [sys.executable, "-m", "agentmesh", *arguments],
            input=stdin,
            capture_output=True,
            env=self.environment,
            cwd=ROOT,
            timeout=timeout_s,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def json(self, *arguments: str) -> Any:
        """The JSON that a command prints with --json."""
        return self.cli(*arguments, "--json").json()

    def start(
        self, *arguments: str, ready: bool = True, stdin: str | None = None, prefix: Sequence[str] = ()
    ) -> NodeHome:
        """Run a node in the foreground, behind `prefix` if given; with `ready`, wait for its invite.

        It is a `--client` unless models are named.
        """
        assert self.process is None
        role = () if {"--model", "--gguf", "--rpc-peers"} & {*arguments} else ("--client",)
        command = [*prefix, sys.executable, "-m", "agentmesh", *role, *_any_ports(arguments), *arguments]
        began = time.monotonic()
        with self.stderr_file.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdin is not None
        if stdin is not None:
            self.process.stdin.write(stdin)
        self.process.stdin.close()
        if ready:
            self.invite = self.read_line(READY_TIMEOUT_S).removeprefix("Invite: ")
            assert self.invite.startswith("amesh1."), self.stderr_file.read_text()
            self.started_in_s = time.monotonic() - began
        return self

    def read_line(self, timeout_s: float) -> str:
        """The next line on the node's stdout."""
        assert self.process is not None
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        assert readable, f"no output within {timeout_s} s: {self.stderr_file.read_text()}"
        line = self.process.stdout.readline().strip()
        assert line, f"the node ended: {self.stderr_file.read_text()}"
        self.output.append(line)
        return line

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_s: float = END_TIMEOUT_S) -> int:
        """The exit code of the node in the foreground, once it has ended."""
        assert self.process is not None
        code = self.process.wait(timeout_s)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code

    def stop(self) -> int:
        """End it as Ctrl-C does."""
        self.signal(signal.SIGINT)
        return self.wait()

    def kill(self) -> int:
        """End it as a power cut does."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def end_everything(self) -> None:
        """Nothing of this home runs afterwards."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.wait()
        try:
            pid = int(self.node_json()["pid"])
        except (OSError, ValueError, KeyError):
            return
        if self._is_ours(pid):
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not self._is_ours(pid), END_TIMEOUT_S, "the node in the background to end")

    def _is_ours(self, pid: int) -> bool:
        """Whether the process is a node of this home: ids are reused, and only our own processes may be ended."""
        try:
            process = psutil.Process(pid)
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("AGENTMESH_HOME") == str(
                self.root
            )
        except psutil.Error:
            return False


class Nodes:
    """Homes for one test, removed with all that runs in them."""

    def __init__(self) -> None:
        # Not pytest's tmp_path: a socket's path may have 103 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="am-"))
        self.homes: list[NodeHome] = []

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        for home in self.homes:
            home.end_everything()
        shutil.rmtree(self._folder, ignore_errors=True)

    def home(self, environment: Mapping[str, str] | None = None, *, root: Path | None = None) -> NodeHome:
        """A fresh home with nothing running in it, or a second view of `root`."""
        root = root or self._folder / f"h{len(self.homes)}"
        root.mkdir(mode=0o700, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AGENTMESH_")}
        # A node in the background must not meet another test's node on the default console port.
        (root / "config.toml").write_text("console_port = 0\napi_port = 0\n")
        loopback = {"AGENTMESH_HOME": str(root), "AGENTMESH_BIND_HOST": "127.0.0.1"}
        made = NodeHome(root, inherited | loopback | dict(environment or {}))
        self.homes.append(made)
        return made

    def start(self, *arguments: str) -> NodeHome:
        """A fresh home with a node in the foreground."""
        return self.home().start(*arguments)


def _any_ports(arguments: tuple[str, ...]) -> list[str]:
    """Port 0 wherever the test names none."""
    return [
        word for option in ("--console", "--bind-port", "--port") if option not in arguments for word in (option, "0")
    ]


def wait_for(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Look until `condition` holds, at most `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)
