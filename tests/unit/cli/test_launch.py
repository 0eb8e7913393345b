"""Which arguments are the launcher's and which the agent's; wrong usage."""

from __future__ import annotations

from typing import Any

import click
import pytest

from agentmesh.cli import launch
from agentmesh.cli.launch import launch_commands
from agentmesh.launchers.agents import AGENTS
from agentmesh.launchers.session import Order, Session

COMMANDS = {command.name: command for command in launch_commands}


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """What was ordered; nothing is started, the exit code is 7."""
    given: list[Order] = []

    def init(self: Session, order: Order, *_: Any, **__: Any) -> None:
        given.append(order)

    monkeypatch.setattr(Session, "__init__", init)
    monkeypatch.setattr(Session, "run", lambda self: 7)
    return given


def run(name: str, *arguments: str) -> Any:
    return COMMANDS[name].main(list(arguments), standalone_mode=False)


def test_there_is_a_command_for_each_agent() -> None:
    assert list(COMMANDS) == ["claude", "goose", "pi", "opencode", "codex"]


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ((), ()),
        (("--", "-p", "hi"), ("-p", "hi")),
        (("-p", "hi"), ("-p", "hi")),
        (("--model", "m", "--", "--model", "theirs"), ("--model", "theirs")),
        (("--model", "m", "exec", "--model", "theirs"), ("exec", "--model", "theirs")),
        (("--model=m", "--port", "1", "--continue"), ("--continue",)),
        (("-ch",), ("-ch",)),
        (("--model", "m", "--", "--", "x"), ("--", "x")),
        (("run", "--", "x"), ("run", "--", "x")),
        (("exec", "--json"), ("exec", "--json")),
        (("--json", "x"), ("--json", "x")),
        (("serve", "--port", "4096"), ("serve", "--port", "4096")),
        (("--modelx", "m"), ("--modelx", "m")),
        (("--with-blackboard=yes",), ("--with-blackboard=yes",)),
        (("",), ("",)),
    ],
)
def test_the_first_word_that_is_not_ours_and_all_after_it_are_the_agents(
    orders: list[Order], arguments: tuple[str, ...], passed: tuple[str, ...]
) -> None:
    assert run("codex", *arguments) == 7
    assert orders[0].arguments == passed
    assert orders[0].model == ("m" if arguments[:1] in [("--model",), ("--model=m",)] else None)


def test_our_options_are_read(orders: list[Order]) -> None:
    run("codex", "--model", "m", "--port", "4711", "--write", "--with-blackboard")
    assert orders == [Order(AGENTS[4], "m", 4711, True, True)]


@pytest.mark.parametrize(
    "arguments", [("--model",), ("--port", "x"), ("--port", "0"), ("--port", "65536"), ("--port",)]
)
def test_options_of_ours_that_are_wrong_are_refused(orders: list[Order], arguments: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        run("claude", *arguments)
    assert orders == []


@pytest.mark.parametrize("name", ["claude", "opencode"])
def test_write_is_refused_where_no_file_is_needed(orders: list[Order], name: str) -> None:
    with pytest.raises(click.UsageError, match="leave out --write"):
        run(name, "--write")
    assert orders == []


@pytest.mark.parametrize("command", launch_commands, ids=lambda command: str(command.name))
def test_the_help_has_examples_and_the_way_to_pass_arguments(command: click.Command) -> None:
    with command.make_context(command.name, [], resilient_parsing=True) as context:
        text = command.get_help(context)
    assert f"agentmesh {command.name} --model" in text
    assert "[--] [ARGS]..." in text


def test_nothing_heavy_is_imported_for_the_commands() -> None:
    import subprocess
    import sys

    heavy = ("asyncio", "tomlkit", "http.client", "subprocess", "aioquic", "fastapi", "cryptography")
    code = f"import sys, {launch.__name__}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
