"""The seam below QUIC: an object that carries datagrams to and from addresses. Today one UDP socket; knows no QUIC.

QUIC sees only `DatagramPath`. Later paths (relays, hole punching) are further implementations behind the same seam.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from agentmesh.core.errors import PortInUse, Unreachable
from agentmesh.mesh.logic.transport_limits import (
    DATAGRAMS_PER_WAKEUP,
    MAX_DATAGRAM_BYTES,
    SEND_QUEUE_DATAGRAMS,
    SOCKET_BUFFER_BYTES,
)

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""As the socket module gives it: (host, port), for IPv6 with flow and scope."""

Batch = list[tuple[bytes, SocketAddress]]

_ANY_HOST: Final = ("", "*", "::")
_WOULD_BLOCK: Final = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS)


class DatagramPath(Protocol):
    """Carries datagrams, unreliably."""

    @property
    def port(self) -> int: ...

    def send(self, data: bytes, address: SocketAddress) -> None:
        """Send or lose it. Never fails."""
        ...

    def close(self) -> None: ...


class UdpPath:
    """One UDP socket on the event loop, reading in batches."""

    def __init__(self, sock: socket.socket, on_batch: Callable[[Batch], None]) -> None:
        self._socket = sock
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, SocketAddress]] = deque()
        self.lost_sending = 0
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def port(self) -> int:
        return self._socket.getsockname()[1]

    @property
    def family(self) -> socket.AddressFamily:
        return self._socket.family

    def send(self, data: bytes, address: SocketAddress) -> None:
        """See DatagramPath."""
        if self._queue:
            self._enqueue(data, address)
            return
        try:
            self._socket.sendto(data, address)
        except OSError as error:
            if error.errno in _WOULD_BLOCK:
                self._enqueue(data, address)
            else:  # no route, host down, too long for the interface: as lost on the way
                self.lost_sending += 1

    def close(self) -> None:
        """See DatagramPath."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    def _enqueue(self, data: bytes, address: SocketAddress) -> None:
        if len(self._queue) >= SEND_QUEUE_DATAGRAMS:
            self.lost_sending += 1
            return
        if not self._queue:
            self._loop.add_writer(self._socket.fileno(), self._writable)
        self._queue.append((data, address))

    def _writable(self) -> None:
        for _ in range(min(len(self._queue), DATAGRAMS_PER_WAKEUP)):
            data, address = self._queue[0]
            try:
                self._socket.sendto(data, address)
            except OSError as error:
                if error.errno in _WOULD_BLOCK:
                    return
                self.lost_sending += 1
            self._queue.popleft()
        if not self._queue:
            self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        batch: Batch = []
        receive = self._socket.recvfrom
        for _ in range(DATAGRAMS_PER_WAKEUP):
            try:
                data, address = receive(MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error of an earlier send; the socket goes on
                continue
            batch.append((data, normalised(address)))
        if batch:
            self._on_batch(batch)


def normalised(address: SocketAddress) -> SocketAddress:
    """One spelling per address: a scope is given by its number alone."""
    if len(address) == 4 and "%" in address[0]:
        return (address[0].partition("%")[0], *address[1:])
    return address


def bind_udp(host: str, port: int) -> socket.socket:
    """A bound, non-blocking UDP socket; `::` or nothing means every address of both families, where there is IPv6.

    Raises:
        PortInUse: the port is taken.
        Unreachable: this machine does not have the address.
    """
    if host in _ANY_HOST:
        try:
            return _bind(socket.AF_INET6, "::", port)
        except PortInUse:
            raise
        except OSError:
            host = "0.0.0.0"  # noqa: S104 - a node listens; admission is what keeps others out
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        return _bind(family, host, port)
    except PortInUse:
        raise
    except (OSError, ValueError) as error:
        raise Unreachable(f"Cannot listen on {host} port {port}: {error}.") from error


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        sock.setblocking(False)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"UDP port {port} is in use by another program; choose one with --bind-port.") from error
        raise
    return sock


# ------------------------------------------------------------------ addresses as text


def format_address(address: SocketAddress) -> str:
    """`host:port` or `[v6]:port`; an IPv4 peer of a dual-stack socket is shown as IPv4."""
    host = ipaddress.ip_address(address[0].partition("%")[0])
    mapped = host.ipv4_mapped if host.version == 6 else None
    if mapped is not None or host.version == 4:
        return f"{mapped or host}:{address[1]}"
    scope = f"%{address[3]}" if len(address) == 4 and address[3] else ""
    return f"[{host}{scope}]:{address[1]}"


def source_of(address: SocketAddress) -> str:
    """What counts as one source: an IPv4 address, or an IPv6 /64, which one host usually has whole."""
    host = ipaddress.ip_address(address[0].partition("%")[0])
    if isinstance(host, ipaddress.IPv6Address):
        if host.ipv4_mapped is not None:
            return str(host.ipv4_mapped)
        return str(ipaddress.IPv6Address(int(host) >> 64 << 64))
    return str(host)


def source_of_text(address: str) -> str:
    """The source of an address as `Connection.remote_address` gives it; other texts are sources of their own."""
    try:
        host, port = split_address(address)
        return source_of((host, port))
    except (Unreachable, ValueError):
        return address


def is_loopback(address: SocketAddress) -> bool:
    """Whether the address is this machine's own loopback."""
    host = ipaddress.ip_address(address[0].partition("%")[0])
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return (mapped or host).is_loopback


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`.

    Raises:
        Unreachable: the text is no address.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") and host.endswith("]") else host
    if not separator or not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65_536:
        raise Unreachable(f"'{text[:80]}' is not an address: write host:port or [IPv6]:port.")
    return host, int(port)


async def resolve(text: str, family: socket.AddressFamily) -> list[SocketAddress]:
    """The socket addresses that `text` names and a socket of `family` can send to. The caller bounds the time.

    Raises:
        Unreachable: there are none.
    """
    host, port = split_address(text)
    loop = asyncio.get_running_loop()
    try:
        # A dual-stack socket takes IPv4 as ::ffff:a.b.c.d.
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise Unreachable(f"The host name of {text[:80]} cannot be resolved: {error.strerror or error}.") from error
    addresses: list[SocketAddress] = []
    for found_family, _, _, _, address in found:
        if found_family == family:
            addresses.append(normalised(address))  # type: ignore[arg-type]
        elif family == socket.AF_INET6 and found_family == socket.AF_INET:
            addresses.append((f"::ffff:{address[0]}", port, 0, 0))
    if not addresses:
        raise Unreachable(f"{text[:80]} has no address that this node's socket can reach.")
    return list(dict.fromkeys(addresses))
