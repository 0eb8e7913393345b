"""The command as a whole: help, usage errors, exit codes, and what it must not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentmesh.cli.main import cli, run
from agentmesh.cli.node import parse_policy
from agentmesh.core.errors import InvalidInput

ROOT = Path(__file__).parents[3]
HEAVY = (
    "fastapi",
    "aioquic",
    "scrubadub",
    "mcp",
    "sqlite_utils",
    "pydantic",
    "httpx",
    "cryptography",
    "uvicorn",
    "rich",
    "huggingface_hub",
    "httpx2",
    "gguf",
    "numpy",
    "agentmesh.inference",
)


def said(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str, str]:
    code = run(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_alone_it_prints_help_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, [])
    assert code == 0
    assert "Usage: agentmesh" in out
    assert "Examples:" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["nonsense"],
        ["--name", "ada"],
        ["--name", "ada", "status"],
        ["--client", "--port", "70000"],
        ["--client", "--policy", "posts_per_fortnight=1"],
        ["--client", "--policy", "posts_per_day=none"],
        ["blackboard", "--limit", "0"],
        ["blackboard", "--limit", "201"],
        ["blackboard", "--limit", "many"],
        ["blackboard", "--since", "yesterday"],
        ["blackboard", "--since", "-1"],
        ["blackboard", "--since", "nan"],
        ["blackboard", "--http", "0"],
        ["blackboard", "--reply-to", "abcd1234"],
        ["blackboard", "text", "--search", "text"],
        ["blackboard", "text", "--kind", "TIP"],
        ["blackboard", "--follow", "--unread"],
        ["blackboard", "--retract", "../../etc"],
        ["blackboard", "bad \udcff byte"],
        ["invite", "--expires", "0d"],
        ["invite", "--expires", "1 fortnight"],
        ["invite", "--uses", "0"],
        ["revoke"],
        ["blackboard", "install-skill", "--agent", "nobody-knows-this"],
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = said(capsys, arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("agentmesh: ")


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["stop"]])
def test_asking_a_node_that_does_not_run_is_exit_code_3_and_starts_none(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path
) -> None:
    code, out, err = said(capsys, arguments)
    assert (code, out) == (3, "")
    assert "No agentmesh node runs" in err
    assert not (tmp_path / "agentmesh-home").exists()


@pytest.mark.parametrize("group", ["models", "engine", "mesh"])
def test_a_group_without_a_command_prints_its_help_as_wrong_usage(
    capsys: pytest.CaptureFixture[str], group: str
) -> None:
    code, out, err = said(capsys, [group])
    assert (code, out) == (2, "")
    assert err.startswith(f"Usage: agentmesh {group}")
    assert len(err.splitlines()) > 5


def test_the_help_shows_every_command_once_and_by_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, ["--help"])
    shown = [
        line.split()[0]
        for line in out.partition("Blackboard:")[2].partition("Examples:")[0].splitlines()
        if line.strip()
    ]
    assert sorted(word for word in shown if word in cli.commands) == sorted(cli.commands)


def test_a_typing_mistake_is_answered_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = said(capsys, ["modles"])
    assert (
        err
        == "agentmesh: No such command 'modles'. Did you mean one of 'mesh', 'models', 'moe'? Try: agentmesh --help\n"
    )


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, ["--version"])
    assert code == 0
    assert out.startswith("agentmesh ")


def test_a_home_that_is_a_file_is_said_to_be_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("AGENTMESH_HOME", str(tmp_path / "file"))
    code, _, err = said(capsys, ["blackboard", "hello"])
    assert code == 3
    assert str(tmp_path / "file") in err


def test_quotas_are_read() -> None:
    assert parse_policy(("posts_per_minute=600", "posts_per_day=9000")) == {
        "posts_per_minute": 600,
        "posts_per_day": 9000,
    }


@pytest.mark.parametrize(
    "pair", ["posts_per_day", "posts_per_day=", "posts_per_day=0", "posts_per_day=-1", "posts_per_day=²"]
)
def test_a_quota_that_is_no_positive_number_is_refused(pair: str) -> None:
    with pytest.raises(InvalidInput):
        parse_policy((pair,))


@pytest.mark.parametrize(
    "code",
    [
        "from agentmesh.cli.main import run; run(['--help'])",
        "from agentmesh.cli.main import run; run(['status'])",
        "import agentmesh.control.start",
    ],
)
def test_the_thin_half_loads_nothing_heavy(code: str) -> None:
    script = f"{code}\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_node_is_not_started_for_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--gguf", str(tmp_path / "no\nfile.gguf")]) == 2
    assert "file.gguf' can't be read. There is no such file." in capsys.readouterr().err
    assert run(["--gguf", str(tmp_path)]) == 2
    assert "It is no file." in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--model", "x"), ("--gguf", "x"), ("--device", "x"), ("--ctx-size", "9")])
def test_a_client_takes_no_options_of_serving(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--client", *option]) == 2
    assert f"leave out --client, or {option[0]}." in capsys.readouterr().err
