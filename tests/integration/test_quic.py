"""QUIC on loopback: keys, limits, windows, and what hostile or dying peers do."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import closing

import pytest
import uvloop
from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header

from agentmesh.core.errors import NotAdmitted, StreamClosed, Unreachable
from agentmesh.mesh import quic_endpoint, quic_tls
from agentmesh.mesh.datagrams import SocketAddress, UdpPath, bind_udp
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.limits import MAX_HANDSHAKES_PER_SOURCE
from agentmesh.mesh.quic import QuicTransport
from agentmesh.mesh.quic_endpoint import QuicEndpoint
from agentmesh.mesh.quic_engine import CONNECTION_WINDOW_BYTES, Engine
from agentmesh.mesh.quic_link import QuicLink
from agentmesh.mesh.quic_tls import (
    INITIAL_CONNECTION_WINDOW_BYTES,
    INITIAL_STREAM_WINDOW_BYTES,
    client_configuration,
    make_certificate,
)
from tests.integration.transport_pairs import Nodes, echo, open_pair, read_all, read_exactly, two_nodes, within


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with two_nodes("quic") as pair:
        yield pair


def endpoint_of(transport: object) -> QuicEndpoint:
    assert isinstance(transport, QuicTransport)
    endpoint = transport._endpoint
    assert endpoint is not None
    return endpoint


def target_of(nodes: Nodes) -> tuple[str, int]:
    host, _, port = nodes.address.rpartition(":")
    return host, int(port)


async def until(condition: object, seconds: float = 5.0) -> None:
    """Wait until `condition()` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def link_pair(nodes: Nodes) -> tuple[QuicLink, QuicLink]:
    near, far = await nodes.connect()
    assert isinstance(near, QuicLink)
    assert isinstance(far, QuicLink)
    return near, far


# ------------------------------------------------------------------ keys


async def test_a_server_with_the_certificate_of_another_node_but_not_its_key_is_not_admitted(nodes: Nodes) -> None:
    victim = NodeKey.generate()
    endpoint_of(nodes.server)._certificate = make_certificate(victim)
    with pytest.raises(NotAdmitted, match="did not prove its key"):
        await within(nodes.client.dial(victim.public, nodes.address, 5.0))


async def test_the_certificate_carries_the_node_key_and_fits_every_clock() -> None:
    key = NodeKey.generate()
    certificate = make_certificate(key)
    assert quic_tls.certified_node(certificate) == key.public
    assert certificate.not_valid_before_utc.year == 2000
    assert certificate.not_valid_after_utc.year == 9999
    assert quic_tls.certified_node(None) is None


async def test_there_is_no_session_ticket_to_resume_with(nodes: Nodes) -> None:
    near, far = await link_pair(nodes)
    await open_pair(near, far)
    assert near.engine.tls.session_resumed is False
    assert near.engine._session_ticket_handler is None
    assert far.engine._session_ticket_handler is None
    assert far.engine._configuration.session_ticket is None


# ------------------------------------------------------------------ addresses


async def test_one_socket_serves_both_families_and_names() -> None:
    key, client = NodeKey.generate(), QuicTransport(NodeKey.generate())
    server = QuicTransport(key)
    try:
        port = await server.listen("::", 0, echo)
        hosts = ["127.0.0.1", "localhost"]
        with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as probe:
            try:
                probe.bind(("::1", 0))
                hosts.append("[::1]")
            except OSError:
                pass  # a machine without IPv6 has nothing to show here
        for host in hosts:
            link = await within(client.dial(key.public, f"{host}:{port}", 5.0))
            assert link.remote_address in (f"127.0.0.1:{port}", f"[::1]:{port}")
    finally:
        await within(client.close())
        await within(server.close())


async def test_dialling_and_listening_use_the_same_port(nodes: Nodes) -> None:
    near, far = await link_pair(nodes)
    assert far.remote_address == f"127.0.0.1:{endpoint_of(nodes.client).port}"
    assert near.remote_address == f"127.0.0.1:{endpoint_of(nodes.server).port}"


@pytest.mark.parametrize("address", ["nonsense", "host:", ":1", "127.0.0.1:0", "127.0.0.1:70000", "[::1]", "a:b"])
async def test_what_is_no_address_is_unreachable(nodes: Nodes, address: str) -> None:
    with pytest.raises(Unreachable):
        await within(nodes.client.dial(nodes.server_key.public, address, 5.0))


async def test_a_name_that_nobody_knows_is_unreachable(nodes: Nodes) -> None:
    with pytest.raises(Unreachable, match="no-such-host"):
        await within(nodes.client.dial(nodes.server_key.public, "no-such-host.invalid:1", 5.0))


