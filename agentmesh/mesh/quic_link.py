"""One QUIC connection on the event loop: drives the engine, its timer and its streams. Implements transport.Connection.

The endpoint feeds it datagrams and takes away what it sends; it knows no socket and no other connection.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from aioquic.quic import events
from aioquic.quic.packet import QuicErrorCode

from agentmesh.core.errors import StreamClosed
from agentmesh.mesh.datagrams import SocketAddress, format_address
from agentmesh.mesh.logic.limits import MAX_STREAMS_PER_PEER
from agentmesh.mesh.logic.reasons import clip_reason
from agentmesh.mesh.logic.transport_limits import ACK_EVERY, CLOSE_REPEATS, EARLY_TIMER_S, PACKETS_PER_TURN
from agentmesh.mesh.quic_engine import Engine
from agentmesh.mesh.quic_stream import QuicPeerStream
from agentmesh.mesh.wakeup import Wakeup


class LinkOwner(Protocol):
    """What a connection needs of its endpoint."""

    def send(self, data: bytes, address: SocketAddress) -> None: ...
    def id_issued(self, connection_id: bytes, link: QuicLink) -> None: ...
    def id_retired(self, connection_id: bytes, link: QuicLink) -> None: ...
    def established(self, link: QuicLink) -> None: ...
    def closed(self, link: QuicLink) -> None: ...
    def gone(self, link: QuicLink) -> None: ...


class QuicLink:
    """See transport.Connection."""

    def __init__(self, engine: Engine, owner: LinkOwner, *, server_node: bytes, dialled: bool) -> None:
        self.engine = engine
        self.changed = Wakeup()  # established, or closed
        self._arrivals = Wakeup()
        self._stream_room = Wakeup()
        self.failure: events.ConnectionTerminated | None = None
        self.ended_by_peer = False
        self.is_established = False
        self.wrong_node = False
        self._owner = owner
        self._server_node = server_node
        self._dialled = dialled
        self._loop = asyncio.get_running_loop()
        self._clock = time.monotonic  # uvloop's own clock counts milliseconds
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._transmit_handle: asyncio.Handle | None = None
        self._streams: dict[int, QuicPeerStream] = {}
        self._accepted: deque[QuicPeerStream] = deque()
        # Of the peer's streams those forgotten here and perhaps not yet by the engine: a late word of one makes no new stream.
        self._over: set[int] = set()
        self._waiting_for_room: dict[int, QuicPeerStream] = {}
        self._reason: str | None = None
        self._unacknowledged = 0
        self._last_datagrams: list[tuple[bytes, SocketAddress]] = []
        self._repeats_left = CLOSE_REPEATS
        self._is_gone = False
        self.arrivals = 0  # datagrams

    # ------------------------------------------------------------------ transport.Connection

    @property
    def remote_address(self) -> str:
        address = self.engine.get_peer_address()
        return "" if address is None else format_address(address)

    @property
    def server_node(self) -> bytes:
        return self._server_node

    @property
    def dialled(self) -> bool:
        return self._dialled

    @property
    def rtt_ms(self) -> float | None:
        rtt_s = self.engine.rtt_s
        return None if rtt_s is None else rtt_s * 1000

    @property
    def is_closed(self) -> bool:
        return self._reason is not None

    @property
    def reason(self) -> str:
        return self._reason or ""

    async def open_stream(self) -> QuicPeerStream:
        """See Connection. Waits while the far side has as many of our streams as it allows."""
        while self._reason is None and not self.engine.may_open_stream:
            await self._stream_room.wait()
        if self._reason is not None:
            raise StreamClosed(f"The connection is closed: {self._reason}")
        stream = QuicPeerStream(self, self.engine.open_stream())
        self._streams[stream.stream_id] = stream
        return stream

    async def accept_stream(self) -> QuicPeerStream:
        """See Connection."""
        while not self._accepted:
            if self._reason is not None:
                raise StreamClosed(f"The connection is closed: {self._reason}")
            await self._arrivals.wait()
        return self._accepted.popleft()

    async def wait_closed(self) -> str:
        """See Connection."""
        while self._reason is None:
            await self.changed.wait()
        return self._reason

    def close(self, reason: str) -> None:
        """See Connection."""
        if self._reason is None:
            reason = clip_reason(reason)
            self.engine.close(error_code=QuicErrorCode.NO_ERROR, reason_phrase=reason)
            self._finish(reason)
            self._transmit()

    # ------------------------------------------------------------------ what the endpoint calls

    def start(self, address: SocketAddress) -> None:
        """Begin the handshake of a dialled connection."""
        self.engine.connect(address, now=self._clock())
        self._transmit()

    def receive(self, data: bytes, address: SocketAddress) -> None:
        """Take in one datagram; `received` follows after the last of a batch."""
        self.arrivals += 1
        if self._reason is None:
            self.engine.receive_datagram(data, address, now=self._clock())
        elif self._repeats_left:
            self._repeats_left -= 1
            for datagram in self._last_datagrams:
                self._owner.send(*datagram)

    def received(self, datagrams: int) -> None:
        """A batch is complete: act on it, and answer it once."""
        self._unacknowledged += datagrams
        self._process()
        if self._unacknowledged >= ACK_EVERY:
            self.engine.acknowledge_now()
        self._transmit()

    def abandon(self, reason: str) -> None:
        """Drop everything without a word to the far side."""
        self._finish(reason)
        self._go()

    # ------------------------------------------------------------------ what the streams call

    def transmit_soon(self) -> None:
        """Send when everybody who wants to write in this turn has done so."""
        if self._transmit_handle is None and not self._is_gone:
            self._transmit_handle = self._loop.call_soon(self._transmit_with_acknowledgement)

    def window_moved(self) -> None:
        """A reader has made room."""
        self.transmit_soon()

    def wait_for_room(self, stream: QuicPeerStream) -> None:
        """Tell `stream` when its unacknowledged bytes have gone down."""
        self._waiting_for_room[stream.stream_id] = stream

    def forget(self, stream: QuicPeerStream) -> None:
        """Both directions of a stream are over."""
        if self._streams.pop(stream.stream_id, None) is not None and not self._is_ours(stream.stream_id):
            if len(self._over) >= 2 * MAX_STREAMS_PER_PEER:  # the engine has at most half as many
                self._over = {one for one in self._over if self.engine.knows(one)}
            self._over.add(stream.stream_id)
        self._waiting_for_room.pop(stream.stream_id, None)

    # ------------------------------------------------------------------ driving the engine

    def _transmit_with_acknowledgement(self) -> None:
        self._transmit_handle = None
        self.engine.acknowledge_now()
        self._transmit()

    def _transmit(self) -> None:
        if self._is_gone:
            return
        self._unacknowledged = 0
        pacer = self.engine.pacer
        pacer.turn_left = PACKETS_PER_TURN
        datagrams = self.engine.datagrams_to_send(now=self._clock())
        for data, address in datagrams:
            self._owner.send(data, address)
        if self._reason is not None and datagrams:
            self._last_datagrams = datagrams
        self._process()
        if pacer.turn_left <= 0:
            self.transmit_soon()
        self._arm(self.engine.get_timer())

    def _arm(self, at: float | None) -> None:
        if at is None or self._is_gone:
            self._disarm()
            return
        # A timer that fires too early looks again, which is cheaper than moving it at every packet.
        if self._timer is None or at < self._timer_at:
            self._disarm()
            self._timer_at = at
            self._timer = self._loop.call_later(max(0.0, at - self._clock()), self._timer_fired)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timer_fired(self) -> None:
        self._timer = None
        due = self.engine.get_timer()
        now = self._clock()
        if due is None or due > now + EARLY_TIMER_S:
            self._arm(due)
            return
        self.engine.handle_timer(now=max(now, due))
        self._process()
        self._transmit()

    def _process(self) -> None:
        while (event := self.engine.next_event()) is not None:
            self._handle(event)
        if self._reason is None and (ended := self.engine.ended_by_peer) is not None:
            self.failure, self.ended_by_peer = ended, True
            self._finish(_told(ended, by_peer=True))
        elif self._reason is None and (ending := self.engine.closing) is not None:
            self.failure = ending
            self._finish(_told(ending, by_peer=False))
        if self._waiting_for_room:
            for stream in list(self._waiting_for_room.values()):
                if stream.look_for_room():
                    self._waiting_for_room.pop(stream.stream_id, None)
        if self._reason is None and self.engine.may_open_stream:
            self._stream_room.wake()

    def _handle(self, event: events.QuicEvent) -> None:
        match event:
            case events.ConnectionIdIssued():
                self._owner.id_issued(event.connection_id, self)
            case events.ConnectionIdRetired():
                self._owner.id_retired(event.connection_id, self)
            case events.HandshakeCompleted():
                self.is_established = True
                self._owner.established(self)
            case events.ConnectionTerminated():
                self.failure = self.failure or event
                self._finish(_told(event, by_peer=False))
                self._go()
            case events.StreamDataReceived() if self._reason is None:
                self._stream(event.stream_id, lambda s: s.data_arrived(event.data, ended=event.end_stream))
            case events.StreamReset() if self._reason is None:
                self._stream(event.stream_id, QuicPeerStream.was_reset)
            case events.StopSendingReceived() if self._reason is None:
                self._stream(event.stream_id, QuicPeerStream.was_stopped)
            case _:
                pass

    def _stream(self, stream_id: int, tell: Callable[[QuicPeerStream], None]) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._is_ours(stream_id) or stream_id in self._over:
                return  # over on our side already
            stream = self._streams[stream_id] = QuicPeerStream(self, stream_id)
            self._accepted.append(stream)
            self._arrivals.wake()
        tell(stream)

    def _is_ours(self, stream_id: int) -> bool:
        return (stream_id & 1) == (0 if self._dialled else 1)

    def _finish(self, reason: str) -> None:
        if self._reason is not None:
            return
        self._reason = reason
        self._accepted.clear()
        for stream in list(self._streams.values()):
            stream.connection_ended(f"The connection is closed: {reason}")
        self._streams.clear()
        self._waiting_for_room.clear()
        for wakeup in (self.changed, self._arrivals, self._stream_room):
            wakeup.wake()
        self._owner.closed(self)

    def _go(self) -> None:
        if not self._is_gone:
            self._is_gone = True
            self._disarm()
            if self._transmit_handle is not None:
                self._transmit_handle.cancel()
            self._owner.gone(self)


def _told(event: events.ConnectionTerminated, *, by_peer: bool) -> str:
    """The reason as people read it; what a peer wrote may hold anything."""
    text = clip_reason(event.reason_phrase)
    if text == "Idle timeout":
        return "the connection timed out"
    if text:
        return text
    return "closed by the peer" if by_peer else f"closed (QUIC error {event.error_code:#x})"
