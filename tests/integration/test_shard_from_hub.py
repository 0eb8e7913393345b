"""A shard fetched from a hub by ranges: the same file as from the downloaded model, with only its own bytes on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentmesh.cli.moe import moe
from agentmesh.inference.models import shard_hub
from agentmesh.inference.models.errors import HubError, HubUnavailable, ModelFileUnusable
from agentmesh.inference.models.gguf import read_model
from agentmesh.inference.models.hub import Hub
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.models.settings import HubSettings
from agentmesh.inference.models.shard import LocalParts, layout_of, read_expert_model, write_shard
from agentmesh.inference.models.shard_hub import RemoteModel, fetch_shard, read_remote_model
from agentmesh.inference.models.shard_store import source_digest
from tests.fakes.expert_gguf import ExpertShape, write_expert_gguf
from tests.fakes.hub_server import Fault, HubServer

REPO = "maker/Experts-GGUF"
KEPT = ((0, 2, 3, 7), (1, 2, 5, 6))


class World:
    """A model on disk and the same on a hub."""

    def __init__(self, server: HubServer, files: list[Path], tmp_path: Path) -> None:
        self.server, self.files, self.folder = server, files, tmp_path
        self.pauses: list[float] = []
        self.hub = Hub(HubSettings(tmp_path / "cache", server.endpoint), pause=self.pauses.append)

    def remote(self) -> RemoteModel:
        listing = self.hub.listing(REPO)
        return read_remote_model([listing.files[file.name] for file in self.files], self.hub, self.pauses.append)

    def fetch(self, model: RemoteModel) -> bytes:
        target = self.folder / "out" / "part.gguf"
        return fetch_shard(model, self.hub, KEPT, target, pause=self.pauses.append).path.read_bytes()

    def expected(self) -> bytes:
        model = read_expert_model(self.files[0])
        source = source_digest(model.files, FileIdentities(self.folder / "hashes.json"))
        with LocalParts.open(model.files) as parts:
            layout = layout_of(model.headers, model.experts, parts, KEPT, source)
            return write_shard(layout, parts, self.folder / "expected.gguf").path.read_bytes()


@pytest.fixture(params=[0, 5], ids=["one file", "parts"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    (tmp_path / "model").mkdir()
    shape = ExpertShape(kind="Q8_0", shared=True, biases=True)
    files = write_expert_gguf(tmp_path / "model" / "experts.gguf", shape, tensors_a_part=request.param)
    with HubServer({REPO: {file.name: file.read_bytes() for file in files}}) as server:
        yield World(server, files, tmp_path)


@pytest.mark.parametrize("gap_bytes", [0, 3000, 1 << 20])
def test_a_fetched_shard_is_the_one_that_the_downloaded_model_gives(
    world: World, gap_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_hub.JoinedParts.__init__, "__defaults__", (gap_bytes,))
    assert world.fetch(world.remote()) == world.expected()


def test_only_the_needed_bytes_are_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_hub.JoinedParts.__init__, "__defaults__", (0,))
    model = world.remote()
    before = len(world.server.requests)
    data = world.fetch(model)
    ranges = [request.range for request in world.server.requests[before:]]
    assert all(each is not None for each in ranges)
    asked = [each.removeprefix("bytes=").split("-") for each in ranges if each]
    assert sum(int(last) - int(first) + 1 for first, last in asked) <= len(data)


def test_a_piece_that_breaks_off_is_asked_for_from_there(world: World) -> None:
    model = world.remote()
    world.server.file_faults.extend([Fault(), Fault(truncate_after=700), Fault(status=503)])
    assert world.fetch(model) == world.expected()
    assert len(world.pauses) == 2


def test_a_hub_that_ignores_ranges_or_gives_up_leaves_nothing(world: World) -> None:
    model = world.remote()
    world.server.file_faults.extend([Fault(status=503)] * 9)
    with pytest.raises(HubUnavailable):
        world.fetch(model)
    world.server.file_faults.clear()
    world.server.ignore_range = True
    with pytest.raises(HubError, match="only as a whole"):
        world.fetch(model)
    out = world.folder / "out"
    assert not out.exists() or list(out.iterdir()) == []


def test_what_cannot_be_cut_is_refused_with_only_the_header_read(tmp_path: Path) -> None:
    (file,) = write_expert_gguf(tmp_path / "new.gguf", ExpertShape(architecture="novelmoe"))
    with HubServer({REPO: {"new.gguf": file.read_bytes(), "junk.gguf": b"x" * 100}}) as server:
        hub = Hub(HubSettings(tmp_path / "cache", server.endpoint))
        listing = hub.listing(REPO)
        with pytest.raises(ModelFileUnusable, match="novelmoe"):
            read_remote_model([listing.files["new.gguf"]], hub)
        with pytest.raises(ModelFileUnusable, match="does not begin with GGUF"):
            read_remote_model([listing.files["junk.gguf"]], hub)
        with pytest.raises(ModelFileUnusable, match="is not part 1 of 2"):
            read_remote_model([listing.files["new.gguf"]] * 2, hub)


def test_the_commands_plan_and_split_a_model_that_is_not_here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(world.folder / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", world.server.endpoint)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    name = f"{REPO}/{world.files[0].name}"
    plan = CliRunner().invoke(moe, ["plan", name, "--nodes", "2", "--json"], standalone_mode=False)
    assert plan.exception is None
    assert "is not on this machine; only what is needed of it is fetched" in plan.stderr
    rows = json.loads(plan.stdout)["nodes"]
    split = CliRunner().invoke(moe, ["split", name, "--node", "1", "--json"], standalone_mode=False)
    assert split.exception is None
    assert "cannot be measured" in split.stderr
    (part,) = json.loads(split.stdout)["parts"]
    assert read_model(Path(part["path"])).facts.weight_bytes == rows[0]["weight_bytes"]
    local = CliRunner().invoke(
        moe, ["split", str(world.files[0]), "--node", "1", "--no-rank", "--json"], standalone_mode=False
    )
    assert json.loads(local.stdout)["parts"] == [part], "the same shard of the same content, found again"
    assert not list((world.folder / "hf").rglob("*.gguf"))
