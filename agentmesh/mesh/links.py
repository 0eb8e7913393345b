"""One admitted connection at work: what waits to be sent, what comes in. Knows frames and streams, not what messages mean.

State: two outgoing queues (messages, and ids of records to send) and their bytes. Owner: the event loop, through `send`
and `send_records`, which never wait. Each side opens one `gossip` stream for its messages and, on first use, one
`records` stream for bulk, so that a batch of records never delays a probe. A queue that overflows closes the link: a
peer that cannot keep up is dropped, not waited for, and reconciliation repairs what it missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from agentmesh.core.errors import AgentMeshError, ProtocolError, StreamClosed
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.logic.frames import MessageReader, encode
from agentmesh.mesh.logic.limits import (
    MAX_BATCH_RECORDS,
    MAX_OUT_QUEUE_BYTES,
    MAX_OUT_QUEUE_RECORDS,
    MAX_STREAMS_PER_PEER,
)
from agentmesh.mesh.logic.messages import AnyMessage, Gossip, RecordBatch
from agentmesh.mesh.logic.packing import batches
from agentmesh.mesh.logic.record import SignedRecord
from agentmesh.mesh.streams import FrameStream, StreamKind, open_framed, read_header
from agentmesh.mesh.transport import Connection, Stream

_log = logging.getLogger(__name__)

STALL_S: Final = 30.0  # a peer that takes nothing of a stream for so long does not read it

OnMessage = Callable[[bytes, AnyMessage], Awaitable[None]]
OnStream = Callable[[bytes, Stream], Awaitable[None]]
LoadRecords = Callable[[Sequence[bytes]], Awaitable[list[SignedRecord]]]


@dataclass(frozen=True, slots=True)
class LinkHandlers:
    """What a link calls; all of it belongs to the driver."""

    on_message: OnMessage
    load_records: LoadRecords
    services: dict[StreamKind, OnStream]  # control now; http, rpc and blob are registered by later layers


class Link:
    """The peer `peer` on `connection`, from admission to its end."""

    def __init__(self, peer: bytes, connection: Connection, handlers: LinkHandlers) -> None:
        self.peer = peer
        self.connection = connection
        self.since_s = asyncio.get_running_loop().time()
        self._handlers = handlers
        self._tasks = TaskSet(f"link-{peer.hex()[:8]}")
        self._messages: deque[bytes] = deque()
        self._message_bytes = 0
        self._records: deque[tuple[tuple[bytes, ...], int | None]] = deque()
        self._record_count = 0
        self._messages_waiting = asyncio.Event()
        self._records_waiting = asyncio.Event()
        self._reading: set[StreamKind] = set()
        self._drained = asyncio.Event()
        self._drained.set()

    def send(self, message: AnyMessage) -> None:
        """Queue one message; closes the link when the peer has not taken the last MAX_OUT_QUEUE_BYTES."""
        body = encode(message)
        self._message_bytes += len(body)
        if self._message_bytes > MAX_OUT_QUEUE_BYTES:
            self.close("the peer does not keep up")
            return
        self._messages.append(body)
        self._drained.clear()
        self._messages_waiting.set()

    def send_records(self, ids: tuple[bytes, ...], hop: int | None) -> None:
        """Queue records to be loaded and sent; `hop` makes them Gossip, else they go as RecordBatch."""
        self._record_count += len(ids)
        if self._record_count > MAX_OUT_QUEUE_RECORDS:
            self.close("the peer asks for more records than it takes")
            return
        self._records.append((ids, hop))
        self._records_waiting.set()

    def close(self, reason: str) -> None:
        """End the connection; `run` then returns."""
        self.connection.close(reason)

    async def flush(self, timeout_s: float) -> None:
        """Wait, at most `timeout_s`, until queued messages were handed to the transport (before a clean goodbye)."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drained.wait(), timeout_s)

    async def run(self) -> str:
        """Serve the link until its connection ends; returns the reason. Everything started here has ended then."""
        self._tasks.spawn(self._guard(self._write_messages), name="messages")
        self._tasks.spawn(self._guard(self._write_records), name="records")
        self._tasks.spawn(self._guard(self._accept_streams), name="accept")
        try:
            return await self.connection.wait_closed()
        finally:
            self.connection.close("done")
            await self._tasks.close()

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """A stream's failure ends the link with its sentence; it is the peer's or the network's doing, not ours."""
        try:
            await work()
        except (StreamClosed, ProtocolError) as error:
            self.close(str(error))
        except AgentMeshError as error:
            _log.warning("link to %s: %s", self.peer.hex()[:8], error)
            self.close("internal error")
        except Exception:  # noqa: BLE001 - a task's root: a link that lost one of its tasks would live on half deaf
            _log.exception("link to %s broke", self.peer.hex()[:8])
            self.close("internal error")

    @contextlib.asynccontextmanager
    async def _taken_in_time(self) -> AsyncGenerator[None]:
        """A peer that stops reading one of its streams is let go, although it may answer on the other."""
        try:
            async with asyncio.timeout(STALL_S):
                yield
        except TimeoutError as error:
            raise StreamClosed("the peer does not take what it is sent") from error

    async def _write_messages(self) -> None:
        out = await open_framed(self.connection, StreamKind.GOSSIP)
        while True:
            await self._messages_waiting.wait()
            self._messages_waiting.clear()
            while self._messages:
                body = self._messages.popleft()
                async with self._taken_in_time():
                    await out.write_frame(body)
                self._message_bytes -= len(body)
            self._drained.set()

    async def _write_records(self) -> None:
        out: FrameStream | None = None
        while True:
            await self._records_waiting.wait()
            self._records_waiting.clear()
            while self._records:
                ids, hop = self._records.popleft()
                for start in range(0, len(ids), MAX_BATCH_RECORDS):
                    chunk = ids[start : start + MAX_BATCH_RECORDS]
                    for batch in batches(await self._handlers.load_records(chunk)):
                        async with self._taken_in_time():
                            out = out or await open_framed(self.connection, StreamKind.RECORDS)
                            await out.write_struct(RecordBatch(batch) if hop is None else Gossip(batch, hop))
                    self._record_count -= len(chunk)

    async def _accept_streams(self) -> None:
        while True:
            stream = await self.connection.accept_stream()
            if len(self._tasks) > MAX_STREAMS_PER_PEER:
                stream.abort()
                continue
            self._tasks.spawn(self._guard(partial(self._serve, stream)), name="stream")

    async def _serve(self, stream: Stream) -> None:
        try:
            header = await read_header(stream)
        except (StreamClosed, ProtocolError) as error:  # it was reset; the connection and its other streams go on
            _log.debug("a stream of %s: %s", self.peer.hex()[:8], error)
            return
        kind = header.known_kind
        if kind is StreamKind.GOSSIP or kind is StreamKind.RECORDS:
            await self._read_only_one(kind, stream)
        elif kind is not None and (serve := self._handlers.services.get(kind)):
            try:
                await serve(self.peer, stream)
            except AgentMeshError as error:  # one request has failed, not the link
                _log.debug("stream %s of %s: %s", kind, self.peer.hex()[:8], error)
                stream.abort()
        else:
            stream.abort()  # a kind of a later version: refused, never fatal

    async def _read_only_one(self, kind: StreamKind, stream: Stream) -> None:
        """Each side sends one stream of a kind: what arrives on several would be worked on side by side, for one peer."""
        if kind in self._reading:
            stream.abort()
            return
        self._reading.add(kind)
        try:
            await self._read_messages(FrameStream(stream))
        finally:
            self._reading.discard(kind)

    async def _read_messages(self, frames: FrameStream) -> None:
        reader = MessageReader()
        while (body := await frames.read_frame()) is not None:
            if (message := reader.read(body)) is not None:
                await self._handlers.on_message(self.peer, message)
