"""Bulk streams between two members: the fast path, what breaks it, and QUIC in its place."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from agentmesh.core.errors import NotAdmitted, ProtocolError, StreamClosed, Unreachable
from agentmesh.mesh import bulk, bulk_server
from agentmesh.mesh.logic.bulk_chunks import LENGTH
from agentmesh.mesh.logic.bulk_limits import BULK_BUFFER_BYTES, BULK_SEND_HIGH_BYTES, POOL_MIN
from agentmesh.mesh.streams import StreamKind, write_header
from agentmesh.mesh.tls_link import TlsLink, TlsStream
from agentmesh.mesh.transport import Stream
from tests.fakes.bulk_world import PIECE_BYTES, BulkNode, echo, read_all, two_members

Pair = tuple[BulkNode, BulkNode]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with two_members(tmp_path) as made:
        yield made


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


def link_of(stream: Stream) -> TlsLink:
    assert isinstance(stream, TlsStream)
    return stream._link


async def both_ends(pair: Pair) -> tuple[Stream, Stream]:
    """A stream on the fast path, and the server's end of it, which its service keeps open."""
    server, client = pair
    arrived: asyncio.Queue[Stream] = asyncio.Queue()

    async def keep(peer: bytes, stream: Stream) -> None:
        assert peer == client.public
        await arrived.put(stream)
        await asyncio.Event().wait()

    server.services[StreamKind.BLOB] = keep
    near = await client.open(server, StreamKind.BLOB)
    return near, await asyncio.wait_for(arrived.get(), 10)


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


async def test_two_hundred_streams_at_once_each_get_their_own_bytes(pair: Pair) -> None:
    server, client = pair
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
    await until(lambda: client.bulk.ready(server.public) == POOL_MIN)
    now[0] += 10 * 60_000
    await until(lambda: client.bulk.ready(server.public) == 0)
    await until(lambda: not client.transport._links and not server.transport._links)
    assert await client.ask(server, b"again") == b"again"


async def test_a_ready_connection_that_the_far_side_closed_is_not_used(pair: Pair) -> None:
    server, client = pair
    await client.ask(server, b"x")
    await until(lambda: client.bulk.ready(server.public) == POOL_MIN)
    for link in list(server.transport._links):
        link.close("tired")
    await until(lambda: all(link.is_closed for link in client.transport._links))
    assert await client.ask(server, b"y") == b"y"
    assert client.over_quic == []


# ------------------------------------------------------------------ ends that are none


async def test_a_cut_connection_is_no_end(pair: Pair) -> None:
    near, far = await both_ends(pair)
    await far.write(b"the first ha")
    assert await near.read(100) == b"the first ha"
    link_of(far).close("without an end marker")
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(near.read(100), 10)
    with pytest.raises(StreamClosed):
        await near.write(b"x")


async def test_an_abort_is_seen_by_reader_and_writer_of_the_far_side(pair: Pair) -> None:
    near, far = await both_ends(pair)
    far.abort()
    far.abort()
    with pytest.raises(StreamClosed, match="aborted"):
        await asyncio.wait_for(near.read(1), 10)
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
            await asyncio.wait_for(task, 10)
    with pytest.raises(StreamClosed):
        while await asyncio.wait_for(far.read(PIECE_BYTES), 10):
            pass


async def test_a_peer_that_vanishes_ends_the_stream(pair: Pair) -> None:
    near, far = await both_ends(pair)
    reading = asyncio.create_task(near.read(1))
    await asyncio.sleep(0)
    link_of(far).cut("killed")
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(reading, 10)


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
            await asyncio.wait_for(read_all(stream), 10)


async def test_a_chunk_over_the_limit_costs_the_connection(pair: Pair) -> None:
    near, far = await both_ends(pair)
    link_of(near).send([LENGTH.pack(0x7FFFFFFF)])
    with pytest.raises((ProtocolError, StreamClosed)):
        await asyncio.wait_for(far.read(1), 10)
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(near.read(1), 10)


@pytest.mark.parametrize("kind", [StreamKind.CONTROL, StreamKind.GOSSIP, StreamKind.BLOB])
async def test_kinds_that_do_not_belong_here_or_have_no_service_are_aborted(pair: Pair, kind: StreamKind) -> None:
    server, client = pair
    server.services[StreamKind.CONTROL] = echo
    link = await client.bulk._dial(server.public, client.targets[server.public])
    stream = await link.open_stream()
    await write_header(stream, kind)
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(stream.read(1), 10)


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
    assert len(await asyncio.wait_for(read_all(far), 30)) == total
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
    while data := await asyncio.wait_for(stream.read(PIECE_BYTES), 10):
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
    assert await asyncio.wait_for(reading, 10) == b"abc"


async def test_an_upload_that_the_service_does_not_read_does_not_hold_up_its_answer(pair: Pair) -> None:
    server, client = pair

    async def answers_at_once(peer: bytes, stream: Stream) -> None:
        await stream.write(b"no, thank you")
        await stream.end()

    server.services[StreamKind.HTTP] = answers_at_once
    assert await client.ask(server, bytes(8 * 1024 * 1024)) == b"no, thank you"


# ------------------------------------------------------------------ the other way


