"""The TCP port of the fast path: who knocks, in which way, and what it costs; addresses, keys, and a peer that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from agentmesh.core.errors import NotAdmitted, StreamClosed, Unreachable
from agentmesh.mesh import bulk_server, tls, tls_door
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.limits import MAX_HANDSHAKES_PER_SOURCE
from agentmesh.mesh.quic_tls import VALID_FROM, VALID_UNTIL
from agentmesh.mesh.tls import TlsTransport
from agentmesh.mesh.tls_context import BULK_ALPN, client_context, proven_node, server_context, speaks_bulk
from agentmesh.mesh.tls_door import HandshakeDoor
from agentmesh.mesh.transport import Connection
from tests.fakes.bulk_world import BulkNode, two_members, until

WAIT_S = 60.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[BulkNode]:
    async with two_members(tmp_path) as (one, _):
        yield one


async def knock(node: BulkNode, data: bytes) -> bytes:
    """Say `data` in plain TCP; what is answered until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), WAIT_S)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def plain_context(version: ssl.TLSVersion, *alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


# ------------------------------------------------------------------ what knocks


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", bytes(5_000), b"\x16\x03\x01\xff\xff" + bytes(70_000)])
async def test_garbage_costs_its_sender_the_connection_and_nobody_else_anything(server: BulkNode, data: bytes) -> None:
    answer = await knock(server, data)
    assert len(answer) < 50  # at most a TLS alert
    assert (await knock(server, data))[:1] in (b"", b"\x15")
    assert not server.transport._links


async def test_a_connection_that_says_nothing_is_closed(server: BulkNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_S", 0.2)
    assert await knock(server, b"") == b""
    assert await knock(server, b"\x16\x03\x01\x02") == b""


async def test_silent_connections_fill_their_own_share_only(server: BulkNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_S", 5.0)  # no place comes back while the crowd still connects
    monkeypatch.setattr(tls_door, "HANDSHAKE_TIMEOUT_MS", WAIT_S * 1000)  # nobody waits for one in vain
    door = server.transport._door
    counted: list[int] = []

    async def enter(source: str, *, known: bool) -> bool:
        entered = await HandshakeDoor.enter(door, source, known=known)
        counted.append(door._gate.in_progress)
        return entered

    monkeypatch.setattr(door, "enter", enter)
    crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3 * MAX_HANDSHAKES_PER_SOURCE)]
    await until(lambda: door._gate.in_progress >= MAX_HANDSHAKES_PER_SOURCE)
    monkeypatch.setattr(tls, "HANDSHAKE_S", 0.3)  # of those that come in later
    for reader, writer in crowd:
        assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
        writer.close()
    assert len(counted) == len(crowd)
    assert max(counted) == MAX_HANDSHAKES_PER_SOURCE
    await until(lambda: door._gate.in_progress == 0)


async def test_a_handshake_that_finds_no_place_in_time_is_closed(
    server: BulkNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_S", 10 * WAIT_S)  # nobody gives a place back
    monkeypatch.setattr(tls_door, "HANDSHAKE_TIMEOUT_MS", 100)
    crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_HANDSHAKES_PER_SOURCE)]
    await until(lambda: server.transport._door._gate.in_progress == MAX_HANDSHAKES_PER_SOURCE)
    assert await knock(server, b"") == b""
    for _, writer in crowd:
        writer.close()


async def test_tls_1_2_is_not_spoken(server: BulkNode) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=plain_context(ssl.TLSVersion.TLSv1_2, BULK_ALPN), server_hostname=""
        )


@pytest.mark.parametrize("alpn", [(), ("h2",), ("agentmesh/1",)])
async def test_another_protocol_inside_tls_is_closed_before_anything_is_said(
    server: BulkNode, alpn: tuple[str, ...]
) -> None:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", server.port, ssl=plain_context(ssl.TLSVersion.TLSv1_3, *alpn), server_hostname=""
    )
    assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
    writer.close()


@pytest.mark.parametrize(
    "data", [b"\xff" * 100, bytes(4), b"\x00\x00\x00\x05\x00\x00\x00\x01\xc0", b"\x00\x03\xff\xff"]
)
async def test_garbage_inside_tls_learns_nothing_of_the_node(
    server: BulkNode, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_server.Admission.admit, "__kwdefaults__", {"timeout_s": 0.3})
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", server.port, ssl=plain_context(ssl.TLSVersion.TLSv1_3, BULK_ALPN), server_hostname=""
    )
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), WAIT_S)
    assert b"founder" not in answer
    assert server.node.membership.mesh not in answer
    assert server.bulk._server.nodes() == ()
    writer.close()


# ------------------------------------------------------------------ keys


