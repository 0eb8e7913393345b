"""The serving side of requests between nodes: one stream brings one request, whose answer comes from this node's own engines.

A request that was not begun is answered with `x-agentmesh-not-begun`, so that the asking node tries elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from urllib.parse import unquote

from agentmesh.core.errors import AgentMeshError, ProtocolError
from agentmesh.inference.logic.classify import ENDPOINTS, MAX_MODEL_CHARS
from agentmesh.inference.logic.http_head import (
    HEAD_END,
    MODEL_HEADER,
    NOT_BEGUN_HEADER,
    BadMessage,
    RequestHead,
    answer_head,
    parse_request_head,
)
from agentmesh.inference.logic.proxy_limits import (
    MAX_HEAD_BYTES,
    PEERS_SHARE_OF_BODIES,
    READ_BYTES,
    WRITE_HIGH_BYTES,
)
from agentmesh.inference.proxy.body import Body, BodyBudget, BodySpool, BodyTooLarge, NoRoomForBody
from agentmesh.inference.proxy.dialects import Answer, error_answer
from agentmesh.inference.proxy.exchange import Exchange, Request
from agentmesh.inference.proxy.parts import Parts
from agentmesh.inference.proxy.ports import Wanted
from agentmesh.mesh.transport import Stream

_NOT_BEGUN = b"%b: 1\r\n" % NOT_BEGUN_HEADER


class PeerSink:
    """An answer on its way into a stream. See parts.Sink. `pump` writes, in the task of whoever serves the stream."""

    minor = 1

    def __init__(self, parts: Parts, stream: Stream) -> None:
        self.exchange: Exchange | None = None
        self._parts = parts
        self._stream = stream
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._is_whole = False
        self._is_broken = False

    def begin(self, status: int, fields: bytes, length: int | None, chunked: bool, body: bytes) -> None:
        """See Sink."""
        self.write(answer_head(status, fields, length, chunked) + body)

    def write(self, data: bytes) -> None:
        """See Sink."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > WRITE_HIGH_BYTES and self.exchange is not None:
            self.exchange.sink_paused()
        self._wake.set()

    def finished(self, keep: bool) -> None:
        """See Sink."""
        self._is_whole = True
        self._wake.set()

    def answer(self, answer: Answer) -> None:
        """See Sink. What is answered here was never begun by an engine."""
        extra = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in answer.headers)
        fields = b"Content-Type: %b\r\n%b%b" % (answer.content_type.encode("latin-1"), extra, _NOT_BEGUN)
        self.write(answer_head(answer.status, fields, len(answer.body), False) + answer.body)
        self.finished(True)

    def broken(self) -> None:
        """See Sink."""
        self._is_broken = True
        self._wake.set()

    async def pump(self) -> None:
        """Write until the answer is over. Raises: StreamClosed; TimeoutError when the peer takes nothing."""
        stall_s = self._parts.settings.write_stall_s
        while True:
            while self._waiting:
                data = b"".join(self._waiting)
                self._waiting.clear()
                self._waiting_bytes = 0
                async with asyncio.timeout(stall_s):
                    await self._stream.write(data)
                self._parts.metrics.sent_to_peer(len(data))
                if self.exchange is not None and not self.exchange.is_over and not self._waiting:
                    self.exchange.sink_resumed()
            if self._is_broken:
                self._stream.abort()
                return
            if self._is_whole:
                await self._stream.end()
                return
            self._wake.clear()
            await self._wake.wait()


