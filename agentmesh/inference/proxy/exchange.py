"""One request on its way: targets are tried until one begins to answer, then its bytes are relayed as they come.

Owns the request's lease, its upstream and its body. Knows neither sockets nor streams: upstreams bring bytes, a sink takes
them (parts.py). Its states: choosing (perhaps in the model's queue), waiting (a target has the request), relaying, over.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from agentmesh.inference.logic.http_body import LAST_CHUNK, ChunkedFraming, EndFraming, Framing, LengthFraming, as_chunk
from agentmesh.inference.logic.http_head import (
    HEAD_END,
    NOT_BEGUN_HEADER,
    BadMessage,
    ResponseHead,
    end_to_end_fields,
    parse_response_head,
)
from agentmesh.inference.logic.proxy_limits import MAX_ATTEMPTS, MAX_BUSY_ANSWERS, MAX_HEAD_BYTES
from agentmesh.inference.proxy.body import Body
from agentmesh.inference.proxy.dialects import error_answer, sse_error
from agentmesh.inference.proxy.failures import quote, retry_after_s
from agentmesh.inference.proxy.parts import Parts, Sink, Upstream
from agentmesh.inference.proxy.peer_call import PeerCall
from agentmesh.inference.proxy.ports import Lease, Outcome, Refused, TargetKey, Wanted

_log = logging.getLogger(__name__)

OK: Final = 200
CLIENT_LEFT: Final = 499  # nginx's number for it; nobody receives it
MAX_INTERIM: Final = 16  # 1xx answers before the real one
REDIRECTIONS: Final = range(300, 400)  # no engine sends them; whoever followed one could be led anywhere by a peer
_NO_FRAMING: Final = EndFraming()
NOT_SUPPORTED: Final = 501  # the engine's answer to what the model cannot do: as final as a 4xx


class Request(msgspec.Struct):  # one for each request, and cheaper to make than a dataclass
    """What is sent to a target. `headers` are the client's, of which few are passed on."""

    path: str
    headers: dict[bytes, bytes]
    body: Body
    wanted: Wanted


