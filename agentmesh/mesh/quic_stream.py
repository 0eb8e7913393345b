"""One QUIC stream as transport.Stream: reading, writing with back-pressure, half-close, abort. Its packets are the engine's matter."""

from __future__ import annotations

from typing import Final, Protocol

from agentmesh.core.errors import StreamClosed
from agentmesh.mesh.logic.transport_limits import SEND_BUFFER_BYTES, SEND_RESUME_BYTES
from agentmesh.mesh.quic_engine import Engine
from agentmesh.mesh.receive_buffer import ReceiveBuffer
from agentmesh.mesh.wakeup import Wakeup

ABORTED: Final = 1  # application error code of RESET_STREAM and STOP_SENDING


class StreamOwner(Protocol):
    """What a stream needs of its connection."""

    engine: Engine

    def transmit_soon(self) -> None: ...
    def window_moved(self) -> None: ...
    def wait_for_room(self, stream: QuicPeerStream) -> None: ...
    def forget(self, stream: QuicPeerStream) -> None: ...


class QuicPeerStream:
    """See transport.Stream. A write is taken whole once there is room, so that writes of several tasks do not mix;
    whoever has much to send writes it in pieces."""

    def __init__(self, owner: StreamOwner, stream_id: int) -> None:
        self.stream_id = stream_id
        self._owner = owner
        self._incoming = ReceiveBuffer(self._was_read)
        self._room = Wakeup()
        self._write_over: str | None = None
        self._receiving_over = False
        self._aborted = False

    async def read(self, max_bytes: int) -> bytes:
        """See Stream."""
        return await self._incoming.read(max_bytes)

    async def write(self, data: bytes) -> None:
        """See Stream."""
        engine = self._owner.engine
        if self._write_over is None and engine.unacknowledged_bytes(self.stream_id) >= SEND_BUFFER_BYTES:
            await self._wait_for_room()
        if self._write_over is not None:
            raise StreamClosed(self._write_over)
        engine.send_stream_data(self.stream_id, data)
        self._owner.transmit_soon()

    async def _wait_for_room(self) -> None:
        while self._write_over is None and self._owner.engine.unacknowledged_bytes(self.stream_id) > SEND_RESUME_BYTES:
            self._owner.wait_for_room(self)
            await self._room.wait()

    async def end(self) -> None:
        """See Stream."""
        if self._write_over is None:
            self._write_over = "This side has ended the stream."
            self._owner.engine.send_stream_data(self.stream_id, b"", end_stream=True)
            self._owner.transmit_soon()
            self._settle()

    def abort(self) -> None:
        """See Stream."""
        if self._aborted or (self._write_over and self._receiving_over and not self._incoming.size_bytes):
            return
        self._aborted = True
        engine = self._owner.engine
        engine.reset_stream(self.stream_id, ABORTED)
        if not self._receiving_over:
            engine.stop_stream(self.stream_id, ABORTED)
        unread = self._incoming.size_bytes
        self._incoming.fail("The stream was aborted.", discard=True)
        self._give_back(unread)
        self._stop_writing("The stream was aborted.")
        self._owner.transmit_soon()

    # ------------------------------------------------------------------ what the connection tells

    def data_arrived(self, data: bytes, *, ended: bool) -> None:
        """Bytes in order, and perhaps the far side's end."""
        if self._aborted:
            self._give_back(len(data))
        else:
            self._incoming.feed(data)
        if ended:
            self._end_receiving()
            self._incoming.end()

    def was_reset(self) -> None:
        """The far side gave up sending; what was not read is lost."""
        unread = self._incoming.size_bytes
        self._incoming.fail("The stream was reset by the peer.", discard=True)
        self._give_back(unread)
        self._end_receiving()

    def was_stopped(self) -> None:
        """The far side no longer reads."""
        self._stop_writing("The peer no longer reads the stream.")

    def connection_ended(self, reason: str) -> None:
        """Nothing comes or goes any more; what has arrived can still be read."""
        self._receiving_over = True
        self._incoming.fail(reason, discard=False)
        self._write_over = self._write_over or reason
        self._room.wake()

    def look_for_room(self) -> bool:
        """Wake the writers if there is room, and say so."""
        room = self._owner.engine.unacknowledged_bytes(self.stream_id) <= SEND_RESUME_BYTES
        if room:
            self._room.wake()
        return room

    # ------------------------------------------------------------------ within

    def _was_read(self, count: int) -> None:
        self._give_back(count)

    def _give_back(self, count: int) -> None:
        engine = self._owner.engine
        if self._receiving_over:
            engine.consumed_late(count)
        else:
            engine.consumed(self.stream_id, count)
        if engine.window_due:
            self._owner.window_moved()

    def _stop_writing(self, reason: str) -> None:
        self._write_over = self._write_over or reason
        self._room.wake()
        self._settle()

    def _end_receiving(self) -> None:
        if not self._receiving_over:
            self._owner.engine.receiving_is_over(self.stream_id, unread=self._incoming.size_bytes)
            self._receiving_over = True
            self._settle()

    def _settle(self) -> None:
        if self._receiving_over and self._write_over is not None:
            self._owner.forget(self)