async def test_a_node_can_dial_itself_over_its_one_socket(nodes: Nodes) -> None:
    near = await within(nodes.server.dial(nodes.server_key.public, nodes.address, 5.0))
    far = await within(nodes.accepted.get())
    stream, other = await open_pair(near, far)
    await other.write(b"me")
    assert await within(read_exactly(stream, 2)) == b"me"


async def test_the_round_trip_time_is_measured(nodes: Nodes) -> None:
    near, far = await link_pair(nodes)
    await open_pair(near, far)
    await until(lambda: near.rtt_ms is not None)
    assert 0 < (near.rtt_ms or 0) < 1_000


async def test_a_peer_whose_address_changes_keeps_its_connection(nodes: Nodes) -> None:
    near, far = await link_pair(nodes)
    stream, other = await open_pair(near, far)
    before = far.remote_address
    endpoint = endpoint_of(nodes.client)
    old = endpoint._path
    endpoint.attach(UdpPath(bind_udp("127.0.0.1", 0), endpoint.on_batch))
    await stream.write(b"from elsewhere")
    assert await within(read_exactly(other, 14)) == b"from elsewhere"
    await until(lambda: far.remote_address != before)
    assert far.remote_address == f"127.0.0.1:{endpoint.port}"
    assert old is not None
    old.close()
    await other.write(b"and back")
    assert await within(read_exactly(stream, 8)) == b"and back"


# ------------------------------------------------------------------ garbage and floods


async def test_garbage_datagrams_are_dropped_and_the_node_goes_on(nodes: Nodes) -> None:
    near, far = await link_pair(nodes)
    stream, other = await open_pair(near, far)
    rng = random.Random(3)
    known = next(iter(endpoint_of(nodes.server)._links))
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        for size in (0, 1, 7, 8, 9, 20, 100, 1199, 1200, 1500, 9000):
            sock.sendto(rng.randbytes(size), target_of(nodes))
            sock.sendto(b"\x40" + rng.randbytes(size), target_of(nodes))
            sock.sendto(b"\xc0\x00\x00\x00\x01" + rng.randbytes(size), target_of(nodes))
            sock.sendto(b"\x40" + known + rng.randbytes(size), target_of(nodes))
            sock.sendto(b"\xff" * size, target_of(nodes))
    await stream.write(b"alive")
    assert await within(read_exactly(other, 5)) == b"alive"
    assert endpoint_of(nodes.server).dropped > 20
    assert endpoint_of(nodes.server).gate.in_progress == 0


def initial_datagram(address: SocketAddress) -> tuple[Engine, bytes]:
    """A fresh client and the first datagram it sends."""
    engine = Engine(configuration=client_configuration(loopback=False))
    engine.connect(address, now=0.0)
    ((data, _),) = engine.datagrams_to_send(now=0.0)
    return engine, data


async def receive(sock: socket.socket, size: int = 65_535) -> bytes:
    return await within(asyncio.get_running_loop().sock_recv(sock, size))


async def test_a_first_datagram_costs_a_retry_and_no_state(nodes: Nodes) -> None:
    endpoint = endpoint_of(nodes.server)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        for _ in range(50):
            _, data = initial_datagram(target_of(nodes))
            sock.sendto(data, target_of(nodes))
            answer = await receive(sock)
            assert pull_quic_header(Buffer(data=answer)).packet_type is QuicPacketType.RETRY
            assert len(answer) < len(data) / 3
    assert (endpoint._links, endpoint.gate.in_progress) == ({}, 0)


async def test_a_retry_token_is_good_for_its_own_address_only(nodes: Nodes) -> None:
    endpoint = endpoint_of(nodes.server)
    with (
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as thief,
    ):
        sock.setblocking(False)
        engine, data = initial_datagram(target_of(nodes))
        sock.sendto(data, target_of(nodes))
        engine.receive_datagram(await receive(sock), target_of(nodes), now=0.01)
        ((second, _),) = engine.datagrams_to_send(now=0.02)
        thief.sendto(second, target_of(nodes))
        await asyncio.sleep(0.1)
        assert endpoint.gate.in_progress == 0
        sock.sendto(second, target_of(nodes))
        await until(lambda: endpoint.gate.in_progress == 1)


