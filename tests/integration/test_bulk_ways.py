"""Which way bulk goes when the fast path does not work, and who is not let onto it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from agentmesh.core.errors import NotAdmitted, StreamClosed, Unreachable
from agentmesh.mesh import bulk, bulk_server
from agentmesh.mesh.logic.bulk_limits import BULK_HEAD_START_MS, POOL_MIN
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.tls_link import TlsLink
from tests.fakes.bulk_world import WAIT_S, Pair, both_ends, two_members, until


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with two_members(tmp_path) as made:
        yield made


async def test_a_refused_tcp_port_means_quic_at_once_and_is_remembered(pair: Pair) -> None:
    server, client = pair
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets it, and it refuses
        client.knows(server, f"127.0.0.1:{taken.getsockname()[1]}")
        for _ in range(3):
            async with asyncio.timeout(WAIT_S):  # waiting for the fast path would take twice as long
                assert await client.ask(server, b"other way") == b"other way"
    assert len(client.over_quic) == 3
    assert not client.bulk.works(server.public)


async def test_a_silent_tcp_port_delays_one_stream_briefly_and_the_next_not_at_all(pair: Pair) -> None:
    server, client = pair
    dial_really, dialled, trial_may_end = client.transport.dial, 0, asyncio.Event()

    async def dial(node: bytes, address: str, timeout_s: float) -> TlsLink:
        nonlocal dialled
        dialled += 1
        await trial_may_end.wait()
        return await dial_really(node, address, 0.3)

    client.transport.dial = dial
    with closing(socket.socket()) as silent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "DIAL_TIMEOUT_S", WAIT_S)
        patch.setattr(bulk, "BULK_HEAD_START_MS", BULK_HEAD_START_MS)  # as it is in a node
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client.knows(server, f"127.0.0.1:{silent.getsockname()[1]}")
        assert await client.ask(server, b"1") == b"1"
        assert (
            dialled == client.bulk._pools[server.public]._dialling == 1
        )  # the stream did not wait for the trial's end
        trial_may_end.set()
        await until(
            lambda: not client.bulk._paths.may_try(server.public, client.targets[server.public], bulk._now_ms())
        )
        assert await client.ask(server, b"2") == b"2"
        assert dialled == 1
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
            await client.transport.dial(server.public, f"127.0.0.1:{stranger.port}", WAIT_S)


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
    await until(lambda: client.bulk.ready(server.public) >= POOL_MIN)
    for draft in server.node.authority.plan_revocation(client.public):
        server.node.world.spread(draft)
    server.bulk.close_revoked()
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(near.read(1), WAIT_S)
    await until(lambda: server.bulk._server.nodes() == () and not server.transport._links)
    with pytest.raises(NotAdmitted, match="revoked"):
        await client.bulk._dial(server.public, client.targets[server.public])
    with pytest.raises(Unreachable):
        await server.bulk.open_stream(client.public, StreamKind.HTTP)


async def test_an_idle_connection_is_not_kept_for_ever(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = pair
    monkeypatch.setattr(bulk_server, "BULK_UNUSED_MS", 50)
    link = await client.bulk._dial(server.public, client.targets[server.public])
    await asyncio.wait_for(link.wait_closed(), WAIT_S)


async def test_one_member_has_a_bounded_number_of_connections(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = pair
    monkeypatch.setattr(bulk_server, "MAX_BULK_CONNECTIONS_PER_PEER", 2)
    links = [await client.bulk._dial(server.public, client.targets[server.public]) for _ in range(3)]
    await asyncio.wait_for(links[2].wait_closed(), WAIT_S)
    assert not links[0].is_closed
    assert not links[1].is_closed


async def test_a_stream_header_that_never_comes_whole_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = pair
    link = await client.bulk._dial(server.public, client.targets[server.public])
    monkeypatch.setattr(bulk_server.read_header, "__kwdefaults__", {"timeout_s": 0.1})  # admission reads one, too
    stream = await link.open_stream()
    await stream.write(b"\x00")
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(stream.read(1), WAIT_S)


async def test_closing_ends_everything_and_streams_go_no_more_over_the_fast_path(pair: Pair) -> None:
    server, client = pair
    near, _ = await both_ends(pair)
    await client.bulk.close()
    with pytest.raises(StreamClosed):
        await near.read(1)
    assert not client.transport._links
    assert await client.ask(server, b"x") == b"x"
    assert len(client.over_quic) == 1
