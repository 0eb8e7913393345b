"""Members of a real mesh in one process that have model files, and every way in which they do not give them."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from agentmesh.inference.blob_index import BlobIndex
from agentmesh.inference.blob_source import FetchLimits, PeerSource
from agentmesh.inference.blobs import BlobService, read_frame
from agentmesh.inference.logic.blob_limits import MAX_BLOB_ANSWER_BYTES
from agentmesh.inference.logic.blob_wire import (
    Answer,
    Get,
    Probe,
    Status,
    frame_of,
    request_decoder,
)
from agentmesh.inference.models.cache import HubCache
from agentmesh.inference.models.errors import HubUnavailable
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.models.source import Body, WantedFile
from agentmesh.inference.models.transfer import fetch
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.bulk_world import read_all, unhurried
from tests.fakes.mesh_nodes import TestNode, eventually

REPO = "maker/Tiny-GGUF"
COMMIT = "c" * 40
WAIT_S = 30.0
# For peers that give as they should: however slow the machine is, none is left.
PATIENT = FetchLimits(ask_s=WAIT_S, stall_s=WAIT_S, slow_bytes_per_s=0.0)
SMALL = b"GGUF" + random.Random(5).randbytes(3_000_000)


def wanted(content: bytes, path: str = "Tiny-Q4_K_M.gguf") -> WantedFile:
    return WantedFile(REPO, "main", COMMIT, path, len(content), hashlib.sha256(content).hexdigest(), None)


def put(cache: HubCache, content: bytes, path: str = "Tiny-Q4_K_M.gguf") -> WantedFile:
    """A finished download."""
    file = wanted(content, path)
    cache.blob(file).parent.mkdir(parents=True, exist_ok=True)
    cache.blob(file).write_bytes(content)
    cache.link(file)
    return file


class Hand:
    """A hub that only counts: the source behind the members."""

    name = "the hub"

    def __init__(self, content: bytes | None = None) -> None:
        self.content = content
        self.asked: list[int] = []

    @contextmanager
    def open(self, file: WantedFile, offset: int) -> Iterator[Body]:
        self.asked.append(offset)
        if self.content is None:
            raise HubUnavailable("down", retry_after_s=float("inf"))
        yield _Bytes(self.content, offset)

    def distrust(self, file: WantedFile) -> bool:
        return False


class _Bytes:
    def __init__(self, content: bytes, start: int) -> None:
        self.start = start
        self._content = content

    def chunks(self) -> Iterator[bytes]:
        yield self._content[self.start :]


MakeCluster = Callable[..., Awaitable["Cluster"]]


class Cluster:
    """One node that fetches and others that give; the first is the founder."""

    def __init__(self, root: Path, client: TestNode, givers: Sequence[TestNode]) -> None:
        self.root = root
        self.client = client
        self.givers = givers
        self.cache = HubCache(root / "client-cache")
        self.services: list[BlobService] = []
        self.order = [giver.key.public for giver in givers]

    def gives(self, number: int, *contents: bytes, served: Sequence[Path] = ()) -> BlobService:
        """A giver with a cache of its own."""
        cache = HubCache(self.root / f"cache-{number}")
        for place, content in enumerate(contents):
            put(cache, content, f"Tiny-{place}.gguf" if place else "Tiny-Q4_K_M.gguf")
        identities = FileIdentities(self.root / f"hashes-{number}.json")
        service = BlobService(BlobIndex(cache, identities, lambda: served))
        self.services.append(service)
        self.givers[number].mesh.serve(StreamKind.BLOB, service.serve)
        return service

    async def open(self, peer: bytes) -> Stream:
        return await self.client.mesh.open_stream(peer, StreamKind.BLOB)

    def source(self, *, patient: bool = False, limits: FetchLimits = PATIENT) -> PeerSource:
        loop = asyncio.get_running_loop()
        return PeerSource(loop, self.open, lambda: self.order, patient=patient, limits=limits)

    async def fetch(self, file: WantedFile, hub: Hand, *, source: PeerSource | None = None) -> bytes:
        """What lies in the cache after a download from the members, then from `hub`."""
        sources = [source or self.source(), hub]
        path = await asyncio.wait_for(
            asyncio.to_thread(fetch, file, sources, self.cache, lambda *_: None, lambda _: None), 100
        )
        return path.read_bytes()

    async def ask(self, number: int, request: bytes) -> bytes:
        """All that a giver answers to raw bytes."""
        stream = await self.open(self.order[number])
        await stream.write(request)
        await stream.end()
        return await asyncio.wait_for(read_all(stream), WAIT_S)


async def read_request(stream: Stream) -> object:
    return await asyncio.wait_for(read_frame(stream, request_decoder, MAX_BLOB_ANSWER_BYTES), WAIT_S)


def liar(
    content: bytes, then: Callable[[Stream], object] | None = None, *, size: int | None = None
) -> Callable[[bytes, Stream], Awaitable[None]]:
    """A peer that says HAVE to everything and sends `content` from the offset on."""

    async def serve(peer: bytes, stream: Stream) -> None:
        while isinstance(request := await read_request(stream), Probe):
            await stream.write(frame_of(Answer(Status.HAVE, size if size is not None else len(content))))
        assert isinstance(request, Get)
        await stream.write(frame_of(Answer(Status.HAVE, size if size is not None else len(content))))
        await stream.write(content[request.offset :])
        if then is None:
            await stream.end()
        else:
            await then(stream)  # type: ignore[misc]

    return serve


async def dawdle(peer: bytes, stream: Stream) -> None:
    """All that is asked for, at 100 kB/s."""
    while isinstance(request := await read_request(stream), Probe):
        await stream.write(frame_of(Answer(Status.HAVE, len(SMALL))))
    assert isinstance(request, Get)
    await stream.write(frame_of(Answer(Status.HAVE, len(SMALL))))
    for start in range(request.offset, len(SMALL), 5_000):
        await stream.write(SMALL[start : start + 5_000])
        await asyncio.sleep(0.05)


@asynccontextmanager
async def clusters(root: Path) -> AsyncIterator[MakeCluster]:
    """Makes clusters of so many givers, and ends them."""
    made: list[Cluster] = []

    async def cluster(givers: int, *, fast_path: bool = True) -> Cluster:
        first = await TestNode(root, "giver-0", fast_path=fast_path).found().start()
        others = [TestNode(root, f"giver-{n}", fast_path=fast_path) for n in range(1, givers)]
        client = TestNode(root, "client", fast_path=fast_path)
        for node in (*others, client):
            await (await node.join(await first.token())).start()
        await eventually(lambda: len(client.mesh.peers()) == givers, WAIT_S)
        made.append(Cluster(root, client, [first, *others]))
        return made[-1]

    with unhurried():
        yield cluster
    for one in made:
        for service in one.services:
            await service.close()
        for node in (*one.givers, one.client):
            await node.mesh.stop()
