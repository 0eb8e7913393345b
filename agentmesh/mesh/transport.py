"""What a transport is. Implementations: quic.py, memory.py (tests), tls.py (bulk streams).

A transport moves bytes between two endpoints and proves to the dialling side that the far end holds the node key it asked
for. Who the dialling side is, and whether it may be here, is settled above it, on the connection's first stream (admission.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol


class Stream(Protocol):
    """One ordered, flow-controlled byte stream in both directions."""

    async def read(self, max_bytes: int) -> bytes:
        """Up to `max_bytes`, at least one byte, or `b""` at the far side's end.

        Raises:
            StreamClosed: the stream was reset or its connection ended before its end.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Queue `data`, waiting while the far side does not keep up.

        Raises:
            StreamClosed: the stream or its connection is gone.
        """
        ...

    async def end(self) -> None:
        """No more data from this side; reading goes on."""
        ...

    def abort(self) -> None:
        """Drop both directions at once. Never fails, may be called twice."""
        ...


class Connection(Protocol):
    """A connection to one far end. Not yet admitted: see admission.py."""

    @property
    def remote_address(self) -> str:
        """`host:port` as this side sees it."""
        ...

    @property
    def server_node(self) -> bytes:
        """The key that the listening side proved (its own on the listening side)."""
        ...

    @property
    def dialled(self) -> bool:
        """Whether this side opened the connection."""
        ...

    @property
    def rtt_ms(self) -> float | None: ...

    @property
    def is_closed(self) -> bool: ...

    async def open_stream(self) -> Stream:
        """Raises: StreamClosed: the connection is gone."""
        ...

    async def accept_stream(self) -> Stream:
        """The next stream that the far side opened. Raises: StreamClosed: the connection is gone."""
        ...

    async def wait_closed(self) -> str:
        """Return the reason once the connection has ended."""
        ...

    def close(self, reason: str) -> None:
        """End the connection at once. Never fails, may be called twice."""
        ...


OnConnection = Callable[[Connection], Awaitable[None]]
"""Called in its own task for each incoming connection; the connection is closed when it returns or raises."""


class Transport(Protocol):
    """Listens and dials."""

    async def listen(self, host: str, port: int, on_connection: OnConnection) -> int:
        """Start; returns the bound port. Raises: PortInUse."""
        ...

    async def dial(self, node: bytes, address: str, timeout_s: float) -> Connection:
        """Connect to `address` and prove that `node` answers there. Raises: Unreachable, NotAdmitted (another key answered)."""
        ...

    async def close(self) -> None: ...
