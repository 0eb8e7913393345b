"""What each agent is started with: golden descriptions, and how files of the user are merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentmesh.launchers import claude, codex, goose, opencode, pi
from agentmesh.launchers.agents import AGENTS
from agentmesh.launchers.base import Agent, ConfigUnusable, Launch, LauncherError, MeshModel
from tests.unit.launchers.wishes import BIG, BOARD, HOME, KEY, SMALL, planned

GOOSE_FILE = HOME / ".config/goose/custom_providers/mesh.json"
PI_FILE = HOME / ".pi/agent/models.json"
CODEX_FILE = HOME / ".codex/config.toml"


def content(launch: Launch) -> Any:
    return json.loads(launch.files[0].content)


# ------------------------------------------------------------------ Claude Code


def test_claude_gets_everything_through_its_environment() -> None:
    launch = planned(claude.CLAUDE, arguments=("-p", "hi"))
    assert launch.argv == ("claude", "-p", "hi")
    assert launch.files == ()
    assert launch.environment == {
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9337",
        "ANTHROPIC_AUTH_TOKEN": "mesh",
        "ANTHROPIC_API_KEY": "",
        "ANTHROPIC_MODEL": "big-Q4",
        "ANTHROPIC_DEFAULT_OPUS_MODEL": "big-Q4",
        "ANTHROPIC_DEFAULT_SONNET_MODEL": "big-Q4",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "big-Q4",
        "ANTHROPIC_DEFAULT_FABLE_MODEL": "big-Q4",
        "CLAUDE_CODE_SUBAGENT_MODEL": "big-Q4",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "131072",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "32000",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
    }
    assert {"CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "ANTHROPIC_CUSTOM_HEADERS"} <= set(launch.unset)


def test_claude_gets_the_board_in_one_word_so_that_a_prompt_after_it_is_no_file() -> None:
    launch = planned(claude.CLAUDE, blackboard=BOARD, arguments=("hi",))
    _, servers, allowed, prompt = launch.argv
    name, _, value = servers.partition("=")
    assert (name, allowed, prompt) == ("--mcp-config", "--allowedTools=mcp__agentmesh", "hi")
    assert json.loads(value)["mcpServers"]["agentmesh"] == {
        "type": "stdio",
        "command": "/opt/venv/bin/agentmesh",
        "args": ["blackboard", "--mcp"],
        "env": {"AGENTMESH_HOME": "/home/ada/.agentmesh"},
    }
    assert launch.environment["ENABLE_TOOL_SEARCH"] == "false"


@pytest.mark.parametrize("variable", [None, "/elsewhere"])
def test_an_env_in_claudes_settings_that_leads_elsewhere_is_set_again(variable: str | None) -> None:
    folder = Path(variable) if variable else HOME / ".claude"
    settings = {"env": {"ANTHROPIC_BASE_URL": "https://gateway", "EDITOR": "vi", "CLAUDE_CODE_USE_BEDROCK": "1"}}
    launch = planned(
        claude.CLAUDE,
        {folder / "settings.json": json.dumps(settings)},
        environ={"CLAUDE_CONFIG_DIR": variable} if variable else {},
    )
    assert launch.argv[1] == "--settings"
    assert json.loads(launch.argv[2]) == {
        "env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9337", "CLAUDE_CODE_USE_BEDROCK": ""}
    }


@pytest.mark.parametrize("name", ["settings.json", "settings.local.json"])
def test_an_env_in_the_settings_of_the_project_does_not_lead_claude_elsewhere(name: str) -> None:
    settings = json.dumps({"env": {"ANTHROPIC_BASE_URL": "http://of-the-repository"}})
    launch = planned(claude.CLAUDE, {Path(".claude") / name: settings}, key=KEY)
    assert json.loads(launch.argv[2]) == {"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9337"}}
    assert Path(".claude") / name in claude.CLAUDE.reads({}, HOME, False)


def test_a_helper_for_another_accounts_key_is_not_asked_for_the_mesh() -> None:
    launch = planned(claude.CLAUDE, {HOME / ".claude/settings.json": '{"apiKeyHelper": "echo sk-real"}'})
    assert launch.argv == ("claude", "--settings", '{"apiKeyHelper": ""}')


@pytest.mark.parametrize("text", ["{ broken", "[]", '{"env": 7}', '{"model": "opus"}', ""])
def test_other_settings_of_claude_change_nothing(text: str) -> None:
    assert planned(claude.CLAUDE, {HOME / ".claude/settings.json": text}).argv == ("claude",)


def test_a_key_never_comes_onto_claudes_command_line() -> None:
    settings = json.dumps({"env": {"ANTHROPIC_AUTH_TOKEN": "theirs"}})
    launch = planned(claude.CLAUDE, {HOME / ".claude/settings.json": settings}, key=KEY)
    assert launch.environment["ANTHROPIC_AUTH_TOKEN"] == KEY
    assert KEY not in " ".join(launch.argv)
    assert "remove it there" in launch.notes[0]


# ------------------------------------------------------------------ goose


def test_goose_gets_a_provider_file_and_chooses_it_in_the_environment() -> None:
    launch = planned(goose.GOOSE)
    assert launch.argv == ("goose", "session")
    assert launch.environment == {
        "GOOSE_PROVIDER": "mesh",
        "GOOSE_MODEL": "big-Q4",
        "GOOSE_CONTEXT_LIMIT": "131072",
    }
    assert launch.files[0].path == GOOSE_FILE
    assert content(launch) == {
        "name": "mesh",
        "engine": "openai",
        "display_name": "agentmesh",
        "description": "Models of the mesh",
        "api_key_env": "",
        "base_url": "http://127.0.0.1:9337/v1/chat/completions",
        "models": [{"name": "big-Q4", "context_limit": 131072}, {"name": "small-Q4", "context_limit": 8192}],
        "timeout_seconds": 600,
        "supports_streaming": True,
        "requires_auth": False,
    }


def test_gooses_file_keeps_what_the_user_added_and_chose() -> None:
    mine = {"name": "mesh", "timeout_seconds": 60, "headers": {"x": "y"}, "base_url": "http://old"}
    merged = content(planned(goose.GOOSE, {GOOSE_FILE: json.dumps(mine)}))
    assert merged["headers"] == {"x": "y"}
    assert merged["timeout_seconds"] == 60
    assert merged["base_url"] == "http://127.0.0.1:9337/v1/chat/completions"


def test_gooses_folder_is_where_xdg_says() -> None:
    launch = planned(goose.GOOSE, environ={"XDG_CONFIG_HOME": "/cfg"})
    assert launch.files[0].path == Path("/cfg/goose/custom_providers/mesh.json")
    relative = planned(goose.GOOSE, environ={"XDG_CONFIG_HOME": "cfg"})
    assert relative.files[0].path == GOOSE_FILE


def test_an_agents_own_folder_may_be_relative_to_the_working_directory() -> None:
    assert planned(pi.PI, environ={"PI_CODING_AGENT_DIR": "mine"}).files[0].path == Path("mine/models.json")
    assert planned(codex.CODEX, environ={"CODEX_HOME": "mine"}, write=True).files[0].path == Path("mine/config.toml")
    assert planned(pi.PI, environ={"PI_CODING_AGENT_DIR": ""}).files[0].path == PI_FILE


def test_an_empty_root_does_not_make_goose_look_into_the_working_directory() -> None:
    launch = planned(goose.GOOSE, environ={"GOOSE_PATH_ROOT": ""})
    assert launch.files[0].path == GOOSE_FILE
    assert launch.unset == ("GOOSE_PATH_ROOT",)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ("session", "--with-extension", "EXTENSION")),
        (("session", "--resume"), ("session", "--with-extension", "EXTENSION", "--resume")),
        (("run", "-t", "hi"), ("run", "--with-extension", "EXTENSION", "-t", "hi")),
        (("session", "list"), ("session", "list")),
        (("configure",), ("configure",)),
    ],
)
def test_goose_gets_the_board_where_it_takes_extensions(arguments: tuple[str, ...], expected: tuple[str, ...]) -> None:
    launch = planned(goose.GOOSE, blackboard=BOARD, arguments=arguments)
    extension = "AGENTMESH_HOME=/home/ada/.agentmesh /opt/venv/bin/agentmesh blackboard --mcp"
    assert launch.argv == ("goose", *(extension if word == "EXTENSION" else word for word in expected))
    assert bool(launch.notes) == ("--with-extension" not in expected)


def test_a_key_is_named_in_gooses_file_and_not_written() -> None:
    launch = planned(goose.GOOSE, key=KEY)
    assert content(launch)["api_key_env"] == "AGENTMESH_API_KEY"
    assert content(launch)["requires_auth"] is True
    assert launch.environment["AGENTMESH_API_KEY"] == KEY
    assert KEY not in launch.files[0].content


# ------------------------------------------------------------------ pi


def test_pi_gets_a_provider_and_the_model_on_its_command_line() -> None:
    launch = planned(pi.PI, arguments=("-p", "hi"))
    assert launch.argv == ("pi", "--model", "mesh/big-Q4", "-p", "hi")
    assert launch.files[0].path == PI_FILE
    provider = content(launch)["providers"]["mesh"]
    assert {name: provider[name] for name in ("api", "apiKey", "baseUrl")} == {
        "api": "openai-completions",
        "apiKey": "mesh",
        "baseUrl": "http://127.0.0.1:9337/v1",
    }
    assert provider["models"][0] == {
        "id": "big-Q4",
        "name": "big-Q4",
        "contextWindow": 131072,
        "maxTokens": 32000,
        "reasoning": True,
        "input": ["text", "image"],
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        "compat": {"maxTokensField": "max_tokens", "supportsDeveloperRole": False, "supportsUsageInStreaming": False},
    }
    assert provider["models"][1]["input"] == ["text"]


def test_pis_file_keeps_other_providers_comments_and_what_the_user_set() -> None:
    mine = """{
  // at work
  "providers": {
    "work": {"baseUrl": "https://w/v1", "apiKey": "s"},
    "mesh": {"headers": {"x": "y"}, "models": [{"id": "small-Q4", "samplingParams": {"top_k": 3}, "maxTokens": 1}, {"id": "gone"}]},
  }
}
"""
    launch = planned(pi.PI, {PI_FILE: mine})
    text = launch.files[0].content
    assert "// at work" in text
    assert '"work": {"baseUrl": "https://w/v1", "apiKey": "s"},' in text
    provider = pi.json_edit.parse(text, relaxed=True)["providers"]["mesh"]
    assert provider["headers"] == {"x": "y"}
    assert [entry["id"] for entry in provider["models"]] == ["big-Q4", "small-Q4"]
    assert provider["models"][1]["samplingParams"] == {"top_k": 3}
    assert provider["models"][1]["maxTokens"] == SMALL.output_tokens


def test_pis_folder_is_where_its_variable_says_and_a_key_is_named_only() -> None:
    launch = planned(pi.PI, environ={"PI_CODING_AGENT_DIR": "/pi"}, key=KEY)
    assert launch.files[0].path == Path("/pi/models.json")
    assert content(launch)["providers"]["mesh"]["apiKey"] == "$AGENTMESH_API_KEY"
    assert launch.environment == {"AGENTMESH_API_KEY": KEY}


def test_pi_is_pointed_to_the_skill() -> None:
    launch = planned(pi.PI, blackboard=BOARD, skill="/opt/skills/blackboard", arguments=("hi",))
    assert launch.argv == ("pi", "--model", "mesh/big-Q4", "--skill", "/opt/skills/blackboard", "hi")


def test_pis_own_commands_get_no_model() -> None:
    assert planned(pi.PI, arguments=("list",)).argv == ("pi", "list")


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize(
    ("agent", "path", "text", "place"),
    [
        (goose.GOOSE, GOOSE_FILE, '{\n  "name": "mesh"\n  "x": 1}', "line 3, column 3"),
        (goose.GOOSE, GOOSE_FILE, "// note\n{}", "line 1, column 1"),
        (pi.PI, PI_FILE, '{"providers": {\n  "a": }', "line 2, column 8"),
        (pi.PI, PI_FILE, '{"providers": []}', "must be an object"),
        (codex.CODEX, CODEX_FILE, "a = 1\nb = = 2\n", "line 2, column 4"),
    ],
)
def test_a_file_that_does_not_parse_is_refused_with_the_place(agent: Agent, path: Path, text: str, place: str) -> None:
    with pytest.raises(ConfigUnusable, match="left as it is") as refused:
        planned(agent, {path: text}, write=True)
    assert str(path) in refused.value.message
    assert place in refused.value.message
    assert " col " not in refused.value.message


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_the_same_wish_twice_changes_no_file_the_second_time(agent: Agent) -> None:
    first = planned(agent, write=True)
    again = planned(agent, {file.path: file.content for file in first.files}, write=True)
    assert not any(file.changes for file in again.files)


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_every_file_that_is_planned_was_asked_for_first(agent: Agent) -> None:
    launch = planned(agent, write=True)
    assert {file.path for file in launch.files} <= set(agent.reads({}, HOME, True))


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_a_key_is_in_no_file_and_on_no_command_line(agent: Agent) -> None:
    launch = planned(agent, write=True, key=KEY, blackboard=BOARD)
    assert KEY in " ".join(launch.environment.values())
    assert KEY not in " ".join(launch.argv) + "".join(file.content for file in launch.files)


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_the_users_arguments_come_last_and_unchanged(agent: Agent) -> None:
    arguments = ("run", "--flag", "a b", "", "--", "-x", "ü'\"")
    assert planned(agent, arguments=arguments, blackboard=BOARD).argv[-6:] == arguments[1:]


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_a_model_of_unknown_context_still_gets_a_usable_one(agent: Agent) -> None:
    unknown = MeshModel("x")
    launch = planned(agent, model=unknown, models=(unknown,))
    shown = str(launch.environment) + str(launch.argv) + "".join(file.content for file in launch.files)
    assert "32768" in shown
    assert BIG.id not in shown


@pytest.mark.parametrize("name", ["{env:AWS_SECRET_ACCESS_KEY}", "x{file:~/.ssh/id_rsa}"])
def test_a_members_model_named_like_opencodes_references_gets_nothing_of_this_machine(name: str) -> None:
    hostile = MeshModel(name, parameters=10**15)
    launch = planned(opencode.OPENCODE, models=(BIG, hostile))
    assert name not in launch.environment[opencode.VARIABLE]
    assert BIG.id in launch.environment[opencode.VARIABLE]
    with pytest.raises(LauncherError, match="--model"):
        planned(opencode.OPENCODE, models=(BIG, hostile), model=hostile)