async def test_one_source_cannot_fill_the_handshakes_and_slots_come_back(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_endpoint, "HANDSHAKE_TIMEOUT_MS", 300)
    endpoint = endpoint_of(nodes.server)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setblocking(False)
        for _ in range(3 * MAX_HANDSHAKES_PER_SOURCE):
            engine, data = initial_datagram(target_of(nodes))
            sock.sendto(data, target_of(nodes))
            while (
                pull_quic_header(Buffer(data=(answer := await receive(sock)))).packet_type is not QuicPacketType.RETRY
            ):
                pass  # the server's handshake for an earlier client, which stays silent
            engine.receive_datagram(answer, target_of(nodes), now=0.01)
            for second, _ in engine.datagrams_to_send(now=0.02):
                sock.sendto(second, target_of(nodes))
        await until(lambda: endpoint.gate.waiting > 0)
        assert endpoint.gate.in_progress == MAX_HANDSHAKES_PER_SOURCE
    await until(lambda: endpoint.gate.in_progress == 0)
    assert endpoint._links == {}
    await nodes.connect()


async def test_an_unknown_version_is_answered_with_ours_if_it_is_large_enough(nodes: Nodes) -> None:
    head = b"\xc0" + struct.pack(">I", 0x1A2A3A4A) + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        sock.sendto((head + b"\x00\x44\x00").ljust(1199, b"\x00"), target_of(nodes))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 2000), 0.2)
        sock.sendto((head + b"\x00\x44\x00").ljust(1200, b"\x00"), target_of(nodes))
        header = pull_quic_header(Buffer(data=await receive(sock)))
    assert header.packet_type is QuicPacketType.VERSION_NEGOTIATION
    assert header.supported_versions == [1]


async def test_a_stream_in_one_direction_only_ends_the_connection(nodes: Nodes) -> None:
    near, far = await link_pair(nodes)
    near.engine._remote_max_streams_uni = 10
    near.engine.send_stream_data(2, b"x")
    near.transmit_soon()
    assert "streams" in (await within(near.wait_closed())).lower()
    assert far.is_closed


# ------------------------------------------------------------------ windows


@pytest.mark.parametrize(
    ("streams", "limit"), [(1, INITIAL_STREAM_WINDOW_BYTES), (20, INITIAL_CONNECTION_WINDOW_BYTES)]
)
async def test_a_peer_can_fill_no_more_than_the_first_window_before_anything_is_read(
    nodes: Nodes, streams: int, limit: int
) -> None:
    near, far = await link_pair(nodes)

    async def flood() -> None:
        stream = await near.open_stream()
        for _ in range(64):
            await stream.write(bytes(64 * 1024))

    loop = asyncio.get_running_loop()
    floods = [loop.create_task(flood()) for _ in range(streams)]
    await asyncio.sleep(0.5)
    held = [stream._incoming.size_bytes for stream in far._streams.values()]
    assert max(held) <= INITIAL_STREAM_WINDOW_BYTES
    assert 0 < sum(held) <= limit
    assert far.engine._local_max_data.value == INITIAL_CONNECTION_WINDOW_BYTES
    near.close("enough")
    results = await within(asyncio.gather(*floods, return_exceptions=True))
    assert {type(result) for result in results} == {StreamClosed}


async def test_windows_grow_with_what_is_read_up_to_their_limit(nodes: Nodes) -> None:
    near, far = await link_pair(nodes)
    stream, other = await open_pair(near, far)

    async def write() -> None:
        for _ in range(200):
            await stream.write(bytes(100_000))
        await stream.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(within(write(), 30))
        await within(read_exactly(other, 19_000_000), 30)
    granted = far.engine._local_max_data.value - far.engine._local_max_data.used
    assert INITIAL_CONNECTION_WINDOW_BYTES < granted <= CONNECTION_WINDOW_BYTES
    assert len(await within(read_all(other))) == 1_000_000


# ------------------------------------------------------------------ loss


class LossyPath:
    """Loses datagrams at random, delays some past others."""

    def __init__(self, path: UdpPath, seed: int) -> None:
        self._path = path
        self._rng = random.Random(seed)
        self._late: list[tuple[bytes, SocketAddress]] = []

    @property
    def port(self) -> int:
        return self._path.port

    def send(self, data: bytes, address: SocketAddress) -> None:
        fate = self._rng.random()
        if fate < 0.05:
            return
        if fate < 0.08:
            self._late.append((data, address))
            return
        self._path.send(data, address)
        while self._late:
            self._path.send(*self._late.pop())

    def close(self) -> None:
        self._path.close()


async def test_nothing_is_lost_on_a_path_that_loses_and_reorders(nodes: Nodes) -> None:
    for seed, transport in ((1, nodes.server), (2, nodes.client)):
        endpoint = endpoint_of(transport)
        assert isinstance(endpoint._path, UdpPath)
        endpoint.attach(LossyPath(endpoint._path, seed))
    nodes.handler = echo
    near = await within(nodes.client.dial(nodes.server_key.public, nodes.address, 10.0), 15)
    data = random.Random(5).randbytes(2_000_000)
    stream = await near.open_stream()

    async def write() -> None:
        for position in range(0, len(data), 50_000):
            await stream.write(data[position : position + 50_000])
        await stream.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(within(write(), 30))
        assert await within(read_all(stream), 30) == data