async def test_a_refused_tcp_port_means_quic_at_once_and_is_remembered(pair: Pair) -> None:
    server, client = pair
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets it, and it refuses
        client.knows(server, f"127.0.0.1:{taken.getsockname()[1]}")
        for _ in range(3):
            async with asyncio.timeout(2):
                assert await client.ask(server, b"other way") == b"other way"
    assert len(client.over_quic) == 3
    assert not client.bulk.works(server.public)


async def test_a_silent_tcp_port_delays_one_stream_briefly_and_the_next_not_at_all(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = pair
    monkeypatch.setattr(bulk, "DIAL_TIMEOUT_S", 0.3)
    loop = asyncio.get_running_loop()
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client.knows(server, f"127.0.0.1:{silent.getsockname()[1]}")
        began = loop.time()
        assert await client.ask(server, b"1") == b"1"
        assert loop.time() - began < 1.5
        await until(
            lambda: not client.bulk._paths.may_try(server.public, client.targets[server.public], bulk._now_ms())
        )
        began = loop.time()
        assert await client.ask(server, b"2") == b"2"
        assert loop.time() - began < 0.25
    assert len(client.over_quic) == 2


async def test_a_peer_seen_anew_is_tried_again(pair: Pair) -> None:
    server, client = pair
    client.knows(server, "127.0.0.1:1")
    assert await client.ask(server, b"1") == b"1"
    client.knows(server, seen_ms=2)
    assert await client.ask(server, b"2") == b"2"
    assert len(client.over_quic) == 1
    assert client.bulk.works(server.public)


async def test_one_dead_address_does_not_hide_one_that_answers(pair: Pair) -> None:
    server, client = pair
    client.knows(server, "127.0.0.1:1", f"127.0.0.1:{server.port}")
    assert await client.ask(server, b"x") == b"x"
    await until(lambda: client.bulk.works(server.public))


async def test_neither_way_is_unreachable(pair: Pair) -> None:
    server, client = pair
    client._slow_addresses.clear()
    client.knows(server, "127.0.0.1:1", slow=False)
    with pytest.raises(Unreachable):
        await client.open(server)


async def test_another_node_at_the_address_gets_nothing(pair: Pair, tmp_path: Path) -> None:
    server, client = pair
    async with two_members(tmp_path / "others") as (stranger, _):
        client.knows(server, f"127.0.0.1:{stranger.port}")
        assert await client.ask(server, b"secret") == b"secret"
        assert client.over_quic == [server.public]
        with pytest.raises(NotAdmitted, match="Another node"):
            await client.transport.dial(server.public, f"127.0.0.1:{stranger.port}", 5.0)


async def test_a_stranger_is_not_admitted(pair: Pair, tmp_path: Path) -> None:
    server, _ = pair
    async with two_members(tmp_path / "others") as (_, stranger):
        stranger.knows(server, slow=False)
        with pytest.raises(NotAdmitted):
            await stranger.bulk._dial(server.public, stranger.targets[server.public])
    await until(lambda: server.bulk._server.nodes() == ())


async def test_a_revoked_member_is_cut_off_and_not_admitted_again(pair: Pair) -> None:
    server, client = pair
    near, _ = await both_ends(pair)
    await until(lambda: client.bulk.ready(server.public) == POOL_MIN)
    for draft in server.node.authority.plan_revocation(client.public):
        server.node.world.spread(draft)
    server.bulk.close_revoked()
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(near.read(1), 10)
    await until(lambda: server.bulk._server.nodes() == () and not server.transport._links)
    with pytest.raises(NotAdmitted, match="revoked"):
        await client.bulk._dial(server.public, client.targets[server.public])
    with pytest.raises(Unreachable):
        await server.bulk.open_stream(client.public, StreamKind.HTTP)


async def test_an_idle_connection_is_not_kept_for_ever(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = pair
    monkeypatch.setattr(bulk_server, "BULK_UNUSED_MS", 50)
    link = await client.bulk._dial(server.public, client.targets[server.public])
    await asyncio.wait_for(link.wait_closed(), 10)


async def test_one_member_has_a_bounded_number_of_connections(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = pair
    monkeypatch.setattr(bulk_server, "MAX_BULK_CONNECTIONS_PER_PEER", 2)
    links = [await client.bulk._dial(server.public, client.targets[server.public]) for _ in range(3)]
    await asyncio.wait_for(links[2].wait_closed(), 10)
    assert not links[0].is_closed
    assert not links[1].is_closed


async def test_a_stream_header_that_never_comes_whole_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = pair
    monkeypatch.setattr(bulk_server.read_header, "__kwdefaults__", {"timeout_s": 0.1})
    link = await client.bulk._dial(server.public, client.targets[server.public])
    stream = await link.open_stream()
    await stream.write(b"\x00")
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(stream.read(1), 10)


async def test_closing_ends_everything_and_streams_go_no_more_over_the_fast_path(pair: Pair) -> None:
    server, client = pair
    near, _ = await both_ends(pair)
    await client.bulk.close()
    with pytest.raises(StreamClosed):
        await near.read(1)
    assert not client.transport._links
    assert await client.ask(server, b"x") == b"x"
    assert len(client.over_quic) == 1
