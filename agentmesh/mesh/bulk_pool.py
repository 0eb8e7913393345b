"""Ready connections of the fast path to one peer: dialled, admitted, idle, and who waits for one. Knows no QUIC.

A connection whose stream ended cleanly comes back, for BULK_REUSE_MS. How many are kept and when a dial is due is decided in
logic/bulk_paths.py; here it is done. State: the connections in use (so that they can be cut), the waiting streams; the idle
connections are in bulk_idle.py. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from agentmesh.core.errors import AgentMeshError, PortClosed
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.bulk_idle import IdleLinks
from agentmesh.mesh.logic.bulk_limits import BULK_REUSE_MS, POOL_SPARE_MS, POOL_WAITERS
from agentmesh.mesh.logic.bulk_paths import BulkPaths, BulkTarget
from agentmesh.mesh.tls_link import TlsLink

_log = logging.getLogger(__name__)

Dial = Callable[[bytes, BulkTarget], Awaitable[TlsLink]]
"""An admitted connection, in bounded time. Raises: AgentMeshError."""


class PeerPool:
    """See the module."""

    def __init__(
        self,
        node: bytes,
        paths: BulkPaths,
        dial: Dial,
        tasks: TaskSet,
        now_ms: Callable[[], int],
        idle: IdleLinks,
    ) -> None:
        self.node = node
        self._paths = paths
        self._dial = dial
        self._tasks = tasks
        self._now_ms = now_ms
        self._target = BulkTarget(())
        self._idle = idle
        self._in_use: set[TlsLink] = set()
        self._waiters: deque[asyncio.Future[TlsLink | None]] = deque()
        self._dialling = 0
        self._closed: str | None = None

    @property
    def idle(self) -> int:
        """Connections that are ready."""
        return self._idle.count(self.node)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing here to look after."""
        return not (self.idle or self._in_use or self._waiters or self._dialling)

    async def take(self, target: BulkTarget, timeout_s: float) -> TlsLink | None:
        """An admitted connection that nothing else uses, or None: then the stream goes another way.

        A dial that is still in progress at the time-out goes on, so that the next stream may find its connection.
        """
        self._target = target
        while (link := self._idle.take(self.node)) is not None:
            if not link.is_closed:
                self._in_use.add(link)
                return link
        if len(self._waiters) >= POOL_WAITERS or self._closed is not None:
            return None
        waiter: asyncio.Future[TlsLink | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.refill()
        try:
            async with asyncio.timeout(timeout_s):
                link = await waiter
        except TimeoutError:  # perhaps in the same turn in which it was given one
            link = waiter.result() if waiter.done() and not waiter.cancelled() else None
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and (given := waiter.result()) is not None:
                self._ready(given)
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        return link

    def refill(self) -> None:
        """Begin the dials that are due."""
        if self._closed is not None:
            return
        due = self._paths.dials_due(
            self.node, self._now_ms(), idle=self.idle, dialling=self._dialling, waiting=len(self._waiters)
        )
        for _ in range(due):
            self._dialling += 1
            self._tasks.spawn(self._dial_one(self._target), name="dial")
        if self._dialling == 0:  # nobody is on the way: whoever waits goes another way at once
            while self._waiters:
                _give(self._waiters.popleft(), None)

    def sweep(self) -> None:
        """Drop what has closed and what is no longer wanted, dial what is."""
        now_ms = self._now_ms()
        keep = self._paths.keep_ready(self.node, now_ms)
        self._idle.trim(self.node, keep, now_ms - POOL_SPARE_MS)
        if keep:
            self.refill()

    def close(self, reason: str) -> None:
        """End everything, streams in progress too; nothing comes back to this pool."""
        self._closed = reason
        while (link := self._idle.take(self.node)) is not None:
            link.cut(reason)
        for link in list(self._in_use):
            link.cut(reason)
        while self._waiters:
            _give(self._waiters.popleft(), None)

    async def _dial_one(self, target: BulkTarget) -> None:
        link: TlsLink | None = None
        try:
            link = await self._dial(self.node, target)
            self._paths.succeeded(self.node, target)
        except Exception as error:  # noqa: BLE001 - a task's root: an unnoticed failure would dial again at once, for ever
            if isinstance(error, AgentMeshError):
                _log.debug("fast path to %s: %s", self.node.hex()[:8], error)
            else:
                _log.exception("the fast path to %s broke", self.node.hex()[:8])
            if isinstance(error, PortClosed):
                self._paths.port_closed(self.node, target, self._now_ms())
            self._paths.failed(self.node, target, self._now_ms())
        finally:
            self._dialling -= 1
            if link is not None:
                self._adopt(link)
                self._ready(link)
            self.refill()

    def _adopt(self, link: TlsLink) -> None:
        """A connection of this pool, until its socket is closed."""
        if link.is_gone:
            return
        inner = link.on_gone
        old_ms = self._now_ms() + BULK_REUSE_MS

        def free(link: TlsLink) -> None:
            if self._now_ms() < old_ms:
                self._ready(link)
            else:
                link.close("old")

        def gone(link: TlsLink) -> None:
            self._in_use.discard(link)
            self._idle.remove(link)
            if inner is not None:
                inner(link)

        link.on_free, link.on_gone = free, gone

    def _ready(self, link: TlsLink) -> None:
        """A connection can take a stream: for whoever waits longest, or later."""
        self._in_use.discard(link)
        if self._closed is not None:
            link.cut(self._closed)
            return
        while self._waiters:
            if _give(self._waiters.popleft(), link):
                if not link.is_gone:
                    self._in_use.add(link)
                return
        self._idle.add(self.node, link, self._now_ms())


def _give(waiter: asyncio.Future[TlsLink | None], link: TlsLink | None) -> bool:
    """Whether the waiter was still there."""
    if waiter.done():
        return False
    waiter.set_result(link)
    return True
