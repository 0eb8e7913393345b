"""An engine's log: bounded, rotated, read from its end."""

from __future__ import annotations

import os
from pathlib import Path

from agentmesh.inference.engine.guard import Log
from agentmesh.inference.engine.log_tail import TAIL_BYTES, last_lines, log_size


def test_the_log_never_takes_more_than_two_files_of_its_size(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "e.log"), 1_000)
    for number in range(200):
        log.write(b"%d %s\n" % (number, b"x" * 90))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.log", "e.log.1"]
    assert all(path.stat().st_size <= 1_000 for path in tmp_path.iterdir())
    assert last_lines(tmp_path / "e.log", 1)[0].startswith("199 ")
    assert [line.split()[0] for line in last_lines(tmp_path / "e.log", 12)] == [str(n) for n in range(188, 200)]


def test_a_write_larger_than_the_log_gets_a_file_of_its_own(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "e.log"), 100)
    log.write(b"first\n")
    log.write(b"y" * 500)
    assert (tmp_path / "e.log.1").read_bytes() == b"first\n"


def test_the_log_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    Log(str(tmp_path / "e.log"), 100).write(b"x\n")
    assert (tmp_path / "e.log").stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_opened_stops_nothing(tmp_path: Path) -> None:
    Log(str(tmp_path / "no-folder" / "e.log"), 100).write(b"x\n")
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_logs_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "e.log").symlink_to(tmp_path / "target")
    Log(str(tmp_path / "e.log"), 100).write(b"x\n")
    assert not (tmp_path / "target").exists()


def test_lines_of_an_earlier_engine_are_left_out(tmp_path: Path) -> None:
    log = tmp_path / "e.log"
    log.write_text("old error\n")
    began = log_size(log)
    with log.open("a") as file:
        file.write("new error\n")
    assert last_lines(log, 10, since_bytes=began) == ["new error"]
    assert last_lines(log, 10) == ["old error", "new error"]


def test_a_file_that_was_changed_for_a_new_one_is_read_whole(tmp_path: Path) -> None:
    log = tmp_path / "e.log"
    (tmp_path / "e.log.1").write_text("before\n")
    log.write_text("after\n")
    assert last_lines(log, 10, since_bytes=5_000) == ["before", "after"]


def test_no_log_is_no_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none.log", 10) == []
    assert log_size(tmp_path / "none.log") == 0


def test_lines_hold_nothing_that_a_terminal_acts_on_and_are_not_endless(tmp_path: Path) -> None:
    log = tmp_path / "e.log"
    log.write_bytes(b"\x1b[31mred\x1b[0m \xff\xfe\n" + b"z" * 5_000 + b"\n\n")
    first, second = last_lines(log, 10)
    assert "\x1b" not in first
    assert "red" in first
    assert len(second) == 500


def test_only_the_end_of_a_large_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "e.log"
    with log.open("wb") as file:
        file.truncate(1 << 30)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    assert last_lines(log, 1) == ["last"]
    assert TAIL_BYTES < 1 << 20
