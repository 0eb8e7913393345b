"""`--print-config`: what is shown can be pasted, and holds no secret."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentmesh.launchers.agents import AGENTS
from agentmesh.launchers.base import Agent, Launch, PlannedFile
from agentmesh.launchers.opencode import OPENCODE
from agentmesh.launchers.pi import PI
from agentmesh.launchers.show import as_json, as_shell
from tests.unit.launchers.wishes import BOARD, KEY, WISH

REPORT = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


def shell(text: str, environment: dict[str, str], cwd: Path) -> Any:
    done = subprocess.run(
        ["sh", "-euc", text], env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_what_is_shown_does_in_a_shell_what_the_launch_does(agent: Agent, tmp_path: Path) -> None:
    wish = dataclasses.replace(
        WISH, home=tmp_path, key=KEY, blackboard=BOARD, arguments=("run", "it's $HOME", "a\nb"), write=True
    )
    launch = agent.plan(wish)
    program = tmp_path / agent.command
    program.write_text(f"#!{sys.executable}\n{REPORT}\n")
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.defpath}", "AGENTMESH_API_KEY": KEY, "CLAUDE_CODE_USE_BEDROCK": "1"}
    argv, seen = shell(as_shell(agent, wish, launch), environment, tmp_path)
    assert tuple(argv) == launch.argv[1:]
    assert {name: seen[name] for name in launch.environment} == dict(launch.environment)
    assert not set(launch.unset) & set(seen)
    for file in launch.files:
        assert file.path.read_text() == file.content


def test_a_changed_file_is_shown_as_a_patch_without_what_stands_around_it(tmp_path: Path) -> None:
    path = tmp_path / ".pi/agent/models.json"
    mine = '{\n  "providers": {\n    "work": {\n      "apiKey": "sk-very-secret"\n    }\n  }\n}'
    wish = dataclasses.replace(WISH, home=tmp_path, existing={path: mine})
    launch = PI.plan(wish)
    for shown in (as_shell(PI, wish, launch), json.dumps(as_json(PI, wish, launch))):
        assert "sk-very-secret" not in shown
        assert "127.0.0.1:9337" in shown
    assert as_json(PI, wish, launch)["files"][0]["state"] == "changed"


@pytest.mark.skipif(shutil.which("patch") is None, reason="needs patch")
@pytest.mark.parametrize(
    "mine",
    ['{"a": 1,\n/* \x0c */ "providers": {}}', '{\r"providers": {}\r}', '{"a": "\u2028\x85",\r\n"providers": {\r\n}}'],
)
def test_the_patch_that_is_shown_gives_what_a_launch_writes_whatever_ends_the_lines(tmp_path: Path, mine: str) -> None:
    path = tmp_path / ".pi/agent/models.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(mine.encode())
    wish = dataclasses.replace(WISH, home=tmp_path, existing={path: mine})
    launch = PI.plan(wish)
    shown = as_shell(PI, wish, dataclasses.replace(launch, argv=("true",)))
    subprocess.run(["sh", "-euc", shown], timeout=60, check=True, capture_output=True)
    assert path.read_bytes() == launch.files[0].content.encode()


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_the_key_is_never_shown(agent: Agent) -> None:
    wish = dataclasses.replace(WISH, key=KEY, blackboard=BOARD, write=True)
    launch = agent.plan(wish)
    assert KEY not in as_shell(agent, wish, launch)
    assert KEY not in json.dumps(as_json(agent, wish, launch))


def test_secrets_of_the_users_own_settings_are_not_shown() -> None:
    mine = '{"provider": {"work": {"options": {"apiKey": "sk-mine", "x-api-key": "sk-two", "max_tokens": "7"}}},'
    mine += '"mcp": {"gh": {"environment": {"GITHUB_TOKEN": "sk-three"}}}}'
    wish = dataclasses.replace(WISH, environ={"OPENCODE_CONFIG_CONTENT": mine})
    launch = OPENCODE.plan(wish)
    assert "sk-mine" in launch.environment["OPENCODE_CONFIG_CONTENT"]
    for shown in (as_shell(OPENCODE, wish, launch), json.dumps(as_json(OPENCODE, wish, launch))):
        assert "sk-" not in shown
        assert "***" in shown
        assert "7" in shown
        assert "mesh" in shown


@pytest.mark.parametrize("secret", ['half"secret-end', "half's secret-end", "half\\secret-end"])
def test_of_a_secret_with_quotes_in_it_no_part_is_shown(secret: str) -> None:
    mine = json.dumps({"provider": {"work": {"options": {"apiKey": secret}}}})
    wish = dataclasses.replace(WISH, environ={"OPENCODE_CONFIG_CONTENT": mine})
    launch = OPENCODE.plan(wish)
    for shown in (as_shell(OPENCODE, wish, launch), json.dumps(as_json(OPENCODE, wish, launch))):
        assert "secret-end" not in shown


def test_a_file_that_is_as_it_should_be_is_said_to_be_so() -> None:
    launch = Launch(("x",), files=(PlannedFile(Path("/a b"), "same", "same"),))
    assert "# /a b is as it should be" in as_shell(PI, WISH, launch)
    assert as_json(PI, WISH, launch)["files"] == [{"path": "/a b", "state": "unchanged"}]


def test_a_file_that_contains_the_end_mark_is_shown_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    launch = Launch(("true",), files=(PlannedFile(path, "EOF\n$(x) `y`\nEOFF\n", None),))
    subprocess.run(["sh", "-euc", as_shell(PI, WISH, launch)], timeout=60, check=True)
    assert path.read_text() == "EOF\n$(x) `y`\nEOFF\n"
