"""Bulk streams between two members on the fast path: bytes, ends, what is no end, pace."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.core.errors import ProtocolError, StreamClosed
from agentmesh.mesh import bulk, bulk_pool
from agentmesh.mesh.logic.bulk_chunks import LENGTH
from agentmesh.mesh.logic.bulk_limits import BULK_BUFFER_BYTES, BULK_SEND_HIGH_BYTES, POOL_MIN
from agentmesh.mesh.streams import StreamKind, write_header
from agentmesh.mesh.transport import Stream
from tests.fakes.bulk_world import PIECE_BYTES, WAIT_S, Pair, both_ends, echo, link_of, read_all, two_members, until


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with two_members(tmp_path) as made:
        yield made


# ------------------------------------------------------------------ bytes


async def test_bytes_come_back_whole_and_nothing_went_over_quic(pair: Pair) -> None:
    server, client = pair
    question = random.Random(1).randbytes(3_000_000)
    assert await client.ask(server, question) == question
    assert client.bulk.works(server.public)
    assert client.over_quic == []


async def test_each_side_ends_by_itself_and_the_other_goes_on(pair: Pair) -> None:
    near, far = await both_ends(pair)
    await near.write(b"question")
    await near.end()
    assert await read_all(far) == b"question"
    await far.write(b"answer")
    with pytest.raises(StreamClosed):
        await near.write(b"more")
    await far.end()
    assert await read_all(near) == b"answer"
    assert await near.read(1) == b""


async def test_an_empty_exchange_ends_cleanly(pair: Pair) -> None:
    server, client = pair
    assert await client.ask(server, b"") == b""


async def test_two_hundred_streams_at_once_each_get_their_own_bytes(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = pair
    monkeypatch.setattr(bulk, "POOL_SWEEP_MS", 50)
    monkeypatch.setattr(bulk_pool, "POOL_SPARE_MS", 100)
    questions = [number.to_bytes(2, "big") * 3_000 for number in range(200)]
    answers = await asyncio.gather(*(client.ask(server, question) for question in questions))
    assert answers == questions
    await until(lambda: len(client.transport._links) <= 8)


async def test_connections_are_ready_before_they_are_needed_and_go_when_they_are_not(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = pair
    now = [0]
    monkeypatch.setattr(bulk, "POOL_SWEEP_MS", 20)
    monkeypatch.setattr(bulk, "_now_ms", lambda: now[0])
    assert await client.ask(server, b"x") == b"x"
    await until(lambda: client.bulk.ready(server.public) >= POOL_MIN)
    now[0] += 10 * 60_000
    await until(lambda: client.bulk.ready(server.public) == 0)
    await until(lambda: not client.transport._links and not server.transport._links)
    assert await client.ask(server, b"again") == b"again"


async def test_a_ready_connection_that_the_far_side_closed_is_not_used(pair: Pair) -> None:
    server, client = pair
    await client.ask(server, b"x")
    await until(
        lambda: client.bulk.ready(server.public) >= POOL_MIN and not client.bulk._pools[server.public]._dialling
    )
    here = list(client.transport._links)
    for link in list(server.transport._links):
        link.close("tired")
    await until(lambda: all(link.is_closed for link in here))
    assert await client.ask(server, b"y") == b"y"
    assert client.over_quic == []


# ------------------------------------------------------------------ ends that are none


async def test_a_cut_connection_is_no_end(pair: Pair) -> None:
    near, far = await both_ends(pair)
    await far.write(b"the first ha")
    assert await near.read(100) == b"the first ha"
    link_of(far).close("without an end marker")
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(near.read(100), WAIT_S)
    with pytest.raises(StreamClosed):
        await near.write(b"x")


async def test_an_abort_is_seen_by_reader_and_writer_of_the_far_side(pair: Pair) -> None:
    near, far = await both_ends(pair)
    far.abort()
    far.abort()
    with pytest.raises(StreamClosed, match="aborted"):
        await asyncio.wait_for(near.read(1), WAIT_S)
    with pytest.raises(StreamClosed):
        await near.write(b"x")
    with pytest.raises(StreamClosed):
        await far.read(1)


async def test_an_abort_wakes_this_sides_reader_and_a_writer_that_waits(pair: Pair) -> None:
    near, far = await both_ends(pair)

    async def write() -> None:
        while True:
            await near.write(bytes(PIECE_BYTES))

    tasks = [asyncio.create_task(write()), asyncio.create_task(near.read(1))]
    await until(lambda: not link_of(near).may_write)
    near.abort()
    for task in tasks:
        with pytest.raises(StreamClosed):
            await asyncio.wait_for(task, WAIT_S)
    with pytest.raises(StreamClosed):
        while await asyncio.wait_for(far.read(PIECE_BYTES), WAIT_S):
            pass


async def test_a_peer_that_vanishes_ends_the_stream(pair: Pair) -> None:
    near, far = await both_ends(pair)
    reading = asyncio.create_task(near.read(1))
    await asyncio.sleep(0)
    link_of(far).cut("killed")
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(reading, WAIT_S)


async def test_a_service_that_fails_or_forgets_its_stream_aborts_it(pair: Pair) -> None:
    server, client = pair

    async def forgets(peer: bytes, stream: Stream) -> None:
        await stream.write(b"half")

    async def fails(peer: bytes, stream: Stream) -> None:
        raise ProtocolError("no good")

    for service in (forgets, fails):
        server.services[StreamKind.RPC] = service
        stream = await client.open(server, StreamKind.RPC)
        with pytest.raises(StreamClosed):
            await asyncio.wait_for(read_all(stream), WAIT_S)


async def test_a_chunk_over_the_limit_costs_the_connection(pair: Pair) -> None:
    near, far = await both_ends(pair)
    link_of(near).send([LENGTH.pack(0x7FFFFFFF)])
    with pytest.raises((ProtocolError, StreamClosed)):
        await asyncio.wait_for(far.read(1), WAIT_S)
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(near.read(1), WAIT_S)


@pytest.mark.parametrize("kind", [StreamKind.CONTROL, StreamKind.GOSSIP, StreamKind.BLOB])
async def test_kinds_that_do_not_belong_here_or_have_no_service_are_aborted(pair: Pair, kind: StreamKind) -> None:
    server, client = pair
    server.services[StreamKind.CONTROL] = echo
    link = await client.bulk._dial(server.public, client.targets[server.public])
    stream = await link.open_stream()
    await write_header(stream, kind)
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(stream.read(1), WAIT_S)


async def test_control_streams_are_not_opened_here(pair: Pair) -> None:
    server, client = pair
    with pytest.raises(ValueError, match="no bulk"):
        await client.bulk.open_stream(server.public, StreamKind.CONTROL)


# ------------------------------------------------------------------ pace


async def test_a_writer_waits_for_a_reader_that_does_not_read_and_memory_stays_bounded(pair: Pair) -> None:
    near, far = await both_ends(pair)
    total, written = 32 * 1024 * 1024, 0

    async def write() -> None:
        nonlocal written
        while written < total:
            await near.write(bytes(PIECE_BYTES))
            written += PIECE_BYTES
        await near.end()

    writer = asyncio.create_task(write())
    await until(lambda: not link_of(near).may_write)
    await asyncio.sleep(0.2)
    assert written < total // 2  # what the kernel takes on loopback is some megabytes
    transport = link_of(near)._transport
    assert transport is not None
    assert transport.get_write_buffer_size() <= BULK_SEND_HIGH_BYTES + 2 * PIECE_BYTES
    assert len(link_of(far).incoming) <= BULK_BUFFER_BYTES
    assert len(await asyncio.wait_for(read_all(far), 2 * WAIT_S)) == total
    await writer


async def test_what_was_written_before_the_end_reaches_a_slow_reader_whole(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = pair
    total = 12 * 1024 * 1024

    async def pours(peer: bytes, stream: Stream) -> None:
        for _ in range(total // PIECE_BYTES):
            await stream.write(bytes(PIECE_BYTES))
        await stream.end()

    server.services[StreamKind.BLOB] = pours
    stream = await client.open(server, StreamKind.BLOB)
    await stream.end()
    received = 0
    while data := await asyncio.wait_for(stream.read(PIECE_BYTES), WAIT_S):
        received += len(data)
        if received % 50 == 0:
            await asyncio.sleep(0.01)
    assert received == total


async def test_a_slow_writer_is_waited_for(pair: Pair) -> None:
    near, far = await both_ends(pair)
    reading = asyncio.create_task(read_all(far))
    for letter in (b"a", b"b", b"c"):
        await near.write(letter)
        await asyncio.sleep(0.05)
        assert not reading.done()
    await near.end()
    assert await asyncio.wait_for(reading, WAIT_S) == b"abc"


async def test_an_upload_that_the_service_does_not_read_does_not_hold_up_its_answer(pair: Pair) -> None:
    server, client = pair

    async def answers_at_once(peer: bytes, stream: Stream) -> None:
        await stream.write(b"no, thank you")
        await stream.end()

    server.services[StreamKind.HTTP] = answers_at_once
    assert await client.ask(server, bytes(8 * 1024 * 1024)) == b"no, thank you"


async def test_a_stream_left_unread_when_the_far_side_went_lets_go_of_its_socket_once_aborted(pair: Pair) -> None:
    near, far = await both_ends(pair)

    async def pour() -> None:
        while True:
            await far.write(bytes(PIECE_BYTES))

    pouring = asyncio.create_task(pour())
    await until(lambda: not link_of(far).may_write)
    link_of(far).cut("gone")
    with pytest.raises(StreamClosed):
        await pouring
    await until(lambda: link_of(far).is_gone)
    await asyncio.sleep(0.05)  # nothing here tells that the near side has come to it, or has not
    near.abort()
    await until(lambda: link_of(near).is_gone)
    with pytest.raises(StreamClosed):
        await near.read(1)
