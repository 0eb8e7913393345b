"""A node's own shard: from the same outcome the same plan everywhere, written once, given up without a trace, and cleared away."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmesh.core.paths import Home
from agentmesh.inference.logic.moe import SOURCE_CALIBRATION
from agentmesh.inference.logic.split_values import ShardRoom, Shards
from agentmesh.inference.models import shard as shard_module
from agentmesh.inference.models.errors import ModelFileUnusable, NoSpace
from agentmesh.inference.models.expert_ranking import ExpertCounts, RememberedCounts
from agentmesh.inference.models.hub import Hub
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.models.settings import HubSettings
from agentmesh.inference.models.shard import read_expert_model
from agentmesh.inference.models.shard_hub import read_remote_model
from agentmesh.inference.models.shard_store import ShardStore, source_digest
from agentmesh.inference.split import shards as shards_module
from agentmesh.inference.split.shards import ShardMade, ShardMaker, ShardRefused
from tests.fakes.expert_gguf import ExpertShape, write_expert_gguf
from tests.fakes.hub_server import HubServer
from tests.unit.inference.test_expert_ranking import write_imatrix

ONE, TWO, THREE = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
COUNTS = {0: tuple(float(number) for number in range(8)), 1: (9.0, 0.0, 8.0, 0.0, 7.0, 0.0, 6.0, 0.0)}


def outcome(*rooms: tuple[bytes, int], experts: int = 8) -> Shards:
    return Shards(tuple(ShardRoom(node, room, 1) for node, room in rooms), experts, 4096, 1)


PAIR = outcome((ONE, 6), (TWO, 6))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "model").mkdir()
    return write_expert_gguf(tmp_path / "model" / "experts.gguf", ExpertShape(kind="Q8_0", shared=True, used=2))


def maker(folder: Path, node: bytes = ONE) -> ShardMaker:
    return ShardMaker.of_home(Home(folder / f"home-{node[0]}"))


def kept(made: ShardMade) -> tuple[tuple[int, ...], ...]:
    """What the record says that its file holds."""
    store = ShardStore(made.path.parent.parent, FileIdentities(made.path.parent / "hashes"))
    record = store.find(made.key)
    assert record is not None
    assert record.sha256 == made.sha256
    return record.kept


async def test_two_nodes_make_the_plans_two_parts_each_for_itself(files: list[Path], tmp_path: Path) -> None:
    said: list[str] = []
    one = await maker(tmp_path).make(PAIR, ONE, files, "experts", say=said.append)
    two = await maker(tmp_path, TWO).make(PAIR, TWO, files, "experts")
    assert kept(one) == ((0, 1, 2, 3, 4, 6),) * 2
    assert kept(two) == ((0, 1, 2, 3, 5, 7),) * 2
    assert {str(made.name) for made in (one, two)} == {"6/8 -"}
    assert (one.kept_of, one.ranked, one.routing_share, one.left_out) == ("6 of 8", False, None, 0)
    assert one.path.name == two.path.name == "experts.gguf"
    assert one.source_sha256 == two.source_sha256
    assert "6 of 8" in one.sentence and "nothing was counted" in one.sentence
    assert any("Writing" in sentence for sentence in said)


@pytest.mark.parametrize("how", ["beside", "remembered"])
async def test_counts_at_hand_rank_the_experts(files: list[Path], tmp_path: Path, how: str) -> None:
    if how == "beside":
        (files[0].parent / "a-imatrix.gguf").write_bytes(b"GGUF, but no more than that")
        write_imatrix(files[0].parent / "experts.IMATRIX.gguf", COUNTS)
    else:
        model = read_expert_model(files[0])
        home = Home(tmp_path / "home-1")
        source = source_digest(model.files, FileIdentities.of_home(home))
        RememberedCounts.of_home(home).remember(source, ExpertCounts(SOURCE_CALIBRATION, COUNTS))
    made = await maker(tmp_path).make(PAIR, ONE, files, "experts")
    assert kept(made) == ((1, 3, 4, 5, 6, 7), (0, 1, 2, 4, 5, 6))
    assert made.ranked
    assert made.routing_share == pytest.approx((1 + 3 + 4 + 5 + 6 + 7 + 30) / 58)
    assert len(made.name.ranking) == 8
    assert "of the counted routing" in made.sentence


async def test_a_node_without_the_others_counts_has_a_usable_shard_and_says_by_its_name_that_it_ranked_otherwise(
    files: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(files[0].parent, other)
    write_imatrix(files[0].parent / "imatrix.gguf", COUNTS)
    one = await maker(tmp_path).make(PAIR, ONE, files, "experts")
    two = await maker(tmp_path, TWO).make(PAIR, TWO, [other / files[0].name], "experts")
    assert one.name.ranking != two.name.ranking == "-"
    assert [len(layer) for layer in kept(two)] == [6, 6]


async def test_a_wished_minimum_and_little_room_shape_the_core(files: list[Path], tmp_path: Path) -> None:
    little = outcome((ONE, 3), (TWO, 8), (THREE, 3))
    made = await maker(tmp_path).make(little, TWO, files, "experts", min_experts=3)
    assert kept(made) == (tuple(range(8)),) * 2
    small = await maker(tmp_path, TWO).make(outcome((ONE, 3), (TWO, 3)), ONE, files, "experts")
    assert (kept(small), small.left_out) == (((0, 1, 2),) * 2, 5)
    assert "5 of 8 experts a layer find no room" in small.sentence


@pytest.mark.parametrize(
    ("plan", "node", "said"),
    [
        (PAIR, THREE, "no part for this node"),
        (outcome((ONE, 6), (TWO, 6), experts=16), ONE, "16 experts"),
        (outcome((ONE, 1), (TWO, 8)), ONE, "2 are needed"),
    ],
)
async def test_what_the_model_or_the_node_cannot_do_is_refused(
    files: list[Path], tmp_path: Path, plan: Shards, node: bytes, said: str
) -> None:
    with pytest.raises(ShardRefused, match=said):
        await maker(tmp_path).make(plan, node, files, "experts")
    assert not list((tmp_path / "home-1").rglob("*.gguf"))


async def test_a_shard_is_found_again_and_a_shard_of_a_shard_is_refused(files: list[Path], tmp_path: Path) -> None:
    made = await maker(tmp_path).make(PAIR, ONE, files, "experts")
    before = made.path.stat()
    again = await maker(tmp_path).make(PAIR, ONE, files, "experts")
    assert again == made
    assert again.path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(ModelFileUnusable):
        await maker(tmp_path).make(PAIR, ONE, [made.path], "experts")


async def test_a_later_plans_shard_takes_the_place_of_the_earlier_ones_but_not_of_what_the_user_made(
    files: list[Path], tmp_path: Path
) -> None:
    store = ShardStore.of_home(Home(tmp_path / "home-1"))
    model = read_expert_model(files[0])
    source = source_digest(model.files, FileIdentities.of_home(Home(tmp_path / "home-1")))
    users = store.make(model, source, ((0, 1, 2, 3, 4, 6),) * 2)
    found = await maker(tmp_path).make(PAIR, ONE, files, "experts")
    assert found.key == users.key, "the plan's, by chance"
    first = await maker(tmp_path).make(outcome((ONE, 8), (TWO, 4)), ONE, files, "experts")
    second = await maker(tmp_path).make(outcome((ONE, 5), (TWO, 5)), ONE, files, "experts")
    assert not first.path.parent.exists()
    assert {record.key for record in store.records()} == {users.key, second.key}


async def test_when_the_disk_is_full_older_plans_shards_make_room(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await maker(tmp_path).make(PAIR, ONE, files, "experts")

    def has_room(folder: Path, size_bytes: int, free_bytes: Callable[[Path], int]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if first.path.exists():
            raise NoSpace("The shard needs more than there is.")

    monkeypatch.setattr(shard_module, "make_room", has_room)
    second = await maker(tmp_path).make(outcome((ONE, 5), (TWO, 5)), ONE, files, "experts")
    assert second.path.exists()

    def has_none(folder: Path, size_bytes: int, free_bytes: Callable[[Path], int]) -> None:
        raise NoSpace("Full.")

    monkeypatch.setattr(shard_module, "make_room", has_none)
    with pytest.raises(NoSpace):
        await maker(tmp_path, TWO).make(PAIR, TWO, files, "experts")


async def test_a_cancelled_writing_ends_and_leaves_nothing(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go, ended = threading.Event(), threading.Event(), threading.Event()
    real: Callable[..., object] = shard_module.write_shard

    def slow(*arguments: object, **options: object) -> object:
        began.set()
        go.wait(60)
        try:
            return real(*arguments, **options)
        finally:
            ended.set()

    monkeypatch.setattr("agentmesh.inference.models.shard_store.write_shard", slow)
    task = asyncio.create_task(maker(tmp_path).make(PAIR, ONE, files, "experts"))
    assert await asyncio.to_thread(began.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    assert await asyncio.to_thread(ended.wait, 60)
    assert not [path for path in (tmp_path / "home-1").rglob("*") if ".gguf" in path.name]


async def test_a_model_on_the_hub_gives_the_same_shard_by_ranges(files: list[Path], tmp_path: Path) -> None:
    local = await maker(tmp_path).make(PAIR, ONE, files, "experts")
    with HubServer({"maker/Experts-GGUF": {file.name: file.read_bytes() for file in files}}) as server:
        hub = Hub(HubSettings(tmp_path / "cache", server.endpoint))
        listing = hub.listing("maker/Experts-GGUF")
        remote = read_remote_model([listing.files[file.name] for file in files], hub)
        made = await ShardMaker.of_home(Home(tmp_path / "home-2"), hub).make(PAIR, ONE, remote, "experts")
        assert (made.sha256, made.key, made.source_sha256) == (local.sha256, local.key, local.source_sha256)
        with pytest.raises(ShardRefused, match="Download it"):
            await maker(tmp_path, THREE).make(PAIR, ONE, remote, "experts")


@pytest.mark.parametrize(("every_s", "told"), [(1e9, 1), (0.0, 20)])
async def test_progress_is_told_as_seldom_as_it_should(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, told: int
) -> None:
    monkeypatch.setattr(shard_module, "CHUNK_BYTES", 64)
    monkeypatch.setattr(shards_module, "TELL_S", every_s)
    said: list[str] = []
    await maker(tmp_path).make(PAIR, ONE, files, "experts", say=said.append)
    writing = [sentence for sentence in said if sentence.startswith("Writing its shard: 6 of 8 experts a layer")]
    assert len(writing) == 1 if told == 1 else len(writing) >= told
