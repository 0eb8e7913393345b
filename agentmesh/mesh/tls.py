"""The fast path's transport: TLS 1.3 over TCP. What a connection does is in tls_link.py, who may use it in bulk_server.py.

See transport.Transport. The pin is the server's proven key, as with QUIC; a connection carries one stream at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from agentmesh.core.errors import AgentMeshError, NotAdmitted, PortClosed, StreamClosed, Unreachable
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.datagrams import SocketAddress, source_of, split_address
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.bulk_limits import BULK_ACCEPT_PAUSE_MS, BULK_SHUTDOWN_MS, MAX_BULK_CONNECTIONS
from agentmesh.mesh.logic.limits import HANDSHAKE_TIMEOUT_MS
from agentmesh.mesh.tls_context import carries_many, client_context, proven_node, server_context, speaks_bulk
from agentmesh.mesh.tls_door import HandshakeDoor
from agentmesh.mesh.tls_link import TlsLink
from agentmesh.mesh.tls_sockets import bind_tcp
from agentmesh.mesh.transport import OnConnection

_log = logging.getLogger(__name__)


class _PeerLeft(logging.Filter):
    """Drops what the event loop says at each write to a peer that left: the writer learns it, and peers must not fill the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg != "SSL connection is closed"


logging.getLogger("asyncio").addFilter(_PeerLeft())

HANDSHAKE_S: Final = HANDSHAKE_TIMEOUT_MS / 1000
SHUTDOWN_S: Final = BULK_SHUTDOWN_MS / 1000


class TlsTransport:
    """See transport.Transport.

    Args:
        known_source: whether an IP address belongs to a known member, for whom a quarter of the handshakes is kept.
    """

    def __init__(self, key: NodeKey, *, known_source: Callable[[str], bool] = lambda _: False) -> None:
        self._key = key
        self._known_source = known_source
        self._client = client_context()
        self._server: ssl.SSLContext | None = None
        self._listener: socket.socket | None = None
        self._on_connection: OnConnection | None = None
        self._door = HandshakeDoor()
        self._links: set[TlsLink] = set()
        self._tasks = TaskSet("tls")
        self._closed = False

    async def listen(self, host: str, port: int, on_connection: OnConnection) -> int:
        """See Transport. Raises also: HomeError: the machine does not have the address."""
        if self._listener is not None:
            raise RuntimeError("listen comes once")
        self._server = self._server or server_context(self._key)
        self._listener = bind_tcp(host, port)
        self._on_connection = on_connection
        self._tasks.spawn(self._accept(self._listener), name="accept")
        return self._listener.getsockname()[1]

    async def dial(self, node: bytes, address: str, timeout_s: float) -> TlsLink:
        """See Transport."""
        if self._closed:
            raise Unreachable("This node is stopping.")
        host, port = split_address(address)
        link = TlsLink(node, dialled=True)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: link,
                    host,
                    port,
                    ssl=self._client,
                    server_hostname="",  # there is no name to check and none to tell
                    ssl_handshake_timeout=timeout_s,
                    ssl_shutdown_timeout=SHUTDOWN_S,
                )
        except TimeoutError as error:
            link.cut("too late")  # TLS may have been complete in the moment when the time was up
            raise Unreachable(f"{address} did not answer within {timeout_s:g} s.") from error
        except ConnectionRefusedError as error:
            raise PortClosed(f"Nothing listens at {address}.") from error
        except (OSError, ValueError) as error:  # ValueError: a host name that no encoding takes
            raise Unreachable(f"The TLS connection to {address} failed: {error}.") from error
        self._watch(link)
        try:
            is_right = speaks_bulk(link.tls) and proven_node(link.tls) == node
            link.carries_many = carries_many(link.tls)
        except StreamClosed as error:
            raise Unreachable(f"{address} closed the connection at once.") from error
        if not is_right:
            link.close("wrong node")
            raise NotAdmitted(f"Another node answers at {address}.")
        return link

    async def close(self) -> None:
        """See Transport. Streams in progress are cut off."""
        self._closed = True
        await self._tasks.close()
        if self._listener is not None:
            self._listener.close()
        for link in list(self._links):
            link.cut("the node stops")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                for link in list(self._links):
                    await link.wait_gone()

    def _watch(self, link: TlsLink) -> None:
        """Know of it until its socket is closed."""
        if not link.is_gone:
            self._links.add(link)
            link.on_gone = self._links.discard

    # ------------------------------------------------------------------ listening

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                _log.warning("a TCP connection could not be accepted: %s", error)
                await asyncio.sleep(BULK_ACCEPT_PAUSE_MS / 1000)
                continue
            if len(self._tasks) > MAX_BULK_CONNECTIONS:
                sock.close()
            else:
                self._tasks.spawn(self._serve(sock, address), name="connection")

    async def _serve(self, sock: socket.socket, address: SocketAddress) -> None:
        link = await self._shake_hands(sock, source_of(address))
        if link is None:
            return
        self._watch(link)
        assert self._on_connection is not None  # noqa: S101 - connections come in only after listen
        try:
            await self._on_connection(link)
        except* AgentMeshError as errors:  # what peers do is no fault of ours, and must not fill the log
            _log.debug("TLS connection from %s ended: %s", link.remote_address, errors.exceptions[0])
        finally:
            link.close("done")
        await link.wait_gone()

    async def _shake_hands(self, sock: socket.socket, source: str) -> TlsLink | None:
        """The connection once TLS is established, or None; the socket is closed then."""
        if not await self._enter(sock, source):
            return None
        link = TlsLink(self._key.public, dialled=False)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: link,
                    sock,
                    ssl=self._server,
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=SHUTDOWN_S,
                )
        except (OSError, TimeoutError) as error:  # garbage, another TLS version, silence
            _log.debug("a TLS handshake from %s failed: %s", source, error)
            # Not the socket, which the event loop closes: it may read from it still, to end TLS with a handshake that was
            # complete in the moment when its time was up. The number of a descriptor closed here would be another's by then.
            link.cut("too late")
            return None
        except asyncio.CancelledError:
            link.cut("the node stops")
            raise
        finally:
            self._door.leave(source)
        if link.is_closed or not speaks_bulk(link.tls):
            link.close("another protocol")
        else:
            link.carries_many = carries_many(link.tls)
        return link

    async def _enter(self, sock: socket.socket, source: str) -> bool:
        entered = False
        try:
            entered = await self._door.enter(source, known=self._known_source(source))
        finally:
            if not entered:
                sock.close()
        return entered
