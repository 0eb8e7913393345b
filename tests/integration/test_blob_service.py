"""Which model files a member gives and to whom, over real meshes in one process; and names of models while the hub is down."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from agentmesh.core.errors import AgentMeshError
from agentmesh.inference import blob_listing, blobs
from agentmesh.inference.blob_listing import MeshFiles
from agentmesh.inference.blobs import read_frame
from agentmesh.inference.logic.blob_limits import (
    MAX_BLOB_ANSWER_BYTES,
    MAX_BLOB_REQUESTS,
    MAX_UPLOADS_PER_PEER,
    READ_BLOCK_BYTES,
)
from agentmesh.inference.logic.blob_wire import (
    Answer,
    Found,
    FoundFile,
    Get,
    Probe,
    Status,
    answer_decoder,
    frame_of,
)
from agentmesh.inference.logic.reference import parse_reference
from agentmesh.inference.models.cache import HubCache
from agentmesh.inference.models.download import download
from agentmesh.inference.models.errors import HubUnavailable
from agentmesh.inference.models.hub import Hub
from agentmesh.inference.models.settings import HubSettings
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.blob_cluster import (
    COMMIT,
    REPO,
    SMALL,
    WAIT_S,
    Cluster,
    Hand,
    MakeCluster,
    clusters,
    put,
    read_request,
    wanted,
)
from tests.fakes.bulk_world import read_all
from tests.fakes.hub_server import HubServer
from tests.fakes.mesh_nodes import eventually


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeCluster]:
    monkeypatch.setattr(blob_listing, "ASK_TIMEOUT_S", WAIT_S)
    async with clusters(tmp_path) as cluster:
        yield cluster


# ------------------------------------------------------------------ what a giver does not give


async def status_of(cluster: Cluster, content: bytes, request: type[Get] | type[Probe] = Get) -> Status:
    answer = await cluster.ask(0, frame_of(request(hashlib.sha256(content).digest())))
    return answer_decoder.decode(answer[4 : 4 + int.from_bytes(answer[:4], "big")]).status


async def test_only_whole_gguf_files_are_given(make: MakeCluster, tmp_path: Path) -> None:
    cluster = await make(1)
    cache = HubCache(tmp_path / "cache-0")
    contents = [b"GGUF" + bytes([n]) * 1000 for n in range(7)]
    put(cache, contents[0])
    put(cache, contents[1], "notes.txt")
    put(cache, contents[2], "folder/mmproj-model-f16.gguf")
    file = wanted(contents[3])
    cache.partial(file).write_bytes(contents[3])  # still arriving
    outside = tmp_path / "secret.gguf"
    outside.write_bytes(contents[4])
    snapshot = cache.pointer(wanted(contents[0])).parent
    (snapshot / "climbs.gguf").symlink_to(outside)
    blob = cache.blob(wanted(contents[5]))
    blob.symlink_to(outside)  # a blob that is a link itself
    (snapshot / "linked.gguf").symlink_to(os.path.relpath(blob, snapshot))
    put(cache, b"PK\x03\x04" + bytes(1000), "zip.gguf")
    cluster.gives(0)
    assert [await status_of(cluster, content) for content in contents[:6]] == [
        Status.HAVE,
        Status.NONE,
        Status.HAVE,
        Status.NONE,
        Status.NONE,
        Status.NONE,
    ]
    assert await status_of(cluster, b"PK\x03\x04" + bytes(1000)) is Status.NONE


async def test_a_file_that_was_replaced_since_it_was_found_is_not_given(make: MakeCluster, tmp_path: Path) -> None:
    cluster = await make(1)
    cluster.gives(0, SMALL)
    assert await status_of(cluster, SMALL, Probe) is Status.HAVE
    blob = HubCache(tmp_path / "cache-0").blob(wanted(SMALL))
    blob.unlink()
    blob.write_bytes(b"GGUF" + bytes(len(SMALL) - 4))
    assert await status_of(cluster, SMALL) is Status.NONE


async def test_a_file_that_changes_while_it_goes_out_is_cut_off(make: MakeCluster, tmp_path: Path) -> None:
    content = b"GGUF" + bytes(60_000_000)
    cluster = await make(1)
    cluster.gives(0, content)
    stream = await cluster.open(cluster.order[0])
    await stream.write(frame_of(Get(hashlib.sha256(content).digest())))
    assert await stream.read(50)
    with HubCache(tmp_path / "cache-0").blob(wanted(content)).open("r+b") as file:
        file.truncate(10_000_000)
    with pytest.raises(AgentMeshError):
        await asyncio.wait_for(read_all(stream), WAIT_S)


async def test_a_peer_gets_a_few_files_at_once_and_is_told_that_there_are_no_more(make: MakeCluster) -> None:
    content = b"GGUF" + bytes(30_000_000)
    cluster = await make(1)
    service = cluster.gives(0, content)
    digest = hashlib.sha256(content).digest()
    held = []
    for _ in range(MAX_UPLOADS_PER_PEER):
        held.append(await cluster.open(cluster.order[0]))
        await held[-1].write(frame_of(Get(digest)))
        assert await held[-1].read(4)
    assert await status_of(cluster, content) is Status.BUSY
    assert await status_of(cluster, content, Probe) is Status.BUSY
    for stream in held:
        stream.abort()
    await eventually(lambda: not service._uploads, WAIT_S)
    assert await status_of(cluster, content, Probe) is Status.HAVE


async def test_a_peer_that_does_not_read_loses_its_stream(make: MakeCluster) -> None:
    content = b"GGUF" + bytes(60_000_000)
    cluster = await make(1)
    service = cluster.gives(0, content)
    service._stall_s = 0.3
    stream = await cluster.open(cluster.order[0])
    await stream.write(frame_of(Get(hashlib.sha256(content).digest())))
    assert await stream.read(50)  # it has begun
    await eventually(lambda: not service._uploads, WAIT_S)
    with pytest.raises(AgentMeshError):
        await asyncio.wait_for(read_all(stream), WAIT_S)


async def test_garbage_is_answered_with_nothing_and_the_next_request_is_served(make: MakeCluster) -> None:
    cluster = await make(1)
    service = cluster.gives(0, SMALL)
    rng = random.Random(42)
    good = frame_of(Get(hashlib.sha256(SMALL).digest(), 10))
    for _ in range(60):
        broken = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        raw = rng.choice([bytes(broken), rng.randbytes(rng.randrange(1, 200)), good[: rng.randrange(len(good))]])
        try:
            answer = await cluster.ask(0, raw)
        except AgentMeshError:
            continue
        assert len(answer) < 100 or answer[4:6] == b"\x93\x01"  # nothing, a status, or what the hash in it names
    assert not service._uploads
    assert await status_of(cluster, SMALL) is Status.HAVE


async def test_a_stream_answers_a_bounded_number_of_requests(make: MakeCluster) -> None:
    cluster = await make(1)
    cluster.gives(0, SMALL)
    stream = await cluster.open(cluster.order[0])
    probe = frame_of(Probe(bytes(32)))
    await stream.write(probe * (MAX_BLOB_REQUESTS + 5))
    answers = 0
    with pytest.raises(AgentMeshError):
        while await asyncio.wait_for(read_frame(stream, answer_decoder, MAX_BLOB_ANSWER_BYTES), WAIT_S):
            answers += 1
    assert answers <= MAX_BLOB_REQUESTS


async def test_an_offset_beyond_the_end_gives_nothing(make: MakeCluster) -> None:
    cluster = await make(1)
    cluster.gives(0, SMALL)
    answer = await cluster.ask(0, frame_of(Get(hashlib.sha256(SMALL).digest(), len(SMALL) + 1)))
    assert answer_decoder.decode(answer[4:]).status is Status.NONE
    at_end = await cluster.ask(0, frame_of(Get(hashlib.sha256(SMALL).digest(), len(SMALL))))
    assert answer_decoder.decode(at_end[4:]) == Answer(Status.HAVE, len(SMALL))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors as Linux shows them")
async def test_streams_that_are_dropped_at_once_leave_no_file_open(make: MakeCluster, tmp_path: Path) -> None:
    cluster = await make(1)
    service = cluster.gives(0, SMALL)
    blob = str(HubCache(tmp_path / "cache-0").blob(wanted(SMALL)))

    def still_open() -> list[str]:
        links = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        with suppress(OSError):  # one was closed meanwhile: looked at again
            return [name for entry in links if (name := str(entry.readlink())) == blob]
        return ["?"]

    for _ in range(20):
        stream = await cluster.open(cluster.order[0])
        await stream.write(frame_of(Get(hashlib.sha256(SMALL).digest())))
        stream.abort()
    assert await status_of(cluster, SMALL, Probe) in (Status.HAVE, Status.BUSY)
    await eventually(lambda: not service._uploads and not still_open(), WAIT_S)


async def test_a_service_that_ends_cuts_off_what_is_on_its_way_and_serves_no_more(make: MakeCluster) -> None:
    content = b"GGUF" + bytes(60_000_000)
    cluster = await make(1)
    service = cluster.gives(0, content)
    stream = await cluster.open(cluster.order[0])
    await stream.write(frame_of(Get(hashlib.sha256(content).digest())))
    assert await stream.read(50)
    await service.close()
    with pytest.raises(AgentMeshError):
        await asyncio.wait_for(read_all(stream), WAIT_S)
    assert not service._uploads
    with pytest.raises(AgentMeshError):
        await cluster.ask(0, frame_of(Probe(bytes(32))))


# ------------------------------------------------------------------ without the hub


def offline(root: Path) -> Hub:
    return Hub(HubSettings(root, "http://127.0.0.1:9", None, offline=True), pause=lambda _: None)


async def test_a_model_that_a_member_has_is_fetched_by_name_while_the_hub_is_down(make: MakeCluster) -> None:
    cluster = await make(2)
    cluster.gives(0, SMALL)
    cluster.gives(1)
    files = MeshFiles(asyncio.get_running_loop(), cluster.open, lambda: cluster.order)
    hub = offline(cluster.cache.root)

    def run() -> Path:
        plan = files.plan(parse_reference(REPO), hub)
        return download(plan, files.sources(hub), cluster.cache, pause=lambda _: None).files[0]

    path = await asyncio.wait_for(asyncio.to_thread(run), 2 * WAIT_S)
    assert path.read_bytes() == SMALL
    assert path == cluster.cache.pointer(wanted(SMALL))


async def test_members_are_not_asked_what_a_name_means_while_the_hub_answers(make: MakeCluster) -> None:
    cluster = await make(1)
    cluster.gives(0, SMALL)
    files = MeshFiles(asyncio.get_running_loop(), cluster.open, lambda: cluster.order)
    hubs = b"GGUF" + bytes(1000)
    with HubServer({REPO: {"Tiny-Q4_K_M.gguf": hubs}}) as server:
        hub = Hub(HubSettings(cluster.cache.root, server.endpoint), pause=lambda _: None)
        plan = await asyncio.to_thread(files.plan, parse_reference(REPO), hub)
    assert plan.model[0].sha256 == hashlib.sha256(hubs).hexdigest()


async def test_nobody_can_say_what_a_name_means_is_the_hubs_failure(make: MakeCluster) -> None:
    cluster = await make(1)
    cluster.gives(0)
    files = MeshFiles(asyncio.get_running_loop(), cluster.open, lambda: cluster.order)
    with pytest.raises(HubUnavailable):
        await asyncio.to_thread(files.plan, parse_reference(REPO), offline(cluster.cache.root))


async def test_a_member_cannot_name_a_file_outside_of_its_folder(make: MakeCluster) -> None:
    cluster = await make(1)
    evil = Found(COMMIT, (FoundFile("../../../evil.gguf", 5, bytes(32)), FoundFile("good.gguf", 5, bytes(32))))

    async def lies(peer: bytes, stream: Stream) -> None:
        await read_request(stream)
        await stream.write(frame_of(evil))
        await stream.end()

    cluster.givers[0].mesh.serve(StreamKind.BLOB, lies)
    files = MeshFiles(asyncio.get_running_loop(), cluster.open, lambda: cluster.order)
    listing = await asyncio.to_thread(files.listing, REPO)
    assert list(listing.files) == ["good.gguf"]


async def test_the_event_loop_is_never_held_up_for_long_while_a_file_goes_out(
    make: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"GGUF" + bytes(50_000_000)
    cluster = await make(1)
    service = cluster.gives(0, content)
    loop_thread, reads, disk_may_go_on = threading.get_ident(), 0, threading.Event()

    class Disk:
        """Of the service's `os`: it stands still in the middle of the file until it is let go."""

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def pread(self, descriptor: int, count: int, offset: int) -> bytes:
            nonlocal reads
            assert threading.get_ident() != loop_thread
            reads += 1
            if offset > len(content) // 2:
                assert disk_may_go_on.wait(2 * WAIT_S)
            return os.pread(descriptor, count, offset)

    monkeypatch.setattr(blobs, "os", Disk())
    most = before = 0  # bytes that went out in one turn of the loop: what it did then without looking at anything else
    fetching = asyncio.create_task(cluster.fetch(wanted(content), Hand()))
    while not fetching.done():
        await asyncio.sleep(0)
        most, before = max(most, service.sent_bytes - before), service.sent_bytes
        if not disk_may_go_on.is_set() and before > len(content) // 2 - READ_BLOCK_BYTES:
            assert await status_of(cluster, content, Probe) is Status.HAVE  # others are answered meanwhile
            disk_may_go_on.set()
    assert await fetching == content
    assert reads > 100
    assert 0 < most <= READ_BLOCK_BYTES
