"""What opencode and Codex are started with: no file, unless Codex's is asked for."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agentmesh.launchers import codex, opencode
from agentmesh.launchers.base import ConfigUnusable, Launch, MeshModel
from tests.unit.launchers.wishes import BOARD, HOME, KEY, planned

CODEX_FILE = HOME / ".codex/config.toml"


def config(launch: Launch) -> dict[str, Any]:
    return json.loads(launch.environment["OPENCODE_CONFIG_CONTENT"])


# ------------------------------------------------------------------ opencode


def test_opencode_gets_its_whole_configuration_in_one_variable() -> None:
    launch = planned(opencode.OPENCODE, arguments=("run", "hi"))
    assert launch.argv == ("opencode", "run", "hi")
    assert launch.files == ()
    assert config(launch) == {
        "$schema": "https://opencode.ai/config.json",
        "provider": {
            "mesh": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "agentmesh",
                "options": {"baseURL": "http://127.0.0.1:9337/v1", "apiKey": "mesh"},
                "models": {
                    "big-Q4": {
                        "name": "big-Q4",
                        "limit": {"context": 131072, "output": 32000},
                        "tool_call": True,
                        "reasoning": True,
                        "attachment": True,
                        "modalities": {"input": ["text", "image"], "output": ["text"]},
                    },
                    "small-Q4": {
                        "name": "small-Q4",
                        "limit": {"context": 8192, "output": 4096},
                        "tool_call": True,
                    },
                },
            }
        },
        "model": "mesh/big-Q4",
        "small_model": "mesh/big-Q4",
    }


@pytest.mark.parametrize(("version", "path"), [("1.18.33", ("mcp",)), ("", ("mcp",)), ("2.0.1", ("mcp", "servers"))])
def test_opencode_gets_the_board_under_the_keys_of_its_version(version: str, path: tuple[str, ...]) -> None:
    found = config(planned(opencode.OPENCODE, blackboard=BOARD, version=version))
    for name in path:
        found = found[name]
    assert found == {
        "agentmesh": {
            "type": "local",
            "command": ["/opt/venv/bin/agentmesh", "blackboard", "--mcp"],
            "environment": {"AGENTMESH_HOME": "/home/ada/.agentmesh"},
            "enabled": True,
        }
    }


def test_what_the_user_has_in_opencodes_variable_stays() -> None:
    mine = '{"theme": "dark", "model": "x/y", "provider": {"work": {}}, /* c */ "mcp": {"other": {"enabled": false}},}'
    merged = config(planned(opencode.OPENCODE, environ={"OPENCODE_CONFIG_CONTENT": mine}, blackboard=BOARD))
    assert merged["theme"] == "dark"
    assert merged["model"] == "mesh/big-Q4"
    assert set(merged["provider"]) == {"work", "mesh"}
    assert set(merged["mcp"]) == {"other", "agentmesh"}


@pytest.mark.parametrize("text", ["{", "[]", "{'a': 1}"])
def test_a_variable_of_opencode_that_does_not_parse_is_refused(text: str) -> None:
    with pytest.raises(ConfigUnusable, match=r"OPENCODE_CONFIG_CONTENT.*Repair or unset"):
        planned(opencode.OPENCODE, environ={"OPENCODE_CONFIG_CONTENT": text})


# ------------------------------------------------------------------ Codex


def test_codex_gets_flags_and_its_file_is_left_alone() -> None:
    launch = planned(codex.CODEX, arguments=("exec", "hi"))
    assert launch.argv == (
        "codex",
        *("-c", 'model="big-Q4"'),
        *("-c", 'model_provider="mesh"'),
        *("-c", "model_context_window=131072"),
        *("-c", 'model_providers.mesh.name="agentmesh"'),
        *("-c", 'model_providers.mesh.base_url="http://127.0.0.1:9337/v1"'),
        *("-c", 'model_providers.mesh.wire_api="responses"'),
        "exec",
        "hi",
    )
    assert launch.files == ()
    assert launch.environment == {}


def test_codexs_flags_are_toml() -> None:
    odd = MeshModel('od"d\\ näme')
    launch = planned(codex.CODEX, model=odd, models=(odd,), blackboard=BOARD)
    values = "\n".join(launch.argv[index] for index in range(2, len(launch.argv), 2))
    read = tomllib.loads(values)
    assert read["model"] == 'od"d\\ näme'
    assert read["mcp_servers"]["agentmesh"] == {
        "command": "/opt/venv/bin/agentmesh",
        "args": ["blackboard", "--mcp"],
        "env": {"AGENTMESH_HOME": "/home/ada/.agentmesh"},
    }


def test_codex_is_told_of_the_skill_unless_it_has_it() -> None:
    assert "install-skill --agent codex" in planned(codex.CODEX, blackboard=BOARD).notes[0]
    installed: dict[Path, str | None] = {HOME / ".agents/skills/blackboard/SKILL.md": "x"}
    assert planned(codex.CODEX, installed, blackboard=BOARD).notes == ()


def test_writing_codexs_file_keeps_comments_and_unknown_keys() -> None:
    mine = """# my settings
