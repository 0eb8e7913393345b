"""A seeded storm of damaged requests, clients that leave and engines that misbehave: nothing may be left behind, nothing fail unseen."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

import pytest
import uvloop

from tests.fakes.proxy_world import SSE_HEAD, Call, World, answer, chunk, fast, post, proxy_world, until

CONNECTIONS = 400
AT_ONCE = 16
ANSWERS = (
    answer(b"{}"),
    SSE_HEAD + b"".join(chunk(b"data: %d\n\n" % number) for number in range(5)) + b"0\r\n\r\n",
    answer(b"x" * 200_000),
    answer(b"{}", "500 Bad"),
    answer(b"{}", "429 Busy"),
    b"HTTP/1.1 103 Early\r\n\r\n" + answer(b"{}"),
    b"\0garbage\r\n\r\n",
)
HEADERS = ("", "Connection: close\r\n", "Expect: 100-continue\r\n", "Origin: http://localhost\r\n", "Origin: null\r\n")
SHORT = {"header_timeout_s": 0.3, "body_idle_s": 0.3, "keep_alive_s": 0.3, "linger_s": 0.1, "write_stall_s": 0.3}


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


async def test_a_storm_of_bad_clients_and_engines_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choose = random.Random(5)
    settings = fast(spill_bytes=5_000, max_body_bytes=20_000, max_bodies_bytes=60_000, first_byte_s=0.5, **SHORT)
    async with proxy_world(tmp_path, settings) as world:

        async def misbehave(call: Call) -> None:
            data = choose.choice(ANSWERS)
            if choose.random() < 0.3:
                await call.send(data[: choose.randrange(len(data))])
                raise EOFError
            await call.send(data)
            if data.startswith(b"\0"):
                raise EOFError

        for name in ("m", "m", "auto"):
            await world.backend(misbehave, name)
        room = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(_client(world, choose, room) for _ in range(CONNECTIONS)))
        await until(lambda: world.server.clients == 0)
        await world.settled()
        assert len(world.dispatch.leases) > CONNECTIONS / 10  # 220 as a rule; the slower, the more are given up before
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def _client(world: World, choose: random.Random, room: asyncio.Semaphore) -> None:
    async with room:
        client = await world.client()
        data = b"".join(_request(choose) for _ in range(choose.choice((1, 1, 2, 5, 30))))
        reading = asyncio.ensure_future(client.reader.read(-1))
        try:
            size = choose.choice((7, 300, 70_000))
            for at in range(0, min(len(data), size * 50), size):
                client.writer.write(data[at : at + size])
                await asyncio.sleep(0)
            if choose.random() < 0.3:
                client.writer.write_eof()
            if choose.random() < 0.6:
                await asyncio.wait({reading}, timeout=1)
        except (OSError, RuntimeError):
            pass  # the server ended the connection
        client.close()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.exception()


def _request(choose: random.Random) -> bytes:
    kind = choose.randrange(8)
    if kind < 5:
        body: dict[str, object] = {"model": choose.choice(("m", "m", "auto", "none")), "stream": True}
        body["x"] = "y" * choose.choice((0, 10, 3_000, 9_000, 30_000))
        made = post(body, headers=choose.choice(HEADERS), version=choose.choice(("1.1", "1.1", "1.0")))
    elif kind < 6:
        made = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        made += chunk(b'{"model":"m",') + chunk(b'"x":"' + b"y" * choose.choice((1, 6_000)) + b'"}') + b"0\r\n\r\n"
    else:
        line = choose.choice((b"GET /metrics", b"HEAD /health", b"OPTIONS *", b"GET /v1/models"))
        made = line + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    if choose.random() < 0.25:
        damaged = bytearray(made)
        damaged[choose.randrange(min(len(made), 200))] = choose.choice(b"\r\n\0 :;0x9\xff")
        made = bytes(damaged)
    return made
