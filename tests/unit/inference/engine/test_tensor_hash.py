"""The program that hashes tensors: right for every size and number of ranges, bounded for every input, gone with its caller."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from agentmesh.inference.engine.tensor_hash import fnv
from tests.fakes.tensor_hash import built

END_S = 60.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("program"))


def run(program: Path, file: Path | str, text: bytes) -> tuple[int, list[str]]:
    ran = subprocess.run([program, file], input=text, capture_output=True, timeout=END_S)
    return ran.returncode, sorted(ran.stdout.decode().splitlines())


def lines(ranges: list[tuple[int, int]]) -> bytes:
    return "".join(f"{offset} {size}\n" for offset, size in ranges).encode() + b"\n"


def test_fnv_is_the_published_function() -> None:
    # draft-eastlake-fnv, test vectors of FNV-1a 64
    assert [fnv(data) for data in (b"", b"a", b"foobar")] == [
        0xCBF29CE484222325,
        0xAF63DC4C8601EC8C,
        0x85944171F73967E8,
    ]


BLOCK = 65_536
RANGES = {
    "none": [],
    "one": [(3, 1_000)],
    "an empty one": [(7, 0)],
    "odd sizes": [(n * 11, n * n % 1_013) for n in range(40)],
    "around a block": [(5, BLOCK - 1), (5, BLOCK), (5, BLOCK + 1), (0, 2 * BLOCK + 3)],
    "five of unequal sizes": [(n, n * 40_000 + 1) for n in range(5)],
    "nine of one size": [(n, 70_001) for n in range(9)],
    "to the last byte": [(0, 200_000), (199_999, 1)],
}


@pytest.mark.parametrize("kind", RANGES)
def test_ranges_of_any_size_and_number_are_hashed_right(program: Path, tmp_path: Path, kind: str) -> None:
    data = random.Random(4).randbytes(200_000)
    (tmp_path / "data").write_bytes(data)
    ranges = RANGES[kind]
    wanted = sorted(f"{at} {size} {fnv(data[at : at + size]):016x}" for at, size in ranges)
    assert run(program, tmp_path / "data", lines(ranges)) == (0, wanted)


HOSTILE = {
    "nothing": b"",
    "no empty line": b"0 5\n",
    "half a line": b"0 5",
    "words": b"zero five\n\n",
    "a sign": b"-1 5\n\n",
    "a space too many": b"0  5\n\n",
    "three numbers": b"0 5 5\n\n",
    "a carriage return": b"0 5\r\n\n",
    "a NUL": b"0 5\0\n\n",
    "beyond 64 bits": b"0 99999999999999999999\n\n",
    "beyond 63 bits": b"9223372036854775808 1\n\n",
    "a long line": b"1" * 100_000 + b"\n\n",
    "too many ranges": b"0 1\n" * 70_000 + b"\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_anything_but_ranges_is_refused(program: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "data").write_bytes(b"x" * 100)
    assert run(program, tmp_path / "data", HOSTILE[kind]) == (2, [])


@pytest.mark.parametrize("ranges", [[(0, 101)], [(101, 1)], [(2**62, 2**62)], [(0, 2**62)]])
def test_a_file_that_ends_too_early_is_an_error_and_no_value(
    program: Path, tmp_path: Path, ranges: list[tuple[int, int]]
) -> None:
    (tmp_path / "data").write_bytes(b"x" * 100)
    assert run(program, tmp_path / "data", lines(ranges)) == (1, [])


def test_only_regular_files_are_read(program: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", tmp_path, tmp_path / "nothing", "/dev/zero"):
        assert run(program, name, lines([(0, 5)])) == (1, [])


def test_it_ends_when_nobody_waits(program: Path, tmp_path: Path) -> None:
    with (tmp_path / "data").open("wb") as file:
        file.truncate(1 << 40)  # no disk has it: minutes of zeros
    process = subprocess.Popen([program, tmp_path / "data"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    try:
        process.stdin.write(lines([(0, 1 << 40)]))
        process.stdin.close()
        assert process.wait(END_S) == 3
    finally:
        process.kill()
        process.wait()
