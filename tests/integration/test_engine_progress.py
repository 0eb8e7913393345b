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

# As one that answers ten questions a second.
HANGS = "import time\nprint(flush=True)\nwhile True:\n    sum(range(2000))\n    time.sleep(0.1)"
COMPUTES = "print(flush=True)\nwhile True:\n    sum(range(10000))"
READS = """
import sys, time
file = open(sys.argv[1], "rb", buffering=0)
print(flush=True)
while True:
    file.seek(0)
    file.read(1 << 20)
    time.sleep(0.1)
"""


@contextmanager
def running(code: str, *words: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()  # its start is work
            yield process.pid
        finally:
            process.kill()


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
        # Where the machine stands still while it answers, that is charged to it: one of some rounds shows none.
        assert any(not any(looks(Progress(pid, log), log)) for _ in range(8))


def test_one_that_computes_does(log: Path) -> None:
    with running(COMPUTES) as pid:
        assert any(looks(Progress(pid, log), log))


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell what a process reads")
def test_one_that_reads_from_a_slow_disk_does(log: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(1 << 20))
    with running(READS, str(weights)) as pid:
        progress = Progress(pid, log)
        for _ in range(3):  # it reads on and on; when, is the machine's affair
            assert any(any(looks(progress, log, 1)) for _ in range(30))


def test_one_that_says_something_does(log: Path) -> None:
    with running("import time\nprint(flush=True)\ntime.sleep(120)") as pid:
        time.sleep(0.2)  # it is on its way to its sleep
        progress = Progress(pid, log)
        assert not progress.seen()
        with log.open("ab") as file:
            file.write(b"still loading\n")
        assert progress.seen()
