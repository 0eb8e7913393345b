"""The listening side of the fast path: admits who connects, waits for its streams, hands each to the service of its kind.

State: the admitted connections by node, so that a node that is put out loses them; those of them that carry nothing. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final, cast

from agentmesh.core.errors import PeerError, ProtocolError, StreamClosed
from agentmesh.mesh.admission import Admission
from agentmesh.mesh.bulk_idle import IdleLinks
from agentmesh.mesh.datagrams import source_of_text
from agentmesh.mesh.links import OnStream
from agentmesh.mesh.logic.bulk_limits import (
    BULK_DRAIN_MS,
    BULK_SERVE_MS,
    BULK_UNUSED_MS,
    MAX_BULK_CONNECTIONS_PER_PEER,
    MAX_BULK_IDLE,
    MAX_BULK_IDLE_PER_PEER,
)
from agentmesh.mesh.streams import StreamKind, read_header
from agentmesh.mesh.tls_door import HandshakeDoor
from agentmesh.mesh.tls_link import TlsLink
from agentmesh.mesh.transport import Connection, Stream

_log = logging.getLogger(__name__)

BULK_KINDS: Final = frozenset({StreamKind.HTTP, StreamKind.BLOB, StreamKind.RPC, StreamKind.JOB})
"""What may go over the fast path. Control and gossip belong to the QUIC connection."""


class BulkServer:
    """See the module. `services` is the mesh's table: it may grow while this runs."""

    def __init__(
        self,
        admission: Admission,
        services: Mapping[StreamKind, OnStream],
        *,
        known_source: Callable[[str], bool] = lambda _: False,
        is_out: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        self._admission = admission
        self._services = services
        self._known_source = known_source
        self._is_out = is_out
        self._door = HandshakeDoor()
        self._idle = IdleLinks(of_one=MAX_BULK_IDLE_PER_PEER, in_all=MAX_BULK_IDLE)
        self._links: dict[bytes, dict[TlsLink, asyncio.Task[object] | None]] = {}  # with the task that serves each

    def nodes(self) -> tuple[bytes, ...]:
        """Who is connected here."""
        return tuple(self._links)

    def close_node(self, node: bytes, reason: str) -> None:
        """End all connections of one node, and what serves them."""
        for link, task in list(self._links.get(node, {}).items()):
            link.cut(reason)
            if task is not None:
                task.cancel()

    async def on_connection(self, connection: Connection) -> None:
        """One incoming connection, from the end of its TLS handshake to its own."""
        source = source_of_text(connection.remote_address)
        if not await self._door.enter(source, known=self._known_source(source)):
            return
        try:
            admitted = await self._admission.admit(connection)
        except PeerError as error:
            _log.info("%s was not admitted to the fast path: %s", connection.remote_address, error)
            raise
        finally:
            self._door.leave(source)
        link = cast("TlsLink", connection)
        links = self._links.setdefault(admitted.node, {})
        if len(links) >= MAX_BULK_CONNECTIONS_PER_PEER:
            return
        links[link] = asyncio.current_task()
        try:
            await self._serve(admitted.node, link)
        finally:
            del links[link]
            if not links:
                self._links.pop(admitted.node, None)

    async def _serve(self, node: bytes, link: TlsLink) -> None:
        """One stream after the other, until the far side has what it wants or breaks off."""
        loop = asyncio.get_running_loop()
        last_s = loop.time() + BULK_SERVE_MS / 1000
        wait_ms = BULK_UNUSED_MS
        while (stream := await self._next(node, link, wait_ms)) is not None and not self._is_out(node):
            if loop.time() >= last_s:
                link.carries_many = False
            if not await self._serve_one(node, stream) or not await link.linger():
                return
            wait_ms = BULK_DRAIN_MS  # the far side may still be reading what the kernels hold
            await asyncio.sleep(0)  # streams that have come already must not keep everybody else waiting

    async def _next(self, node: bytes, link: TlsLink, wait_ms: int) -> Stream | None:
        """The stream that comes next, or None: it was kept ready and not needed."""
        self._idle.add(node, link, 0)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                return await link.accept_stream()
        except (TimeoutError, StreamClosed):
            return None
        finally:
            self._idle.remove(link)

    async def _serve_one(self, node: bytes, stream: Stream) -> bool:
        """Whether its service came to an end with it."""
        kind = (await read_header(stream)).known_kind
        serve = self._services.get(kind) if kind is not None and kind in BULK_KINDS else None
        if serve is None:
            stream.abort()
            return False
        try:
            await serve(node, stream)
        except (StreamClosed, ProtocolError) as error:
            _log.debug("stream %s of %s: %s", kind, node.hex()[:8], error)
            stream.abort()
            return False
        except BaseException:
            stream.abort()
            raise
        return True
