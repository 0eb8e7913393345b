"""QUIC on loopback: keys, addresses, loss, peers that vanish, and many connections."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import closing

import pytest
import uvloop

from agentmesh.core.errors import NotAdmitted, StreamClosed, Unreachable
from agentmesh.mesh import quic_endpoint, quic_tls
from agentmesh.mesh.datagrams import SocketAddress, UdpPath, bind_udp
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic import handshake_gate
from agentmesh.mesh.logic.transport_limits import IDLE_TIMEOUT_S, STREAM_WINDOW_BYTES
from agentmesh.mesh.quic import QuicTransport
from agentmesh.mesh.quic_tls import (
    make_certificate,
)
from tests.integration.quic_tools import endpoint_of, link_pair, until
from tests.integration.transport_pairs import (
    WAIT_S,
    Nodes,
    echo,
    open_pair,
    read_all,
    read_exactly,
    two_nodes,
    within,
)

LONG_S = 100.0  # for much work


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with two_nodes("quic") as pair:
        yield pair


# ------------------------------------------------------------------ keys


async def test_a_server_with_the_certificate_of_another_node_but_not_its_key_is_not_admitted(nodes: Nodes) -> None:
    victim = NodeKey.generate()
    endpoint_of(nodes.server)._certificate = make_certificate(victim)
    with pytest.raises(NotAdmitted, match="did not prove its key"):
        await within(nodes.client.dial(victim.public, nodes.address, WAIT_S))


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
            link = await within(client.dial(key.public, f"{host}:{port}", WAIT_S))
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
        await within(nodes.client.dial(nodes.server_key.public, address, WAIT_S))


async def test_a_name_that_nobody_knows_is_unreachable(nodes: Nodes) -> None:
    with pytest.raises(Unreachable, match="no-such-host"):
        await within(nodes.client.dial(nodes.server_key.public, "no-such-host.invalid:1", WAIT_S))


async def test_a_node_can_dial_itself_over_its_one_socket(nodes: Nodes) -> None:
    near = await within(nodes.server.dial(nodes.server_key.public, nodes.address, WAIT_S))
    far = await within(nodes.accepted.get())
    stream, other = await open_pair(near, far)
    await other.write(b"me")
    assert await within(read_exactly(stream, 2)) == b"me"


async def test_the_round_trip_time_is_measured(nodes: Nodes) -> None:
    began_s = time.monotonic()
    near, far = await link_pair(nodes)
    await open_pair(near, far)
    await until(lambda: near.rtt_ms is not None)
    assert 0 < (near.rtt_ms or 0) < (time.monotonic() - began_s) * 1000


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
    near = await within(nodes.client.dial(nodes.server_key.public, nodes.address, WAIT_S))
    data = random.Random(5).randbytes(2_000_000)
    stream = await near.open_stream()

    async def write() -> None:
        for position in range(0, len(data), 50_000):
            await stream.write(data[position : position + 50_000])
        await stream.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(within(write(), LONG_S))
        assert await within(read_all(stream), LONG_S) == data


async def test_a_dial_into_a_black_hole_is_over_in_time(nodes: Nodes) -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as hole:
        hole.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match=r"did not answer within 0\.3 s"):
            await within(nodes.client.dial(nodes.server_key.public, f"127.0.0.1:{hole.getsockname()[1]}", 0.3))
    assert endpoint_of(nodes.client)._links == {}


async def test_a_dial_that_is_cancelled_leaves_nothing_behind(nodes: Nodes) -> None:
    dialling = asyncio.get_running_loop().create_task(nodes.client.dial(nodes.server_key.public, nodes.address, WAIT_S))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    dialling.cancel()
    await asyncio.wait([dialling], timeout=WAIT_S)
    assert dialling.cancelled()
    assert endpoint_of(nodes.client)._links == {}
    await until(lambda: endpoint_of(nodes.server).gate.in_progress == 0)


async def test_a_server_that_vanishes_in_the_middle_of_a_stream_is_noticed(nodes: Nodes) -> None:
    near, far = await link_pair(nodes)
    stream, _ = await open_pair(near, far)
    path = endpoint_of(nodes.server)._path
    assert path is not None
    path.close()
    reading = asyncio.ensure_future(stream.read(1))
    await asyncio.sleep(0.1)
    assert not reading.done()
    near._clock = lambda: time.monotonic() + IDLE_TIMEOUT_S + WAIT_S  # so much time passes at once
    near._disarm()  # a timer set by the real clock stays where it is
    near.transmit_soon()
    with pytest.raises(StreamClosed, match="timed out"):
        await within(reading)
    assert await within(near.wait_closed()) == "the connection timed out"
    await until(lambda: endpoint_of(nodes.client)._links == {})


# ------------------------------------------------------------------ many


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No handshake is given up for being slow: a hundred at once take 7 s where others compute."""
    monkeypatch.setattr(quic_endpoint, "HANDSHAKE_TIMEOUT_MS", LONG_S * 1000)
    monkeypatch.setattr(handshake_gate, "HANDSHAKE_TIMEOUT_MS", LONG_S * 1000)
    monkeypatch.setattr(quic_tls, "IDLE_TIMEOUT_S", LONG_S)


@pytest.mark.usefixtures("patient")
async def test_a_hundred_connections_at_once(nodes: Nodes) -> None:
    nodes.handler = echo
    clients = [QuicTransport(NodeKey.generate()) for _ in range(25)]

    async def one(number: int) -> None:
        client = clients[number % len(clients)]
        link = await client.dial(nodes.server_key.public, nodes.address, LONG_S)
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
                group.create_task(within(one(number), LONG_S))
        assert endpoint_of(nodes.server).gate.in_progress == 0
    finally:
        for client in clients:
            await within(client.close())


@pytest.mark.usefixtures("patient")
async def test_many_connections_from_one_source_all_get_in_one_after_the_other(nodes: Nodes) -> None:
    dials = [nodes.client.dial(nodes.server_key.public, nodes.address, WAIT_S) for _ in range(30)]
    links = await within(asyncio.gather(*dials))
    assert not any(link.is_closed for link in links)


async def test_a_busy_connection_does_not_starve_a_quiet_one(nodes: Nodes) -> None:
    nodes.handler = echo
    busy = await within(nodes.client.dial(nodes.server_key.public, nodes.address, WAIT_S))
    quiet = await within(nodes.client.dial(nodes.server_key.public, nodes.address, WAIT_S))
    bulk, small = await busy.open_stream(), await quiet.open_stream()

    async def write() -> None:
        while True:
            await bulk.write(bytes(64 * 1024))

    carried = 0

    async def read() -> None:
        nonlocal carried
        while True:
            carried += len(await bulk.read(64 * 1024))

    loop = asyncio.get_running_loop()
    load = [loop.create_task(write()), loop.create_task(read())]
    await until(lambda: carried > 1_000_000)
    meanwhile: list[int] = []
    for _ in range(20):
        before = carried
        await small.write(b"ping")
        assert await within(read_exactly(small, 4)) == b"ping"
        meanwhile.append(carried - before)
    # A turn each, however fast the machine is: the quiet one waits for a window of the other. A lost datagram is sent again.
    assert sorted(meanwhile)[len(meanwhile) // 2] <= 4 * STREAM_WINDOW_BYTES
    for task in load:
        task.cancel()
    await asyncio.wait(load, timeout=WAIT_S)


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
