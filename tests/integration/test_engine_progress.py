"""What counts as a sign of life of an engine that does not answer: work, bytes and words; not what asking it takes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentmesh.inference.engine.health import Progress

HANGS = (
    "import time\nwhile True:\n    sum(range(2000))\n    time.sleep(0.1)"  # as one that answers ten questions a second
)
COMPUTES = "while True:\n    sum(range(10000))"
READS = """
import sys, time
file = open(sys.argv[1], "rb", buffering=0)
while True:
    file.seek(0)
    file.read(1 << 20)
    time.sleep(0.1)
"""


@contextmanager
def running(code: str, *words: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", code, *words])
    try:
        time.sleep(0.5)  # its start is work
        yield process.pid
    finally:
        process.kill()
        process.wait()


def looks(progress: Progress, log: Path, count: int = 4) -> list[bool]:
    found: list[bool] = []
    for _ in range(count):
        time.sleep(0.5)
        found.append(progress.seen())
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "engine.log"
    path.write_bytes(b"loading\n")
    return path


def test_one_that_only_answers_questions_shows_no_progress(log: Path) -> None:
    with running(HANGS) as pid:
        assert not any(looks(Progress(pid, log), log))


def test_one_that_computes_does(log: Path) -> None:
    with running(COMPUTES) as pid:
        assert any(looks(Progress(pid, log), log))


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell what a process reads")
def test_one_that_reads_from_a_slow_disk_does(log: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(1 << 20))
    with running(READS, str(weights)) as pid:
        assert all(looks(Progress(pid, log), log))


def test_one_that_says_something_does(log: Path) -> None:
    with running("import time\ntime.sleep(60)") as pid:
        progress = Progress(pid, log)
        assert not progress.seen()
        with log.open("ab") as file:
            file.write(b"still loading\n")
        assert progress.seen()
