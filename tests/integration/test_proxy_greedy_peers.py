"""A member that opens more requests than it needs, and sends them slowly, takes nothing from other members or from this node's users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.proxy_world import WAIT_S, PeerLinks, World, answer, fast, post, proxy_world, says, until

GREEDY, HONEST = b"g" * 32, b"h" * 32
SETTINGS = fast(max_peer_requests=8, max_requests_of_a_peer=2, max_bodies_bytes=10_000)
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-agentmesh-model: m\r\nContent-Length: {}\r\n\r\n"

Open = Callable[[bytes], Awaitable[Stream]]


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with proxy_world(tmp_path, SETTINGS) as world:
        await world.backend(says(answer(b'"there"')))
        yield world


@pytest.fixture
async def open_as(there: World, tmp_path: Path) -> AsyncIterator[Open]:
    """Streams to the serving node, as one member or the other."""
    here = World(tmp_path)
    links = PeerLinks(here)
    for member in (GREEDY, HONEST):

        async def serve(_: bytes, stream: Stream, member: bytes = member) -> None:
            await there.server.serve_peer(member, stream)

        await links.add(member, serve)

    async def open_one(member: bytes) -> Stream:
        return await links.open(member, StreamKind.HTTP)

    yield open_one
    await links.close()
    await here.server.close()


async def said(stream: Stream) -> bytes:
    return await asyncio.wait_for(stream.read(4_096), WAIT_S)


async def test_a_member_has_a_bounded_part_of_the_requests_in_progress(there: World, open_as: Open) -> None:
    for _ in range(SETTINGS.max_peer_requests):  # streams that say nothing are no requests yet
        await open_as(GREEDY)
    for _ in range(SETTINGS.max_requests_of_a_peer):
        stream = await open_as(GREEDY)
        await stream.write(HEAD.format(100).encode())
    refused = await open_as(GREEDY)
    await refused.write(HEAD.format(2).encode() + b"{}")
    head = await said(refused)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"x-agentmesh-not-begun: 1" in head
    assert b"retry-after: 1" in head.lower()
    stream = await open_as(HONEST)
    await stream.write(HEAD.format(2).encode() + b"{}")
    assert (await said(stream)).startswith(b"HTTP/1.1 200 ")


async def test_a_members_place_is_free_again_when_its_request_is_over(there: World, open_as: Open) -> None:
    for _ in range(3 * SETTINGS.max_requests_of_a_peer):
        stream = await open_as(GREEDY)
        await stream.write(HEAD.format(2).encode() + b"{}")
        assert (await said(stream)).startswith(b"HTTP/1.1 200 ")
        await stream.end()
        assert await said(stream) in (b'"there"', b"")
    await until(lambda: there.server.parts.budget.used_bytes == 0)


async def test_bodies_of_members_leave_half_of_the_room_to_this_nodes_users(there: World, open_as: Open) -> None:
    stream = await open_as(GREEDY)
    await stream.write(HEAD.format(9_000).encode() + b"x" * 4_500)
    await until(lambda: there.server.parts.budget.used_bytes == 4_500)
    second = await open_as(GREEDY)
    await second.write(HEAD.format(1_000).encode() + b"x" * 1_000)
    assert (await said(second)).startswith(b"HTTP/1.1 503 ")
    assert (await there.ask(post({"model": "m", "prompt": "y" * 5_000}))).status == 200
    stream.abort()
    await until(lambda: there.server.parts.budget.used_bytes == 0)