class PeerServer:
    """See the module. State: how many requests of which peers are in progress, and what their bodies hold."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._active: Counter[bytes] = Counter()
        self._budget = BodyBudget(parts.settings.max_bodies_bytes // PEERS_SHARE_OF_BODIES, parts.budget)

    async def serve(self, peer: bytes, stream: Stream) -> None:
        """Answer the request that a peer's stream brings. The stream is over when this returns."""
        try:
            async with asyncio.timeout(self._parts.settings.header_timeout_s):
                head, rest = await _read_head(stream)
            if self._is_full(peer):
                sink = PeerSink(self._parts, stream)
                sink.answer(error_answer(head.path, 503, "busy", "This node takes no more requests.", 1))
                await sink.pump()
                return
            self._active[peer] += 1
            try:
                await self._serve(peer, stream, head, rest)
            finally:
                self._active[peer] -= 1
                if not self._active[peer]:
                    del self._active[peer]
        except (AgentMeshError, TimeoutError):
            stream.abort()  # the peer left, or sent what no node sends
        except asyncio.CancelledError:
            stream.abort()
            raise

    def _is_full(self, peer: bytes) -> bool:
        settings = self._parts.settings
        in_all = self._active.total()
        mine = self._active[peer]
        return self._parts.draining or in_all >= settings.max_peer_requests or mine >= settings.max_requests_of_a_peer

    async def _serve(self, peer: bytes, stream: Stream, head: RequestHead, rest: bytes) -> None:
        settings = self._parts.settings
        sink = PeerSink(self._parts, stream)
        try:
            async with asyncio.timeout(settings.body_total_s):
                body = await self._read_body(stream, head, rest)
        except (BodyTooLarge, NoRoomForBody) as error:
            sink.answer(error_answer(head.path, error.http_status, error.code, error.message, 1))
            await sink.pump()
            return
        exchange = Exchange(self._parts, _request(head, body, peer), sink)
        sink.exchange = exchange
        watcher = self._parts.tasks.spawn(_watch(stream, exchange, sink), name="peer's stream")
        try:
            exchange.start()
            await sink.pump()
        finally:
            exchange.cancel()  # does nothing to one that is over
            watcher.cancel()

    async def _read_body(self, stream: Stream, head: RequestHead, rest: bytes) -> Body:
        """Raises: BodyTooLarge, NoRoomForBody, StreamClosed, TimeoutError, ProtocolError."""
        spool = BodySpool(self._budget, self._parts.settings)
        length = head.length or 0
        try:
            if length > self._parts.settings.max_body_bytes:
                raise BodyTooLarge()
            spool.add(rest)
            while spool.size < length:
                async with asyncio.timeout(self._parts.settings.body_idle_s):
                    data = await stream.read(READ_BYTES)
                self._parts.metrics.received_from_peer(len(data))
                if not data:
                    raise ProtocolError("A peer ended its request before it was whole.")
                spool.add(data)
            if spool.size > length:
                raise ProtocolError("A peer sent more than one request on a stream.")
        except BaseException:
            spool.close()
            raise
        return spool.finish()


async def _read_head(stream: Stream) -> tuple[RequestHead, bytes]:
    """The request's head and what came behind it. Raises: ProtocolError, StreamClosed."""
    data = b""
    while (end := data.find(HEAD_END)) < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise ProtocolError("A peer's request has no end to its head.")
        more = await stream.read(READ_BYTES)
        if not more:
            raise ProtocolError("A peer opened a stream for a request and sent none.")
        data += more
    try:
        head = parse_request_head(data[: end + 2])
    except BadMessage as error:
        raise ProtocolError(f"A peer's request is malformed: {error}") from error
    if head.method != "POST" or head.path not in ENDPOINTS or head.length is None or MODEL_HEADER not in head.headers:
        raise ProtocolError("A peer's request is not one that nodes send.")
    return head, data[end + 4 :]


def _request(head: RequestHead, body: Body, peer: bytes) -> Request:
    model = unquote(head.headers[MODEL_HEADER].decode("latin-1"))[:MAX_MODEL_CHARS]
    wanted = Wanted(
        model,
        head.path,
        frozenset((str(ENDPOINTS[head.path]),)),
        body_bytes=body.size,
        caller=peer.hex(),
        local_only=True,
    )
    return Request(head.path, head.headers, body, wanted)


async def _watch(stream: Stream, exchange: Exchange, sink: PeerSink) -> None:
    """The asking node sends nothing more; its reset, or its end before it has the answer, means that nobody waits any more."""
    try:
        data = await stream.read(READ_BYTES)
    except AgentMeshError:
        data = b""
    if data or not exchange.is_over:
        exchange.cancel()
        sink.broken()