class Exchange:
    """See the module. `start` once; it ends by telling its sink, or by `cancel`."""

    __slots__ = (
        "_attempts", "_avoid", "_began_s", "_buffer", "_busy_answers", "_deadline_s", "_framing", "_has_moved", "_head", "_keep",
        "_last_failure", "_lease", "_parts", "_patience_s", "_paused", "_queue", "_rechunk", "_retried_fresh", "_route", "_sink",
        "_upstream", "is_over", "request",
    )  # fmt: skip

    def __init__(self, parts: Parts, request: Request, sink: Sink) -> None:
        self.request = request
        self.is_over = False
        self._parts = parts
        self._sink = sink
        self._began_s = parts.now()
        self._avoid: frozenset[TargetKey] = frozenset()
        self._attempts = 0
        self._busy_answers = 0
        self._queue: asyncio.Task[None] | None = None
        self._lease: Lease | None = None
        self._upstream: Upstream | None = None
        self._deadline_s = 0.0
        self._patience_s = 0.0
        self._has_moved = (
            False  # since the last sweep, which sets the deadline then: nothing asks for the time at every chunk
        )
        self._route = "local"
        self._retried_fresh = False
        self._last_failure = ""
        self._buffer = b""  # the head of an answer, as far as it came
        self._head: ResponseHead | None = None  # once the answer began
        self._framing: Framing = _NO_FRAMING
        self._rechunk = False
        self._keep = True
        self._paused = False

    @property
    def has_begun(self) -> bool:
        """Whether the client has something of the answer; there is no other target then."""
        return self._head is not None

    def start(self) -> None:
        """Find a target."""
        self._parts.exchanges.add(self)
        self._choose()

    def cancel(self) -> None:
        """Whoever asked has left: the target stops working."""
        if self.is_over:
            return
        if self._upstream is not None:
            self._upstream.abort()
        self._let_go(Outcome.CANCELLED, CLIENT_LEFT)
        self._end()

    def peer_lost(self, node: bytes) -> None:
        """A peer was declared gone. Whatever is under way there is over."""
        if self._lease is not None and self._lease.target.node == node and self._lease.target.engine is None:
            self._failed_or_broken("The host went away.")

    def give_up(self, reason: str) -> None:
        """This node stops: answer what can still be answered."""
        if self.is_over:
            return
        if self.has_begun:
            self._break(reason)
        else:
            self._drop(Outcome.CANCELLED, 503)
            self._refuse(Refused(503, "stopping", reason, 1))

    def sweep(self, now_s: float) -> None:
        """Notice what takes too long."""
        if self._has_moved:
            self._has_moved = False
            self._deadline_s = now_s + self._patience_s
        elif self._upstream is not None and not self._paused and now_s > self._deadline_s:
            self._failed_or_broken("The host gave no answer in time.")

    # ------------------------------------------------------------------ choosing

    def _choose(self) -> None:
        try:
            if self._attempts >= MAX_ATTEMPTS:
                raise Refused(503, "all_hosts_failed", "The hosts of this model failed or were busy whenever asked.", 1)
            lease = self._parts.dispatch.try_acquire(self.request.wanted, self._avoid)
        except Refused as refused:
            self._refuse(refused)
            return
        if lease is None:
            self._queue = self._parts.tasks.spawn(self._wait_for_room(), name="queue")
        else:
            self._attempt(lease)

    async def _wait_for_room(self) -> None:
        try:
            lease = await self._parts.dispatch.acquire(self.request.wanted, self._avoid)
        except Refused as refused:
            self._queue = None
            self._refuse(refused)
            return
        except Exception:  # noqa: BLE001 - a task's root: unnoticed, the client would wait for ever
            _log.exception("choosing a host failed")
            self._queue = None
            self._refuse(Refused(500, "internal_error", "This node could not choose a host; its log says why."))
            return
        self._queue = None
        if self.is_over:
            lease.release(Outcome.CANCELLED)
        else:
            self._attempt(lease)

    def _refuse(self, refused: Refused) -> None:
        if self.is_over:
            return
        message = refused.message
        if self._last_failure:
            message = f"{message} The last host that was tried said: {self._last_failure}"
        else:
            self._parts.metrics.refused(refused.error_code)
        answer = error_answer(self.request.path, refused.status, refused.error_code, message, refused.retry_after_s)
        self._end()
        self._sink.answer(answer)

    # ------------------------------------------------------------------ waiting

    def _attempt(self, lease: Lease, *, fresh: bool = False) -> None:
        target = lease.target
        self._lease = lease
        self._buffer = b""
        self._patience_s = self._parts.settings.first_byte_s
        self._has_moved = True
        if not fresh:
            self._attempts += 1
            self._retried_fresh = False
            self._route = "local" if target.engine is not None else "peer"
            self._parts.metrics.request_began(target.model.id, self._route)
        if target.engine is not None:
            self._upstream = self._parts.engines.start(target, self, fresh=fresh)
        else:
            self._upstream = PeerCall(self._parts, self, target)
        if self._paused:
            self._upstream.pause()

    def _failed(self, outcome: Outcome, reason: str, retry_after_s: float | None = None) -> None:
        """This target did not answer; another may."""
        assert self._lease is not None  # noqa: S101 - a target has it
        self._avoid |= {self._lease.target.key}
        self._last_failure = reason
        self._drop(outcome, 502, retry_after_s)
        self._parts.metrics.failover()
        self._choose()

    def _drop(self, outcome: Outcome, status: int, retry_after_s: float | None = None) -> None:
        if self._upstream is not None:
            self._upstream.abort()
        self._let_go(outcome, status, retry_after_s)

    def _let_go(self, outcome: Outcome, status: int, retry_after_s: float | None = None) -> None:
        lease, self._lease, self._upstream = self._lease, None, None
        if lease is not None:
            seconds = self._parts.now() - self._began_s
            self._parts.metrics.request_ended(lease.target.model.id, self._route, status, seconds)
            lease.release(outcome, retry_after_s=retry_after_s)

    def _end(self) -> None:
        self.is_over = True
        self._parts.exchanges.discard(self)
        self.request.body.close()
        if self._queue is not None:
            self._queue.cancel()
            self._queue = None

    # ------------------------------------------------------------------ what the upstream tells

    def upstream_data(self, upstream: Upstream, data: bytes) -> None:
        """Bytes of the answer."""
        if upstream is not self._upstream:
            return
        if self._head is None:
            self._read_head(data)
            return
        framing = self._framing
        try:
            used = framing.feed(data)
        except BadMessage:
            self._break("The host's answer was garbled.")
            return
        if framing.parts is not None:
            self._write_content(framing.parts)
        else:
            self._sink.write(data if used == len(data) else data[:used])
        self._has_moved = True
        if framing.done:
            self._complete(reusable=used == len(data))

    def upstream_lost(self, upstream: Upstream, reason: str, *, clean: bool) -> None:
        """Its end, before the answer was whole."""
        if upstream is not self._upstream:
            return
        if self._head is not None and clean and isinstance(self._framing, EndFraming):
            if self._rechunk:
                self._sink.write(LAST_CHUNK)
            self._complete(reusable=False)
        elif self._head is None and upstream.reused and not self._buffer and not self._retried_fresh:
            # The engine closed the idle connection just when the request was sent: it has not seen it.
            self._retried_fresh = True
            assert self._lease is not None  # noqa: S101 - a target has it
            self._attempt(self._lease, fresh=True)
        else:
            self._failed_or_broken(reason)

    def _failed_or_broken(self, reason: str) -> None:
        if self.has_begun:
            self._break(reason)
        else:
            self._failed(Outcome.UNREACHABLE, reason)

    def _read_head(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        memo = self._parts.response_heads
        if (known := memo.recall(data)) is not None:
            (head, fields), length, end = known
            if len(data) == end + length:
                self._relay_whole(head, fields, data[end:])
            else:
                self._judge(ResponseHead(head.status, head.headers, length, False, head.keep_alive), data[end:])
            return
        for _ in range(MAX_INTERIM):
            end = data.find(HEAD_END)
            if end < 0 or end > MAX_HEAD_BYTES:
                if len(data) > MAX_HEAD_BYTES or data[:5] != b"HTTP/"[: len(data)]:
                    break
                self._buffer = data
                return
            try:
                head = parse_response_head(data[: end + 2])
            except BadMessage:
                break
            if head.status == OK and head.length is not None and NOT_BEGUN_HEADER not in head.headers:
                memo.remember(data[: end + 4], (head, end_to_end_fields(head.headers)))
            data = data[end + 4 :]
            if head.status >= 200:
                self._judge(head, data)
                return
            if not data:
                self._buffer = b""
                return
        self._failed(Outcome.UNREACHABLE, "It answered with something else than HTTP.")

    def _judge(self, head: ResponseHead, data: bytes) -> None:
        """Relay the answer, or try elsewhere."""
        if head.status in (429, 503) or (self._route == "peer" and NOT_BEGUN_HEADER in head.headers):
            if head.status in (429, 503) and self._busy_answers < MAX_BUSY_ANSWERS:
                self._busy_answers += 1
                self._attempts -= 1  # others keep it busy: that is no failure but a place in a queue
            self._failed(Outcome.BUSY, quote(head, data), retry_after_s(head))
        elif head.status in REDIRECTIONS or (head.status >= 500 and head.status != NOT_SUPPORTED):
            self._failed(Outcome.FAILED, quote(head, data))
        else:
            self._begin_relay(head, data)

    # ------------------------------------------------------------------ relaying

    def _begin_relay(self, head: ResponseHead, data: bytes) -> None:
        lease = self._lease
        assert lease is not None  # noqa: S101 - a target has it
        speaks_chunks = self._sink.minor == 1
        framing = self._framing = self._frame(head, speaks_chunks)
        try:
            used = framing.feed(data) if data else 0
        except BadMessage:
            self._failed(Outcome.UNREACHABLE, "Its answer was garbled.")
            return
        self._head, self._buffer = head, b""
        self._keep = head.length is not None or speaks_chunks
        self._tell_first_byte(lease)
        body = data[:used] if framing.parts is None else self._take_content(framing.parts)
        chunked = speaks_chunks and head.length is None
        self._sink.begin(head.status, end_to_end_fields(head.headers), head.length, chunked, body)
        if framing.done:
            self._complete(reusable=used == len(data))

    def _relay_whole(self, head: ResponseHead, fields: bytes, body: bytes) -> None:
        """As `_judge` and `_begin_relay`, for an answer like the last one (200, of known length) that came whole."""
        lease = self._lease
        assert lease is not None  # noqa: S101 - a target has it
        self._head = head
        self._tell_first_byte(lease)
        self._sink.begin(OK, fields, len(body), False, body)
        self._complete(reusable=True)

    def _tell_first_byte(self, lease: Lease) -> None:
        lease.first_byte()
        self._parts.metrics.first_byte(lease.target.model.id, self._route, self._parts.now() - self._began_s)
        self._patience_s = self._parts.settings.answer_idle_s
        self._has_moved = True

    def _frame(self, head: ResponseHead, speaks_chunks: bool) -> Framing:
        """How the answer's end is found; with `parts` where the client needs another framing than the target's."""
        self._rechunk = speaks_chunks and head.length is None and not head.chunked
        if head.length is not None:
            return LengthFraming(head.length)
        if head.chunked:
            return ChunkedFraming(None if speaks_chunks else [])
        return EndFraming([] if speaks_chunks else None)

    def _take_content(self, parts: list[bytes]) -> bytes:
        body = b"".join(parts)
        parts.clear()
        return as_chunk(body) if self._rechunk else body

    def _write_content(self, parts: list[bytes]) -> None:
        if body := self._take_content(parts):
            self._sink.write(body)

    def _complete(self, *, reusable: bool) -> None:
        head, upstream = self._head, self._upstream
        assert head is not None and upstream is not None  # noqa: S101 - it is being relayed
        upstream.release(reusable and head.keep_alive)
        self._let_go(Outcome.ANSWERED, head.status)
        self._end()
        self._sink.finished(self._keep)

    def _break(self, reason: str) -> None:
        """The answer ends in the middle. A stream of events ends with one that says so, if it can still be put in."""
        head = self._head
        assert head is not None  # noqa: S101 - it is being relayed
        self._drop(Outcome.BROKEN, head.status)
        self._end()
        if not head.is_event_stream or not (self._framing.at_boundary or self._sink.minor == 0):
            self._sink.broken()
            return
        event = sse_error(self.request.path, f"The answer broke off: {reason}")
        self._sink.write(as_chunk(event) + LAST_CHUNK if self._sink.minor == 1 else event)
        self._sink.finished(False)

    # ------------------------------------------------------------------ what the sink tells

    def sink_paused(self) -> None:
        """The reader does not keep up."""
        self._paused = True
        if self._upstream is not None:
            self._upstream.pause()

    def sink_resumed(self) -> None:
        """It has caught up."""
        self._paused = False
        if self._upstream is not None:
            self._has_moved = True
            self._upstream.resume()
