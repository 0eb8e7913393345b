"""TCP sockets of the fast path: binding, and noticing that the far machine is gone. Knows no TLS."""

from __future__ import annotations

import errno
import select
import socket
from contextlib import suppress
from typing import Final

from agentmesh.core.errors import HomeError, PortInUse
from agentmesh.mesh.logic.bulk_limits import TCP_KEEPALIVE_AFTER_MS, TCP_SILENT_MS

_ANY_HOST: Final = ("", "*", "::")
_BACKLOG: Final = 256  # connections that the kernel keeps for us: as many as may wait for a handshake
_PROBES: Final = 3
# The option's name and what it is set to; where a system lacks one, its own default stays.
_OPTIONS: Final = (
    ("TCP_KEEPIDLE", TCP_KEEPALIVE_AFTER_MS // 1000),
    ("TCP_KEEPALIVE", TCP_KEEPALIVE_AFTER_MS // 1000),  # macOS's name for it
    ("TCP_KEEPINTVL", (TCP_SILENT_MS - TCP_KEEPALIVE_AFTER_MS) // _PROBES // 1000),
    ("TCP_KEEPCNT", _PROBES),
    ("TCP_USER_TIMEOUT", TCP_SILENT_MS),
)


def bind_tcp(host: str, port: int) -> socket.socket:
    """A listening socket; on a wildcard host for IPv6 and IPv4 both, where the machine has both.

    Raises:
        PortInUse: the port is taken.
        HomeError: the address is none of this machine's.
    """
    families = (socket.AF_INET6, socket.AF_INET) if host in _ANY_HOST else (_family_of(host),)
    refused: OSError | None = None
    for family in families:
        try:
            return _bind(family, host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(f"TCP port {port} is in use by another program.") from error
            refused = error
    raise HomeError(f"TCP port {port} of {host or 'this machine'} cannot be bound: {refused}.") from refused


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host in _ANY_HOST else 1)
        wildcard = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - a node is there to be reached
        sock.bind((wildcard if host in _ANY_HOST else host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def has_news(sock: socket.socket, *, ends_only: bool = False) -> bool:
    """Whether bytes (unless `ends_only`), an end or an error wait there that the event loop has not come to yet.

    Also of a socket that is closed. Where the system cannot tell an end from bytes, `ends_only` sees errors alone.
    """
    if (descriptor := sock.fileno()) < 0:
        return True
    if not hasattr(select, "poll"):  # then the first read tells
        return False
    poll = select.poll()
    poll.register(descriptor, getattr(select, "POLLRDHUP", 0) if ends_only else select.POLLIN)
    return bool(poll.poll(0))


def notice_silence(sock: socket.socket) -> None:
    """Have the kernel end the connection when the far machine, or the path to it, answers nothing for TCP_SILENT_MS."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
