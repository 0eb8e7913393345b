"""The listening side of the fast path: admits who connects, waits for its one stream, hands it to the service of its kind.

State: the admitted connections by node, so that a node that is put out loses them. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final, cast

from agentmesh.core.errors import PeerError, ProtocolError, StreamClosed
from agentmesh.mesh.admission import Admission
from agentmesh.mesh.datagrams import source_of_text
from agentmesh.mesh.links import OnStream
from agentmesh.mesh.logic.bulk_limits import BULK_UNUSED_MS, MAX_BULK_CONNECTIONS_PER_PEER
from agentmesh.mesh.streams import StreamKind, read_header
from agentmesh.mesh.tls_door import HandshakeDoor
from agentmesh.mesh.tls_link import TlsLink
from agentmesh.mesh.transport import Connection

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
    ) -> None:
        self._admission = admission
        self._services = services
        self._known_source = known_source
        self._door = HandshakeDoor()
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
        try:
            async with asyncio.timeout(BULK_UNUSED_MS / 1000):
                stream = await link.accept_stream()
        except (TimeoutError, StreamClosed):
            return  # it was kept ready and never needed
        kind = (await read_header(stream)).known_kind
        serve = self._services.get(kind) if kind is not None and kind in BULK_KINDS else None
        if serve is None:
            stream.abort()
            return
        try:
            await serve(node, stream)
        except (StreamClosed, ProtocolError) as error:
            _log.debug("stream %s of %s: %s", kind, node.hex()[:8], error)
            stream.abort()
            return
        except BaseException:
            stream.abort()
            raise
        await link.linger()
