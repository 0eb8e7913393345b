"""Logs say nothing secret and never grow without end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentmesh.core.errors import InvalidInput
from agentmesh.core.log import LOG_FILE_BYTES, LOG_FILES_KEPT, RedactingFormatter, level_from_environment, redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("joining with amesh1.AbC-_9.x= now", "joining with amesh1.… now"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer …"),
        ("GET /?token=s3cr3t&x=1", "GET /?token=…&x=1"),
        ("a bearer of news", "a bearer of news"),
    ],
)
def test_tokens_are_struck_out_and_nothing_else(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_a_token_in_a_traceback_is_struck_out_too() -> None:
    try:
        raise ValueError("bad amesh1.SECRETSECRET")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed %s", ("amesh1.ALSO",), sys.exc_info())
    line = RedactingFormatter("%(message)s").format(record)
    assert "SECRET" not in line
    assert "ALSO" not in line
    assert "ValueError: bad amesh1.…" in line


def test_an_unknown_level_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTMESH_LOG", "loud")
    with pytest.raises(InvalidInput, match="loud"):
        level_from_environment()


def test_a_node_that_logs_for_ever_keeps_a_bounded_log_and_its_output_stays_in_it(tmp_path: Path) -> None:
    script = (
        "import logging, os, sys; from pathlib import Path; from agentmesh.core.log import setup_logging\n"
        "setup_logging('info', Path(sys.argv[1]))\n"
        "for _ in range(220): logging.getLogger('x').info('y' * 50_000)\n"
        "os.write(2, b'last words')\n"
    )
    path = tmp_path / "node.log"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60, env=environment)
    files = sorted(tmp_path.iterdir())
    assert len(files) == LOG_FILES_KEPT + 1
    assert sum(f.stat().st_size for f in files) <= (LOG_FILES_KEPT + 1) * LOG_FILE_BYTES
    assert path.read_bytes().endswith(b"last words")
