"""Fetching model files from members of real meshes in one process: whole, resumed, from peers that die, lie, stall or dawdle."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.core.errors import Unreachable
from agentmesh.inference.blob_listing import MeshFiles
from agentmesh.inference.blob_source import FetchLimits, PeerSource
from agentmesh.inference.logic.blob_limits import MAX_UPLOADS_PER_PEER, PEERS_ASKED_AT_ONCE
from agentmesh.inference.logic.blob_wire import Answer, Status, frame_of
from agentmesh.inference.models.errors import HubUnavailable, NoPeerHas
from agentmesh.inference.models.hub import Hub
from agentmesh.inference.models.settings import HubSettings
from agentmesh.inference.models.source import WantedFile
from agentmesh.inference.models.transfer import fetch
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.blob_cluster import (
    COMMIT,
    PATIENT,
    REPO,
    SMALL,
    Cluster,
    Hand,
    MakeCluster,
    clusters,
    dawdle,
    liar,
    wanted,
)
from tests.fakes.mesh_nodes import eventually
from tests.fakes.rpc_world import Carried, CountingStream

# Slow peers are left soon; silent ones are not, because everybody is silent while the machine stands still.
LEAVES_SLOW = replace(PATIENT, slow_bytes_per_s=1_000_000, slow_window_s=0.3)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[MakeCluster]:
    async with clusters(tmp_path) as cluster:
        yield cluster


# ------------------------------------------------------------------ what works


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fast_path", [True, False])
async def test_a_file_of_50_mb_comes_whole_from_a_member_and_the_hub_is_not_asked(
    make: MakeCluster, fast_path: bool
) -> None:
    content = b"GGUF" + random.Random(1).randbytes(50_000_000)
    cluster, hub = await make(1, fast_path=fast_path), Hand()
    service = cluster.gives(0, content)
    assert await cluster.fetch(wanted(content), hub) == content
    assert hub.asked == []
    assert service.sent_bytes == len(content)


async def test_what_is_on_disk_is_not_sent_again(make: MakeCluster) -> None:
    cluster, hub, file = await make(1), Hand(), wanted(SMALL)
    service = cluster.gives(0, SMALL)
    partial = cluster.cache.partial(file)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(SMALL[:2_000_000])
    assert await cluster.fetch(file, hub) == SMALL
    assert service.sent_bytes == len(SMALL) - 2_000_000


async def test_a_served_file_outside_of_the_cache_is_given_once_its_content_is_known(
    make: MakeCluster, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(SMALL)
    cluster = await make(1)
    service = cluster.gives(0, served=[mine])
    index = service._index
    await index.has_files()
    await eventually(lambda: bool(index._own))
    assert await cluster.fetch(wanted(SMALL), Hand()) == SMALL


async def test_two_downloads_at_once_do_not_disturb_each_other(make: MakeCluster) -> None:
    other = b"GGUF" + random.Random(9).randbytes(2_000_000)
    cluster = await make(1)
    cluster.gives(0, SMALL, other)
    results = await asyncio.gather(
        cluster.fetch(wanted(SMALL), Hand()), cluster.fetch(wanted(other, "Tiny-1.gguf"), Hand())
    )
    assert results == [SMALL, other]


# ------------------------------------------------------------------ peers that fail


async def test_a_peer_that_dies_midway_is_followed_by_another_at_the_same_byte(make: MakeCluster) -> None:
    cluster, hub = await make(2), Hand()

    async def die(stream: Stream) -> None:
        partial = cluster.cache.partial(wanted(SMALL))
        await eventually(lambda: partial.exists() and partial.stat().st_size > 0)
        stream.abort()

    half = 1_500_000
    cluster.givers[0].mesh.serve(StreamKind.BLOB, liar(SMALL[:half], die, size=len(SMALL)))
    late = cluster.gives(1, SMALL)

    async def first_alone(peer: bytes) -> Stream:
        if peer == cluster.order[1] and not late_may_answer.is_set():
            await late_may_answer.wait()
        return await cluster.open(peer)

    late_may_answer = asyncio.Event()
    source = PeerSource(asyncio.get_running_loop(), first_alone, lambda: cluster.order, limits=PATIENT)
    fetching = asyncio.get_running_loop().create_task(cluster.fetch(wanted(SMALL), hub, source=source))
    await eventually(lambda: bool(source._memory._gave))
    late_may_answer.set()
    assert await fetching == SMALL
    assert hub.asked == []
    assert 0 < late.sent_bytes < len(SMALL)


@pytest.mark.parametrize("others", [1, 0])
async def test_wrong_content_is_thrown_away_and_taken_from_the_next_who_has_it(make: MakeCluster, others: int) -> None:
    cluster, hub = await make(1 + others), Hand(SMALL)
    wrong = SMALL[:1_000_000] + b"?" + SMALL[1_000_001:]
    cluster.givers[0].mesh.serve(StreamKind.BLOB, liar(wrong))
    if others:
        cluster.gives(1, SMALL)
    source = cluster.source()
    source._peers = lambda: (
        cluster.order[:1] if not source._memory._gave and not source._memory._lied else cluster.order
    )
    assert await cluster.fetch(wanted(SMALL), hub, source=source) == SMALL
    assert source._memory._lied == {wanted(SMALL).digest: {cluster.order[0]}}
    assert hub.asked == ([] if others else [0])


async def test_more_bytes_than_promised_are_not_taken(make: MakeCluster) -> None:
    cluster, hub = await make(1), Hand()
    cluster.givers[0].mesh.serve(StreamKind.BLOB, liar(SMALL + b"x" * 500_000, size=len(SMALL)))
    assert await cluster.fetch(wanted(SMALL), hub) == SMALL


@pytest.mark.parametrize("size", [0, len(SMALL) - 1, len(SMALL) + 1])
async def test_a_peer_that_names_another_size_is_not_taken_at_its_word(make: MakeCluster, size: int) -> None:
    cluster, hub = await make(1), Hand(SMALL)
    cluster.givers[0].mesh.serve(StreamKind.BLOB, liar(SMALL, size=size))
    assert await cluster.fetch(wanted(SMALL), hub) == SMALL
    assert hub.asked == [0]


class SilenceAfter:
    """FetchLimits that bear any silence until so many bytes have come, and little of it afterwards."""

    ask_s = PATIENT.ask_s
    slow_bytes_per_s = 0.0
    slow_window_s = PATIENT.slow_window_s

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes, self._carried = size_bytes, Carried()

    @property
    def stall_s(self) -> float:
        return PATIENT.stall_s if self._carried.received < self._size_bytes else 0.3

    def source(self, cluster: Cluster) -> PeerSource:
        async def open_counted(peer: bytes) -> Stream:
            return CountingStream(await cluster.open(peer), self._carried)

        return PeerSource(asyncio.get_running_loop(), open_counted, lambda: cluster.order, limits=self)


async def test_a_peer_that_stalls_is_left_and_the_hub_goes_on_where_it_stopped(make: MakeCluster) -> None:
    cluster, hub = await make(1), Hand(SMALL)

    async def stall(stream: Stream) -> None:
        await stream.read(1)

    cluster.givers[0].mesh.serve(StreamKind.BLOB, liar(SMALL[:100_000], stall, size=len(SMALL)))
    answers = 2 * len(frame_of(Answer(Status.HAVE, len(SMALL))))  # to Probe and to Get
    source = SilenceAfter(answers + 100_000).source(cluster)
    assert await cluster.fetch(wanted(SMALL), hub, source=source) == SMALL
    assert hub.asked == [100_000]


async def test_a_slow_peer_is_left_for_the_next_source(make: MakeCluster) -> None:
    cluster, hub = await make(1), Hand(SMALL)
    cluster.givers[0].mesh.serve(StreamKind.BLOB, dawdle)
    assert await cluster.fetch(wanted(SMALL), hub, source=cluster.source(limits=LEAVES_SLOW)) == SMALL
    assert len(hub.asked) == 1
    assert hub.asked[0] > 0


async def test_who_lied_is_not_asked_again_when_the_hub_is_down_and_members_are_asked_once_more(
    make: MakeCluster,
) -> None:
    cluster = await make(1)
    streams = 0
    lie = liar(SMALL[:-1] + b"?")

    async def count(peer: bytes, stream: Stream) -> None:
        nonlocal streams
        streams += 1
        await lie(peer, stream)

    cluster.givers[0].mesh.serve(StreamKind.BLOB, count)
    hub = Hub(HubSettings(cluster.cache.root, "http://127.0.0.1:9", offline=True), pause=lambda _: None)
    sources = MeshFiles(asyncio.get_running_loop(), cluster.open, lambda: cluster.order).sources(hub)
    with pytest.raises(HubUnavailable):
        await asyncio.to_thread(fetch, wanted(SMALL), sources, cluster.cache, lambda *_: None, lambda _: None)
    assert streams == 1


async def test_the_only_member_that_has_it_is_found_among_many_that_cannot_be_reached(make: MakeCluster) -> None:
    cluster, hub = await make(1), Hand()
    cluster.gives(0, SMALL)
    gone = [bytes([number]) * 32 for number in range(PEERS_ASKED_AT_ONCE + 4)]
    asked: list[bytes] = []

    async def open_stream(peer: bytes) -> Stream:
        asked.append(peer)
        if peer in gone:
            raise Unreachable
        return await cluster.open(peer)

    source = PeerSource(asyncio.get_running_loop(), open_stream, lambda: [*gone, *cluster.order], limits=PATIENT)
    assert await cluster.fetch(wanted(SMALL), hub, source=source) == SMALL
    assert sorted(asked) == sorted([*gone, *cluster.order])


async def test_a_slow_peer_is_kept_when_there_is_nobody_else(make: MakeCluster) -> None:
    cluster = await make(1)
    cluster.givers[0].mesh.serve(StreamKind.BLOB, dawdle)
    file = wanted(SMALL)
    source = cluster.source(patient=True, limits=LEAVES_SLOW)

    def take() -> int:
        with source.open(file, len(SMALL) - 250_000) as body:  # 2.5 s at its rate: several windows
            return sum(len(chunk) for chunk in body.chunks())

    assert await asyncio.wait_for(asyncio.to_thread(take), 60) == 250_000


async def test_a_peer_that_does_not_answer_leaves_the_file_to_the_hub(make: MakeCluster) -> None:
    cluster, hub = await make(1), Hand(SMALL)

    async def silent(peer: bytes, stream: Stream) -> None:
        await stream.read(1)
        await asyncio.sleep(60)

    cluster.givers[0].mesh.serve(StreamKind.BLOB, silent)
    limits = FetchLimits(ask_s=0.3)
    assert await cluster.fetch(wanted(SMALL), hub, source=cluster.source(limits=limits)) == SMALL


@pytest.mark.parametrize("answer", [b"\xff" * 40, b"\x00\x00\x00\x00", b"\x00\x00\x00\x02\xc1\xc1", b"", b"\x00\x00"])
async def test_a_peer_that_answers_nonsense_leaves_the_file_to_the_hub(make: MakeCluster, answer: bytes) -> None:
    cluster, hub = await make(1), Hand(SMALL)

    async def nonsense(peer: bytes, stream: Stream) -> None:
        await stream.read(1)
        if answer:
            await stream.write(answer)
        await stream.end()

    cluster.givers[0].mesh.serve(StreamKind.BLOB, nonsense)
    assert await cluster.fetch(wanted(SMALL), hub) == SMALL


async def test_nobody_has_it_and_the_hub_is_down_is_said(make: MakeCluster) -> None:
    cluster = await make(1)
    cluster.gives(0)
    with pytest.raises(HubUnavailable):
        await cluster.fetch(wanted(SMALL), Hand())


async def test_a_file_without_sha256_is_not_asked_for(make: MakeCluster) -> None:
    cluster, small = await make(1), b"small"
    asked: list[bytes] = []

    async def note(peer: bytes, stream: Stream) -> None:
        asked.append(peer)
        stream.abort()

    cluster.givers[0].mesh.serve(StreamKind.BLOB, note)
    sha1 = hashlib.sha1(b"blob 5\0small").hexdigest()
    file = WantedFile(REPO, "main", COMMIT, "config.json", 5, None, sha1)
    assert await cluster.fetch(file, Hand(small)) == small
    assert asked == []


async def test_a_download_that_is_given_up_frees_its_place_at_the_giver(make: MakeCluster) -> None:
    cluster = await make(1)
    service = cluster.gives(0, b"GGUF" + bytes(20_000_000))
    file = wanted(b"GGUF" + bytes(20_000_000))
    source = cluster.source()

    def begin() -> None:
        with source.open(file, 0) as body:
            next(iter(body.chunks()))

    for _ in range(2 * MAX_UPLOADS_PER_PEER):
        await asyncio.wait_for(asyncio.to_thread(begin), 40)
        await eventually(lambda: not service._uploads)


@pytest.mark.filterwarnings("ignore:coroutine")  # that it never ran is the point
async def test_a_loop_that_has_stopped_ends_the_download_instead_of_hanging_it() -> None:
    loop = asyncio.new_event_loop()
    source = PeerSource(loop, lambda peer: asyncio.sleep(9), lambda: [b"p" * 32])  # type: ignore[arg-type,return-value]

    def take() -> None:
        with source.open(wanted(SMALL), 0) as body:
            list(body.chunks())

    with pytest.raises(NoPeerHas):
        await asyncio.wait_for(asyncio.to_thread(take), 40)
    loop.close()
    with pytest.raises(NoPeerHas):
        await asyncio.wait_for(asyncio.to_thread(take), 40)


async def test_a_member_whom_asking_breaks_on_this_side_holds_up_nothing(make: MakeCluster) -> None:
    """What a member says of itself (addresses, names) must not be able to hang a download, whatever it breaks here."""
    cluster, hub = await make(1), Hand(SMALL)

    async def broken(peer: bytes) -> Stream:
        raise KeyError("a defect")

    loop = asyncio.get_running_loop()
    source = PeerSource(loop, broken, lambda: [b"x" * 32], limits=PATIENT)
    file = wanted(SMALL)
    async with asyncio.timeout(60):
        path = await asyncio.to_thread(fetch, file, [source, hub], cluster.cache)
        assert path.read_bytes() == SMALL
        with pytest.raises(NoPeerHas):
            await asyncio.to_thread(MeshFiles(loop, broken, lambda: [b"x" * 32]).listing, REPO)
