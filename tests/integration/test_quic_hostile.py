"""QUIC against hostile peers: garbage, floods of handshakes, floods of data."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import closing

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header

from agentmesh.core.errors import StreamClosed
from agentmesh.mesh import quic_endpoint
from agentmesh.mesh.datagrams import SocketAddress
from agentmesh.mesh.logic.limits import MAX_HANDSHAKES_PER_SOURCE
from agentmesh.mesh.logic.transport_limits import (
    CONNECTION_WINDOW_BYTES,
    INITIAL_CONNECTION_WINDOW_BYTES,
    INITIAL_STREAM_WINDOW_BYTES,
)
from agentmesh.mesh.quic import QuicTransport
from agentmesh.mesh.quic_engine import Engine
from agentmesh.mesh.quic_tls import client_configuration
from tests.integration.quic_tools import endpoint_of, link_pair, target_of, until
from tests.integration.transport_pairs import WAIT_S, Nodes, open_pair, read_all, read_exactly, two_nodes, within

LONG_S = 100.0  # for much work


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with two_nodes("quic") as pair:
        yield pair


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
    assert isinstance(nodes.server, QuicTransport)
    stats = nodes.server.stats
    assert (stats.connections, stats.handshakes, stats.handshakes_waiting) == (1, 0, 0)
    assert stats.datagrams_dropped > 20


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
        dropped = endpoint.dropped
        thief.sendto(second, target_of(nodes))
        await until(lambda: endpoint.dropped > dropped)
        assert endpoint.gate.in_progress == 0
        sock.sendto(second, target_of(nodes))
        await until(lambda: endpoint.gate.in_progress == 1)


async def test_one_source_cannot_fill_the_handshakes_and_slots_come_back(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_endpoint, "HANDSHAKE_TIMEOUT_MS", WAIT_S * 1000)
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
    loop = asyncio.get_running_loop()
    real, passed_s = loop.time, 0.0
    with pytest.MonkeyPatch.context() as patch:  # what comes afterwards has the real time again
        patch.setattr(loop, "time", lambda: real() + passed_s)
        for _ in range(20):  # those that waited come in when others end: three rounds, if all have been read by now
            if endpoint.gate.in_progress or endpoint.gate.waiting:
                passed_s += 1.1 * WAIT_S  # at once
                await asyncio.sleep(0.01)
    assert (endpoint.gate.in_progress, endpoint.gate.waiting) == (0, 0)
    assert endpoint._links == {}
    await nodes.connect()


async def test_an_unknown_version_is_answered_with_ours_if_it_is_large_enough(nodes: Nodes) -> None:
    head = b"\xc0" + struct.pack(">I", 0x1A2A3A4A) + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        sock.sendto((head + b"\x00\x44\x00").ljust(1199, b"\x00"), target_of(nodes))
        await until(lambda: endpoint_of(nodes.server).dropped == 1)
        with pytest.raises(BlockingIOError):
            sock.recv(2000)
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

    def held() -> list[int]:
        return [stream._incoming.size_bytes for stream in far._streams.values()]

    await until(lambda: sum(held()) > limit // 2)
    await asyncio.sleep(0.3)  # for more, if more came
    assert max(held()) <= INITIAL_STREAM_WINDOW_BYTES
    assert sum(held()) <= limit
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
        group.create_task(within(write(), LONG_S))
        await within(read_exactly(other, 19_000_000), LONG_S)
    granted = far.engine._local_max_data.value - far.engine._local_max_data.used
    assert INITIAL_CONNECTION_WINDOW_BYTES < granted <= CONNECTION_WINDOW_BYTES
    assert len(await within(read_all(other))) == 1_000_000
