"""A model's files on a worker: by content, wherever they lie; room on the disk is made of what nobody uses, the longest unused first."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from agentmesh.core.errors import Unreachable
from agentmesh.core.paths import Home
from agentmesh.inference.blob_index import BlobIndex
from agentmesh.inference.logic.job_wire import JobFile
from agentmesh.inference.models.cache import HubCache
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.split import worker_files
from agentmesh.inference.split.worker_files import COMMIT, FOLDER, REPO, MeshWorkerFiles
from agentmesh.mesh.transport import Stream
from tests.fakes.blob_cluster import put
from tests.fakes.mesh_nodes import eventually
from tests.fakes.tiny_gguf import write_tiny

HOST = b"h" * 32


class Disk(NamedTuple):
    total: int
    used: int
    free: int


class World:
    """A worker's files, with nobody to fetch from, and a disk of the test's size."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = Home(root / "home")
        self.home.prepare()
        self.hub = HubCache(root / "hub")
        self.served: list[Path] = []
        self.asked: list[bytes] = []
        self.free = 1 << 40
        self.index = BlobIndex(self.hub, FileIdentities.of_home(self.home), lambda: self.served)
        self.files = MeshWorkerFiles(
            self.home, self.index, FileIdentities.of_home(self.home), self._open, margin_bytes=0
        )
        self.told: list[str] = []

        def usage(_path: object) -> Disk:
            return Disk(1 << 50, 0, self.free)

        monkeypatch.setattr(shutil, "disk_usage", usage)

    async def _open(self, peer: bytes) -> Stream:
        self.asked.append(peer)
        raise Unreachable("nobody is here")

    def fetched(self, path: Path, used_s: float) -> Path:
        """As if it had been fetched for a host, and used then."""
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        repo = HubCache(self.home.root / FOLDER).repo(REPO)
        blob, pointer = repo / "blobs" / digest, repo / "snapshots" / COMMIT / f"{digest}.gguf"
        for folder in (blob.parent, pointer.parent):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        os.utime(pointer, (used_s, used_s), follow_symlinks=False)
        return blob

    async def open(self, *paths: Path, fetch: bool = True) -> worker_files.OpenedFiles:
        return await self.files.open([described(path) for path in paths], HOST, self.told.append, fetch=fetch)


def described(path: Path) -> JobFile:
    return JobFile(hashlib.sha256(path.read_bytes()).digest(), path.stat().st_size, "../../etc/passwd")


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    await made.index.close()


@pytest.fixture
def models(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        path = write_tiny(tmp_path / f"{name}.gguf")[0]
        with path.open("ab") as file:
            file.write(name.encode())  # what follows the tensors is nobody's
        return path

    return make


async def test_parts_in_the_hubs_cache_are_found_by_content_without_a_question(world: World, tmp_path: Path) -> None:
    parts = write_tiny(tmp_path / "set.gguf", parts=2)
    for part in parts:
        put(world.hub, part.read_bytes(), part.name)
    opened = await world.open(*parts)
    assert opened.weights is not None
    assert opened.weights.digests == tuple(described(part).sha256 for part in parts)
    opened.weights.close()
    assert world.asked == []
    assert world.told == ["checking the model's files: 1 of 2", "checking the model's files: 2 of 2"]


async def test_served_files_count_once_their_content_is_known(world: World, models: Callable[[str], Path]) -> None:
    model = models("mine")
    world.served.append(model)
    while await world.index.find(described(model).sha256) is None:
        await asyncio.sleep(0.02)
    opened = await world.open(model, fetch=False)
    assert opened.weights is not None
    opened.weights.close()


async def test_a_wrong_size_with_the_right_hash_is_not_the_file(world: World, models: Callable[[str], Path]) -> None:
    model = models("mine")
    put(world.hub, model.read_bytes(), model.name)
    file = described(model)
    wrong = JobFile(file.sha256, file.size_bytes + 1, file.name)
    assert (await world.files.open([wrong], HOST, world.told.append, fetch=False)).weights is None


async def test_who_has_nothing_is_told_and_the_host_is_asked_first(world: World, models: Callable[[str], Path]) -> None:
    opened = await world.open(models("a"))
    assert opened.weights is None and "No member" in opened.sentence
    assert world.asked and set(world.asked) == {HOST}
    assert not list((world.home.root / FOLDER).rglob("passwd*"))
    assert (await world.open(models("b"), fetch=False)).sentence == "This node has not got the model's files."


async def test_a_host_whose_files_come_for_ever_does_not_keep_another_from_being_served(
    world: World, models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def open_stream(peer: bytes) -> Stream:
        await never.wait()
        raise Unreachable("nobody is here")

    monkeypatch.setattr(worker_files, "TURN_S", 0.2)
    files = MeshWorkerFiles(world.home, world.index, FileIdentities.of_home(world.home), open_stream, margin_bytes=0)
    slow = asyncio.ensure_future(files.open([described(models("slow"))], HOST, world.told.append, fetch=True))
    await eventually(lambda: "looking for the model's files" in world.told)
    opened = await files.open([described(models("other"))], b"o" * 32, world.told.append, fetch=True)
    assert opened.weights is None
    assert "another host" in opened.sentence
    slow.cancel()
    await asyncio.wait([slow])


async def test_room_is_made_of_what_was_unused_the_longest(world: World, models: Callable[[str], Path]) -> None:
    used = {name: models(name) for name in ("old", "older", "open")}
    blobs = {
        name: world.fetched(path, used_s) for (name, path), used_s in zip(used.items(), (200, 100, 50), strict=True)
    }
    opened = await world.open(used["open"])  # the oldest, but in use
    partial = blobs["old"].with_name(f"{'0' * 64}.incomplete")
    partial.write_bytes(b"x" * 10)
    wanted = models("new")
    world.free = 100
    await world.open(wanted)  # nobody gives it, but room was made
    assert not partial.exists() and not blobs["older"].exists()
    assert blobs["old"].exists() and blobs["open"].exists()
    names = {path.name for path in (world.home.root / FOLDER).rglob("*.gguf")}
    assert names == {f"{blobs['old'].name}.gguf", f"{blobs['open'].name}.gguf"}
    assert opened.weights is not None
    opened.weights.close()


async def test_what_would_not_fit_even_so_removes_nothing(world: World, models: Callable[[str], Path]) -> None:
    blob = world.fetched(models("old"), 1)
    world.free = 0
    file = described(models("new"))
    huge = JobFile(file.sha256, 1 << 62, file.name)
    opened = await world.files.open([huge], HOST, world.told.append, fetch=True)
    assert opened.weights is None and "has 0.0 MB free" in opened.sentence
    assert blob.exists() and world.asked == []


async def test_a_use_is_remembered_and_its_hash_is_not_computed_anew(
    world: World, models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models("a")
    blob = world.fetched(model, 1.0)
    first = await world.open(model)
    pointer = HubCache(world.home.root / FOLDER).repo(REPO) / "snapshots" / COMMIT / f"{blob.name}.gguf"
    assert pointer.lstat().st_mtime > 1_000_000
    monkeypatch.setattr("agentmesh.inference.models.identity._digest", None)
    second = await world.open(model)
    for opened in (first, second):
        assert opened.weights is not None
        opened.weights.close()
