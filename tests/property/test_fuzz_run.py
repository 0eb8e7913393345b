"""A million inputs against every parser of foreign bytes, in a process of its own (libFuzzer takes a process over)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python or system"
)
@pytest.mark.timeout(1500)
def test_a_million_inputs_meet_only_our_own_errors_and_leave_no_memory_behind() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "fuzz.py", "--runs", "1000000"],
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert "1,000,000 inputs" in result.stdout
