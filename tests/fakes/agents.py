"""The real coding agents from npm, at the versions of agents.toml, in the user's cache; installed when they are not there yet.

Each has a folder of its own, named by its pin, that appears whole or not at all, and only after the agent ran; two test runs
at once install once. They bring their own Node.js. To install them ahead of the tests: python -m tests.fakes.agents

`AgentHome` is a user's home for them: nothing of the developer's configuration, keys or proxies, and no way to the internet.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.node_process import Result

PINS: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
NODE_VERSION: str = PINS.pop("node")
AGENTS: tuple[str, ...] = tuple(PINS)
INSTALL_TIMEOUT_S = 540.0  # 20 s each on a fast line; together they are 2 GB
VERSION_TIMEOUT_S = 120.0
NOWHERE = "http://127.0.0.1:9"  # refuses at once what would otherwise wait for a network that is not there

# Found when this is imported: the fixtures of the tests change the environment.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentmesh" / "agents"
MACHINE_PATH = os.environ.get("PATH", os.defpath)


class AgentsMissing(Exception):
    """The agents cannot be installed here."""


@dataclass(frozen=True)
class InstalledAgents:
    """Where the agents' programs are: agent -> folder; `node` is the folder of Node.js."""

    folders: Mapping[str, Path]
    node: Path

    def path_of(self, agent: str) -> str:
        """A PATH on which that agent, its Node.js, this agentmesh and the machine's programs are, in this order."""
        folders = [self.folders[agent], self.node, Path(sys.executable).parent]
        return os.pathsep.join([*map(str, folders), MACHINE_PATH])


def installed_agents() -> InstalledAgents:
    """Every agent, installed if need be. Raises AgentsMissing without npm, AssertionError when one cannot be installed."""
    node = _installed("node", {"package": "node", "version": NODE_VERSION, "scripts": ["node"]}, None)
    return InstalledAgents({name: _installed(name, pin, node) for name, pin in PINS.items()}, node)


def _installed(name: str, pin: Mapping[str, Any], node: Path | None) -> Path:
    """The folder of the programs of one package."""
    digest = hashlib.sha256(json.dumps([pin, NODE_VERSION], sort_keys=True).encode()).hexdigest()[:8]
    folder = CACHE / f"{name}-{pin['version']}-{digest}"
    programs = folder / "node_modules" / ".bin"
    if programs.is_dir():
        return programs
    npm = shutil.which("npm", path=MACHINE_PATH)
    if npm is None:
        raise AgentsMissing("needs npm (Node.js) to install the real coding agents")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not programs.is_dir():
            _install(npm, name, pin, node, folder)
    return programs


def _install(npm: str, name: str, pin: Mapping[str, Any], node: Path | None, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="installing-") as temporary:
        new = Path(temporary) / "agent"
        new.mkdir()
        manifest = {
            "private": True,
            "dependencies": {pin["package"]: pin["version"]},
            "allowScripts": dict.fromkeys(pin.get("scripts", ()), True),
        }
        (new / "package.json").write_text(json.dumps(manifest))
        path = MACHINE_PATH if node is None else f"{node}{os.pathsep}{MACHINE_PATH}"
        done = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--no-progress", "--loglevel=error"],
            cwd=new,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"npm could not install {pin}: {done.stderr}"
        programs = new / "node_modules" / ".bin"
        with AgentHome(f"{programs}{os.pathsep}{path}") as home:
            said = home.run([name, "--version"], timeout_s=VERSION_TIMEOUT_S)
        assert pin.get("says", pin["version"]) in said.out, f"npm brought another {name} than {pin}: {said}"
        new.rename(folder)


class AgentHome:
    """A user's home in a temporary folder, and the environment of programs that run in it."""

    def __init__(self, path: str, extra: Mapping[str, str] | None = None) -> None:
        """`path` is the PATH; `extra` is put into the environment."""
        self.root = Path(tempfile.mkdtemp(prefix="agent-home-"))
        self.work = self.root / "work"
        for name in ("work", "tmp", ".config", ".cache", ".local/share", ".local/state", "run"):
            (self.root / name).mkdir(parents=True, mode=0o700)
        (self.root / ".profile").write_text(f"export PATH={shlex.quote(path)}\n")  # login shells set their own first
        self.environment = {
            "PATH": path,
            "HOME": str(self.root),
            "XDG_CONFIG_HOME": str(self.root / ".config"),
            "XDG_CACHE_HOME": str(self.root / ".cache"),
            "XDG_DATA_HOME": str(self.root / ".local/share"),
            "XDG_STATE_HOME": str(self.root / ".local/state"),
            "XDG_RUNTIME_DIR": str(self.root / "run"),
            "TMPDIR": str(self.root / "tmp"),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "NO_COLOR": "1",
            "GOOSE_DISABLE_KEYRING": "1",
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
            **(extra or {}),
        }

    def __enter__(self) -> AgentHome:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def run(self, command: Sequence[str], *, timeout_s: float) -> Result:
        """Run a program in the home's work folder, with nothing on its stdin. Ends it, and says so, after `timeout_s`."""
        program = shutil.which(command[0], path=self.environment["PATH"])
        assert program is not None, f"no {command[0]} on {self.environment['PATH']}"
        out, errors = (
            self.root / "stdout",
            self.root / "stderr",
        )  # files: what an agent leaves running may hold a pipe open
        with out.open("wb") as out_file, errors.open("wb") as errors_file:
            process = subprocess.Popen(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=errors_file,
                env=self.environment,
                cwd=self.work,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # an agent is several processes
                process.wait()
                code = None
        result = Result(code or 0, out.read_text(errors="replace"), errors.read_text(errors="replace"))
        assert code is not None, f"{command} did not end within {timeout_s} s: {result}"
        return result


def main() -> None:
    began = time.monotonic()
    installed = installed_agents()
    for name, folder in installed.folders.items():
        print(f"{name} {PINS[name]['version']}: {folder}")
    print(f"{time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
