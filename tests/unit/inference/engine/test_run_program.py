"""Programs that are run to their end: what they said is not lost, however late we come to read it."""

from __future__ import annotations

import os
import subprocess

import pytest

from agentmesh.inference.engine import run_program
from agentmesh.inference.engine.run_program import run_bounded


def test_what_a_program_printed_is_read_even_if_it_ended_long_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended_long_ago(process: subprocess.Popen[bytes]) -> bool:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return True

    monkeypatch.setattr(run_program, "_has_ended", ended_long_ago)
    monkeypatch.setattr(run_program, "LINGER_S", 0.0)
    ran = run_bounded(["sh", "-c", "echo first; echo last"], timeout_s=30)
    assert (ran.code, ran.output) == (0, "first\nlast\n")


def test_a_child_that_prints_for_ever_does_not_hold_us_up() -> None:
    ran = run_bounded(["sh", "-c", "(while :; do echo more; done) & echo done"], timeout_s=30, max_output_bytes=1 << 30)
    assert ran.code == 0
    assert "done\n" in ran.output
