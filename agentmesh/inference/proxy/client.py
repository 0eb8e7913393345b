"""One client's connection: requests are taken from it one after another, and their answers written to it.

Owns what was received and not yet understood, the deadlines of the present phase, and the rules of keeping alive and
closing. It is the sink of its exchange (parts.Sink). Phases and what ends each: docs/proxy.md.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, cast

from agentmesh.core.errors import AgentMeshError
from agentmesh.inference.logic.head_memo import HeadMemo
from agentmesh.inference.logic.http_body import ChunkedFraming, Framing, LengthFraming
from agentmesh.inference.logic.http_head import (
    HEAD_END,
    BadMessage,
    RequestHead,
    answer_head,
    parse_request_head,
    replace_length,
)
from agentmesh.inference.logic.origin import cors_fields
from agentmesh.inference.logic.proxy_limits import (
    MAX_EMPTY_LINES,
    MAX_HEAD_BYTES,
    PIPELINED_BYTES,
    PROBE_S,
    PROBES_S,
    REQUESTS_A_TURN,
    WRITE_HIGH_BYTES,
)
from agentmesh.inference.proxy import phase
from agentmesh.inference.proxy.body import Body, BodySpool, MemoryBody
from agentmesh.inference.proxy.dialects import Answer, error_answer
from agentmesh.inference.proxy.exchange import Exchange, Request
from agentmesh.inference.proxy.phase import CLOSE, CONTINUE, KEEP, PROCESSING, Phase, StallWatch
from agentmesh.inference.proxy.reception import Admitted, Reply, receive, wanted_of

if TYPE_CHECKING:
    from agentmesh.inference.proxy.server import ApiServer


class ClientConnection(asyncio.Protocol):
    """See the module."""

    def __init__(self, server: ApiServer) -> None:
        self.phase: Phase = phase.IDLE
        self.minor = 1
        self._server = server
        self._parts = server.parts
        self._outbox = server.parts.outbox
        self._settings = server.parts.settings
        self._buffer = b""
        self._head: RequestHead | None = None
        self._admitted = Admitted("", "")
        self._memo: HeadMemo[tuple[RequestHead, Admitted]] = HeadMemo()
        self._framing: Framing = LengthFraming(0)
        self._spool: BodySpool | None = None
        self._exchange: Exchange | None = None
        self._keep = True
        self._deadline_s = self._body_deadline_s = math.inf
        self._advancing = self._half_closed = self._read_paused = self._write_paused = False
        self._is_resting = False  # see _rest
        self._stall = StallWatch()
        self._probes = 0

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no class of asyncio's
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._deadline_s = self._parts.now() + self._settings.keep_alive_s
        if not self._server.joined(self):
            self._refuse_and_close(503, "too_many_connections", "Too many connections are open; close some.")

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, or of several."""
        if self.phase is phase.LINGERING:
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self.phase is phase.ANSWERING or self._write_paused:
            self._hold_reading()
        else:
            self._advance()

    def eof_received(self) -> bool:
        """The client sends no more. It may still read: the answer under way is finished, see docs/proxy.md."""
        self._half_closed = True
        if self.phase is phase.ANSWERING:
            self._probe()
            return True
        return bool(self._buffer) and (self._write_paused or self._is_resting)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: whatever works for it stops."""
        self._server.left(self)
        self._drop_spool()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()
        self._buffer = b""
        self.phase = phase.LINGERING

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self._write_paused = True
        self._stall.begin(self._transport.get_write_buffer_size(), self._parts.now() + self._settings.write_stall_s)
        if self._exchange is not None:
            self._exchange.sink_paused()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._write_paused = False
        self._stall.begin(0, math.inf)
        if self._exchange is not None:
            self._exchange.sink_resumed()
        elif self.phase is not phase.LINGERING:
            self._advance()

    # ------------------------------------------------------------------ what the server asks

    def sweep(self, now_s: float) -> None:
        """Notice what takes too long."""
        waiting = self._transport.get_write_buffer_size()
        if self._write_paused or (waiting and (self.phase is phase.LINGERING or self._transport.is_closing())):
            if self._stall.is_stalled(waiting, now_s, self._settings.write_stall_s):
                self._transport.abort()
        elif now_s <= self._deadline_s:
            return
        elif self.phase in (phase.HEAD, phase.BODY):
            self._refuse_and_close(408, "request_timeout", "The request did not come in time.")
        elif self.phase is not phase.ANSWERING:
            self._transport.close()

    def drain(self) -> None:
        """No further request is taken."""
        if self.phase in (phase.IDLE, phase.HEAD):
            self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        self._transport.abort()

    # ------------------------------------------------------------------ taking requests

    def _advance(self) -> None:
        """Take requests out of the buffer while they can be answered; in a loop, not by recursion: a client may send many."""
        if self._advancing:
            return
        self._advancing, self._is_resting, left = True, False, REQUESTS_A_TURN
        try:
            while self._buffer and not self._write_paused:
                if not left:
                    self._rest()
                    return
                left -= 1
                if self.phase is phase.BODY:
                    self._take_body()
                elif self.phase not in (phase.IDLE, phase.HEAD) or not self._take_head():
                    break
        finally:
            self._advancing = False
        if self.phase is phase.ANSWERING or self._write_paused:
            return
        if self._half_closed and self.phase is not phase.LINGERING:
            self._outbox.then(self._transport.close)
        else:
            self._read_on()

    def _rest(self) -> None:
        """Let others go first: a client may send thousands of requests at once."""
        self._is_resting = True
        self._hold_reading()
        asyncio.get_running_loop().call_soon(self._advance)

    def _take_head(self) -> bool:
        """Whether there was a whole one."""
        data = self._buffer
        if (known := self._memo.recall(data)) is not None and known[1] <= self._settings.max_body_bytes:
            (head, admitted), length, end = known
            self._buffer, self._head = data[end:], (head := replace_length(head, length))
            self.minor = head.minor
            self._deadline_s = math.inf
            self._begin_body(head, admitted)
            return True
        for _ in range(MAX_EMPTY_LINES):
            if data.startswith(b"\r\n"):
                data = data[2:]
        end = data.find(HEAD_END)
        if end > MAX_HEAD_BYTES or (end < 0 and len(data) > MAX_HEAD_BYTES):
            self._refuse_and_close(431, "headers_too_large", f"The headers are larger than {MAX_HEAD_BYTES:,} bytes.")
            return False
        if end < 0:
            if self.phase is phase.IDLE:
                self.phase = phase.HEAD
                self._deadline_s = self._parts.now() + self._settings.header_timeout_s
            return False
        try:
            head = parse_request_head(data[: end + 2])
        except BadMessage as error:
            self._refuse_and_close(error.status, "bad_request", error.message)
            return False
        self._buffer = data[end + 4 :]
        self._head = head
        self.minor = head.minor
        self._deadline_s = math.inf
        received = receive(self._parts, self._server.gate, head)
        if isinstance(received, Reply):
            self._answer_now(received.answer, received.fields)
        else:
            if head.length is not None:
                self._memo.remember(data[: end + 4], (head, received))
            self._begin_body(head, received)
        return True

    # ------------------------------------------------------------------ bodies

    def _begin_body(self, head: RequestHead, admitted: Admitted) -> None:
        self._admitted = admitted
        length = head.length
        if length is not None and length <= len(self._buffer) and length <= self._settings.spill_bytes:
            data, self._buffer = self._buffer[:length], self._buffer[length:]
            try:
                self._parts.budget.take(length)
            except AgentMeshError as error:
                refusal = error_answer(head.path, error.http_status, error.code, error.message, 1)
                self._answer_now(refusal, skip_body=False)
                return
            self._ask(head, MemoryBody(data, self._parts.budget))
            return
        if head.minor and b"expect" in head.headers and not self._buffer:
            self._outbox.write(self._transport.write, CONTINUE)
        self._framing = ChunkedFraming([]) if length is None else LengthFraming(length, [])
        self._spool = BodySpool(self._parts.budget, self._settings)
        self.phase = phase.BODY
        now_s = self._parts.now()
        self._body_deadline_s = now_s + self._settings.body_total_s
        self._deadline_s = now_s + self._settings.body_idle_s

    def _take_body(self) -> None:
        framing, spool, head = self._framing, self._spool, self._head
        assert spool is not None and head is not None and framing.parts is not None  # noqa: S101 - of this phase
        try:
            used = framing.feed(self._buffer)
            for part in framing.parts:
                spool.add(part)
            framing.parts.clear()
            self._buffer = self._buffer[used:]
            body = spool.finish() if framing.done else None
        except BadMessage as error:
            self._refuse_and_close(error.status, "bad_request", error.message)
            return
        except AgentMeshError as error:
            self._refuse_and_close(error.http_status, error.code, error.message)
            return
        if body is None:
            self._deadline_s = min(self._parts.now() + self._settings.body_idle_s, self._body_deadline_s)
            return
        self._spool = None
        self.phase = phase.IDLE
        self._ask(head, body)

    def _ask(self, head: RequestHead, body: Body) -> None:
        """The request is whole: find out what it asks for, and give it to an exchange."""
        endpoint = self._admitted.endpoint
        try:
            wanted = wanted_of(self._parts.dispatch, endpoint, body, self._admitted.caller)
        except AgentMeshError as error:
            body.close()
            self._answer_now(error_answer(head.path, 400, error.code, error.message), skip_body=False)
            return
        self.phase = phase.ANSWERING
        self._deadline_s = math.inf
        self._exchange = Exchange(self._parts, Request(endpoint, head.headers, body, wanted), self)
        self._exchange.start()

    def _drop_spool(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    # ------------------------------------------------------------------ Sink

    def begin(self, status: int, fields: bytes, length: int | None, chunked: bool, body: bytes) -> None:
        """See Sink."""
        fields += self._own_fields(keep=length is not None or chunked)
        self._outbox.write(self._transport.write, answer_head(status, fields, length, chunked) + body)

    def write(self, data: bytes) -> None:
        """See Sink."""
        self._outbox.write_at_once(self._transport.write, data)

    def finished(self, keep: bool) -> None:
        """See Sink."""
        self._exchange = None
        self._after_answer(keep=keep and self._keep)

    def answer(self, answer: Answer) -> None:
        """See Sink."""
        self._exchange = None
        self._answer_now(answer, skip_body=False)

    def broken(self) -> None:
        """See Sink. A reset, so that a client cannot take the part for the whole."""
        self._exchange = None
        self._transport.abort()

    # ------------------------------------------------------------------ answering

    def _refuse_and_close(self, status: int, code: str, message: str) -> None:
        """For what leaves unclear where the next request would begin."""
        self._drop_spool()
        path = self._head.path if self._head is not None and self.phase is phase.BODY else "/"
        self._head = None
        self._buffer = b""
        self._send(error_answer(path, status, code, message, 1 if status == 503 else None), b"", keep=False)

    def _answer_now(self, answer: Answer, fields: bytes = b"", *, skip_body: bool = True) -> None:
        """Answer without an exchange. The request's body, if it has not been read, is passed over or ends the connection."""
        keep = True
        if skip_body and self._head is not None:
            length = self._head.length
            keep = length is not None and length <= len(self._buffer)
            self._buffer = self._buffer[length:] if keep else b""
        self._send(answer, fields, keep=keep)

    def _send(self, answer: Answer, fields: bytes, *, keep: bool) -> None:
        if answer.content_type:
            fields += b"Content-Type: %b\r\n" % answer.content_type.encode("latin-1")
        for name, value in answer.headers:
            fields += f"{name}: {value}\r\n".encode("latin-1")
        fields += self._own_fields(keep=keep)
        length = None if answer.status == 204 else len(answer.body)  # RFC 9110 section 8.6: no length with 204
        is_head = self._head is not None and self._head.method == "HEAD"
        body = b"" if is_head else answer.body
        self._outbox.write(self._transport.write, answer_head(answer.status, fields, length, False) + body)
        self._after_answer(keep=self._keep)

    def _own_fields(self, *, keep: bool) -> bytes:
        """The header lines that concern this connection; decides whether it goes on."""
        head = self._head
        self._keep = keep and head is not None and head.keep_alive and not self._parts.draining
        fields = b"" if self._keep and self.minor else KEEP if self._keep else CLOSE
        origin = head.headers.get(b"origin") if head is not None else None
        return fields if origin is None or not self._server.gate.is_allowed(origin) else fields + cors_fields(origin)

    def _after_answer(self, *, keep: bool) -> None:
        self._head = None
        now_s = self._parts.now()
        if keep:
            self.phase = phase.IDLE
            self._deadline_s = now_s + self._settings.keep_alive_s
            if self._buffer or self._half_closed or self._read_paused:
                self._advance()
        elif self._half_closed:
            self.phase = phase.LINGERING
            self._outbox.then(self._transport.close)
        else:  # closing at once would reset the connection and lose the answer, if the client is still sending
            self.phase = phase.LINGERING
            self._buffer = b""
            self._deadline_s = now_s + self._settings.linger_s
            self._stall.begin(0, math.inf)
            self._read_on()
            self._outbox.then(self._end_writing)

    def _end_writing(self) -> None:
        if not self._transport.is_closing():
            self._transport.write_eof()

    # ------------------------------------------------------------------ reading on and off

    def _hold_reading(self) -> None:
        if len(self._buffer) > PIPELINED_BYTES and not self._read_paused and not self._half_closed:
            self._read_paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._read_paused:
            self._read_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _probe(self) -> None:
        """Find out whether a client that ended its side is still there: a write to one that is gone is answered by a reset.

        An interim answer is the only thing that may be written before the real one; HTTP/1.0 knows none.
        """
        exchange = self._exchange
        if exchange is None or exchange.has_begun or not self.minor or self._transport.is_closing():
            return
        self._outbox.write(self._transport.write, PROCESSING)
        wait_s = PROBES_S[self._probes] if self._probes < len(PROBES_S) else PROBE_S
        self._probes += 1
        asyncio.get_running_loop().call_later(wait_s, self._probe)