def rsa_certificate(folder: Path) -> Path:
    """A certificate such as a web server has."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(VALID_FROM).not_valid_after(VALID_UNTIL)
    path = folder / "pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    )
    return path


async def test_a_server_without_a_node_key_is_not_admitted(tmp_path: Path) -> None:
    folder = tmp_path / "rsa"
    folder.mkdir()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([BULK_ALPN])
    context.load_cert_chain(rsa_certificate(folder))
    listening = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    client = TlsTransport(NodeKey.generate())
    try:
        with pytest.raises(NotAdmitted):
            await client.dial(NodeKey.generate().public, f"127.0.0.1:{port}", WAIT_S)
    finally:
        await client.close()
        listening.close()


async def test_the_server_proves_its_node_key_and_gives_no_ticket() -> None:
    key = NodeKey.generate()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client_context().wrap_bio(incoming, outgoing)
    far = server_context(key).wrap_bio(outgoing, incoming, server_side=True)
    for _ in range(4):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert proven_node(near) == key.public
    assert speaks_bulk(near)
    assert speaks_bulk(far)
    with pytest.raises(ssl.SSLWantReadError):
        near.read(1)  # takes in what came behind the handshake
    assert near.session is None or not near.session.has_ticket
    assert far.getpeercert(binary_form=True) is None


def test_no_copy_of_the_key_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server_context(NodeKey.generate())
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ addresses


async def test_a_taken_port_means_another(tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with two_members(tmp_path) as (server, _):
            other = BulkNode(server.node, server._slow._network)
            other._slow = server._slow
            found = await other.bulk.listen("127.0.0.1", port)
            assert found not in (0, port)
            await other.bulk.close()


async def test_one_socket_serves_both_families(tmp_path: Path) -> None:
    async with two_members(tmp_path, host="") as (server, client):
        hosts = ["127.0.0.1", "localhost"]
        with closing(socket.socket(socket.AF_INET6)) as probe:
            try:
                probe.bind(("::1", 0))
                hosts.append("[::1]")
            except OSError:
                pass  # a machine without IPv6 has nothing to show here
        for number, host in enumerate(hosts):
            client.knows(server, f"{host}:{server.port}", seen_ms=number + 2)
            assert await client.ask(server, b"x") == b"x"
        assert client.over_quic == []


@pytest.mark.parametrize(
    "address", ["nonsense", "host:", "127.0.0.1:0", "127.0.0.1:70000", "a" * 300 + ":1", "\udcff:1"]
)
async def test_what_is_no_address_is_unreachable(address: str) -> None:
    client = TlsTransport(NodeKey.generate())
    with pytest.raises(Unreachable):
        await asyncio.wait_for(client.dial(bytes(32), address, 2.0), WAIT_S)
    await client.close()


# ------------------------------------------------------------------ a peer that is killed

KILLED = """
import asyncio, sys
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.tls import TlsTransport

async def pour(link):
    await (await link.accept_stream()).end()
    stream = await link.accept_stream()
    while True:
        await stream.write(bytes(65536))

async def main():
    transport = TlsTransport(NodeKey(bytes(range(32))))
    print(await transport.listen("127.0.0.1", 0, pour), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@asynccontextmanager
async def victim() -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process, int(await asyncio.wait_for(process.stdout.readline(), WAIT_S))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_peer_that_is_killed_ends_its_streams_and_not_cleanly() -> None:
    client = TlsTransport(NodeKey.generate())
    async with victim() as (process, port):
        link = await client.dial(NodeKey(bytes(range(32))).public, f"127.0.0.1:{port}", WAIT_S)
        await (await link.open_stream()).end()
        stream = await link.open_stream()
        await stream.write(b"go")
        assert await asyncio.wait_for(stream.read(10), WAIT_S)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(StreamClosed):
            while await asyncio.wait_for(stream.read(65_536), WAIT_S):
                pass
        with pytest.raises(StreamClosed):
            await stream.write(b"x")
    await client.close()


# ------------------------------------------------------------------ the node's event loop


def test_it_works_on_uvloop_as_well() -> None:
    async def serve(connection: Connection) -> None:
        await (await connection.accept_stream()).end()
        stream = await connection.accept_stream()
        while data := await stream.read(65_536):
            await stream.write(data)
        await stream.end()
        await connection.wait_closed()

    async def main() -> int:
        key, received = NodeKey.generate(), 0
        server, client = TlsTransport(key), TlsTransport(NodeKey.generate())
        port = await server.listen("127.0.0.1", 0, serve)
        link = await client.dial(key.public, f"127.0.0.1:{port}", WAIT_S)
        await (await link.open_stream()).end()
        stream = await link.open_stream()

        async def write() -> None:
            for _ in range(100):
                await stream.write(bytes(100_000))
            await stream.end()

        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            group.create_task(write())
            while data := await stream.read(65_536):
                received += len(data)
        await client.close()
        await server.close()
        return received

    assert uvloop.run(main()) == 10_000_000
