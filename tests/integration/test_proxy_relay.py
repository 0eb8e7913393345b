"""Requests and answers through the proxy: what arrives at an engine, what arrives at a client, keep-alive and pipelining."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from agentmesh.inference.logic.proxy_limits import ENGINE_IDLE_S
from agentmesh.inference.proxy.ports import Outcome
from tests.fakes.proxy_world import (
    CHAT,
    SSE_HEAD,
    WAIT_S,
    Call,
    World,
    answer,
    chunk,
    post,
    proxy_world,
    says,
    until,
)


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with proxy_world(tmp_path) as world:
        yield world


ASK = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


async def test_a_request_and_its_answer_pass_unchanged(world: World) -> None:
    engine = await world.backend(says(answer(b'{"ok":1}')))
    reply = await world.ask(post(ASK))
    assert (reply.status, reply.body) == (200, b'{"ok":1}')
    assert json.loads(engine.calls[0].body) == ASK
    await world.settled()
    assert world.dispatch.outcomes == [Outcome.ANSWERED]
    assert world.dispatch.leases[0].first_bytes == 1


async def test_keys_cookies_and_hop_by_hop_headers_do_not_reach_the_engine(world: World) -> None:
    engine = await world.backend(says(answer(b"{}")))
    sent = (
        "Authorization: Bearer mine\r\nx-api-key: mine\r\nCookie: a=mine\r\nConnection: keep-alive, x-hop\r\nx-hop: 1\r\n"
        "x-agentmesh-model: other\r\nanthropic-version: 2023-06-01\r\nProxy-Authorization: mine\r\nAccept: text/x\r\n"
    )
    await world.ask(post(ASK, headers=sent))
    head = engine.calls[0].head.lower()
    assert "mine" not in head
    assert "x-hop" not in head
    assert "x-agentmesh" not in head
    assert "authorization: bearer engine-key" in head
    assert "anthropic-version: 2023-06-01" in head
    assert "accept: text/x" in head


async def test_the_engines_hop_by_hop_cors_and_own_headers_do_not_reach_the_client(world: World) -> None:
    headers = (
        "Content-Type: application/json\r\nServer: llama.cpp\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, x-hop\r\n"
        "x-hop: 1\r\nAccess-Control-Allow-Origin: *\r\nx-agentmesh-not-begun: 1\r\nSet-Cookie: a=b\r\nx-kept: yes\r\n"
    )
    await world.backend(says(answer(b"{}", headers=headers)))
    reply = await world.ask(post(ASK))
    assert reply.header("x-kept") == "yes"
    for name in ("server", "keep-alive", "connection", "x-hop", "access-control-allow-origin", "set-cookie"):
        assert reply.header(name) is None
    assert "x-agentmesh" not in reply.head.lower()


async def test_every_event_of_a_stream_arrives_before_the_next_is_made(world: World) -> None:
    go = asyncio.Event()

    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD)
        for number in range(5):
            await call.send(chunk(b"data: %d\n\n" % number))
            await asyncio.wait_for(go.wait(), WAIT_S)
            go.clear()
        await call.send(b"0\r\n\r\n")

    await world.backend(stream)
    client = await world.client()
    await client.send(post(ASK))
    assert "text/event-stream" in await client.head()
    for number in range(5):
        assert await client.exactly(14) == b"9\r\ndata: %d\n\n\r\n" % number
        go.set()
    assert await client.exactly(5) == b"0\r\n\r\n"
    await world.settled()


async def test_a_connection_carries_many_requests_on_one_connection_to_the_engine(world: World) -> None:
    engine = await world.backend(says(answer(b"{}")))
    client = await world.client()
    for _ in range(20):
        assert (await client.ask(post(ASK))).status == 200
    assert engine.connections == 1


async def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    async def echo(call: Call) -> None:
        await call.send(answer(call.body))

    await world.backend(echo)
    client = await world.client()
    await client.send(
        b"".join(post({"model": "m", "n": n}) for n in range(50))
        + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        + post({"model": "m", "n": 50})
    )
    for number in range(50):
        assert json.loads((await client.reply()).body)["n"] == number
    assert b"status" in (await client.reply()).body
    assert json.loads((await client.reply()).body)["n"] == 50


async def test_thousands_of_pipelined_refusals_are_answered_without_recursion(world: World) -> None:
    client = await world.client()
    one = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n" + post({"model": "unknown"})
    sending = asyncio.ensure_future(client.send(one * 3000))
    for _ in range(6000):
        assert (await client.reply()).status == 404
    await sending


async def test_a_request_may_come_byte_by_byte(world: World) -> None:
    engine = await world.backend(says(answer(b"{}")))
    client = await world.client()
    for number in range(len(data := post(ASK))):
        await client.send(data[number : number + 1])
        await asyncio.sleep(0)
    assert (await client.reply()).status == 200
    assert json.loads(engine.calls[0].body) == ASK


async def test_an_answer_may_come_byte_by_byte(world: World) -> None:
    async def drip(call: Call) -> None:
        data = SSE_HEAD + chunk(b"data: a\n\n") + chunk(b"data: b\n\n") + b"0\r\n\r\n"
        for number in range(len(data)):
            await call.send(data[number : number + 1])
            await asyncio.sleep(0)

    await world.backend(drip)
    client = await world.client()
    for _ in range(2):
        reply = await client.ask(post(ASK))
        assert reply.body == b"data: a\n\ndata: b\n\n"


async def test_http_1_0_is_answered_without_chunks_and_closed(world: World) -> None:
    await world.backend(says(SSE_HEAD + chunk(b"data: a\n\n") + b"0\r\n\r\n"))
    reply = await world.ask(post(ASK, version="1.0"))
    assert reply.header("transfer-encoding") is None
    assert reply.body == b"data: a\n\n"


async def test_http_1_0_stays_open_only_if_asked_to(world: World) -> None:
    await world.backend(says(answer(b"{}")))
    client = await world.client()
    for _ in range(3):
        reply = await client.ask(post(ASK, version="1.0", headers="Connection: keep-alive\r\n"))
        assert reply.header("connection") == "keep-alive"
    await client.send(post(ASK, version="1.0"))
    assert (await client.reply()).header("connection") == "close"
    assert await client.rest() == b""


async def test_connection_close_is_honoured(world: World) -> None:
    await world.backend(says(answer(b"{}")))
    client = await world.client()
    reply = await client.ask(post(ASK, headers="Connection: close\r\n"))
    assert reply.header("connection") == "close"
    assert await client.rest() == b""


async def test_an_answer_that_ends_with_its_connection_is_chunked_for_the_client(world: World) -> None:
    async def old(call: Call) -> None:
        await call.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nhello")
        raise EOFError

    await world.backend(old)
    client = await world.client()
    for _ in range(2):
        reply = await client.ask(post(ASK))
        assert (reply.header("transfer-encoding"), reply.body) == ("chunked", b"hello")
    await world.settled()


async def test_a_closed_idle_engine_connection_is_replaced_without_a_failure(world: World) -> None:
    async def once(call: Call) -> None:
        await call.send(answer(b"{}"))
        raise EOFError

    engine = await world.backend(once)
    client = await world.client()
    for _ in range(10):
        assert (await client.ask(post(ASK))).status == 200
    assert engine.connections == 10
    assert set(world.dispatch.outcomes) == {Outcome.ANSWERED}


async def test_no_more_idle_connections_are_kept_than_the_engine_has_slots_and_none_for_long(world: World) -> None:
    await world.backend(says(answer(b"{}")), slots=2)
    replies = await asyncio.gather(*(world.ask(post(ASK)) for _ in range(8)))
    assert {reply.status for reply in replies} == {200}
    assert 0 < world.server.parts.engines.idle <= 2
    await world.pass_time(ENGINE_IDLE_S)
    await until(lambda: world.server.parts.engines.idle == 0)


async def test_bytes_behind_an_answer_are_not_relayed(world: World) -> None:
    async def chatty(call: Call) -> None:
        await call.send(answer(b"{}") + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")

    engine = await world.backend(chatty)
    client = await world.client()
    for _ in range(3):
        assert (await client.ask(post(ASK))).body == b"{}"
    assert engine.connections == 3


async def test_the_endpoints_without_v1_are_the_same(world: World) -> None:
    engine = await world.backend(says(answer(b"{}")))
    for path in ("/chat/completions", "/completions", "/embeddings", "/responses"):
        assert (await world.ask(post(ASK, path=path))).status == 200
        assert engine.calls[-1].head.startswith(f"POST /v1{path} HTTP/1.1")


async def test_a_query_does_not_matter(world: World) -> None:
    engine = await world.backend(says(answer(b"{}")))
    assert (await world.ask(post(ASK, path="/v1/messages?beta=true"))).status == 200
    assert engine.calls[0].head.startswith("POST /v1/messages HTTP/1.1")


async def test_several_models_reach_their_own_engines(world: World) -> None:
    await world.backend(says(answer(b'"one"')), name="one")
    await world.backend(says(answer(b'"two"')), name="two")
    for name in ("one", "two", "one"):
        assert (await world.ask(post({"model": name}))).body == f'"{name}"'.encode()


async def test_an_engine_on_a_loopback_port_is_reached_with_its_key(world: World) -> None:
    from agentmesh.inference.logic.target import EngineAddress, Target
    from tests.fakes.proxy_world import OWN, model

    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(b"{}"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    world.dispatch.targets.append(Target(OWN, model("m"), EngineAddress(port=port, api_key="k1")))
    assert (await world.ask(post(ASK, path=CHAT))).status == 200
    assert b"Authorization: Bearer k1\r\n" in seen[0]
    server.close()
