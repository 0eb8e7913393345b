"""All QUIC connections over one datagram path: who a datagram belongs to, who may open a connection, and dialling.

What comes from an address that is not proven yet costs one Retry or nothing: no state is kept for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aioquic._buffer import Buffer
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from cryptography import x509

from agentmesh.mesh.datagrams import Batch, DatagramPath, SocketAddress, is_loopback, source_of
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.handshake_gate import HandshakeGate
from agentmesh.mesh.logic.limits import HANDSHAKE_TIMEOUT_MS
from agentmesh.mesh.logic.transport_limits import LOOPBACK_DATAGRAM_BYTES
from agentmesh.mesh.quic_engine import Engine
from agentmesh.mesh.quic_link import QuicLink
from agentmesh.mesh.quic_tls import (
    CONNECTION_ID_BYTES,
    certified_node,
    client_configuration,
    make_certificate,
    server_configuration,
)

SUPPORTED_VERSIONS: Final = (QuicProtocolVersion.VERSION_1,)
_LONG_HEADER: Final = 0x80

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A first datagram from a proven address."""

    data: bytes
    address: SocketAddress
    destination_id: bytes
    original_id: bytes


class QuicEndpoint:
    """Demultiplexes datagrams by the destination connection id, which this side chose with a fixed length.

    Args:
        on_incoming: an incoming connection has completed its QUIC handshake.
        known_source: whether an IP address is one of a known member, for whom a share of handshakes is kept.
    """

    def __init__(
        self, key: NodeKey, on_incoming: Callable[[QuicLink], None] | None, known_source: Callable[[str], bool]
    ) -> None:
        self.gate: HandshakeGate[_Arrival] = HandshakeGate()
        self.dropped = 0  # datagrams that belong to nobody
        self._key = key
        self._on_incoming = on_incoming
        self._known_source = known_source
        self._path: DatagramPath | None = None
        self._links: dict[bytes, QuicLink] = {}
        self._ids: dict[QuicLink, set[bytes]] = {}
        self._half_open: dict[QuicLink, tuple[str, asyncio.TimerHandle]] = {}
        self._admitting: asyncio.Handle | None = None
        self._retry = QuicRetryTokenHandler()
        self._certificate: x509.Certificate | None = make_certificate(key) if on_incoming else None
        self._loop = asyncio.get_running_loop()

    def attach(self, path: DatagramPath) -> None:
        """Use `path` from now on."""
        self._path = path

    @property
    def connections(self) -> int:
        """Connections in any state, those still closing included."""
        return len(self._ids)

    @property
    def port(self) -> int:
        assert self._path is not None  # noqa: S101 - attached at once by whoever made the endpoint
        return self._path.port

    def dial(self, address: SocketAddress, node: bytes) -> QuicLink:
        """Begin a connection; the caller awaits `link.changed` until it is established or closed."""
        engine = Engine(configuration=client_configuration(loopback=is_loopback(address)))
        link = QuicLink(engine, self, server_node=node, dialled=True)
        self._register(engine.host_cid, link)
        link.start(address)
        return link

    def close(self) -> None:
        """End every connection at once and let go of the path."""
        self._certificate = None  # nobody new
        if self._admitting is not None:
            self._admitting.cancel()
        for link in list(self._ids):
            link.close("the node stops")
            link.abandon("the node stops")
        if self._path is not None:
            self._path.close()

    # ------------------------------------------------------------------ datagrams in

    def on_batch(self, batch: Batch) -> None:
        """Datagrams have arrived. One bad datagram harms its own connection at most."""
        touched: dict[QuicLink, int] = {}
        for data, address in batch:
            try:
                link = self._owner_of(data, address)
                if link is not None:
                    link.receive(data, address)
                    touched[link] = touched.get(link, 0) + 1
            except Exception:  # noqa: BLE001 - the root of an event loop callback
                _log.exception("a datagram from %s broke its connection", source_of(address))
                self._break(data)
        for link, count in touched.items():
            try:
                link.received(count)
            except Exception:  # noqa: BLE001 - the root of an event loop callback
                _log.exception("connection to %s broke", link.remote_address)
                link.abandon("internal error")

    def _break(self, data: bytes) -> None:
        link = self._links.get(data[1 : 1 + CONNECTION_ID_BYTES])
        if link is not None:
            link.abandon("internal error")

    def _owner_of(self, data: bytes, address: SocketAddress) -> QuicLink | None:
        if not data or not data[0] & _LONG_HEADER:
            link = self._links.get(data[1 : 1 + CONNECTION_ID_BYTES])
            self.dropped += link is None
            return link
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_BYTES)
        except ValueError:  # BufferReadError is one too
            self.dropped += 1
            return None
        link = self._links.get(header.destination_cid)
        if link is None:
            link = self._stranger(header, data, address)
            self.dropped += link is None
        return link

    def _stranger(self, header: QuicHeader, data: bytes, address: SocketAddress) -> QuicLink | None:
        """A long header that belongs to no connection: the beginning of one, or nothing."""
        # RFC 9000 section 14.1: anything smaller could be used to have us send more than we got. Nobody needs a larger one.
        if self._certificate is None or not SMALLEST_MAX_DATAGRAM_SIZE <= len(data) <= LOOPBACK_DATAGRAM_BYTES:
            return None
        if header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
            return None
        if header.version not in SUPPORTED_VERSIONS:
            self.send(
                encode_quic_version_negotiation(
                    source_cid=header.destination_cid,
                    destination_cid=header.source_cid,
                    supported_versions=list(SUPPORTED_VERSIONS),
                ),
                address,
            )
            return None
        if header.packet_type is not QuicPacketType.INITIAL:
            return None
        if not header.token:
            self._send_retry(header, address)
            return None
        try:
            original = self._retry.validate_token(
                address=address, destination_cid=header.destination_cid, token=header.token, now=time.monotonic()
            )
        except ValueError:
            return None  # forged or old: nothing is owed; an honest client's dial times out and is tried again
        arrival = _Arrival(data, address, header.destination_cid, original)
        source = source_of(address)
        known = self._known_source(source)
        if self.gate.enter(source, known=known):
            return self._accept(arrival, source)
        self.gate.wait(header.destination_cid, source, arrival, known=known, now_ms=_now_ms())
        return None

    def _send_retry(self, header: QuicHeader, address: SocketAddress) -> None:
        connection_id = os.urandom(CONNECTION_ID_BYTES)
        token = self._retry.create_token(
            address=address,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=connection_id,
            now=time.monotonic(),
        )
        self.send(
            encode_quic_retry(
                version=header.version or QuicProtocolVersion.VERSION_1,
                source_cid=connection_id,
                destination_cid=header.source_cid,
                original_destination_cid=header.destination_cid,
                retry_token=token,
            ),
            address,
        )

    def _accept(self, arrival: _Arrival, source: str) -> QuicLink:
        assert self._certificate is not None  # noqa: S101 - without it there are no arrivals
        loopback = is_loopback(arrival.address)
        engine = Engine(
            configuration=server_configuration(self._key, self._certificate, loopback=loopback),
            original_destination_connection_id=arrival.original_id,
            retry_source_connection_id=arrival.destination_id,
        )
        link = QuicLink(engine, self, server_node=self._key.public, dialled=False)
        timer = self._loop.call_later(HANDSHAKE_TIMEOUT_MS / 1000, link.abandon, "the handshake took too long")
        self._half_open[link] = (source, timer)
        self._register(arrival.destination_id, link)
        self._register(engine.host_cid, link)
        return link

    def _admit_waiting(self) -> None:
        self._admitting = None
        while (admitted := self.gate.admit_next(_now_ms())) is not None:
            source, arrival = admitted
            self._accept(arrival, source)
            self.on_batch([(arrival.data, arrival.address)])

    # ------------------------------------------------------------------ LinkOwner

    def send(self, data: bytes, address: SocketAddress) -> None:
        """A datagram goes out."""
        if self._path is not None:
            self._path.send(data, address)

    def id_issued(self, connection_id: bytes, link: QuicLink) -> None:
        """The far side may use one more id for this connection."""
        self._register(connection_id, link)

    def id_retired(self, connection_id: bytes, link: QuicLink) -> None:
        """The far side has given an id back."""
        self._links.pop(connection_id, None)
        self._ids.get(link, set()).discard(connection_id)

    def established(self, link: QuicLink) -> None:
        """The QUIC handshake is complete: check the pin, or hand the connection on."""
        self._leave_gate(link)
        if not link.dialled:
            assert self._on_incoming is not None  # noqa: S101 - without it nothing is accepted
            self._on_incoming(link)
        elif certified_node(link.engine.peer_certificate) != link.server_node:
            link.wrong_node = True
            link.close("wrong node")
        link.changed.wake()

    def closed(self, link: QuicLink) -> None:
        """The connection is over for those who use it; its ids stay until the far side has heard of it."""
        self._leave_gate(link)

    def gone(self, link: QuicLink) -> None:
        """Nothing more of it exists."""
        self._leave_gate(link)
        for connection_id in self._ids.pop(link, set()):
            self._links.pop(connection_id, None)

    def _register(self, connection_id: bytes, link: QuicLink) -> None:
        self._links[connection_id] = link
        self._ids.setdefault(link, set()).add(connection_id)

    def _leave_gate(self, link: QuicLink) -> None:
        entered = self._half_open.pop(link, None)
        if entered is not None:
            source, timer = entered
            timer.cancel()
            self.gate.leave(source)
            if self.gate.waiting and self._admitting is None:
                self._admitting = self._loop.call_soon(self._admit_waiting)


def _now_ms() -> int:
    return int(time.monotonic() * 1000)
