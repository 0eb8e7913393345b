"""Streams of bulk (`http`, `blob`, `rpc`) to a peer: over the fast path where it works, over QUIC otherwise.

The caller's seam is `open_stream`: it cannot tell which way was taken. Streams that peers open arrive at the same services
as those over QUIC. State: what is remembered of each path, and a pool for each peer in use. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from agentmesh.core.errors import NotAdmitted, PortClosed, PortInUse, StreamClosed, Unreachable
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.admission import Admission
from agentmesh.mesh.authority import Draft
from agentmesh.mesh.bulk_idle import IdleLinks
from agentmesh.mesh.bulk_pool import PeerPool
from agentmesh.mesh.bulk_server import BULK_KINDS, BulkServer
from agentmesh.mesh.dialing import DIAL_TIMEOUT_S, dial_first
from agentmesh.mesh.links import OnStream
from agentmesh.mesh.logic.bulk_limits import (
    BULK_HEAD_START_MS,
    BULK_WAIT_MS,
    POOL_IDLE,
    POOL_IDLE_PER_PEER,
    POOL_SWEEP_MS,
)
from agentmesh.mesh.logic.bulk_paths import BulkPaths, BulkTarget
from agentmesh.mesh.streams import StreamKind, write_header
from agentmesh.mesh.tls import TlsTransport
from agentmesh.mesh.tls_link import TlsLink
from agentmesh.mesh.transport import Connection, Stream

_log = logging.getLogger(__name__)

REVOKED: Final = "This node was revoked."


@dataclass(frozen=True, slots=True)
class BulkSurroundings:
    """What bulk streams ask of the mesh around them.

    Attributes:
        where: the TCP addresses of a peer, None if it names none.
        over_quic: a fresh QUIC stream to a peer. Raises: Unreachable.
        answers: whether a peer, to which something was just sent over QUIC, is heard from soon.
        is_out: whether a node was revoked.
        publish: spreads a better chain of this node that a peer gave it while admitting it.
        known_source: whether a member was seen at an IP address.
    """

    where: Callable[[bytes], BulkTarget | None]
    over_quic: Callable[[bytes], Awaitable[Stream]]
    answers: Callable[[bytes], Awaitable[bool]]
    is_out: Callable[[bytes], bool]
    publish: Callable[[Draft], None]
    known_source: Callable[[str], bool] = lambda _: False


class BulkStreams:
    """See the module. `listen` once, `close` once. Without a transport everything goes over QUIC."""

    def __init__(
        self,
        transport: TlsTransport | None,
        admission: Admission,
        services: Mapping[StreamKind, OnStream],
        around: BulkSurroundings,
    ) -> None:
        self._transport = transport
        self._admission = admission
        self._around = around
        self._server = BulkServer(admission, services, known_source=around.known_source, is_out=around.is_out)
        self._idle = IdleLinks(of_one=POOL_IDLE_PER_PEER, in_all=POOL_IDLE)
        self._paths = BulkPaths()
        self._pools: dict[bytes, PeerPool] = {}
        self._tasks = TaskSet("bulk")
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def listen(self, host: str, port: int) -> int:
        """Take TCP port `port` if it is free, else any; returns which.

        Raises:
            AgentMeshError: there is none to be had; everything then goes over QUIC.
        """
        if self._transport is None:
            return 0
        try:
            return await self._transport.listen(host, port, self._server.on_connection)
        except PortInUse:
            return await self._transport.listen(host, 0, self._server.on_connection)

    async def open_stream(self, node: bytes, kind: StreamKind) -> Stream:
        """A stream of `kind` to `node`, its header sent: what is written next is the first the service reads.

        On the fast path a peer that is gone may be noticed only at the first read. Whoever opens a stream reads it to its end
        or aborts it: until then its connection stays. One that ended both ways leaves its connection to the next stream.

        Raises:
            Unreachable: neither way leads there.
            StreamClosed: the connection broke while the stream was opened.
        """
        if kind not in BULK_KINDS:
            raise ValueError(f"{kind} is no bulk stream")
        if self._around.is_out(node):
            raise Unreachable("The node is no member of the mesh any more.")
        stream = await self._fast(node, kind)
        if stream is None:
            stream = await self._around.over_quic(node)
            try:
                await write_header(stream, kind)
                if self._paths.is_closed(node, _now_ms()) and not await self._around.answers(node):
                    raise PortClosed("The node has ended: its port is closed, and it does not answer.")
            except BaseException:  # given up in the meantime, too: a stream that nobody has would keep its connection
                stream.abort()
                raise
        return stream

    def works(self, node: bytes) -> bool:
        """Whether streams to `node` take the fast path, as far as is known."""
        return self._paths.works(node)

    def ready(self, node: bytes) -> int:
        """Idle admitted connections to `node`."""
        pool = self._pools.get(node)
        return pool.idle if pool else 0

    def close_revoked(self) -> None:
        """Cut every connection, either way, of nodes that were put out. To be called when revocations came."""
        for node in self._server.nodes():
            if self._around.is_out(node):
                self._server.close_node(node, REVOKED)
        for node in list(self._pools):
            if self._around.is_out(node):
                self._pools.pop(node).close(REVOKED)
                self._paths.forget(node)

    async def close(self) -> None:
        """End all streams and connections."""
        self._closed = True
        for pool in self._pools.values():
            pool.close("The node stops.")
        await self._tasks.close()
        if self._transport is not None:
            await self._transport.close()

    # ------------------------------------------------------------------ the fast path

    async def _fast(self, node: bytes, kind: StreamKind) -> Stream | None:
        target = self._around.where(node) if self._transport is not None else None
        now_ms = _now_ms()
        if self._closed or target is None or not target.addresses or not self._paths.may_try(node, target, now_ms):
            return None
        self._paths.opened(node, now_ms)
        pool = self._pool(node)
        wait_ms = BULK_WAIT_MS if self._paths.works(node) else BULK_HEAD_START_MS
        until_s = asyncio.get_running_loop().time() + wait_ms / 1000
        while (left_s := until_s - asyncio.get_running_loop().time()) > 0:
            link = await pool.take(target, left_s)
            if link is None:
                return None
            try:
                stream = await link.open_stream()
                await write_header(stream, kind)
            except StreamClosed:  # the far side closed it while it was idle
                continue
            except asyncio.CancelledError:
                link.cut("given up")
                raise
            pool.refill()
            return stream
        return None

    def _pool(self, node: bytes) -> PeerPool:
        pool = self._pools.get(node)
        if pool is None:
            pool = self._pools[node] = PeerPool(node, self._paths, self._dial, self._tasks, _now_ms, self._idle)
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = self._tasks.spawn(self._sweep(), name="sweep")
        return pool

    async def _dial(self, node: bytes, target: BulkTarget) -> TlsLink:
        """See bulk_pool.Dial."""
        assert self._transport is not None  # noqa: S101 - pools exist only with it
        connection: Connection | None = None
        try:
            async with asyncio.timeout(2 * DIAL_TIMEOUT_S):
                connection = await dial_first(self._transport, node, target.addresses)
                admitted = await self._admission.introduce(connection)
        except BaseException as error:
            if connection is not None:
                connection.close("not admitted")
            if isinstance(error, TimeoutError):
                raise Unreachable("The fast path took too long.") from error
            raise
        if admitted.publish is not None:
            self._around.publish(admitted.publish)
        if self._around.is_out(node):
            connection.close(REVOKED)
            raise NotAdmitted("The node is no member of the mesh any more.")
        assert isinstance(connection, TlsLink)  # noqa: S101 - what the transport dials
        return connection

    async def _sweep(self) -> None:
        """Look after the pools while there are any."""
        while self._pools:
            await asyncio.sleep(POOL_SWEEP_MS / 1000)
            for node, pool in list(self._pools.items()):
                pool.sweep()
                if pool.is_empty and self._paths.keep_ready(node, _now_ms()) == 0:
                    del self._pools[node]


def _now_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)
