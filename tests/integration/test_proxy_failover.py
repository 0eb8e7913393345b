"""What happens when a target fails: another is tried until the first byte reached the client, never after it, and never for a 4xx."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from agentmesh.inference.logic.proxy_limits import FIRST_BYTE_S
from agentmesh.inference.proxy.ports import Outcome
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


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with proxy_world(tmp_path) as world:
        yield world


async def _hang_up(call: Call) -> None:
    raise EOFError


@pytest.mark.parametrize(
    ("bad", "outcome"),
    [
        (answer(b'{"error":{"message":"boom"}}', "500 Internal Server Error"), Outcome.FAILED),
        (answer(b"", "502 Bad Gateway"), Outcome.FAILED),
        (answer(b"", "307 Temporary Redirect", "Location: http://192.0.2.1/\r\n"), Outcome.FAILED),
        (answer(b"", "304 Not Modified"), Outcome.FAILED),
        (answer(b"{}", "503 Service Unavailable", "Retry-After: 7\r\n"), Outcome.BUSY),
        (answer(b"{}", "429 Too Many Requests"), Outcome.BUSY),
        (b"SSH-2.0-OpenSSH_9.0\r\n", Outcome.UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello", Outcome.UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", Outcome.UNREACHABLE),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", Outcome.UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 40_000, Outcome.UNREACHABLE),
    ],
)
async def test_a_bad_answer_is_not_relayed_but_tried_elsewhere(world: World, bad: bytes, outcome: Outcome) -> None:
    await world.backend(says(bad))
    await world.backend(says(answer(b'"good"')))
    reply = await world.ask(post(ASK))
    assert (reply.status, reply.body) == (200, b'"good"')
    await world.settled()
    assert world.dispatch.outcomes == [outcome, Outcome.ANSWERED]
    assert world.dispatch.leases[0].first_bytes == 0


async def test_a_target_that_ends_the_connection_is_tried_elsewhere(world: World) -> None:
    await world.backend(_hang_up)
    await world.backend(says(answer(b'"good"')))
    assert (await world.ask(post(ASK))).body == b'"good"'
    assert world.dispatch.outcomes[0] is Outcome.UNREACHABLE


async def test_an_engine_that_is_not_there_is_tried_elsewhere(world: World) -> None:
    (await world.backend(says(b""))).kill()
    await world.backend(says(answer(b'"good"')))
    assert (await world.ask(post(ASK))).body == b'"good"'


async def test_when_to_try_again_is_told_to_the_dispatch(world: World) -> None:
    await world.backend(says(answer(b"{}", "503 Service Unavailable", "Retry-After: 7\r\n")))
    reply = await world.ask(post(ASK))
    assert reply.status == 503
    assert world.dispatch.leases[0].retry_after_s == 7.0


@pytest.mark.parametrize(
    "status", ["400 Bad Request", "404 Not Found", "422 Unprocessable Content", "501 Not Implemented"]
)
async def test_the_clients_own_mistakes_are_relayed_and_not_retried(world: World, status: str) -> None:
    await world.backend(says(answer(b'{"error":"yours"}', status)))
    other = await world.backend(says(answer(b"{}")))
    reply = await world.ask(post(ASK))
    assert (f"{reply.status}", reply.body) == (status[:3], b'{"error":"yours"}')
    assert other.calls == []
    assert world.dispatch.outcomes == [Outcome.ANSWERED]


async def test_when_all_fail_the_client_learns_what_the_last_one_said(world: World) -> None:
    body = b'{"error":{"message":"the engine broke"}}'
    await world.backend(says(answer(body, "500 Internal Server Error")))
    reply = await world.ask(post(ASK))
    assert reply.status == 503
    assert reply.header("retry-after") == "2"
    assert b"the engine broke" in reply.body


async def test_a_killed_engine_is_answered_elsewhere_at_once(tmp_path: Path) -> None:
    """Two seconds are allowed. Nothing waits for any time to pass: deadlines are not even looked at here."""

    async def think(call: Call) -> None:
        await call.until_client_leaves()

    async with proxy_world(tmp_path, fast(sweep_s=3600.0)) as world:
        first = await world.backend(think)
        await world.backend(says(answer(b'"good"')))
        asking = asyncio.ensure_future(world.ask(post(ASK)))
        await until(lambda: len(first.calls) == 1)
        first.kill()
        assert (await asyncio.wait_for(asking, WAIT_S / 2)).body == b'"good"'


async def test_a_large_body_is_sent_whole_again(tmp_path: Path) -> None:
    settings = fast(spill_bytes=1000, spill_folder=tmp_path)
    async with proxy_world(tmp_path, settings) as world:
        await world.backend(_hang_up)
        good = await world.backend(says(answer(b"{}")))
        body = b'{"model":"m","x":"' + b"a" * 3_000_000 + b'"}'
        assert (await world.ask(post(body))).status == 200
        assert good.calls[0].body == body
        await world.settled()
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


async def test_no_first_byte_in_time_is_a_failure(tmp_path: Path) -> None:
    async def silent(call: Call) -> None:
        await call.until_client_leaves()

    async with proxy_world(tmp_path) as world:
        engine = await world.backend(silent)
        await world.backend(says(answer(b'"good"')))
        asking = asyncio.ensure_future(world.ask(post(ASK)))
        await until(lambda: len(engine.calls) == 1)
        await world.pass_time(FIRST_BYTE_S + 1)
        assert (await asking).body == b'"good"'
        assert world.dispatch.outcomes[0] is Outcome.UNREACHABLE


# ------------------------------------------------------------------ after the first byte


async def _half_a_stream(call: Call) -> None:
    await call.send(SSE_HEAD + chunk(b"data: a\n\n"))
    raise EOFError


@pytest.mark.parametrize(
    ("path", "begin"), [("/v1/chat/completions", b'data: {"error"'), ("/v1/messages", b"event: error\ndata: {")]
)
async def test_a_stream_that_breaks_ends_with_an_error_event_of_its_dialect(
    world: World, path: str, begin: bytes
) -> None:
    await world.backend(_half_a_stream)
    other = await world.backend(says(answer(b"{}")))
    client = await world.client()
    reply = await client.ask(post(ASK, path=path))
    events = [event for event in reply.body.split(b"\n\n") if event.strip(b"\n")]
    assert events[0] == b"data: a"
    assert events[1].lstrip(b"\n").startswith(begin)
    assert len(events) == 2
    assert await client.rest() == b""
    assert other.calls == []
    assert world.dispatch.outcomes == [Outcome.BROKEN]


async def test_another_answer_that_breaks_ends_with_a_reset(world: World) -> None:
    async def half(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        raise EOFError

    await world.backend(half)
    client = await world.client()
    await client.send(post(ASK))
    await client.head()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await client.exactly(100)
    await world.settled()
    assert world.dispatch.outcomes == [Outcome.BROKEN]


async def test_a_stream_broken_inside_a_chunk_is_not_made_to_look_whole(world: World) -> None:
    async def half(call: Call) -> None:
        await call.send(SSE_HEAD + b"20\r\ndata: half")
        raise EOFError

    await world.backend(half)
    client = await world.client()
    await client.send(post(ASK))
    await client.head()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        while True:
            await client.exactly(16)


async def test_an_answer_that_stops_in_the_middle_is_ended(tmp_path: Path) -> None:
    async def stuck(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(b"data: a\n\n"))
        await call.until_client_leaves()

    async with proxy_world(tmp_path, fast(answer_idle_s=0.1)) as world:
        await world.backend(stuck)
        assert b'"error"' in (await world.ask(post(ASK))).body
        assert world.dispatch.outcomes == [Outcome.BROKEN]


# ------------------------------------------------------------------ clients that leave


async def test_a_client_that_leaves_before_the_answer_frees_the_engine_at_once(world: World) -> None:
    left = asyncio.Event()

    async def think(call: Call) -> None:
        await call.until_client_leaves()
        left.set()

    engine = await world.backend(think)
    client = await world.client()
    await client.send(post(ASK))
    await until(lambda: len(engine.calls) == 1)
    client.writer.close()
    await asyncio.wait_for(left.wait(), WAIT_S / 2)
    await world.settled()
    assert world.dispatch.outcomes == [Outcome.CANCELLED]


async def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_the_engine(world: World) -> None:
    left = asyncio.Event()

    async def endless(call: Call) -> None:
        try:
            await call.send(SSE_HEAD)
            while True:
                await call.send(chunk(b"data: a\n\n"))
                await asyncio.sleep(0.01)
        except ConnectionError:
            left.set()

    await world.backend(endless)
    client = await world.client()
    await client.send(post(ASK))
    await client.head()
    client.writer.close()
    await asyncio.wait_for(left.wait(), WAIT_S)
    await world.settled()
    assert world.dispatch.outcomes == [Outcome.CANCELLED]


async def test_a_client_that_waits_in_the_queue_and_leaves_leaves_the_queue(world: World) -> None:
    await world.backend(says(answer(b"{}")))
    world.dispatch.full = True
    client = await world.client()
    await client.send(post(ASK))
    await until(lambda: world.server.exchanges == 1)
    client.close()
    await until(lambda: world.dispatch.left_queue == 1)
    await world.settled()


async def test_a_request_that_waited_in_the_queue_is_answered(world: World) -> None:
    await world.backend(says(answer(b"{}")))
    world.dispatch.full = True
    asking = asyncio.ensure_future(world.ask(post(ASK)))
    await until(lambda: world.server.exchanges == 1)
    world.dispatch.full = False
    world.dispatch.changed.set()
    assert (await asyncio.wait_for(asking, WAIT_S)).status == 200


async def test_a_client_that_only_ends_its_side_gets_its_whole_stream(world: World) -> None:
    go = asyncio.Event()

    async def stream(call: Call) -> None:
        await asyncio.wait_for(go.wait(), WAIT_S)
        await call.send(SSE_HEAD)
        for number in range(3):
            await call.send(chunk(b"data: %d\n\n" % number))
            await asyncio.sleep(0.05)
        await call.send(b"0\r\n\r\n")

    engine = await world.backend(stream)
    client = await world.client()
    await client.send(post(ASK))
    client.writer.write_eof()
    await until(lambda: len(engine.calls) == 1)
    await asyncio.sleep(0.3)  # long enough for the looks at whether it is still there
    go.set()
    while (reply := await client.reply()).status == 102:
        pass
    assert reply.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert await client.rest() == b""
    assert world.dispatch.outcomes == [Outcome.ANSWERED]


# ------------------------------------------------------------------ back-pressure, stopping


async def test_a_slow_client_slows_the_engine_down_and_nothing_is_lost(world: World) -> None:
    sent = 0
    piece = b"x" * 65_536

    async def much(call: Call) -> None:
        nonlocal sent
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(piece) * 1600))
        for _ in range(1600):
            await call.send(piece)
            sent += len(piece)

    await world.backend(much)
    client = await world.client()
    await client.send(post(ASK))
    await asyncio.sleep(0.5)
    assert sent < 60_000_000, "the proxy took what its client did not"
    body = (await client.reply()).body
    assert len(body) == len(piece) * 1600


async def test_a_client_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    async def much(call: Call) -> None:
        await call.send(SSE_HEAD)
        while True:
            await call.send(chunk(b"x" * 65_536))

    async with proxy_world(tmp_path, fast(write_stall_s=0.2)) as world:
        await world.backend(much)
        client = await world.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(post(ASK))
        await until(lambda: world.dispatch.outcomes == [Outcome.CANCELLED])


async def test_closing_lets_answers_end_and_refuses_what_comes_after(world: World) -> None:
    go = asyncio.Event()

    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(b"data: a\n\n"))
        await go.wait()
        await call.send(chunk(b"data: b\n\n") + b"0\r\n\r\n")

    await world.backend(stream)
    client, idle = await world.client(), await world.client()
    await client.send(post(ASK))
    await client.head()
    closing = asyncio.ensure_future(world.server.close(WAIT_S))
    assert await idle.rest() == b""
    go.set()
    assert (await client.rest()).endswith(chunk(b"data: b\n\n") + b"0\r\n\r\n")
    await asyncio.wait_for(closing, WAIT_S)


async def test_closing_ends_what_does_not_end_by_itself_with_a_word(world: World) -> None:
    async def endless(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(b"data: a\n\n"))
        await call.until_client_leaves()

    async def silent(call: Call) -> None:
        await call.until_client_leaves()

    await world.backend(endless, "stream")
    await world.backend(silent, "silent")
    one, two = await world.client(), await world.client()
    await one.send(post({"model": "stream"}))
    await one.head()
    await two.send(post({"model": "silent"}))
    await until(lambda: world.server.exchanges == 2)
    await asyncio.wait_for(world.server.close(0.1), WAIT_S)
    assert b"stopping" in await one.rest()
    assert b"503" in await two.rest()
