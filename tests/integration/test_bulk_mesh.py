"""Whole nodes: bulk streams between members over QUIC's connection or beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agentmesh.core.errors import AgentMeshError, PortClosed, Unreachable
from agentmesh.mesh import bulk_wiring
from agentmesh.mesh.identity import encode_id
from agentmesh.mesh.logic.bulk_limits import POOL_MIN
from agentmesh.mesh.logic.events import PeerState
from agentmesh.mesh.peers import PeerFacts
from agentmesh.mesh.quic import QuicTransport
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.bulk_world import WAIT_S, echo, read_all, unhurried
from tests.fakes.mesh_nodes import TestNode, eventually

Make = Callable[..., TestNode]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[TestNode] = []

    def node(name: str, *, fast_path: bool = True) -> TestNode:
        made.append(TestNode(tmp_path, name, fast_path=fast_path))
        return made[-1]

    with unhurried():
        yield node
    for one in made:
        if hasattr(one, "mesh"):
            await one.mesh.stop()


async def _pair(make: Make, *, client_fast: bool = True, server_fast: bool = True) -> tuple[TestNode, TestNode]:
    server = await make("server", fast_path=server_fast).found().start()
    client = await (await make("client", fast_path=client_fast).join(await server.token())).start()
    server.mesh.serve(StreamKind.HTTP, echo)
    await eventually(lambda: bool(client.mesh.peers() and server.mesh.peers()), WAIT_S)
    return server, client


async def _strangers(make: Make, *, client_fast: bool = True) -> tuple[TestNode, TestNode]:
    """Members of one mesh that know nothing of each other any more."""
    server, client = await _pair(make, client_fast=client_fast)
    for node in (client, server):
        await node.stop()
        for known in node.home.root.rglob("peers.json"):
            known.unlink()
    await server.start()
    server.mesh.serve(StreamKind.HTTP, echo)
    await client.start()
    assert client.mesh.peers() == []
    return server, client


async def _ask(client: TestNode, server: TestNode, question: bytes) -> bytes:
    stream = await asyncio.wait_for(client.mesh.open_stream(server.key.public, StreamKind.HTTP), WAIT_S)
    await stream.write(question)
    await stream.end()
    return await asyncio.wait_for(read_all(stream), WAIT_S)


async def test_members_take_the_fast_path_on_the_port_number_of_quic(make: Make) -> None:
    server, client = await _pair(make)
    assert server.mesh.bulk_port == server.mesh.bind_port
    assert await _ask(client, server, b"a question") == b"a question"
    assert client.mesh._bulk.streams.works(server.key.public)


async def test_the_fast_path_leads_both_ways_over_one_quic_connection(make: Make) -> None:
    server, client = await _pair(make)
    client.mesh.serve(StreamKind.HTTP, echo)
    assert await _ask(server, client, b"back") == b"back"
    assert server.mesh._bulk.streams.works(client.key.public)


@pytest.mark.parametrize(("client_fast", "server_fast"), [(False, True), (True, False)])
async def test_a_node_without_the_fast_path_is_reached_and_reaches_over_quic(
    make: Make, client_fast: bool, server_fast: bool
) -> None:
    server, client = await _pair(make, client_fast=client_fast, server_fast=server_fast)
    assert await _ask(client, server, b"slowly") == b"slowly"
    assert not client.mesh._bulk.streams.works(server.key.public)


async def test_a_revoked_node_loses_its_stream_and_gets_no_other(make: Make) -> None:
    server, client = await _pair(make)
    stream = await client.mesh.open_stream(server.key.public, StreamKind.HTTP)
    await stream.write(b"x")
    assert await asyncio.wait_for(stream.read(1), WAIT_S) == b"x"
    await eventually(lambda: client.key.public in server.mesh._trust.known_keys(), WAIT_S)
    await server.mesh.revoke(encode_id(client.key.public))
    with pytest.raises(AgentMeshError):
        await asyncio.wait_for(stream.read(1), WAIT_S)
    with pytest.raises(AgentMeshError):
        await _ask(client, server, b"once more")
    with pytest.raises(Unreachable):
        await server.mesh.open_stream(client.key.public, StreamKind.HTTP)


async def test_a_peer_nobody_knows_is_unreachable(make: Make) -> None:
    server = await make("server").found().start()
    with pytest.raises(Unreachable):
        await asyncio.wait_for(server.mesh.open_stream(bytes(32), StreamKind.BLOB), WAIT_S)


async def test_a_restarted_peer_is_found_again(make: Make) -> None:
    server, client = await _pair(make)
    assert await _ask(client, server, b"one") == b"one"
    await server.stop()
    await eventually(lambda: server.key.public not in client.mesh._driver.links, WAIT_S)
    await server.start()
    server.mesh.serve(StreamKind.HTTP, echo)
    await eventually(lambda: server.key.public in client.mesh._driver.links, 2 * WAIT_S)
    assert await _ask(client, server, b"two") == b"two"
    assert client.mesh._bulk.streams.works(server.key.public)


async def test_a_stream_that_the_service_gives_up_looks_cut_off_either_way(make: Make) -> None:
    async def gives_up(peer: bytes, stream: Stream) -> None:
        await stream.read(1)
        await stream.write(b"half an ans")
        stream.abort()

    for fast in (True, False):
        server, client = await _pair(lambda name, fast=fast, **_: make(f"{name}{fast}", fast_path=fast))
        server.mesh.serve(StreamKind.RPC, gives_up)
        stream = await client.mesh.open_stream(server.key.public, StreamKind.RPC)
        await stream.write(b"?")
        with pytest.raises(AgentMeshError):
            await asyncio.wait_for(read_all(stream), WAIT_S)


@pytest.mark.parametrize("fast_path", [True, False])
async def test_a_member_that_was_never_a_neighbour_is_reached_where_its_presence_says(
    make: Make, fast_path: bool
) -> None:
    server, client = await _strangers(make, client_fast=fast_path)
    with pytest.raises(Unreachable):
        await client.mesh.open_stream(server.key.public, StreamKind.HTTP)
    client.mesh.hint(server.key.public, server.mesh.addresses(), server.mesh.bulk_port)
    assert await _ask(client, server, b"found you") == b"found you"
    assert client.mesh._bulk.streams.works(server.key.public) == fast_path


async def test_a_peer_that_is_no_neighbour_is_watched_as_long_as_it_is_asked_over_the_fast_path(make: Make) -> None:
    """Else a host that froze, or whose cable was pulled, would keep its requests for minutes: TCP alone tells nothing."""
    server, client = await _strangers(make)
    client.mesh.hint(server.key.public, server.mesh.addresses(), server.mesh.bulk_port)
    streams = [await client.mesh.open_stream(server.key.public, StreamKind.HTTP) for _ in range(3)]
    await eventually(lambda: client.mesh.peer_states().get(server.key.public) is PeerState.ALIVE, WAIT_S)
    link = client.mesh._machine._overlay._links[server.key.public]
    await eventually(lambda: link.streams == 3, WAIT_S)
    streams.append(await client.mesh.open_stream(server.key.public, StreamKind.HTTP))
    await eventually(lambda: link.streams == 4, WAIT_S)
    for stream in streams:
        stream.abort()
    await eventually(lambda: link.streams == 0, WAIT_S)


async def test_where_a_peer_says_that_it_is_now_counts_beside_where_it_was(make: Make) -> None:
    server, client = await _strangers(make)
    key = server.key.public
    client.mesh._peers.facts[key] = PeerFacts("server", ("127.0.0.1:1",), True, "127.0.0.1:1", 1, 1)
    client.mesh.hint(key, server.mesh.addresses(), server.mesh.bulk_port)
    assert await _ask(client, server, b"moved") == b"moved"


async def test_a_node_whose_port_is_closed_but_that_lives_is_reached_over_quic(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_wiring, "ANSWER_S", WAIT_S)  # it may stand still for longer than a dead one is waited for
    server, client = await _pair(make)
    assert await _ask(client, server, b"still there") == b"still there"
    transport = server.mesh._bulk.streams._transport
    assert transport is not None
    await transport.close()
    began = asyncio.get_running_loop().time()
    for _ in range(5):
        assert await _ask(client, server, b"and now") == b"and now"
    assert asyncio.get_running_loop().time() - began < 25  # for all of them; waiting for the port would take a minute


@pytest.mark.parametrize("used_before", [True, False])
async def test_a_node_that_ended_without_goodbye_is_known_to_be_gone_soon(make: Make, used_before: bool) -> None:
    server, client = await _pair(make)
    if used_before:
        assert await _ask(client, server, b"still there") == b"still there"
        pool = client.mesh._bulk.streams._pools[server.key.public]
        # A dial that breaks in the middle is no refusal, and the port would not be tried again for some seconds.
        await eventually(lambda: pool.idle >= POOL_MIN and not pool._dialling, WAIT_S)
    transport = server.mesh._bulk.streams._transport
    assert transport is not None
    await transport.close()  # what a kill does to its sockets
    quic = server.mesh._transport
    assert isinstance(quic, QuicTransport)
    assert quic._path is not None
    quic._path.close()
    began = asyncio.get_running_loop().time()
    with pytest.raises(PortClosed):
        await client.mesh.open_stream(server.key.public, StreamKind.HTTP)
    assert asyncio.get_running_loop().time() - began < 8  # a second; QUIC itself gives up after ten of silence
