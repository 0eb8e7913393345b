"""Output and input that are closed, full, or not UTF-8: a sentence or nothing, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMMAND = f"exec {sys.executable} -m agentmesh"


def shell(line: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        ["sh", "-c", line], cwd=ROOT, capture_output=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_defect(closed: str) -> None:
    code, _, err = shell(f"{COMMAND} status {closed}")
    assert code == 3
    assert "defect" not in err
    code, _, err = shell(f"{COMMAND} --help {closed}")
    assert (code, err) == (0, "")


def test_text_from_a_closed_stdin_is_no_tokens() -> None:
    code, _, err = shell(f"{COMMAND} --client --join - <&-")
    assert code == 2
    assert "no invite token in stdin" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_said() -> None:
    code, _, err = shell(f"{COMMAND} --help >/dev/full")
    assert (code, err) == (1, "agentmesh: The output could not be written: No space left on device.\n")


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    _, _, err = shell(f"({COMMAND.removeprefix('exec ')} --help; echo code $? >&2) | true")
    assert err == "code 0\n"


def test_a_character_that_the_terminal_lacks_is_replaced() -> None:
    script = "from agentmesh.cli.main import run; import click; run(['--version']); click.echo('\\u2603')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60, check=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert done.stdout.endswith(b"?\n")
