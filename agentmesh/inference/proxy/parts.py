"""What the pieces of the data path share, and the two seams between them: an upstream that answers, a sink that takes the answer.

Owns the set of exchanges in progress, so that one sweep looks at all their deadlines (a timer for each would cost as much
as relaying a chunk). See docs/proxy.md for the states.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.head_memo import HeadMemo
from agentmesh.inference.logic.http_head import ResponseHead
from agentmesh.inference.proxy.body import BodyBudget
from agentmesh.inference.proxy.dialects import Answer
from agentmesh.inference.proxy.metrics import Metrics
from agentmesh.inference.proxy.ports import Dispatch
from agentmesh.inference.proxy.settings import ApiSettings
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream

if TYPE_CHECKING:
    from agentmesh.inference.proxy.engine_pool import EnginePools
    from agentmesh.inference.proxy.exchange import Exchange

_log = logging.getLogger(__name__)

OpenPeer = Callable[[bytes, StreamKind], Awaitable[Stream]]
"""A fresh stream to a node, its header sent. Raises: AgentMeshError."""


class OwnAnswers(Protocol):
    """What is answered here without a model: answers.LocalAnswers."""

    def answer(
        self, method: str, path: str, query: str = "", accept: str = "", *, anthropic: bool = False
    ) -> Answer | None: ...


class Sink(Protocol):
    """Where an answer goes: a client's connection, or a peer's stream. Called by one exchange, never after `finished`."""

    minor: int  # of the HTTP version that it understands

    def begin(self, status: int, fields: bytes, length: int | None, chunked: bool, body: bytes) -> None:
        """The head, and what there is of the body, framed."""
        ...

    def write(self, data: bytes) -> None:
        """More of the body, framed. The sink calls `sink_paused` and `sink_resumed` of the exchange."""
        ...

    def finished(self, keep: bool) -> None:
        """The answer is whole. `keep`: the connection can go on."""
        ...

    def answer(self, answer: Answer) -> None:
        """A whole answer made here; nothing was begun."""
        ...

    def broken(self) -> None:
        """The answer ends in the middle: the connection must show it."""
        ...


class Upstream(Protocol):
    """A request under way at one target. It tells its exchange `upstream_data` and, once at the end, `upstream_lost`."""

    reused: bool  # its connection had carried another request before

    def pause(self) -> None: ...
    def resume(self) -> None: ...

    def release(self, reusable: bool) -> None:
        """The answer was whole; `reusable`: nothing came behind it."""
        ...

    def abort(self) -> None:
        """Give up; the target is to stop working at once. Nothing is told afterwards."""
        ...


class Outbox:
    """What connections write, held until every event of the present turn of the loop is handled, then written at once.

    A write wakes whoever waits for it, which costs several times the write itself if that sleeps on another core. Written
    one right after the other, many go out for one waking (measured with 64 connections: 6 us a write instead of 12).
    Nothing stays longer than the turn.
    """

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[Callable[[bytes], None], bytes]] = []

    def write(self, write: Callable[[bytes], None], data: bytes) -> None:
        """`write` is a transport's; what is written to one keeps its order."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append((write, data))

    def write_at_once(self, write: Callable[[bytes], None], data: bytes) -> None:
        """As `write`, but without waiting if nothing else does: for one more piece of a stream, which mostly comes alone."""
        if self._waiting:
            self._waiting.append((write, data))
        else:
            write(data)

    def then(self, action: Callable[[], None]) -> None:
        """Do this once everything before it is written: a transport's `close` or `write_eof`."""
        self.write(lambda _: action(), b"")

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for write, data in waiting:
            try:
                write(data)
            except (RuntimeError, OSError) as error:
                # The connection ended meanwhile: uvloop's word when it is written to, asyncio's when it is ended. Others
                # must not lose what is theirs.
                _log.debug("nothing could be written to a connection: %s", error)


@dataclass(slots=True)
class Parts:
    """See the module."""

    dispatch: Dispatch
    own: OwnAnswers
    settings: ApiSettings
    open_peer: OpenPeer
    metrics: Metrics
    budget: BodyBudget
    tasks: TaskSet
    outbox: Outbox
    now: Callable[[], float]  # the loop's clock, in seconds
    engines: EnginePools = field(init=False)
    # One engine's are all alike; beside each what clients get of its fields.
    response_heads: HeadMemo[tuple[ResponseHead, bytes]] = field(default_factory=HeadMemo[tuple[ResponseHead, bytes]])
    exchanges: set[Exchange] = field(default_factory=set["Exchange"])
    draining: bool = False
