"""One launch from beginning to end: find the API, choose the model, prepare, run the agent, end what was started.

Owns the order of events (docs/launchers.md) and what each failure means for the user; the steps are in their own modules.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import agentmesh
from agentmesh.control.api_keys import KEY_VARIABLE, api_keys
from agentmesh.control.tokens import JOIN_VARIABLE
from agentmesh.core.errors import InvalidInput
from agentmesh.core.paths import Home
from agentmesh.launchers import files
from agentmesh.launchers.api import Api, FoundApi, ModelWait, Say, base_url, release, running_api, start_api
from agentmesh.launchers.base import Agent, AgentMissing, Launch, McpCommand, MeshModel, Wish
from agentmesh.launchers.run import attached, put_off, run_agent, tidy_end

VERSION_TIMEOUT_S: Final = 10.0
APP_FOLDERS: Final = (Path("/Applications"),)
AUTO: Final = "auto"  # what the API takes for "the best you have"
# Of this process's settings, what the MCP server needs to be the same member of the same mesh.
_MCP_VARIABLES: Final = ("AGENTMESH_AUTHOR", "AGENTMESH_READER", "AGENTMESH_BIND_HOST")


@dataclass(frozen=True, slots=True)
class Order:
    """What the user asked for."""

    agent: Agent
    model: str | None = None
    port: int | None = None
    write: bool = False
    with_blackboard: bool = False
    arguments: tuple[str, ...] = ()


class Session:
    """Carries out one order in an environment."""

    def __init__(
        self,
        order: Order,
        home: Home,
        environ: Mapping[str, str],
        say: Say,
        *,
        user_home: Path | None = None,
        platform: str = sys.platform,
    ) -> None:
        self._order = order
        self._home = home
        self._environ = environ
        self._say = say
        if environ.get("HOME") == "":
            raise InvalidInput(
                "HOME is set to nothing: agents would look for their files in odd places. Set or unset it."
            )
        self._user_home = user_home or Path.home()
        self._platform = platform
        self._key = _one_key(environ)
        self._program = shutil.which(order.agent.command, path=environ.get("PATH"))

    def run(self) -> int:
        """Start the agent and wait for it; its exit code.

        Raises:
            AgentMissing, NoModel, NoNode, InvalidInput, ConfigUnusable, LauncherError: each before the agent runs.
        """
        with tidy_end():
            return self._run()

    def _run(self) -> int:
        app = None if self._program else self._app()
        if self._program is None and app is None:
            raise AgentMissing(self._missing())
        found = running_api(self._home, self._order.port, self._key, self._say)
        fresh = found is None and self._has_mesh()
        try:
            if found is None:
                with put_off():
                    found = start_api(self._home, self._say)
            with attached(self._home if found.node is not None else None):
                models, model = ModelWait(Api(found.base_url, self._key).models, self._say).choose(
                    self._order.model, fresh=fresh
                )
                self._tell(model)
                launch = self._prepare(found, models, model)
                if app is not None:
                    self._say(f"goose is not installed; opening {app}, which has the provider 'agentmesh' now")
                    return run_agent(("open", "-W", "-a", str(app)), self._environment(launch))
                return run_agent((self._program or launch.argv[0], *launch.argv[1:]), self._environment(launch))
        finally:
            if found is not None:
                release(found, self._say)

    def describe(self) -> tuple[Wish, Launch]:
        """What `run` would do; starts and changes nothing."""
        if self._program is None:
            self._say(self._missing())
        found = running_api(self._home, self._order.port, self._key, self._say)
        if found is None:
            self._say("no node runs: this is what it would be with one; the model would be chosen then")
            model = MeshModel(self._order.model or AUTO)
            wish = self._wish(FoundApi(base_url(self._order.port)), (model,), model)
        else:
            models, model = ModelWait(Api(found.base_url, self._key).models, self._say).choose(
                self._order.model, fresh=False
            )
            wish = self._wish(found, models, model)
        paths = self._reads()
        wish = _with_existing(wish, files.read_all(paths))
        return wish, self._plan(wish)

    # ------------------------------------------------------------------ steps

    def _has_mesh(self) -> bool:
        """Whether a node that starts here has others to wait for; else it founds a mesh of its own."""
        return self._home.current_mesh.exists() or bool(self._environ.get(JOIN_VARIABLE, "").strip())

    def _prepare(self, found: FoundApi, models: tuple[MeshModel, ...], model: MeshModel) -> Launch:
        wish = self._wish(found, models, model)
        record = self._home.root / "launchers.json"
        launch, notes = files.apply(self._reads(), lambda existing: self._plan(_with_existing(wish, existing)), record)
        for note in (*notes, *launch.notes):
            self._say(note)
        return launch

    def _wish(self, found: FoundApi, models: tuple[MeshModel, ...], model: MeshModel) -> Wish:
        order = self._order
        return Wish(
            base_url=found.base_url,
            models=models,
            model=model,
            key=self._key,
            blackboard=mcp_command(self._home, self._environ) if order.with_blackboard else None,
            skill=_skill_folder() if order.with_blackboard else None,
            arguments=order.arguments,
            environ=self._environ,
            home=self._user_home,
            write=order.write,
            version=self._version() if order.agent.needs_version and order.with_blackboard else "",
        )

    def _reads(self) -> tuple[Path, ...]:
        return self._order.agent.reads(self._environ, self._user_home, self._order.write)

    def _plan(self, wish: Wish) -> Launch:
        """The adapter's launch, and what every agent needs for calling `agentmesh` itself."""
        launch = self._order.agent.plan(wish)
        more: dict[str, str] = {}
        if self._environ.get("AGENTMESH_HOME", str(self._home.root)) != str(self._home.root):
            more["AGENTMESH_HOME"] = str(self._home.root)  # it was relative; the agent may run in another directory
        path = self._environ.get("PATH", os.defpath)
        if self._order.with_blackboard and shutil.which("agentmesh", path=path) is None:
            # The skill runs `agentmesh`; behind everything else, so that it hides nothing.
            more["PATH"] = f"{path}{os.pathsep}{Path(sys.executable).parent}"
        return dataclasses.replace(launch, environment={**launch.environment, **more})

    def _environment(self, launch: Launch) -> dict[str, str]:
        kept = {name: value for name, value in self._environ.items() if name not in launch.unset}
        return {**kept, **launch.environment}

    def _tell(self, model: MeshModel) -> None:
        self._say(f"{self._order.agent.title} with {model.id}")
        if not model.can("tools"):
            self._say(f"{model.id} cannot call tools: the agent can talk with it, not work with it")

    def _missing(self) -> str:
        agent = self._order.agent
        return f"{agent.title} is not installed: there is no '{agent.command}' on the PATH. Install it: {agent.install}"

    def _app(self) -> Path | None:
        """The agent's application, on macOS."""
        name = self._order.agent.app
        if name is None or self._platform != "darwin":
            return None
        folders = (*APP_FOLDERS, self._user_home / "Applications")
        return next((app for folder in folders if (app := folder / f"{name}.app").exists()), None)

    def _version(self) -> str:
        if self._program is None:
            return ""
        try:
            done = subprocess.run(
                [self._program, "--version"],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=VERSION_TIMEOUT_S,
                env=dict(self._environ),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        words = done.stdout.decode("utf-8", "replace").split()
        return next((word for word in reversed(words) if word.lstrip("v")[:1].isdigit()), "")


def _with_existing(wish: Wish, existing: Mapping[Path, str | None]) -> Wish:
    return dataclasses.replace(wish, existing=existing)


def _one_key(environ: Mapping[str, str]) -> str | None:
    """The first key of $AGENTMESH_API_KEY: a node may know several."""
    words = environ.get(KEY_VARIABLE, "").split()
    if words:
        api_keys(None, environ)  # says what is wrong with them
    return words[0] if words else None


def mcp_command(home: Home, environ: Mapping[str, str]) -> McpCommand:
    """How to start this very agentmesh as MCP server, from any directory and without this shell's environment.

    The script beside the interpreter where there is one: goose names the tools after the file.
    """
    environment = {"AGENTMESH_HOME": str(home.root)}
    environment |= {name: environ[name] for name in _MCP_VARIABLES if environ.get(name)}
    script = Path(sys.executable).parent / "agentmesh"
    if script.is_file() and os.access(script, os.X_OK):
        return McpCommand((str(script), "blackboard", "--mcp"), environment)
    package_parent = Path(agentmesh.__file__).resolve().parent.parent
    if package_parent.name not in ("site-packages", "dist-packages"):  # run from a checkout
        environment["PYTHONPATH"] = str(package_parent)
    # -P: the agent's working directory must not be a place to import modules from.
    return McpCommand((sys.executable, "-P", "-m", "agentmesh", "blackboard", "--mcp"), environment)


def _skill_folder() -> str | None:
    """Where the skill of this installation lies, for agents that can be pointed to it."""
    from importlib.resources import files as package_files

    checkout = Path(agentmesh.__file__).resolve().parent.parent / "skills" / "blackboard"
    packaged = Path(str(package_files("agentmesh"))) / "_data" / "skills" / "blackboard"
    return next((str(folder) for folder in (packaged, checkout) if (folder / "SKILL.md").is_file()), None)
