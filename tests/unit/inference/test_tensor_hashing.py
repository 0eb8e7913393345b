"""Learning FNV values from our own program: right ones, only those asked for, and nothing from a program that misbehaves."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from agentmesh.inference.engine.tensor_hash import fnv
from agentmesh.inference.logic.model_parts import is_on_workers
from agentmesh.inference.logic.split_values import Place, Share, Split
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.rpc import hashing
from agentmesh.inference.rpc.hashing import hash_tensors
from agentmesh.inference.rpc.weights import WeightFiles, WeightHashes, read_exactly
from tests.fakes.mesh_nodes import eventually
from tests.fakes.tensor_hash import built
from tests.fakes.tiny_gguf import write_tiny


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("program"))


@pytest.fixture(autouse=True)
def small_tensors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "HASH_MIN_BYTES", 10_000)


@pytest.fixture(params=[1, 3])
async def weights(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[WeightFiles]:
    first = write_tiny(tmp_path / "tiny.gguf", parts=request.param)[0]
    files = await WeightFiles.open(first, FileIdentities(tmp_path / "identities.json"))
    yield files
    files.close()


def script(folder: Path, body: str) -> Path:
    """A program of ours in its place."""
    path = folder / "program.py"
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n")
    path.chmod(0o755)
    return path


def on_any(_: str) -> bool:
    return True


async def test_wanted_tensors_of_every_part_are_learned_and_remembered(
    program: Path, weights: WeightFiles, tmp_path: Path
) -> None:
    hashes = WeightHashes(tmp_path / "fnv.json")
    wanted = [p for p in weights.places() if p.name.startswith("blk.1.") and p.size > 10_000]
    assert await hash_tensors(program, weights, hashes, wanted=lambda name: name.startswith("blk.1.")) == len(wanted)
    assert len(wanted) > 3
    again = WeightHashes(tmp_path / "fnv.json")
    for place in wanted:
        assert again.fits(place, fnv(read_exactly(place, 0, place.size)))
    assert [p.name for p in weights.places() if again.knows(p) and p not in wanted] == []
    assert await hash_tensors(script(tmp_path, "sys.exit(9)"), weights, again, wanted=lambda n: n in wanted) == 0


PROGRAMS = {
    "fails": "sys.exit(3)",
    "floods": "print('x' * 1_000_000)",
    "prints other words": "print('a b c')",
    "prints another range": "print('0 5 0123456789abcdef')",
    "prints something else than a hash": "a, b = sys.stdin.readline().split(); print(a, b, '-fffffffffffffff')",
    "prints bytes": "sys.stdout.buffer.write(b'\\xff \\xff \\xff\\n')",
}


@pytest.mark.parametrize("kind", PROGRAMS)
async def test_a_program_that_misbehaves_teaches_nothing(weights: WeightFiles, tmp_path: Path, kind: str) -> None:
    hashes = WeightHashes()
    assert await hash_tensors(script(tmp_path, PROGRAMS[kind]), weights, hashes, wanted=on_any) == 0
    assert not any(hashes.knows(place) for place in weights.places())
    assert await hash_tensors(tmp_path / "nothing", weights, hashes, wanted=on_any) == 0


async def test_a_file_that_changed_or_was_closed_teaches_nothing(program: Path, weights: WeightFiles) -> None:
    hashes = WeightHashes()
    for part in {place.part for place in weights.places()}:
        os.utime(part.path, ns=(1, 1))
    assert await hash_tensors(program, weights, hashes, wanted=on_any) == 0
    weights.close()
    assert await hash_tensors(program, weights, hashes, wanted=on_any) == 0
    assert not any(hashes.knows(place) for place in weights.places())


async def test_a_program_that_hangs_ends_with_its_caller_and_with_its_time(
    weights: WeightFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = script(tmp_path, f"open({str(tmp_path / 'runs')!r}, 'w').close(); time.sleep(600)")
    before = set(psutil.Process().children())
    working = asyncio.ensure_future(hash_tensors(hanging, weights, WeightHashes(), wanted=on_any))
    await eventually(lambda: (tmp_path / "runs").exists(), 60.0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    await eventually(lambda: not set(psutil.Process().children()) - before, 60.0)
    monkeypatch.setattr(hashing, "HASH_RUN_S", 0.2)
    assert await hash_tensors(hanging, weights, WeightHashes(), wanted=on_any) == 0
    assert not set(psutil.Process().children()) - before


def test_names_of_a_workers_layers_are_told_from_others() -> None:
    here, there = Place(b"h", None, 1, True), Place(b"w", None, 1, False)
    plan = Split(b"h", (b"w",), (Share(here, 0, 2, 1), Share(there, 2, 9, 1)), (1,), 9, True, 512, 1, 0)
    names = ("blk.1.x", "blk.2.x", "blk.10.x", "blk.11.x", "output.weight", "blk.x", f"blk.{'9' * 9_000}.x")
    assert [name for name in names if is_on_workers(plan)(name)] == ["blk.2.x", "blk.10.x"]
