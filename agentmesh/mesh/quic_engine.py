"""aioquic's connection with three things changed: flow control, acknowledgements and pacing. No socket, no event loop.

This is the one place that reaches into aioquic's private parts, so that an upgrade has one file to check
(tests/integration/test_quic.py fails if an override is no longer called). What is changed, and why:

* aioquic 1.7 doubles a window whenever half of it has *arrived*, whoever reads it: a slow reader's memory grows without
  bound (aiortc/aioquic issue 589). Here windows follow what the application has *read*.
* It acknowledges after a timer of 1 ms. Here a batch of datagrams, or data going the other way, takes the acknowledgement
  along at once (RFC 9000 section 13.2.2).
* Its pacer lets 16 packets pass and then asks for a timer of microseconds, which an event loop rounds up to a
  millisecond. Here the bucket holds what the pace allows in two milliseconds (RFC 9002 section 7.7).
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from typing import Any, Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnection,
    QuicConnectionState,
)
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketSpace
from aioquic.quic.stream import QuicStream as EngineStream
from aioquic.tls import Epoch

from agentmesh.mesh.logic.limits import MAX_STREAMS_PER_PEER
from agentmesh.mesh.logic.transport_limits import (
    BURST_PACKETS,
    CONNECTION_WINDOW_BYTES,
    INITIAL_BURST_PACKETS,
    PACKETS_PER_TURN,
    STREAM_WINDOW_BYTES,
    TIMER_GRANULARITY_S,
)

ROUNDING_S: Final = 1e-9


class Pacer(QuicPacketPacer):
    """A token bucket that is as deep as timers are coarse, and a limit on packets in one turn."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._datagram_bytes = max_datagram_size
        self.turn_left = PACKETS_PER_TURN

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]
        """When the next packet may go; None means now."""
        if self.turn_left <= 0:
            return now
        if self.packet_time is None:  # no round trip measured yet
            return None
        self.update_bucket(now)
        # aioquic's lets a packet go at any rest in the bucket, so that each wakeup carries one too many.
        missing_s = self.packet_time - self.bucket_time
        return None if missing_s <= ROUNDING_S else now + missing_s

    def update_after_send(self, now: float) -> None:
        self.turn_left -= 1
        super().update_after_send(now)

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        super().update_rate(congestion_window, smoothed_rtt)
        if self.packet_time is not None:
            self.packet_time /= 1.25  # RFC 9002 section 7.7: a little faster than the window, or it is never used up
            half_window = congestion_window // (2 * self._datagram_bytes)
            burst = max(INITIAL_BURST_PACKETS, min(half_window, BURST_PACKETS))
            self.bucket_max = max(burst * self.packet_time, TIMER_GRANULARITY_S)


class Window:
    """How much a peer may have sent that is not read yet. Grows with what was read, never with what was sent."""

    def __init__(self, initial: int, maximum: int) -> None:
        self.consumed = 0
        self.size = initial
        self._maximum = maximum
        self._granted = initial

    def consume(self, count: int) -> int | None:
        """`count` bytes were read; the new limit if it is time to announce one."""
        self.consumed += count
        if self.consumed >= 2 * self.size and self.size < self._maximum:
            self.size = min(2 * self.size, self._maximum)
        if self.consumed + self.size - self._granted < self.size // 2:
            return None
        self._granted = self.consumed + self.size
        return self._granted


