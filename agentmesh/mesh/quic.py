"""The QUIC transport: one UDP socket for listening and dialling. What a connection does is in quic_link.py."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from agentmesh.core.errors import AgentMeshError, NotAdmitted, Unreachable
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.datagrams import SocketAddress, UdpPath, bind_udp, resolve
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.transport_limits import MAX_ADDRESSES_PER_NAME
from agentmesh.mesh.quic_endpoint import QuicEndpoint
from agentmesh.mesh.quic_link import QuicLink
from agentmesh.mesh.transport import OnConnection

# TLS alerts are QUIC errors 0x100 to 0x1ff (RFC 9001 section 4.8). Raised on our side while dialling, they mean that the
# far side did not prove the key of its certificate.
_TLS_ALERTS = range(0x100, 0x200)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TransportStats:
    """What goes on below, for status and logs."""

    connections: int = 0
    handshakes: int = 0
    handshakes_waiting: int = 0
    handshakes_refused: int = 0
    datagrams_dropped: int = 0
    datagrams_lost_sending: int = 0


class QuicTransport:
    """See transport.Transport.

    Args:
        known_source: whether an IP address belongs to a known member, for whom a quarter of the handshakes is kept.
    """

    def __init__(self, key: NodeKey, *, known_source: Callable[[str], bool] = lambda _: False) -> None:
        self._key = key
        self._known_source = known_source
        self._endpoint: QuicEndpoint | None = None
        self._path: UdpPath | None = None
        self._on_connection: OnConnection | None = None
        self._tasks = TaskSet("quic")
        self._closed = False

    async def listen(self, host: str, port: int, on_connection: OnConnection) -> int:
        """See Transport. Comes before the first dial, which would otherwise take a port of its own."""
        if self._endpoint is not None:
            raise RuntimeError("listen comes first, and once")
        self._on_connection = on_connection
        return self._open(host, port, self._incoming).port

    async def dial(self, node: bytes, address: str, timeout_s: float) -> QuicLink:
        """See Transport."""
        if self._closed:
            raise Unreachable("This node is stopping.")
        endpoint = self._endpoint or self._open("", 0, None)
        assert self._path is not None  # noqa: S101 - opened together with the endpoint
        try:
            async with asyncio.timeout(timeout_s):
                found = (await resolve(address, self._path.family))[:MAX_ADDRESSES_PER_NAME]
                for number, target in enumerate(found):
                    try:
                        async with asyncio.timeout(timeout_s / len(found) if number < len(found) - 1 else None):
                            return await self._dial(endpoint, node, address, target)
                    except TimeoutError:
                        if number == len(found) - 1:
                            raise
        except TimeoutError:
            pass
        raise Unreachable(f"{address} did not answer within {timeout_s:g} s.")

    async def _dial(self, endpoint: QuicEndpoint, node: bytes, address: str, target: SocketAddress) -> QuicLink:
        link = endpoint.dial(target, node)
        try:
            while not link.is_established and not link.is_closed:
                await link.changed.wait()
        except asyncio.CancelledError:
            link.close("the dial was given up")
            link.abandon("the dial was given up")
            raise
        if link.wrong_node:
            raise NotAdmitted(f"Another node answers at {address}.")
        if link.is_closed:
            if link.failure is not None and not link.ended_by_peer and link.failure.error_code in _TLS_ALERTS:
                raise NotAdmitted(f"What answers at {address} did not prove its key: {link.reason}.")
            raise Unreachable(f"The connection to {address} failed: {link.reason}.")
        return link

    @property
    def stats(self) -> TransportStats:
        """Counters since the start and present numbers."""
        if self._endpoint is None or self._path is None:
            return TransportStats()
        gate = self._endpoint.gate
        return TransportStats(
            connections=self._endpoint.connections,
            handshakes=gate.in_progress,
            handshakes_waiting=gate.waiting,
            handshakes_refused=gate.refused,
            datagrams_dropped=self._endpoint.dropped,
            datagrams_lost_sending=self._path.lost_sending,
        )

    async def close(self) -> None:
        """See Transport."""
        self._closed = True
        if self._endpoint is not None:
            self._endpoint.close()
        await self._tasks.close()

    def _open(self, host: str, port: int, on_incoming: Callable[[QuicLink], None] | None) -> QuicEndpoint:
        sock = bind_udp(host, port)
        endpoint = QuicEndpoint(self._key, on_incoming, self._known_source)
        self._path = UdpPath(sock, endpoint.on_batch)
        endpoint.attach(self._path)
        self._endpoint = endpoint
        return endpoint

    def _incoming(self, link: QuicLink) -> None:
        if self._closed:
            link.close("the node stops")
        else:
            self._tasks.spawn(self._serve(link), name=f"connection from {link.remote_address}")

    async def _serve(self, link: QuicLink) -> None:
        assert self._on_connection is not None  # noqa: S101 - connections come in only after listen
        try:
            await self._on_connection(link)
        except* AgentMeshError as errors:  # what peers do is no fault of ours, and must not fill the log
            _log.debug("connection from %s ended: %s", link.remote_address, errors.exceptions[0])
        finally:
            link.close("done")
