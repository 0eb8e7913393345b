"""The order of a launch, with a fake agent and a fake API; nothing here starts a node."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentmesh.core.errors import InvalidInput
from agentmesh.core.paths import Home
from agentmesh.launchers import session as module
from agentmesh.launchers.agents import AGENTS
from agentmesh.launchers.api import FoundApi
from agentmesh.launchers.base import AgentMissing, ConfigUnusable, NoModel
from agentmesh.launchers.session import Order, Session, mcp_command
from tests.fakes.fake_agent import FakeAgent
from tests.fakes.model_api import ModelApi, model

BY_NAME = {agent.name: agent for agent in AGENTS}


class World:
    """A user with a home directory and a PATH that holds only what a test puts there."""

    def __init__(self, root: Path) -> None:
        self.user_home = root / "user"
        self.bin = root / "bin"
        self.user_home.mkdir()
        self.bin.mkdir()
        self.home = Home(root / "mesh")
        self.environ = {"PATH": str(self.bin), "HOME": str(self.user_home)}
        self.said: list[str] = []

    def session(self, name: str, platform: str = "linux", **order: Any) -> Session:
        return Session(
            Order(BY_NAME[name], **order),
            self.home,
            self.environ,
            self.said.append,
            user_home=self.user_home,
            platform=platform,
        )

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.user_home)) for path in self.user_home.rglob("*") if path.is_file())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def api() -> Iterator[ModelApi]:
    with ModelApi([model("big", parameters=70, context_length=65536), model("small", parameters=3)]) as api:
        yield api


def test_the_agent_runs_with_the_strongest_model_and_its_exit_code_is_ours(world: World, api: ModelApi) -> None:
    agent = FakeAgent(world.bin, "claude")
    world.environ["FAKE_AGENT"] = "exit 5"
    assert world.session("claude", port=api.port, arguments=("-p", "hi")).run() == 5
    record = agent.record()
    assert record["argv"] == ["-p", "hi"]
    assert record["environment"]["ANTHROPIC_MODEL"] == "big"
    assert record["environment"]["ANTHROPIC_BASE_URL"] == api.url
    assert record["environment"]["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "65536"
    assert world.said == ["Claude Code with big"]


def test_an_empty_home_is_refused_instead_of_writing_into_the_root_of_the_file_system(world: World) -> None:
    world.environ["HOME"] = ""
    with pytest.raises(InvalidInput, match="HOME"):
        world.session("pi")


def test_variables_that_lead_elsewhere_are_taken_away(world: World, api: ModelApi) -> None:
    agent = FakeAgent(world.bin, "claude")
    world.environ |= {"CLAUDE_CODE_USE_VERTEX": "1", "KEPT": "yes"}
    world.session("claude", port=api.port).run()
    assert "CLAUDE_CODE_USE_VERTEX" not in agent.record()["environment"]
    assert agent.record()["environment"]["KEPT"] == "yes"


def test_an_agent_that_is_not_installed_is_said_with_its_install_command(world: World, api: ModelApi) -> None:
    for name, agent in BY_NAME.items():
        with pytest.raises(AgentMissing) as refused:
            world.session(name, port=api.port).run()
        assert agent.install in refused.value.message
        assert "npm install -g" in refused.value.message
    assert api.asked == 0
    assert world.files() == []


def test_an_unknown_model_starts_nothing_and_writes_nothing(world: World, api: ModelApi) -> None:
    agent = FakeAgent(world.bin, "pi")
    with pytest.raises(InvalidInput, match="Did you mean small"):
        world.session("pi", port=api.port, model="smal").run()
    assert not agent.ran
    assert world.files() == []


def test_with_no_model_anywhere_nothing_is_started(world: World) -> None:
    agent = FakeAgent(world.bin, "goose")
    with ModelApi([model("embedder", capabilities=["embedding"])]) as empty, pytest.raises(NoModel):
        world.session("goose", port=empty.port).run()
    assert not agent.ran
    assert world.files() == []


@pytest.mark.parametrize(
    ("name", "path"), [("goose", ".config/goose/custom_providers/mesh.json"), ("pi", ".pi/agent/models.json")]
)
def test_a_file_that_does_not_parse_stops_the_launch_and_stays(
    world: World, api: ModelApi, name: str, path: str
) -> None:
    agent = FakeAgent(world.bin, name)
    file = world.user_home / path
    file.parent.mkdir(parents=True)
    file.write_text("{ broken")
    with pytest.raises(ConfigUnusable, match="line 1, column 3"):
        world.session(name, port=api.port).run()
    assert not agent.ran
    assert file.read_text() == "{ broken"
    assert world.files() == [path]


def test_files_are_written_before_the_agent_runs_and_again_only_when_they_change(world: World, api: ModelApi) -> None:
    FakeAgent(world.bin, "pi")
    path = world.user_home / ".pi/agent/models.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"providers": {"work": {}}}')
    for _ in range(2):
        assert world.session("pi", port=api.port).run() == 0
    assert world.files() == [".pi/agent/models.json", ".pi/agent/models.json.agentmesh-backup"]
    assert sum("kept as" in line for line in world.said) == 1
    api.models.append(model("new"))
    world.session("pi", port=api.port).run()
    assert '"new"' in path.read_text()
    assert len(world.files()) == 2


@pytest.mark.parametrize("name", list(BY_NAME))
def test_printing_the_configuration_changes_nothing(world: World, api: ModelApi, name: str) -> None:
    wish, launch = world.session(name, port=api.port, write=name == "codex").describe()
    assert wish.model.id == "big"
    assert launch.argv[0] == name
    assert world.files() == []
    assert not world.home.root.exists()
    assert "is not installed" in world.said[0]


def test_printing_the_configuration_without_a_node_starts_none(world: World) -> None:
    with ModelApi([]) as closed:
        port = closed.port
    wish, _ = world.session("claude", port=port, model="named").describe()
    assert (wish.base_url, wish.model.id) == (f"http://127.0.0.1:{port}", "named")
    assert any("no node runs" in line for line in world.said)
    assert not world.home.root.exists()


def test_what_is_printed_is_what_is_run(world: World, api: ModelApi) -> None:
    agent = FakeAgent(world.bin, "opencode", version="opencode 2.1.0")
    order: dict[str, Any] = {"port": api.port, "with_blackboard": True, "arguments": ("run", "x")}
    _, launch = world.session("opencode", **order).describe()
    world.session("opencode", **order).run()
    record = agent.record()
    assert tuple(record["argv"]) == launch.argv[1:]
    assert {name: record["environment"][name] for name in launch.environment} == dict(launch.environment)
    assert '"servers"' in launch.environment["OPENCODE_CONFIG_CONTENT"]


def test_the_agent_finds_agentmesh_behind_everything_else_on_its_path(world: World, api: ModelApi) -> None:
    agent = FakeAgent(world.bin, "pi")
    world.session("pi", port=api.port, with_blackboard=True).run()
    assert agent.record()["environment"]["PATH"] == f"{world.bin}:{Path(sys.executable).parent}"
    assert agent.record()["argv"][2] == "--skill"
    assert (Path(agent.record()["argv"][3]) / "SKILL.md").is_file()


def test_a_model_without_tools_is_said(world: World) -> None:
    FakeAgent(world.bin, "pi")
    with ModelApi([model("talker", capabilities=["chat"])]) as api:
        assert world.session("pi", port=api.port).run() == 0
    assert any("talker cannot call tools" in line for line in world.said)


def test_the_first_of_several_keys_is_used(world: World) -> None:
    agent = FakeAgent(world.bin, "claude")
    world.environ["AGENTMESH_API_KEY"] = "the-first-key-of-two the-other-key-of-two"
    with ModelApi([model("x")], key="the-first-key-of-two") as api:
        assert world.session("claude", port=api.port).run() == 0
    assert agent.record()["environment"]["ANTHROPIC_AUTH_TOKEN"] == "the-first-key-of-two"


def test_a_key_that_is_too_short_is_refused(world: World) -> None:
    world.environ["AGENTMESH_API_KEY"] = "short"
    with pytest.raises(InvalidInput, match="not usable"):
        world.session("claude")


@pytest.mark.parametrize("failing", [False, True])
def test_the_node_that_was_started_is_released_however_the_launch_ends(
    world: World, api: ModelApi, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    FakeAgent(world.bin, "claude")
    world.environ["AGENTMESH_JOIN"] = "amesh1.x"
    events: list[str] = []

    @contextmanager
    def attached(home: Home | None) -> Iterator[None]:
        events.append("attached")
        yield
        events.append("detached")

    found = FoundApi(api.url, node=None, started=True)
    monkeypatch.setattr(module, "running_api", lambda *_: None)
    monkeypatch.setattr(module, "start_api", lambda *_: found)
    monkeypatch.setattr(module, "attached", attached)
    monkeypatch.setattr(module, "release", lambda released, _say: events.append(f"released {released.started}"))
    if failing:
        api.models.clear()
        monkeypatch.setattr("agentmesh.launchers.api.FRESH_WAIT_S", 0.0)
        with pytest.raises(NoModel):
            world.session("claude").run()
        assert events == ["attached", "released True"]
    else:
        monkeypatch.setattr("agentmesh.launchers.api.SETTLE_S", 0.0)
        assert world.session("claude").run() == 0
        assert events == ["attached", "detached", "released True"]


@pytest.mark.parametrize("member", [False, True])
def test_only_a_node_that_has_others_is_given_time_to_find_them(
    world: World, api: ModelApi, monkeypatch: pytest.MonkeyPatch, member: bool
) -> None:
    FakeAgent(world.bin, "claude")
    monkeypatch.setattr(module, "running_api", lambda *_: None)
    monkeypatch.setattr(module, "start_api", lambda *_: FoundApi(api.url))
    monkeypatch.setattr("agentmesh.launchers.api.SETTLE_S", 0.0)
    if member:
        world.home.meshes.mkdir(parents=True)
        world.home.current_mesh.write_text("x")
    world.session("claude").run()
    assert any("waiting up to 10 s" in line for line in world.said) == member


def test_goose_without_its_command_line_opens_the_app_on_macos(world: World, api: ModelApi) -> None:
    app = world.user_home / "Applications" / "Goose.app"
    app.mkdir(parents=True)
    opener = FakeAgent(world.bin, "open")
    assert world.session("goose", platform="darwin", port=api.port).run() == 0
    assert opener.record()["argv"] == ["-W", "-a", str(app)]
    assert world.files() == [".config/goose/custom_providers/mesh.json"]
    with pytest.raises(AgentMissing):
        world.session("goose", platform="linux", port=api.port).run()


def test_the_mcp_command_is_this_very_agentmesh_in_this_home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = world.bin
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    plain = mcp_command(world.home, {"AGENTMESH_AUTHOR": "ada", "SECRET": "x"})
    assert plain.argv == (str(scripts / "python"), "-P", "-m", "agentmesh", "blackboard", "--mcp")
    assert plain.environment["AGENTMESH_HOME"] == str(world.home.root)
    assert plain.environment["AGENTMESH_AUTHOR"] == "ada"
    assert "SECRET" not in plain.environment
    FakeAgent(scripts, "agentmesh")
    assert mcp_command(world.home, {}).argv == (str(scripts / "agentmesh"), "blackboard", "--mcp")
