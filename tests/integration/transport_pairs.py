"""Two nodes over either transport, for tests that must hold for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.memory import MemoryNetwork, MemoryTransport
from agentmesh.mesh.quic import QuicTransport
from agentmesh.mesh.transport import Connection, Stream, Transport

T = TypeVar("T")

WAIT_S = 60.0  # for what must come; no wait of these tests is longer


async def within(awaitable: Awaitable[T], seconds: float = WAIT_S) -> T:
    """`awaitable`, or a failure when it takes too long."""
    return await asyncio.wait_for(awaitable, seconds)


async def read_all(stream: Stream) -> bytes:
    """Everything up to the end."""
    data = bytearray()
    while chunk := await stream.read(64 * 1024):
        data += chunk
    return bytes(data)


async def read_exactly(stream: Stream, count: int) -> bytes:
    """Exactly `count` bytes."""
    data = bytearray()
    while len(data) < count:
        chunk = await stream.read(count - len(data))
        assert chunk, "the stream ended early"
        data += chunk
    return bytes(data)


async def echo(connection: Connection) -> None:
    """A handler that sends back what comes on each stream."""

    async def one(stream: Stream) -> None:
        while chunk := await stream.read(64 * 1024):
            await stream.write(chunk)
        await stream.end()

    async with asyncio.TaskGroup() as group:
        while not connection.is_closed:
            group.create_task(one(await connection.accept_stream()))


@dataclass
class Nodes:
    """A node that listens and one that dials. Incoming connections wait in `accepted`, unless `handler` takes them."""

    server: Transport
    client: Transport
    server_key: NodeKey
    client_key: NodeKey
    address: str = ""
    handler: Callable[[Connection], Awaitable[None]] | None = None
    accepted: asyncio.Queue[Connection] = field(default_factory=asyncio.Queue)

    async def on_connection(self, connection: Connection) -> None:
        if self.handler is not None:
            await self.handler(connection)
        else:
            await self.accepted.put(connection)
            await connection.wait_closed()

    async def connect(self) -> tuple[Connection, Connection]:
        """The dialling end and the listening end of a new connection."""
        near = await within(self.client.dial(self.server_key.public, self.address, WAIT_S))
        return near, await within(self.accepted.get())

    async def stream(self) -> tuple[Stream, Stream]:
        """Both ends of a stream on a new connection; one byte has passed to make it known."""
        near, far = await self.connect()
        return await open_pair(near, far)


async def open_pair(near: Connection, far: Connection) -> tuple[Stream, Stream]:
    """Both ends of a new stream; one byte has passed to make it known."""
    stream = await within(near.open_stream())
    await within(stream.write(b"!"))
    other = await within(far.accept_stream())
    assert await within(other.read(1)) == b"!"
    return stream, other


def transports(kind: str, *keys: NodeKey) -> list[Transport]:
    """One transport for each key, on one network."""
    if kind == "quic":
        return [QuicTransport(key) for key in keys]
    network = MemoryNetwork()
    return [MemoryTransport(network, key.public) for key in keys]


@asynccontextmanager
async def two_nodes(kind: str) -> AsyncIterator[Nodes]:
    """Two nodes, both listening on loopback."""
    server_key, client_key = NodeKey.generate(), NodeKey.generate()
    server, client = transports(kind, server_key, client_key)
    nodes = Nodes(server, client, server_key, client_key)
    try:
        port = await server.listen("127.0.0.1", 0, nodes.on_connection)
        await client.listen("127.0.0.1", 0, nodes.on_connection)
        nodes.address = f"127.0.0.1:{port}"
        yield nodes
    finally:
        await within(client.close())
        await within(server.close())
