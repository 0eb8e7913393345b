"""Streams that follow each other on one connection of the fast path: when it is used again, when it must not be, and peers
that make something of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.core.errors import StreamClosed, Unreachable
from agentmesh.mesh import bulk, bulk_server, tls_link
from agentmesh.mesh.bulk_idle import IdleLinks
from agentmesh.mesh.datagrams import format_address
from agentmesh.mesh.logic.bulk_chunks import END, LENGTH, chunks_of
from agentmesh.mesh.logic.bulk_limits import BULK_REUSE_MS, FIRST_BULK_BUFFER_BYTES, POOL_MAX
from agentmesh.mesh.logic.frames import encode, encode_frame
from agentmesh.mesh.streams import StreamHeader, StreamKind, write_header
from agentmesh.mesh.tls_context import BULK_ALPN_ONCE
from agentmesh.mesh.tls_link import TlsLink
from agentmesh.mesh.transport import Stream
from tests.fakes.bulk_world import PIECE_BYTES, WAIT_S, Pair, both_ends, echo, link_of, read_all, two_members, until

HEADER = encode_frame(encode(StreamHeader("http", 1)))


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with two_members(tmp_path) as made:
        yield made


async def talk(pair: Pair, text: bytes, kind: StreamKind = StreamKind.HTTP) -> TlsLink:
    """One exchange with the echo; the connection that it went over."""
    server, client = pair
    stream = await client.open(server, kind)
    link = link_of(stream)
    await stream.write(text)
    await stream.end()
    assert await asyncio.wait_for(read_all(stream), WAIT_S) == text
    return link


async def dial(pair: Pair) -> TlsLink:
    """An admitted connection outside the pool, to do with as a hostile peer would."""
    server, client = pair
    return await client.bulk._dial(server.public, client.targets[server.public])


async def opened(pair: Pair) -> Stream:
    stream = await (await dial(pair)).open_stream()
    await write_header(stream, StreamKind.HTTP)
    return stream


async def ends(link: TlsLink) -> None:
    await asyncio.wait_for(link.wait_closed(), WAIT_S)


# ------------------------------------------------------------------ reuse


async def test_streams_of_every_kind_follow_each_other_on_a_connection(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_now_ms", lambda: 0)  # those kept ready stay as many, and the same
    server, client = pair
    server.services[StreamKind.BLOB] = server.services[StreamKind.RPC] = echo
    kinds = (StreamKind.HTTP, StreamKind.BLOB, StreamKind.RPC, StreamKind.HTTP) * 10
    used = [await talk(pair, bytes([number]) * 100_000, kind) for number, kind in enumerate(kinds)]
    assert len(set(used)) <= 1 + POOL_MAX  # those that are kept ready take part
    assert client.over_quic == []


async def test_many_streams_at_once_share_few_connections(pair: Pair) -> None:
    server, client = pair
    dialled = 0
    dial_really = client.transport.dial

    async def counting(node: bytes, address: str, timeout_s: float) -> TlsLink:
        nonlocal dialled
        dialled += 1
        return await dial_really(node, address, timeout_s)

    client.transport.dial = counting
    await talk(pair, b"the path is known to work")
    questions = [number.to_bytes(2, "big") * 50 for number in range(200)]
    for _ in range(3):
        assert await asyncio.gather(*(client.ask(server, question) for question in questions)) == questions
    assert dialled < 200
    assert client.over_quic == []


async def test_an_answer_before_the_upload_was_read_leaves_a_connection_that_works(pair: Pair) -> None:
    server, client = pair

    async def answers_at_once(peer: bytes, stream: Stream) -> None:
        await stream.write(b"no, thank you")
        await stream.end()

    server.services[StreamKind.BLOB] = answers_at_once
    assert await client.ask(server, bytes(8 * 1024 * 1024), StreamKind.BLOB) == b"no, thank you"
    await talk(pair, b"next")


async def test_a_stream_that_is_over_cannot_touch_the_next_one(pair: Pair) -> None:
    server, client = pair
    first = await client.open(server)
    await first.end()
    assert await asyncio.wait_for(first.read(1), WAIT_S) == b""
    client.bulk._idle.remove(link_of(first))
    second = await link_of(first).open_stream()
    await write_header(second, StreamKind.HTTP)
    first.abort()
    await first.end()
    assert await first.read(1) == b""
    with pytest.raises(StreamClosed):
        await first.write(b"mine?")
    await second.write(b"mine")
    await second.end()
    assert await asyncio.wait_for(read_all(second), WAIT_S) == b"mine"


async def test_an_idle_connection_holds_little(pair: Pair) -> None:
    server, _ = pair
    link = await talk(pair, b"x" * 100_000)
    served = [one for links in server.bulk._server._links.values() for one in links]
    await until(lambda: all(len(one.incoming._data) == FIRST_BULK_BUFFER_BYTES for one in (link, *served)))


# ------------------------------------------------------------------ no reuse


async def test_an_aborted_streams_connection_is_not_used_again(pair: Pair) -> None:
    server, client = pair
    stream = await client.open(server)
    await stream.write(b"x")
    stream.abort()
    assert link_of(stream).is_closed
    assert await talk(pair, b"y") is not link_of(stream)


async def test_a_connection_that_the_far_side_just_closed_is_noticed_before_it_is_used(pair: Pair) -> None:
    server, client = pair
    first = await talk(pair, b"x")
    await until(lambda: client.bulk._pools[server.public]._dialling == 0)
    for link in list(client.bulk._idle._all):
        if link is not first:
            client.bulk._idle.remove(link)
    transport = first._transport
    assert transport is not None
    descriptor = transport.get_extra_info("socket").fileno()
    with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as end:
        end.shutdown(socket.SHUT_RD)  # as when the far side's FIN is here and the event loop has not come to it
    stream = await client.bulk.open_stream(server.public, StreamKind.HTTP)
    assert link_of(stream) is not first
    assert first.is_closed
    await stream.end()
    assert await asyncio.wait_for(stream.read(1), WAIT_S) == b""


async def test_a_peer_that_was_started_anew_is_asked_over_a_new_connection(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "POOL_SWEEP_MS", 10 * 60_000)  # what follows does not wait until they are looked after
    server, client = pair
    first = await talk(pair, b"x")
    for link in list(server.transport._links):
        link.cut("killed")
    await ends(first)
    await until(lambda: client.bulk.ready(server.public) == 0)
    assert await client.ask(server, b"y") == b"y"
    assert first.is_closed
    assert client.over_quic == []


async def test_an_old_connection_is_replaced(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    monkeypatch.setattr(bulk, "_now_ms", lambda: now[0])
    first = await talk(pair, b"x")
    assert not first.is_closed
    now[0] += BULK_REUSE_MS
    last = await talk(pair, b"y")
    assert last.is_closed


async def test_the_listening_side_ends_a_connection_that_serves_for_too_long(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_server, "BULK_SERVE_MS", 0)
    monkeypatch.setattr(tls_link, "BULK_DRAIN_MS", 100)
    link = await talk(pair, b"x")
    assert link.carries_many
    await ends(link)


@pytest.mark.parametrize("old", ["server", "client"])
async def test_a_node_that_knows_no_reuse_is_served_as_before(pair: Pair, old: str) -> None:
    server, client = pair
    context = client.transport._client if old == "client" else server.transport._server
    assert context is not None
    context.set_alpn_protocols([BULK_ALPN_ONCE])
    links = [await talk(pair, bytes([number]) * 70_000) for number in range(5)]
    assert len(set(links)) == 5
    assert not any(link.carries_many for link in links)
    await until(lambda: all(link.is_gone for link in links))
    assert client.over_quic == []


# ------------------------------------------------------------------ hostile peers


async def test_an_asking_peer_that_never_ends_its_half_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = pair
    monkeypatch.setattr(tls_link, "BULK_DRAIN_MS", 100)

    async def answers(peer: bytes, stream: Stream) -> None:
        await stream.write(b"answer")
        await stream.end()

    server.services[StreamKind.HTTP] = answers
    stream = await opened(pair)
    assert await asyncio.wait_for(read_all(stream), WAIT_S) == b"answer"
    await ends(link_of(stream))
    await until(lambda: server.bulk._server.nodes() == () or not server.bulk._server._links)


async def test_a_serving_peer_that_never_ends_its_half_keeps_its_own_connection_only(pair: Pair) -> None:
    near, _ = await both_ends(pair)
    await near.end()
    held = link_of(near)
    assert await talk(pair, b"x") is not held
    assert await talk(pair, b"y") is not held
    near.abort()
    await ends(held)
    assert await talk(pair, b"z") is not held


@pytest.mark.parametrize("more", [END, b"\x00\x00\x00\x05hello", LENGTH.pack(0x7FFFFFFF), b"\x00"])
async def test_a_serving_peer_that_says_more_behind_its_end_loses_the_connection(pair: Pair, more: bytes) -> None:
    server, client = pair

    async def talkative(peer: bytes, stream: Stream) -> None:
        await read_all(stream)
        link_of(stream).send([*chunks_of(b"answer"), END, more])
        await asyncio.Event().wait()

    server.services[StreamKind.BLOB] = talkative
    stream = await client.open(server, StreamKind.BLOB)
    await stream.end()
    assert await asyncio.wait_for(read_all(stream), WAIT_S) == b"answer"
    await until(lambda: link_of(stream).is_gone)
    assert await talk(pair, b"next") is not link_of(stream)


async def test_a_word_on_an_idle_connection_ends_it(pair: Pair) -> None:
    server, _ = pair
    link = await talk(pair, b"x")
    assert not link.is_closed
    assert link._transport is not None
    here = format_address(link._transport.get_extra_info("sockname"))
    (far,) = (one for links in server.bulk._server._links.values() for one in links if one.remote_address == here)
    far.send([b"\x00\x00\x00\x01!"])
    await ends(link)
    await talk(pair, b"y")


@pytest.mark.parametrize(
    "more", [END, LENGTH.pack(0x7FFFFFFF), b"\x00\x00\x00\x05hello", b"\x00\x00\x00\x01\xff" + END]
)
async def test_an_asking_peer_that_follows_its_end_with_garbage_loses_the_connection(pair: Pair, more: bytes) -> None:
    server, _ = pair
    stream = await opened(pair)
    link_of(stream).send([END, more])
    if more.startswith(b"\x00\x00\x00\x05"):  # the beginning of a header frame of 1.7 GB
        assert await asyncio.wait_for(stream.read(1), WAIT_S) == b""
    await ends(link_of(stream))
    await until(lambda: link_of(stream) not in server.transport._links)
    await talk(pair, b"y")


async def test_streams_sent_ahead_are_served_in_their_order(pair: Pair) -> None:
    link = await dial(pair)
    link.on_free = lambda _: None
    stream = await link.open_stream()
    link.send([part for text in (b"one", b"two", b"three") for part in (*chunks_of(HEADER + text), END)])
    assert await asyncio.wait_for(read_all(stream), WAIT_S) == b"one"
    link.close("enough")


async def test_idle_connections_of_one_member_are_bounded_and_those_in_use_stay(pair: Pair) -> None:
    server, _ = pair
    server.bulk._server._idle = IdleLinks(of_one=2, in_all=100)
    used = await opened(pair)
    await used.write(b"x")
    assert await asyncio.wait_for(used.read(1), WAIT_S) == b"x"
    held = [await dial(pair) for _ in range(4)]
    await ends(held[0])
    await ends(held[1])
    assert not held[2].is_closed
    assert not held[3].is_closed
    await used.end()
    assert await asyncio.wait_for(read_all(used), WAIT_S) == b""


async def test_an_idle_connection_that_was_used_is_not_kept_for_ever(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_server, "BULK_DRAIN_MS", 50)
    await ends(await talk(pair, b"x"))


# ------------------------------------------------------------------ who was put out


async def test_a_revoked_member_gets_no_stream_on_its_pooled_connection(pair: Pair) -> None:
    server, client = pair
    served: list[bytes] = []

    async def service(peer: bytes, stream: Stream) -> None:
        served.append(peer)
        await echo(peer, stream)

    server.services[StreamKind.HTTP] = service
    link = await talk(pair, b"x")
    for draft in server.node.authority.plan_revocation(client.public):
        server.node.world.spread(draft)  # stored; whoever cuts connections has not heard of it yet
    stream = await link.open_stream()
    await write_header(stream, StreamKind.HTTP)
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(stream.read(1), WAIT_S)
    assert served == [client.public]


async def test_pooled_connections_of_a_revoked_member_are_cut_on_both_sides(pair: Pair) -> None:
    server, client = pair
    link = await talk(pair, b"x")
    for draft in server.node.authority.plan_revocation(client.public):
        server.node.world.spread(draft)
    server.bulk.close_revoked()
    await ends(link)
    await until(lambda: server.bulk._server.nodes() == ())
    await until(lambda: not len(server.bulk._server._idle))


async def test_connections_to_a_revoked_member_are_cut_used_or_not(pair: Pair) -> None:
    server, client = pair
    await talk(pair, b"x")
    stream = await client.open(server)
    client.bulk._pools[server.public].close(bulk.REVOKED)
    with pytest.raises(StreamClosed):
        await stream.read(1)
    await until(lambda: not client.transport._links)
    assert len(client.bulk._idle) == 0


async def test_closing_leaves_no_idle_connection(pair: Pair) -> None:
    server, client = pair
    links = [await talk(pair, b"x" * PIECE_BYTES) for _ in range(3)]
    await client.bulk.close()
    assert all(link.is_gone for link in links)
    assert len(client.bulk._idle) == 0
    with pytest.raises(Unreachable):
        client._slow_addresses.clear()
        await client.open(server)
