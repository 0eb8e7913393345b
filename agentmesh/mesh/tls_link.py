"""One TLS connection of the fast path, and the streams that follow each other on it: the handshake's, then those of bulk.

See transport.Connection and transport.Stream. The dialling side opens streams, the listening side accepts them. Bytes go
from the TLS layer into one buffer and from there to the reader in one copy; a full buffer stops reading from the network,
and a full write buffer makes writers wait. State: the buffers. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from agentmesh.core.errors import ProtocolError, StreamClosed
from agentmesh.mesh.datagrams import SocketAddress, format_address
from agentmesh.mesh.logic.bulk_chunks import ABORT, END, ChunkBuffer, chunks_of
from agentmesh.mesh.logic.bulk_limits import (
    BULK_DRAIN_MS,
    BULK_ENCRYPTED_BYTES,
    BULK_LINGER_MS,
    BULK_SEND_HIGH_BYTES,
    BULK_SEND_LOW_BYTES,
    BULK_STREAMS_PER_CONNECTION,
)
from agentmesh.mesh.tls_sockets import has_news, notice_silence
from agentmesh.mesh.wakeup import Wakeup

ABORTED = "The stream was aborted."
_OVER = "The stream is over."
_NOT_QUIET = "The connection ended while it was idle."

T = TypeVar("T")


class _LimitsReading(Protocol):
    """What the TLS transports of asyncio and of uvloop can do beyond asyncio.Transport."""

    def set_read_buffer_limits(self, high: int, low: int) -> None: ...


def limit_undecrypted(transport: asyncio.BaseTransport) -> None:
    """Bound what a connection whose reader is slow holds below our buffer; 256 KiB by default."""
    if hasattr(transport, "set_read_buffer_limits"):
        cast("_LimitsReading", transport).set_read_buffer_limits(BULK_ENCRYPTED_BYTES, BULK_ENCRYPTED_BYTES // 2)


class TlsStream:
    """See transport.Stream. A write is taken whole once there is room; whoever has much to send writes it in pieces."""

    def __init__(self, link: TlsLink) -> None:
        self._link = link
        self.read_over = False  # the reader has seen the far side's end
        self.write_over = False

    async def read(self, max_bytes: int) -> bytes:
        """See Stream."""
        if max_bytes <= 0:
            raise ValueError("max_bytes must be positive")
        link = self._link
        while not self.read_over:
            if link.stream is not self or link.aborted:
                raise StreamClosed(ABORTED if link.aborted else _OVER)
            if (data := link.take(max_bytes)) is not None:
                return data
            if link.incoming.at_end:
                self.read_over = True
                link.settle()
            else:
                link.check_open()
                await link.arrived.wait()
        return b""

    async def write(self, data: bytes) -> None:
        """See Stream."""
        link = self._link
        while True:
            if self.write_over or link.stream is not self:
                raise StreamClosed("This side has ended the stream.")
            link.check_open()
            if link.may_write:
                break
            await link.room.wait()
        link.send(chunks_of(data))

    async def end(self) -> None:
        """See Stream."""
        if not self.write_over and self._link.stream is self:
            self.write_over = True
            self._link.room.wake()
            if not self._link.is_closed:
                self._link.send([END])
            self._link.settle()

    def abort(self) -> None:
        """See Stream. The connection ends with its stream."""
        if self._link.stream is self and not (self.read_over and self.write_over):
            self._link.abort()


class TlsLink(asyncio.BufferedProtocol):
    """See the module. Made before the TLS handshake, usable once it is complete.

    `carries_many`: both sides let more than one stream of bulk follow each other. `on_free`: called on the dialling side when
    such a stream has ended cleanly, both ways; whoever sets it gives the connection its next stream or closes it.
    """

    def __init__(self, server_node: bytes, *, dialled: bool) -> None:
        self.incoming = ChunkBuffer()
        self.arrived = Wakeup()
        self.room = Wakeup()  # a writer may go on, or finds out that it may not
        self.stream: TlsStream | None = None
        self.aborted = False
        self.may_write = True
        self.carries_many = False
        self.on_free: Callable[[TlsLink], None] | None = None
        self.on_gone: Callable[[TlsLink], None] | None = None
        self._server_node = server_node
        self._dialled = dialled
        self._streams = 0
        self._is_idle = False  # on the dialling side: between two streams of bulk
        self._transport: asyncio.Transport | None = None
        self._remote_address = ""
        self._reason: str | None = None
        self._reading_paused = False
        self._ended = Wakeup()
        self._is_closing = False  # by us, with what was written still going out
        self._is_gone = False

    # ------------------------------------------------------------------ transport.Connection

    @property
    def remote_address(self) -> str:
        return self._remote_address

    @property
    def server_node(self) -> bytes:
        return self._server_node

    @property
    def dialled(self) -> bool:
        return self._dialled

    @property
    def rtt_ms(self) -> float | None:
        return None

    @property
    def is_closed(self) -> bool:
        return self._reason is not None

    async def open_stream(self) -> TlsStream:
        """See Connection. Only the dialling side does, once its last stream's writing has ended."""
        self.check_open()
        if not self._dialled or (self.stream is not None and not self.stream.write_over):
            raise StreamClosed("A connection of the fast path carries one stream at a time.")
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        # Between streams nothing may come but the end; before the first of bulk, the rest of admission does.
        if sock is None or has_news(sock, ends_only=not self._is_idle):
            self.cut(_NOT_QUIET)
            raise StreamClosed(_NOT_QUIET)
        self._is_idle = False
        return self._next_stream()

    async def accept_stream(self) -> TlsStream:
        """See Connection: returns when the first byte of the next stream is here."""
        if self._dialled:
            await self.wait_closed()
        self.check_open()
        stream = self._next_stream()
        while not self._guarded(self.incoming.has_something):
            self.check_open()
            await self.arrived.wait()
        return stream

    def _next_stream(self) -> TlsStream:
        if self._streams >= BULK_STREAMS_PER_CONNECTION and not self.carries_many:
            raise StreamClosed("A connection of the fast path carries one stream of bulk.")
        if self._streams:
            self._guarded(self.incoming.next_stream)
            self.incoming.shrink()
            self.incoming.may_grow = True  # admission is over: from here on it is known whose bytes they are
            self._read_again()
        self._streams += 1
        self.stream = TlsStream(self)
        return self.stream

    async def wait_closed(self) -> str:
        """See Connection."""
        while self._reason is None:
            await self._ended.wait()
        return self._reason

    def close(self, reason: str) -> None:
        """See Connection. What was written still goes out; the far side reads the reason nowhere."""
        if self._is_closing:
            return
        if self._reason is not None:
            # Also what the far side has closed: while reading is paused nothing else would let go of the socket.
            self.cut(reason)
            return
        self._finish(reason)
        self.incoming.discard()
        self._is_closing = True
        if self._transport is not None:
            self._transport.close()

    # ------------------------------------------------------------------ asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TLS handshake is complete."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(BULK_SEND_HIGH_BYTES, BULK_SEND_LOW_BYTES)
        limit_undecrypted(transport)
        address: SocketAddress | None = transport.get_extra_info("peername")
        self._remote_address = format_address(address) if address else ""
        sock = transport.get_extra_info("socket")
        if sock is not None:
            notice_silence(sock)
        if self._reason is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where TLS puts what it has decrypted."""
        return self.incoming.space()

    def buffer_updated(self, nbytes: int) -> None:
        """TLS has put `nbytes` there."""
        if self._reason is not None and self.incoming.is_full:
            self.incoming.discard()  # between our close and the far side's
            return
        if self._is_idle:
            self.cut(_NOT_QUIET)
            return
        try:
            self._guarded(lambda: self.incoming.filled(nbytes))
        except ProtocolError:
            return  # whoever reads or waits learns it
        if self.incoming.is_full and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        self.arrived.wake()

    def eof_received(self) -> None:
        """The far side has closed, or somebody cut the connection: without an end marker the stream is cut off."""
        self._finish("The peer closed the connection.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing goes either way any more; what has arrived can be read."""
        self._finish("The connection broke." if exc else "The peer closed the connection.")
        self._is_gone = True
        # TLS layer and link hold each other, and the former up to 1 MiB: without this it stays until the cycle collector
        # comes by (measured: 256 stalled streams opened and aborted four times, 1.3 GB).
        self._transport = None
        self._ended.wake()
        self.on_free = None
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone(self)

    def pause_writing(self) -> None:
        """The far side does not keep up."""
        self.may_write = False

    def resume_writing(self) -> None:
        """It has caught up."""
        self.may_write = True
        self.room.wake()

    # ------------------------------------------------------------------ what streams and owners call

    @property
    def tls(self) -> ssl.SSLObject:
        """What TLS has agreed on. After the handshake. Raises: StreamClosed: it is over already."""
        self.check_open()
        assert self._transport is not None  # noqa: S101 - open and past the handshake
        return self._transport.get_extra_info("ssl_object")

    @property
    def is_gone(self) -> bool:
        """Whether its socket is closed."""
        return self._is_gone

    def check_open(self) -> None:
        """Raises: StreamClosed: the connection has ended."""
        if self._reason is not None:
            raise StreamClosed(self._reason)

    def take(self, max_bytes: int) -> bytes | None:
        """Bytes of the present stream that have arrived. Raises: StreamClosed, ProtocolError."""
        data = self._guarded(lambda: self.incoming.take(max_bytes))
        if self.incoming.aborted:
            self.close("The peer aborted the stream.")
            raise StreamClosed("The peer aborted the stream.")
        if data is not None:
            self._read_again()
        return data

    def send(self, parts: list[bytes | memoryview]) -> None:
        """Hand to TLS, which keeps what the far side does not take yet."""
        if parts and self._transport is not None:
            self._transport.writelines(parts)

    def abort(self) -> None:
        """Give up the present stream, and the connection with it."""
        self.aborted = True
        transport = self._transport
        if self._reason is None and transport is not None and transport.get_write_buffer_size() == 0:
            transport.write(ABORT)
            self.close(ABORTED)
        elif not self._is_closing:  # the far side does not read, or has gone: do not wait for it
            self.cut(ABORTED)

    def cut(self, reason: str) -> None:
        """End the connection now; what was written and has not gone out is lost."""
        self._finish(reason)
        self.incoming.discard()
        if self._transport is not None and not self._is_gone:
            self._transport.abort()

    def settle(self) -> None:
        """Once both directions of a bulk stream are over, the dialling side closes or is free for another stream."""
        stream = self.stream
        if not self._dialled or self._streams < BULK_STREAMS_PER_CONNECTION or self._is_idle:
            return
        if stream is None or not stream.read_over or not stream.write_over:
            return
        if self.on_free is None or not self.carries_many or self._reason is not None or not self.may_write:
            self.close("done")
        elif len(self.incoming):
            self.cut("The peer sent something behind its end.")
        else:
            self._is_idle = True
            self.incoming.shrink()
            self.on_free(self)

    async def linger(self) -> bool:
        """The listening side's last wait for a stream that was served; whether another may follow.

        What the far side still sends is dropped, up to its end where connections are reused, otherwise until it closes,
        which it does when it has read everything. It has BULK_LINGER_MS for each step that makes progress; once everything is
        with the kernels, which do not tell of progress, BULK_DRAIN_MS.
        """
        transport = self._transport
        while self._reason is None and transport is not None and self.stream is not None:
            if not self.stream.write_over:
                self.abort()
                return False
            before = transport.get_write_buffer_size()
            try:
                async with asyncio.timeout((BULK_LINGER_MS if before else BULK_DRAIN_MS) / 1000):
                    while await self.stream.read(BULK_SEND_HIGH_BYTES):
                        pass
                    if self.carries_many:
                        while not self.may_write:
                            await self.room.wait()
                            self.check_open()
                        return True
                    await self.wait_closed()
            except TimeoutError:
                if before == 0 or transport.get_write_buffer_size() >= before:
                    self.abort()
            except (StreamClosed, ProtocolError):
                return False
        return False

    async def wait_gone(self) -> None:
        """Until the socket is closed. The TLS layer bounds it."""
        while not self._is_gone and self._transport is not None:
            await self._ended.wait()

    # ------------------------------------------------------------------ within

    def _guarded(self, step: Callable[[], T]) -> T:
        """A step of the parser; a peer that breaks the framing loses the connection. Raises: ProtocolError."""
        try:
            return step()
        except ProtocolError as error:
            self._finish(error.message)
            if self._transport is not None:
                self._transport.abort()
            raise

    def _read_again(self) -> None:
        if self._reading_paused and self._transport is not None and self.incoming.is_roomy:
            self._reading_paused = False
            self._transport.resume_reading()

    def _finish(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
            for wakeup in (self.arrived, self.room, self._ended):
                wakeup.wake()
