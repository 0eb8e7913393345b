"""Members with real keys and handshakes whose bulk streams go over real TLS on loopback; QUIC's part is played in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from agentmesh.core.errors import AgentMeshError, Unreachable
from agentmesh.mesh import bulk, bulk_wiring
from agentmesh.mesh.authority import Draft
from agentmesh.mesh.bulk import BulkStreams, BulkSurroundings
from agentmesh.mesh.links import OnStream
from agentmesh.mesh.logic.bulk_paths import BulkTarget
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.memory import MemoryNetwork, MemoryTransport
from agentmesh.mesh.streams import StreamKind, read_header
from agentmesh.mesh.tls import TlsTransport
from agentmesh.mesh.tls_link import TlsLink, TlsStream
from agentmesh.mesh.transport import Connection, Stream
from tests.fakes.admission_world import Node, World

PIECE_BYTES = 64 * 1024
WAIT_S = 30.0
PATIENT_MS = 60_000


@contextmanager
def unhurried() -> Iterator[None]:
    """A path that works is waited for, however long the machine stands still: else, after 0.3 s, a stream goes over QUIC.

    A test that sets one of these itself does so within this, with a pytest.MonkeyPatch of its own: they are put back in order.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "BULK_HEAD_START_MS", PATIENT_MS)
        patch.setattr(bulk, "BULK_WAIT_MS", PATIENT_MS)
        patch.setattr(bulk_wiring, "LINK_S", WAIT_S)
        yield


async def echo(peer: bytes, stream: Stream) -> None:
    """A service that sends back what comes."""
    while data := await stream.read(PIECE_BYTES):
        await stream.write(data)
    await stream.end()


async def _answers(node: bytes) -> bool:
    return True


class BulkNode:
    """One member with both ways. `targets` is what it knows of others' TCP addresses."""

    def __init__(self, node: Node, slow_way: MemoryNetwork) -> None:
        self.node = node
        self.public = node.public
        self.port = 0
        self.targets: dict[bytes, BulkTarget] = {}
        self.services: dict[StreamKind, OnStream] = {StreamKind.HTTP: echo}
        self.over_quic: list[bytes] = []  # who was reached the other way
        self.published: list[Draft] = []
        self.transport = TlsTransport(node.key)
        self._slow = MemoryTransport(slow_way, node.public)
        self.slow_address = ""
        self._slow_addresses: dict[bytes, str] = {}
        around = BulkSurroundings(
            answers=_answers,
            where=self.targets.get,
            over_quic=self._quic,
            is_out=self._is_out,
            publish=self.published.append,
        )
        self.bulk = BulkStreams(self.transport, node.admission, self.services, around)

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.port = await self.bulk.listen(host, port)
        slow = await self._slow.listen("192.0.2.9", 0, self._slow_connection)
        self.slow_address = f"192.0.2.9:{slow}"

    def knows(self, other: BulkNode, *addresses: str, seen_ms: int = 1, slow: bool = True) -> None:
        """Learn where `other` is."""
        self.targets[other.public] = BulkTarget(addresses or (f"127.0.0.1:{other.port}",), seen_ms)
        if slow:
            self._slow_addresses[other.public] = other.slow_address

    async def open(self, other: BulkNode, kind: StreamKind = StreamKind.HTTP) -> Stream:
        return await asyncio.wait_for(self.bulk.open_stream(other.public, kind), WAIT_S)

    async def ask(self, other: BulkNode, question: bytes, kind: StreamKind = StreamKind.HTTP) -> bytes:
        """What `other`'s service answers."""
        stream = await self.open(other, kind)
        async with asyncio.TaskGroup() as group:
            group.create_task(_send(stream, question))
            return await asyncio.wait_for(read_all(stream), 2 * WAIT_S)

    async def close(self) -> None:
        await self.bulk.close()
        await self._slow.close()

    def _is_out(self, node: bytes) -> bool:
        return self.node.trust.standing(node, self.node.clock.now_ms()) is Standing.OUT

    async def _quic(self, node: bytes) -> Stream:
        self.over_quic.append(node)
        if node not in self._slow_addresses:
            raise Unreachable("no QUIC either")
        return await (await self._slow.dial(node, self._slow_addresses[node], WAIT_S)).open_stream()

    async def _slow_connection(self, connection: Connection) -> None:
        try:
            stream = await connection.accept_stream()
            kind = (await read_header(stream)).known_kind
            if kind is not None:
                await self.services[kind](b"", stream)
            await connection.wait_closed()
        except AgentMeshError:
            pass


async def _send(stream: Stream, data: bytes) -> None:
    for start in range(0, len(data), PIECE_BYTES):
        await stream.write(data[start : start + PIECE_BYTES])
    await stream.end()


async def read_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := await stream.read(PIECE_BYTES):
        data += piece
    return bytes(data)


@asynccontextmanager
async def two_members(folder: Path, *, host: str = "127.0.0.1") -> AsyncIterator[tuple[BulkNode, BulkNode]]:
    """A founder that serves and a member that asks. Both listen; the member knows where."""
    world = World(folder)
    slow_way = MemoryNetwork()
    founder = await world.found()
    server = BulkNode(founder, slow_way)
    client = BulkNode(await world.member("ann", founder), slow_way)
    try:
        await server.listen(host)
        await client.listen(host)
        client.knows(server)
        with unhurried():
            async with asyncio.timeout(100):
                yield server, client
    finally:
        await client.close()
        await server.close()
        await world.close()


Pair = tuple[BulkNode, BulkNode]


async def until(holds: Callable[[], bool], seconds: float = WAIT_S) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


def link_of(stream: Stream) -> TlsLink:
    assert isinstance(stream, TlsStream)
    return stream._link


async def both_ends(pair: Pair) -> tuple[Stream, Stream]:
    """A stream on the fast path, and the server's end of it, which its service keeps open."""
    server, client = pair
    arrived: asyncio.Queue[Stream] = asyncio.Queue()

    async def keep(peer: bytes, stream: Stream) -> None:
        assert peer == client.public
        await arrived.put(stream)
        await asyncio.Event().wait()

    server.services[StreamKind.BLOB] = keep
    near = await client.open(server, StreamKind.BLOB)
    return near, await asyncio.wait_for(arrived.get(), WAIT_S)
