"""One link against a peer that stalls, opens too much, or breaks what serves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest

from agentmesh.core.errors import Unreachable
from agentmesh.mesh import links
from agentmesh.mesh.links import Link, LinkHandlers
from agentmesh.mesh.logic.messages import AnyMessage, Prune
from agentmesh.mesh.logic.record import SignedRecord
from agentmesh.mesh.memory import MemoryConnection, MemoryNetwork, MemoryTransport
from agentmesh.mesh.streams import StreamKind, open_framed
from agentmesh.mesh.transport import Connection, Stream

PEER, SELF = b"p" * 32, b"s" * 32


class World:
    """A link, and the far end of its connection in the test's hands."""

    def __init__(self) -> None:
        self.got: list[AnyMessage] = []
        self.failure: Exception | None = None
        self.records: list[SignedRecord] = []

    async def begin(self) -> World:
        network = MemoryNetwork()
        server, client = MemoryTransport(network, SELF), MemoryTransport(network, PEER)
        came: asyncio.Future[MemoryConnection] = asyncio.get_running_loop().create_future()

        async def hold(connection: Connection) -> None:
            came.set_result(cast(MemoryConnection, connection))
            await connection.wait_closed()

        port = await server.listen("127.0.0.1", 0, hold)
        self.far = await client.dial(SELF, f"127.0.0.1:{port}", 30)
        self.near = await asyncio.wait_for(came, 30)
        self.link = Link(PEER, self.near, LinkHandlers(self._message, self._load, {StreamKind.CONTROL: self._serve}))
        self.running = asyncio.create_task(self.link.run())
        return self

    async def _message(self, peer: bytes, message: AnyMessage) -> None:
        if self.failure is not None:
            raise self.failure
        self.got.append(message)

    async def _load(self, ids: Sequence[bytes]) -> list[SignedRecord]:
        return self.records

    async def _serve(self, peer: bytes, stream: Stream) -> None:
        raise Unreachable("The peer fell silent in the middle of a request.")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await World().begin()
    yield made
    made.near.close("test over")
    await asyncio.wait_for(made.running, 60)


async def test_a_bug_met_by_one_message_ends_the_link_instead_of_leaving_it_deaf(world: World) -> None:
    world.failure = KeyError("a bug")
    out = await open_framed(world.far, StreamKind.RECORDS)
    await out.write_struct(Prune())
    assert await asyncio.wait_for(world.running, 60) == "internal error"


async def test_a_request_that_fails_costs_its_stream_and_not_the_link(world: World) -> None:
    await open_framed(world.far, StreamKind.CONTROL)
    out = await open_framed(world.far, StreamKind.GOSSIP)
    await out.write_struct(Prune())
    await _until_got(world, 1)
    assert not world.near.is_closed


async def test_a_stream_that_does_not_say_its_kind_is_reset_and_the_link_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = await world.far.open_stream()
    await silent.write(b"\x00\x00\x00\x00")
    out = await open_framed(world.far, StreamKind.GOSSIP)
    await out.write_struct(Prune())
    await _until_got(world, 1)
    assert not world.near.is_closed


async def test_a_second_stream_of_messages_is_refused_while_the_first_is_read(world: World) -> None:
    first = await open_framed(world.far, StreamKind.RECORDS)
    await first.write_struct(Prune())
    await _until_got(world, 1)
    second = await open_framed(world.far, StreamKind.RECORDS)
    await second.write_struct(Prune())
    await first.write_struct(Prune())
    await _until_got(world, 2)
    await asyncio.sleep(0.05)
    assert len(world.got) == 2
    assert not world.near.is_closed


async def test_a_peer_that_takes_no_records_any_more_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "STALL_S", 0.1)
    world.records = [SignedRecord(bytes(60_000), bytes(64))] * 16
    world.link.send_records((b"i" * 16,), None)
    reason = await asyncio.wait_for(world.running, 60)
    assert "does not take" in reason


async def _until_got(world: World, count: int) -> None:
    async with asyncio.timeout(60):
        while len(world.got) < count:
            await asyncio.sleep(0.005)
