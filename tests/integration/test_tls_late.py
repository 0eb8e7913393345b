"""A TLS handshake that is complete in the very moment when its time is up, as on a machine that stood still."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time

import pytest
import uvloop

from agentmesh.mesh import tls
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.tls import TlsTransport
from agentmesh.mesh.tls_context import client_context
from agentmesh.mesh.transport import Connection

WAIT_S = 60.0
LATE_S = 0.3
DESCRIPTORS = 20  # more than were closed by then: new ones take the lowest numbers that are free


async def never(_: Connection) -> None:
    raise AssertionError("nobody came in time")


async def finish_late(port: int) -> socket.socket:
    """Shake hands as a client whose last words lie in the socket's buffer when the loop comes back, after the deadline."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    await loop.sock_connect(sock, ("127.0.0.1", port))
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context().wrap_bio(received, to_send)
    while True:
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            await loop.sock_sendall(sock, to_send.read())
            received.write(await loop.sock_recv(sock, 65536))
        else:
            sock.send(to_send.read())
            time.sleep(LATE_S + 0.1)  # the loop stands still
            return sock


async def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_S", LATE_S)
    loop = asyncio.get_running_loop()
    transport = TlsTransport(NodeKey.generate())
    port = await transport.listen("127.0.0.1", 0, never)
    sock = await finish_late(port)
    for _ in range(5):  # as many rounds of the loop as it takes to give up
        await asyncio.sleep(0)
    others = [socket.socketpair() for _ in range(DESCRIPTORS)]
    try:
        for pair in others:
            pair[0].setblocking(False)
            waiting = asyncio.ensure_future(loop.sock_recv(pair[0], 1))
            await asyncio.sleep(0)
            pair[1].send(b"x")
            assert await asyncio.wait_for(waiting, WAIT_S) == b"x"
        async with asyncio.timeout(WAIT_S):
            while await loop.sock_recv(sock, 65536):  # what TLS said, then the end
                pass
    finally:
        await transport.close()
        for end in (sock, *(end for pair in others for end in pair)):
            end.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_no_descriptor_of_a_handshake_that_was_too_late_is_anothers(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if loop == "asyncio":
        asyncio.run(late(monkeypatch))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(late(monkeypatch))