model = "gpt-5"  # the big one
approval_policy = "on-request"

[model_providers.work]
name = "Work"   # keep

[model_providers.mesh]
base_url = "http://old/v1"
query_params = { a = "b" }
"""
    launch = planned(codex.CODEX, {CODEX_FILE: mine}, write=True, key=KEY)
    assert launch.argv == ("codex",)
    text = launch.files[0].content
    for kept in ("# my settings", "# the big one", 'name = "Work"   # keep'):
        assert kept in text
    read = tomllib.loads(text)
    assert read["approval_policy"] == "on-request"
    assert (read["model"], read["model_provider"], read["model_context_window"]) == ("big-Q4", "mesh", 131072)
    assert read["model_providers"]["mesh"] == {
        "base_url": "http://127.0.0.1:9337/v1",
        "query_params": {"a": "b"},
        "name": "agentmesh",
        "wire_api": "responses",
        "env_key": "AGENTMESH_API_KEY",
    }
    assert KEY not in text


@pytest.mark.parametrize(
    "mine",
    [
        None,
        "",
        "x = 1\n[a]\nb = 1\n",
        "[[list]]\na = 1\n",
        "[mcp_servers.other]\ncommand = 'x'\n",
        "model_providers = {}\n",
        "model_providers = { work = { name = 'x' } }\n",
        "mcp_servers.agentmesh = { command = 'old', args = [] }\n[x]\ny = 1\n",
        "[model_providers.a]\nb = 1\n[mcp_servers.c]\ncommand = 'd'\n[model_providers.e]\nf = 1\n",
        "a = 1\r\n[b]\r\nc = 1\r\n",
    ],
)
def test_writing_codexs_file_gives_valid_toml(mine: str | None) -> None:
    read = tomllib.loads(planned(codex.CODEX, {CODEX_FILE: mine}, write=True, blackboard=BOARD).files[0].content)
    assert read["model_provider"] == "mesh"
    assert read["mcp_servers"]["agentmesh"]["env"] == {"AGENTMESH_HOME": "/home/ada/.agentmesh"}
    for name, value in tomllib.loads(mine or "").items():
        assert read[name] == value or name in ("mcp_servers", "model_providers")


def test_writing_codexs_file_twice_changes_nothing_the_second_time() -> None:
    once = planned(codex.CODEX, {CODEX_FILE: "a = 1\n"}, write=True).files[0].content
    assert not planned(codex.CODEX, {CODEX_FILE: once}, write=True).files[0].changes


def test_a_value_where_codex_has_a_table_is_refused() -> None:
    with pytest.raises(ConfigUnusable, match="'model_providers' is no table"):
        planned(codex.CODEX, {CODEX_FILE: "model_providers = 3\n"}, write=True)


def test_a_file_of_codex_that_cannot_be_added_to_is_refused_and_not_spoilt() -> None:
    with pytest.raises(ConfigUnusable, match="leave out --write"):
        planned(codex.CODEX, {CODEX_FILE: "model_providers.work.name = 'x'\n"}, write=True, blackboard=BOARD)


def test_a_byte_order_mark_stays() -> None:
    text = planned(codex.CODEX, {CODEX_FILE: "\ufeffa = 1\n"}, write=True).files[0].content
    assert text.startswith("\ufeffa = 1\n")
