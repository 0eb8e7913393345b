"""Requests over the mesh: from one node's proxy to the engines of another, and what each does when the other fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

from agentmesh.core.errors import AgentMeshError
from agentmesh.inference.proxy.ports import Outcome
from agentmesh.mesh.transport import Stream
from tests.fakes.proxy_world import (
    OWN,
    SSE_HEAD,
    WAIT_S,
    Call,
    PeerLinks,
    World,
    answer,
    chunk,
    fast,
    peer_target,
    post,
    proxy_world,
    says,
    until,
)

PEER, OTHER = b"p" * 32, b"q" * 32
ASK = {"model": "m"}


@dataclass
class Two:
    """A node that was asked, and a peer that serves."""

    here: World
    there: World
    links: PeerLinks


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    async with proxy_world(tmp_path / "here") as here, proxy_world(tmp_path / "there") as there:
        links = PeerLinks(here)
        await links.add(PEER, there.server.serve_peer)
        here.dispatch.targets.append(peer_target(PEER))
        yield Two(here, there, links)
        await links.close()


async def test_a_request_is_answered_by_a_peers_engine(two: Two) -> None:
    engine = await two.there.backend(says(answer(b'"far"')))
    reply = await two.here.ask(post({"model": "m", "n": 1}, headers="Authorization: Bearer secret\r\n"))
    assert (reply.status, reply.body) == (200, b'"far"')
    assert json.loads(engine.calls[0].body) == {"model": "m", "n": 1}
    assert "secret" not in engine.calls[0].head
    wanted = two.there.dispatch.wanted[0]
    assert (wanted.local_only, wanted.caller, wanted.model) == (True, OWN.hex(), "m")
    await two.here.settled()
    await two.there.settled()


async def test_events_arrive_one_by_one_over_the_mesh(two: Two) -> None:
    go = asyncio.Event()

    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD)
        for number in range(3):
            await call.send(chunk(b"data: %d\n\n" % number))
            await asyncio.wait_for(go.wait(), WAIT_S)
            go.clear()
        await call.send(b"0\r\n\r\n")

    await two.there.backend(stream)
    client = await two.here.client()
    await client.send(post(ASK))
    await client.head()
    for number in range(3):
        assert await client.exactly(14) == b"9\r\ndata: %d\n\n\r\n" % number
        go.set()
    assert await client.exactly(5) == b"0\r\n\r\n"


async def test_a_large_body_and_a_large_answer_cross_the_mesh(two: Two) -> None:
    async def echo(call: Call) -> None:
        await call.send(answer(call.body))

    await two.there.backend(echo)
    body = b'{"model":"m","x":"' + b"abc" * 1_500_000 + b'"}'
    assert (await two.here.ask(post(body))).body == body
    await two.here.settled()
    await two.there.settled()


async def test_many_requests_leave_no_stream_open(two: Two) -> None:
    await two.there.backend(says(answer(b"{}")))
    client = await two.here.client()
    for _ in range(300):  # more than a connection may have streams
        assert (await client.ask(post(ASK))).status == 200


async def test_a_model_that_the_peer_has_no_more_is_tried_elsewhere(two: Two) -> None:
    await two.here.backend(says(answer(b'"near"')))
    assert (await two.here.ask(post(ASK))).body == b'"near"'
    assert two.here.dispatch.outcomes[0] is Outcome.BUSY


async def test_a_peers_engine_that_fails_is_tried_elsewhere(two: Two) -> None:
    await two.there.backend(says(answer(b"{}", "500 Internal Server Error")))
    await two.here.backend(says(answer(b'"near"')))
    assert (await two.here.ask(post(ASK))).body == b'"near"'


async def test_a_client_that_leaves_frees_the_slot_across_the_mesh(two: Two) -> None:
    left = asyncio.Event()

    async def think(call: Call) -> None:
        await call.until_client_leaves()
        left.set()

    engine = await two.there.backend(think)
    client = await two.here.client()
    await client.send(post(ASK))
    await until(lambda: len(engine.calls) == 1)
    client.writer.close()
    await asyncio.wait_for(left.wait(), WAIT_S / 2)
    await two.here.settled()
    await two.there.settled()
    assert two.there.dispatch.outcomes == [Outcome.CANCELLED]


@pytest.mark.parametrize("how", ["drop", "told"])
async def test_a_peer_lost_before_its_first_byte_is_tried_elsewhere_at_once(two: Two, how: str) -> None:
    async def think(call: Call) -> None:
        await call.until_client_leaves()

    engine = await two.there.backend(think)
    await two.here.backend(says(answer(b'"near"')))
    asking = asyncio.ensure_future(two.here.ask(post(ASK)))
    await until(lambda: len(engine.calls) == 1)
    if how == "drop":
        two.links.drop(PEER)
    else:
        two.links.network.cut(OWN, PEER)
        two.here.server.peer_lost(PEER)
    assert (await asyncio.wait_for(asking, WAIT_S / 2)).body == b'"near"'
    assert two.here.dispatch.outcomes == [Outcome.UNREACHABLE, Outcome.ANSWERED]
    two.links.network.heal(OWN, PEER)


async def test_a_peer_lost_in_the_middle_ends_the_stream_with_an_error_event(two: Two) -> None:
    async def half(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(b"data: a\n\n"))
        await call.until_client_leaves()

    await two.there.backend(half)
    client = await two.here.client()
    await client.send(post(ASK))
    await client.head()
    assert await client.exactly(14) == b"9\r\ndata: a\n\n\r\n"
    two.here.server.peer_lost(PEER)
    assert b'"error"' in await client.rest()
    assert two.here.dispatch.outcomes == [Outcome.BROKEN]


async def test_a_peer_that_cannot_be_opened_in_time_is_tried_elsewhere(tmp_path: Path) -> None:
    async with proxy_world(tmp_path, fast(peer_open_s=0.1)) as world:

        async def never(node: bytes, kind: object) -> Stream:
            await asyncio.Event().wait()
            raise AssertionError

        world.open_peer = never
        world.dispatch.targets.append(peer_target(PEER))
        await world.backend(says(answer(b'"near"')))
        assert (await world.ask(post(ASK))).body == b'"near"'


@pytest.mark.parametrize("garbage", [b"hello there\r\n\r\n", b"HTTP/1.1 200 OK\r\nA B: 1\r\n\r\n", b"\x00" * 100, b""])
async def test_a_peer_that_answers_garbage_is_never_relayed(tmp_path: Path, garbage: bytes) -> None:
    async def rude(peer: bytes, stream: Stream) -> None:
        await stream.read(1000)
        if garbage:
            await stream.write(garbage)
        await stream.end()

    async with proxy_world(tmp_path) as world:
        links = PeerLinks(world)
        await links.add(PEER, rude)
        world.dispatch.targets.append(peer_target(PEER))
        await world.backend(says(answer(b'"near"')))
        assert (await world.ask(post(ASK))).body == b'"near"'
        assert world.dispatch.outcomes == [Outcome.UNREACHABLE, Outcome.ANSWERED]
        await links.close()


@pytest.mark.parametrize(
    "bad",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /slots HTTP/1.1\r\nHost: x\r\nx-agentmesh-model: m\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-agentmesh-model: m\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"x" * 100_000,
        b"",
    ],
)
async def test_what_no_node_sends_is_answered_with_a_reset(two: Two, bad: bytes) -> None:
    engine = await two.there.backend(says(answer(b"{}")))
    from agentmesh.mesh.streams import StreamKind

    stream = await two.links.open(PEER, StreamKind.HTTP)
    if bad:
        await stream.write(bad)
    await stream.end()
    with pytest.raises(AgentMeshError):
        assert await asyncio.wait_for(stream.read(100), WAIT_S) == b"impossible"
    assert engine.calls == []
    assert two.there.server.parts.budget.used_bytes == 0


async def test_a_peers_body_that_is_too_large_is_refused_as_not_begun(tmp_path: Path) -> None:
    async with proxy_world(tmp_path, fast(max_body_bytes=1000)) as there:
        here = World(tmp_path)
        links = PeerLinks(here)
        await links.add(PEER, there.server.serve_peer)
        from agentmesh.mesh.streams import StreamKind

        stream = await links.open(PEER, StreamKind.HTTP)
        await stream.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-agentmesh-model: m\r\nContent-Length: 2000\r\n\r\n"
        )
        head = await asyncio.wait_for(stream.read(4096), WAIT_S)
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"x-agentmesh-not-begun: 1" in head
        await links.close()
        await here.server.close()


async def test_an_unexpected_failure_while_asking_a_peer_does_not_hang_the_request(tmp_path: Path) -> None:
    async with proxy_world(tmp_path) as world:

        async def broken(node: bytes, kind: object) -> Stream:
            raise KeyError("a defect")

        world.open_peer = broken
        world.dispatch.targets.append(peer_target(PEER))
        await world.backend(says(answer(b'"near"')))
        assert (await world.ask(post(ASK))).body == b'"near"'