class Engine(QuicConnection):
    """One QUIC connection as a state machine. Times are the event loop's, in seconds."""

    def __init__(self, *, configuration: QuicConfiguration, **server: Any) -> None:
        super().__init__(configuration=configuration, **server)
        self.pacer = Pacer(max_datagram_size=configuration.max_datagram_size)
        self._loss._pacer = self.pacer
        self._windows: dict[int, Window] = {}
        self._connection_window = Window(configuration.max_data, CONNECTION_WINDOW_BYTES)
        self._initial_stream_window = configuration.max_stream_data
        self.window_due = False
        self._local_max_streams_bidi = Limit(
            frame_type=QuicFrameType.MAX_STREAMS_BIDI, name="max_streams_bidi", value=MAX_STREAMS_PER_PEER
        )
        # Bidirectional streams only: a peer that opens another kind breaks STREAM_LIMIT and is closed.
        self._local_max_streams_uni = Limit(frame_type=QuicFrameType.MAX_STREAMS_UNI, name="max_streams_uni", value=0)

    # ------------------------------------------------------------------ what the driver asks

    @property
    def ended_by_peer(self) -> ConnectionTerminated | None:
        """Why the far side has just closed; aioquic itself tells only when draining is over."""
        return self._close_event if self._state is QuicConnectionState.DRAINING else None

    @property
    def closing(self) -> ConnectionTerminated | None:
        """Why the connection is about to end, whoever ends it; None while it goes on."""
        return self._close_event

    @property
    def rtt_s(self) -> float | None:
        """The smoothed round-trip time, once there is a measurement."""
        return float(self._loss._rtt_smoothed) if self._loss._rtt_initialized else None  # type: ignore[arg-type]

    @property
    def peer_certificate(self) -> Any:
        return self.tls._peer_certificate

    @property
    def may_open_stream(self) -> bool:
        """Whether the far side allows one more stream now."""
        return self._local_next_stream_id_bidi // 4 < self._remote_max_streams_bidi

    def open_stream(self) -> int:
        """Create the next stream of ours; nothing is sent before its first data."""
        stream_id = self.get_next_available_stream_id()
        self.send_stream_data(stream_id, b"")
        return stream_id

    def unacknowledged_bytes(self, stream_id: int) -> int:
        """Bytes written and not yet known to have arrived."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender._buffer_start

    def knows(self, stream_id: int) -> bool:
        """Whether words of this stream may come still; of one that is discarded the engine drops them."""
        return stream_id in self._streams

    def acknowledge_now(self) -> None:
        """Let a due acknowledgement go with the next packets instead of after its timer."""
        space = self._spaces.get(Epoch.ONE_RTT)
        if space is not None and space.ack_at is not None:
            space.ack_at = 0.0

    # ------------------------------------------------------------------ flow control

    def consumed(self, stream_id: int, count: int) -> None:
        """The application has taken `count` bytes of a stream, or given them up."""
        window = self._windows.get(stream_id)
        if window is None:
            window = self._windows[stream_id] = Window(self._initial_stream_window, STREAM_WINDOW_BYTES)
        limit = window.consume(count)
        stream = self._streams.get(stream_id)
        if limit is not None and stream is not None and not stream.receiver.is_finished:
            stream.max_stream_data_local = limit
            self.window_due = True
        self._consume_connection(count)

    def receiving_is_over(self, stream_id: int, *, unread: int) -> None:
        """No more comes on a stream; `unread` bytes of it still wait to be consumed. Settles what a reset left out."""
        stream = self._streams.get(stream_id)
        window = self._windows.pop(stream_id, None)
        if stream is not None:
            done = 0 if window is None else window.consumed
            self._consume_connection(stream.receiver.highest_offset - done - unread)

    def consumed_late(self, count: int) -> None:
        """Bytes of a stream on which receiving is over were read."""
        self._consume_connection(count)

    def _consume_connection(self, count: int) -> None:
        limit = self._connection_window.consume(max(0, count))
        if limit is not None:
            self._local_max_data.value = limit
            self.window_due = True

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: EngineStream) -> None:
        """Announce a stream's window if it has moved. Replaces aioquic's, which also doubles it."""
        if stream.max_stream_data_local_sent == stream.max_stream_data_local or stream.receiver.is_finished:
            return
        buf = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        buf.push_uint_var(stream.stream_id or 0)
        buf.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        """Announce MAX_DATA and MAX_STREAMS if they have moved. Replaces aioquic's, which also doubles the first."""
        self.window_due = False
        data, streams = self._local_max_data, self._local_max_streams_bidi
        if data.value != data.sent:
            self._write_limit(builder, data)
        # MAX_STREAMS is batched: half of what a peer may open is worth a frame.
        if streams.value - streams.sent > streams.sent - streams.used:
            self._write_limit(builder, streams)

    def _write_limit(self, builder: QuicPacketBuilder, limit: Limit) -> None:
        buf = builder.start_frame(
            limit.frame_type,
            capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
            handler=self._on_connection_limit_delivery,
            handler_args=(limit,),
        )
        buf.push_uint_var(limit.value)
        limit.sent = limit.value