async def test_a_dial_into_a_black_hole_is_over_in_time(nodes: Nodes) -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as hole:
        hole.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match=r"did not answer within 0\.3 s"):
            await within(nodes.client.dial(nodes.server_key.public, f"127.0.0.1:{hole.getsockname()[1]}", 0.3), 2)
    assert endpoint_of(nodes.client)._links == {}


async def test_a_dial_that_is_cancelled_leaves_nothing_behind(nodes: Nodes) -> None:
    dialling = asyncio.get_running_loop().create_task(nodes.client.dial(nodes.server_key.public, nodes.address, 5.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    dialling.cancel()
    await asyncio.wait([dialling], timeout=5)
    assert dialling.cancelled()
    assert endpoint_of(nodes.client)._links == {}
    await until(lambda: endpoint_of(nodes.server).gate.in_progress == 0, 8)


async def test_a_server_that_vanishes_in_the_middle_of_a_stream_is_noticed(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_tls, "IDLE_TIMEOUT_S", 0.5)
    near, far = await link_pair(nodes)
    stream, _ = await open_pair(near, far)
    path = endpoint_of(nodes.server)._path
    assert path is not None
    path.close()
    with pytest.raises(StreamClosed, match="timed out"):
        await within(stream.read(1))
    assert await within(near.wait_closed()) == "the connection timed out"
    await until(lambda: endpoint_of(nodes.client)._links == {})


# ------------------------------------------------------------------ many


async def test_a_hundred_connections_at_once(nodes: Nodes) -> None:
    nodes.handler = echo
    clients = [QuicTransport(NodeKey.generate()) for _ in range(25)]

    async def one(number: int) -> None:
        client = clients[number % len(clients)]
        link = await client.dial(nodes.server_key.public, nodes.address, 20.0)
        stream = await link.open_stream()
        await stream.write(number.to_bytes(4, "big"))
        await stream.end()
        assert await read_all(stream) == number.to_bytes(4, "big")

    async def nobody(connection: object) -> None: ...

    try:
        # Sources of their own, as hosts have them: one source may have four handshakes in progress.
        for number, client in enumerate(clients):
            await client.listen(f"127.0.0.{number + 2}", 0, nobody)
        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(within(one(number), 30))
        assert endpoint_of(nodes.server).gate.in_progress == 0
    finally:
        for client in clients:
            await within(client.close())


async def test_many_connections_from_one_source_all_get_in_one_after_the_other(nodes: Nodes) -> None:
    dials = [nodes.client.dial(nodes.server_key.public, nodes.address, 10.0) for _ in range(30)]
    links = await within(asyncio.gather(*dials), 10)
    assert not any(link.is_closed for link in links)


async def test_a_busy_connection_does_not_starve_a_quiet_one(nodes: Nodes) -> None:
    nodes.handler = echo
    busy = await within(nodes.client.dial(nodes.server_key.public, nodes.address, 5.0))
    quiet = await within(nodes.client.dial(nodes.server_key.public, nodes.address, 5.0))
    bulk, small = await busy.open_stream(), await quiet.open_stream()

    async def write() -> None:
        while True:
            await bulk.write(bytes(64 * 1024))

    async def read() -> None:
        while True:
            await bulk.read(64 * 1024)

    loop = asyncio.get_running_loop()
    load = [loop.create_task(write()), loop.create_task(read())]
    await asyncio.sleep(0.2)
    for _ in range(20):
        await small.write(b"ping")
        assert await within(read_exactly(small, 4), 1.0) == b"ping"
    for task in load:
        task.cancel()
    await asyncio.wait(load, timeout=5)


async def test_a_closed_endpoint_forgets_everything(nodes: Nodes) -> None:
    near, far = await link_pair(nodes)
    near.close("over")
    await within(far.wait_closed())
    await until(lambda: not endpoint_of(nodes.client)._links and not endpoint_of(nodes.server)._links)


async def test_it_works_on_uvloop() -> None:
    async def talk() -> None:
        async with two_nodes("quic") as pair:
            near, far = await pair.stream()
            payload = bytes(300_000)
            async with asyncio.TaskGroup() as group:
                group.create_task(near.write(payload))
                assert await within(read_exactly(far, len(payload))) == payload

    await within(asyncio.to_thread(uvloop.run, talk()))
