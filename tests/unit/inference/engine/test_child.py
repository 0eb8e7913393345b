"""One long step of a build: its output, its end, and that nothing of it outlives us."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from agentmesh.inference.engine import child
from agentmesh.inference.engine.child import run_logged
from agentmesh.inference.engine.errors import BuildFailed
from tests.fakes.engine_programs import late_when_written, program


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run(
    tmp_path: Path, body: str, *, log: Path | None = None, timeout_s: float = 120
) -> tuple[child.Stopped, list[str]]:
    lines: list[str] = []
    step = program(tmp_path / "step", body)
    ended = run_logged(
        (str(step), "an argument"),
        log=log or tmp_path / "log",
        environ={"PATH": os.defpath},
        timeout_s=timeout_s,
        on_line=lines.append,
    )
    return ended, lines


def test_output_goes_to_the_log_and_by_lines_to_the_listener(tmp_path: Path) -> None:
    ended, lines = run(tmp_path, "echo one; printf 'two\\r\\n' >&2; printf three; exit 5")
    assert (ended.code, ended.late, ended.tail) == (5, False, "one\ntwo\nthree")
    assert lines == ["one", "two"]
    log = (tmp_path / "log").read_bytes().decode()
    assert log.startswith(f"\n$ {tmp_path}/step an argument\n")
    assert log.endswith("one\ntwo\r\nthree")


def test_a_line_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAX_LINE_BYTES", 100)
    ended, _ = run(tmp_path, "head -c 300000 /dev/zero | tr '\\0' x")
    assert len(ended.tail) == 100


def test_a_late_step_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE_S", 0.3)
    body = f"sleep 600 & echo $! > {tmp_path}/same; setsid sleep 600 & echo $! > {tmp_path}/own; wait"
    late_when_written(monkeypatch, child, tmp_path / "same", tmp_path / "own")
    ended, _ = run(tmp_path, body)
    assert (ended.code, ended.late) == (None, True)
    wait_gone(int((tmp_path / "same").read_text()))
    wait_gone(int((tmp_path / "own").read_text()))


def test_a_step_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE_S", 0.2)
    body = f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"
    late_when_written(monkeypatch, child, tmp_path / "pid")
    ended, _ = run(tmp_path, body)
    assert ended.late
    wait_gone(int((tmp_path / "pid").read_text()))


def test_a_step_that_ended_is_not_waited_for_because_a_child_holds_its_output(tmp_path: Path) -> None:
    began = time.monotonic()
    ended, _ = run(tmp_path, f"sleep 600 & echo $! > {tmp_path}/left")
    assert ended.code == 0
    assert time.monotonic() - began < 60  # the child lives for ten minutes, the step may for two
    psutil.Process(int((tmp_path / "left").read_text())).kill()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
def test_a_full_disk_ends_the_step_and_is_said(tmp_path: Path) -> None:
    body = f"echo $$ > {tmp_path}/pid; while :; do echo much; sleep 0.01; done"
    with pytest.raises(BuildFailed, match="No space left"):
        run(tmp_path, body, log=Path("/dev/full"))
    if (tmp_path / "pid").exists() and (pid := (tmp_path / "pid").read_text()):
        wait_gone(int(pid))


def test_a_step_that_cannot_be_started_is_said(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="could not be run"):
        run_logged((str(tmp_path / "none"),), log=tmp_path / "log", environ={}, timeout_s=1)
