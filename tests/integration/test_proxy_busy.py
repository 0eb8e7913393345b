"""A peer that other nodes keep busy: requests wait for it, as they would in a queue, and are not refused after a few tries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.inference.proxy import dispatch, exchange, queues
from agentmesh.inference.proxy.directory import Directory
from agentmesh.inference.proxy.dispatch import Dispatcher
from agentmesh.mesh.transport import Stream
from tests.fakes.proxy_world import PeerLinks, World, answer, post, proxy_world
from tests.fakes.routing import ME, model, node_record

PEER = b"p" * 32
ASK = {"model": "m"}
BUSY = answer(b"{}", "429 Too Many Requests", "x-agentmesh-not-begun: 1\r\nRetry-After: 0\r\n")


class BusyPeer:
    """Says so many times that it is busy, then answers."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.asked = 0

    async def serve(self, peer: bytes, stream: Stream) -> None:
        await stream.read(65_536)
        self.asked += 1
        self.left -= 1
        await stream.write(BUSY if self.left >= 0 else answer(b'"at last"'))
        await stream.end()


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A proxy that really chooses, and in which everything that is waited for comes soon."""
    monkeypatch.setattr(dispatch, "BUSY_DEFAULT_S", 0.005)
    monkeypatch.setattr(queues, "TICK_S", 0.005)
    async with proxy_world(tmp_path) as made:
        now_s = asyncio.get_running_loop().time
        directory = Directory(ME, dict, now_s)
        made.server.parts.dispatch = Dispatcher(directory, made.metrics, now_s, asyncio.get_running_loop().call_later)
        await directory.on_records([node_record(PEER, model("m", slots=4))])
        yield made


async def test_a_request_waits_for_a_peer_that_is_busy_for_long(world: World) -> None:
    peer, links = BusyPeer(30), PeerLinks(world)
    await links.add(PEER, peer.serve)
    reply = await world.ask(post(ASK))
    assert (reply.status, reply.body) == (200, b'"at last"')
    assert peer.asked == 31
    await links.close()


async def test_a_peer_that_is_always_busy_is_asked_a_bounded_number_of_times(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MAX_BUSY_ANSWERS", 5)
    peer, links = BusyPeer(1_000), PeerLinks(world)
    await links.add(PEER, peer.serve)
    reply = await world.ask(post(ASK))
    assert reply.status == 503
    assert reply.header("retry-after") is not None
    assert b"busy" in reply.body
    assert peer.asked == 5 + exchange.MAX_ATTEMPTS
    await links.close()
