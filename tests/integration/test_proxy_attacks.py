"""Attacks on the proxy's client side over real sockets: what a hostile client, a full disk or bad luck may not break."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop

from agentmesh.inference.logic.proxy_limits import (
    KEEP_ALIVE_S,
    REQUESTS_A_TURN,
    WRITE_HIGH_BYTES,
    WRITE_STALL_S,
)
from agentmesh.inference.proxy.body import BodyBudget, BodySpool
from agentmesh.inference.proxy.dialects import Answer
from agentmesh.inference.proxy.parts import Outbox
from agentmesh.inference.proxy.peer_call import PeerCall
from agentmesh.inference.proxy.settings import ApiSettings
from tests.fakes.proxy_world import (
    SSE_HEAD,
    WAIT_S,
    Call,
    World,
    answer,
    chunk,
    fast,
    post,
    proxy_world,
    says,
    until,
)

ASK = {"model": "m"}
HOST = "Host: localhost\r\n"


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with proxy_world(tmp_path) as world:
        await world.backend(says(answer(b"{}")))
        yield world


# ------------------------------------------------------------------ clients that do not read, or ask for too much


async def test_a_client_that_never_reads_the_end_of_its_answer_is_given_up(tmp_path: Path) -> None:
    """Also when so little is left that the answer counts as written: the engine is done, the connection idle."""
    async with proxy_world(tmp_path) as world:

        def waiting() -> int:
            return sum(client._transport.get_write_buffer_size() for client in world.server._clients)

        async def until_some_waits(call: Call) -> None:
            await call.send(SSE_HEAD)
            while not waiting():
                await call.send(chunk(b"x" * 8_000))
                await asyncio.sleep(0)
            await call.send(b"0\r\n\r\n")

        await world.backend(until_some_waits)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", world.port))
            await loop.sock_sendall(client, post(ASK))
            await until(lambda: bool(world.dispatch.outcomes))
            assert waiting() < WRITE_HIGH_BYTES
            # Idle for too long; then nothing of what waits is taken, once the kernel takes no more of it either.
            for seconds in (KEEP_ALIVE_S, WRITE_STALL_S, WRITE_STALL_S, WRITE_STALL_S):
                if world.server.clients:
                    await world.pass_time(seconds + 1)
            await until(lambda: world.server.clients == 0)


async def test_a_flood_of_pipelined_requests_leaves_turns_to_others(world: World) -> None:
    loop = asyncio.get_running_loop()
    own = world.server.parts.own
    made_in_turn: list[int] = [0]
    asked = 300

    def turn() -> None:
        made_in_turn.append(0)
        if sum(made_in_turn) < asked:
            loop.call_soon(turn)

    class Counting:
        def answer(self, *args: Any, **more: Any) -> Answer | None:
            made_in_turn[-1] += 1
            return own.answer(*args, **more)

    world.server.parts.own = Counting()
    turn()
    client = await world.client()
    await client.send(f"GET /health HTTP/1.1\r\n{HOST}\r\n".encode() * asked)
    client.writer.write_eof()  # which must not cut off what is still to be answered
    for _ in range(asked):
        assert (await client.reply()).status == 200
    assert await client.rest() == b""
    assert max(made_in_turn) <= 2 * REQUESTS_A_TURN


# ------------------------------------------------------------------ disks


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
async def test_a_full_disk_refuses_the_body_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(**_: Any) -> io.BufferedRandom:
        return open("/dev/full", "w+b")

    monkeypatch.setattr(tempfile, "TemporaryFile", full_disk)
    for size in (3_000, 300_000):
        async with proxy_world(tmp_path, fast(spill_bytes=1_000)) as world:
            await world.backend(says(answer(b"{}")))
            reply = await world.ask(post(ASK | {"x": "y" * size}))
            assert (reply.status, reply.header("connection")) == (503, "close")
            assert reply.header("retry-after") is not None
            assert b"No space left" in reply.body
            assert (await world.ask(post(ASK))).status == 200
            await world.settled()


# ------------------------------------------------------------------ heads and bodies


async def test_the_version_of_each_request_counts_not_that_of_the_one_before(world: World) -> None:
    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(b"data: 1\n\n") + b"0\r\n\r\n")

    world.backends[0].handler = stream
    client = await world.client()
    old = post(ASK, headers="Connection: keep-alive\r\n", version="1.0")
    world.backends[0].handler = says(answer(b"{}"))
    assert (await client.ask(old)).status == 200
    assert (await client.ask(f"GET /health HTTP/1.1\r\n{HOST}\r\n".encode())).status == 200
    world.backends[0].handler = stream
    reply = await client.ask(old)
    assert reply.header("transfer-encoding") is None
    assert reply.body == b"data: 1\n\n"


async def test_json_of_any_depth_is_refused_or_relayed(world: World) -> None:
    world.dispatch.targets[0] = world.backends[0].target("auto")
    client = await world.client()
    statuses: set[int] = set()
    for depth in (10, *range(150, 1100, 1), 5_000, 1_000_000):
        body = b'{"model":"auto","tools":' + b"[" * depth + b"]" * depth + b"}"
        reply = await client.ask(post(body))
        statuses.add(reply.status)
    assert statuses == {200, 400}
    await world.settled()


async def test_a_large_body_for_auto_is_read_from_its_file(tmp_path: Path) -> None:
    async with proxy_world(tmp_path, fast(spill_bytes=10_000)) as world:
        await world.backend(says(answer(b"{}")), name="auto")
        for tools in ([{"type": "function"}], "none", []):
            body = json.dumps({"model": "auto", "tools": tools, "messages": ["x" * 100_000, {"type": "image_url"}]})
            assert (await world.ask(post(body.encode()))).status == 200
        assert "vision" in world.dispatch.wanted[-1].needs
        await world.settled()


# ------------------------------------------------------------------ the outbox


@pytest.mark.parametrize("error", [RuntimeError("the handler is closed"), OSError(107, "not connected")])
async def test_a_write_that_fails_does_not_lose_those_of_others(error: Exception) -> None:
    """The first is uvloop's word when a closed connection is written to, the second asyncio's when it is ended."""
    outbox = Outbox(asyncio.get_running_loop())
    written: list[bytes] = []

    def gone(data: bytes) -> None:
        raise error

    outbox.write(gone, b"a")
    outbox.write(written.append, b"b")
    outbox.then(lambda: gone(b""))
    outbox.write(written.append, b"c")
    await asyncio.sleep(0)
    assert written == [b"b", b"c"]


# ------------------------------------------------------------------ ends of connections, in every phase


@pytest.mark.parametrize("cut", [1, 30, 60, 100, 130])
async def test_a_request_cut_off_anywhere_leaves_nothing_behind(world: World, cut: int) -> None:
    request = post(ASK | {"x": "y" * 50})
    for end in ("eof", "reset"):
        client = await world.client()
        await client.send(request[:cut])
        if end == "eof":
            client.writer.write_eof()
            assert await client.rest() == b""
        else:
            client.close()
    await until(lambda: world.server.clients == 0)
    assert world.dispatch.leases == []
    await world.settled()


@pytest.mark.parametrize("count", [1, 3])
async def test_a_client_that_ends_its_side_with_its_requests_gets_all_answers(world: World, count: int) -> None:
    client = await world.client()
    client.writer.write((post(ASK) + f"GET /health HTTP/1.1\r\n{HOST}\r\n".encode()) * count)
    client.writer.write_eof()
    seen: list[int] = []
    while len(seen) < 2 * count:
        reply = await client.reply()
        if reply.status != 102:
            seen.append(reply.status)
    assert seen == [200] * 2 * count
    assert await client.rest() == b""
    await world.settled()


# ------------------------------------------------------------------ engines that answer oddly


@pytest.mark.parametrize(
    "odd",
    [
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 5 + answer(b"{}"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"{}") + answer(b'"smuggled"'),
        answer(b"{}") + b"garbage behind it",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
async def test_odd_answers_that_are_whole_are_relayed_once(world: World, odd: bytes) -> None:
    world.backends[0].handler = says(odd)
    client = await world.client()
    for _ in range(3):
        reply = await client.ask(post(ASK))
        assert (reply.status, reply.body) == (200, b"{}")
    await world.settled()


async def test_an_answer_shorter_than_its_length_is_never_whole(world: World) -> None:
    async def short(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{}")
        raise EOFError

    world.backends[0].handler = short
    client = await world.client()
    await client.send(post(ASK))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await client.reply()
    await world.settled()


# ------------------------------------------------------------------ limits that are reached exactly


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_may_be_as_large_as_the_limit_and_not_a_byte_more(tmp_path: Path, chunked: bool) -> None:
    limit = 300_000
    settings = fast(max_body_bytes=limit, max_bodies_bytes=limit, spill_bytes=100_000)
    async with proxy_world(tmp_path, settings) as world:
        await world.backend(says(answer(b"{}")))
        for size, status in ((limit, 200), (limit + 1, 413), (limit, 200)):
            body = b'{"model":"m","x":"' + b"y" * (size - 20) + b'"}'
            assert len(body) == size
            sent = post(body)
            if chunked:
                head = f"POST /v1/chat/completions HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n".encode()
                sent = head + b"".join(chunk(body[at : at + 7_777]) for at in range(0, size, 7_777)) + b"0\r\n\r\n"
            client = await world.client()
            client.writer.write(sent)
            assert (await client.reply()).status == status
            await world.settled()


async def test_many_uploads_share_the_budget_and_give_it_back(tmp_path: Path) -> None:
    # Who is refused may read it for as long as this test lasts.
    settings = fast(max_bodies_bytes=1_000_000, spill_bytes=50_000, linger_s=WAIT_S)
    async with proxy_world(tmp_path, settings) as world:
        await world.backend(says(answer(b"{}")), slots=64)
        sent = post(ASK | {"x": "y" * 90_000})
        clients = [await world.client() for _ in range(30)]
        for client in clients:
            client.writer.write(sent[:-1])
        budget = world.server.parts.budget
        await until(lambda: budget.used_bytes > 850_000)
        for number, client in enumerate(clients):
            if number % 3:
                client.close()
            else:
                client.writer.write(sent[-1:])
        statuses = [(await client.reply()).status for client in clients[::3]]
        assert set(statuses) <= {200, 503}
        await world.settled()
        assert (await world.ask(sent)).status == 200
        await world.settled()


# ------------------------------------------------------------------ bodies that end while they are sent


@pytest.mark.parametrize("spill_bytes", [1_000, 10_000_000])
async def test_a_body_that_is_closed_while_it_is_sent_to_a_peer_ends_the_sending(
    tmp_path: Path, spill_bytes: int
) -> None:
    """As when the client leaves between two pieces: the loop must not go on for ever, nor end with a traceback."""
    spool = BodySpool(BodyBudget(1_000_000), ApiSettings(spill_bytes=spill_bytes, spill_folder=tmp_path))
    spool.add(b"x" * 600_000)
    body = spool.finish()
    written: list[int] = []

    class LeavingStream:
        async def write(self, data: bytes) -> None:
            written.append(len(data))
            body.close()

    exchange = SimpleNamespace(request=SimpleNamespace(body=body))
    await PeerCall._send_body(cast(Any, None), cast(Any, LeavingStream()), cast(Any, exchange))
    assert 0 < sum(written) < 600_000
    assert body.piece(0) == b""
