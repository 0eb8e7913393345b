"""A request under way at a peer: HTTP/1.1 over one stream of the mesh. See parts.Upstream.

This side does not end its direction before the answer is whole: ending is how a stream says that it is done with, so a reset
in the meantime reaches the peer as what it is, and frees the engine's slot there at once.
"""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from agentmesh.core.errors import AgentMeshError
from agentmesh.inference.logic.http_head import target_request_head
from agentmesh.inference.logic.proxy_limits import PEER_END_S, READ_BYTES
from agentmesh.inference.logic.target import Target
from agentmesh.inference.proxy.parts import Parts
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream

if TYPE_CHECKING:
    from agentmesh.inference.proxy.exchange import Exchange


_log = logging.getLogger(__name__)


@lru_cache(maxsize=256)
def encode_model(model_id: str) -> str:
    """A model's id as it stands in a header."""
    return quote(model_id, safe=" !#$&'()*+,/:;=?@[]^_`{|}~")


class PeerCall:
    """See the module."""

    reused = False

    def __init__(self, parts: Parts, exchange: Exchange, target: Target) -> None:
        self._parts = parts
        self._exchange: Exchange | None = exchange
        self._target = target
        self._stream: Stream | None = None
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._whole = False
        self._task = parts.tasks.spawn(self._run(exchange), name="request to a peer")

    def pause(self) -> None:
        """See Upstream."""
        self._may_read.clear()

    def resume(self) -> None:
        """See Upstream."""
        self._may_read.set()

    def release(self, reusable: bool) -> None:
        """See Upstream."""
        self._exchange = None
        self._whole = reusable
        self._may_read.set()

    def abort(self) -> None:
        """See Upstream."""
        self._exchange = None
        self._may_read.set()
        if self._stream is not None:
            self._stream.abort()
        self._task.cancel()

    async def _run(self, exchange: Exchange) -> None:
        try:
            await self._ask(exchange)
        except Exception:  # noqa: BLE001 - a task's root: unnoticed, the client would wait for ever
            _log.exception("a request to a peer failed")
            self._lost("Asking the peer failed.")

    async def _ask(self, exchange: Exchange) -> None:
        stream: Stream | None = None
        try:
            async with asyncio.timeout(self._parts.settings.peer_open_s):
                stream = await self._parts.open_peer(self._target.node, StreamKind.HTTP)
        except (AgentMeshError, TimeoutError) as error:
            self._lost(f"The peer could not be reached: {error or 'it did not answer in time'}.")
            return
        self._stream = stream
        try:
            await self._talk(stream, exchange)
            if self._whole:
                await self._end(stream)
                return
        except AgentMeshError as error:
            self._lost(str(error))
        finally:
            stream.abort()  # does nothing to one that has ended

    async def _talk(self, stream: Stream, exchange: Exchange) -> None:
        sending = await self._send(stream, exchange)
        try:
            while self._exchange is not None:
                data = await stream.read(READ_BYTES)
                self._parts.metrics.received_from_peer(len(data))
                if not data:
                    self._lost("The peer ended its answer.", clean=True)
                else:
                    exchange.upstream_data(self, data)  # which passes over what comes after it let go
                if not self._may_read.is_set():
                    await self._may_read.wait()
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
                self._whole = False

    async def _send(self, stream: Stream, exchange: Exchange) -> asyncio.Task[None] | None:
        """Send the request; a large body in a task of its own, so that a refusal is read while it is on its way."""
        request = exchange.request
        head = target_request_head(
            request.path, request.headers, request.body.size, model=encode_model(self._target.model.id)
        )
        self._parts.metrics.sent_to_peer(len(head) + request.body.size)
        data = request.body.data
        if data is not None and len(data) <= READ_BYTES:
            await stream.write(head + data)
            return None
        await stream.write(head)
        return self._parts.tasks.spawn(self._send_body(stream, exchange), name="body to a peer")

    async def _send_body(self, stream: Stream, exchange: Exchange) -> None:
        body, offset = exchange.request.body, 0
        try:
            while offset < body.size:
                piece = body.piece(offset)
                if not piece:
                    return  # the request is over, and its body closed
                offset += len(piece)
                for start in range(0, len(piece), READ_BYTES):
                    await stream.write(piece[start : start + READ_BYTES])
        except AgentMeshError:
            return  # whoever reads learns it

    async def _end(self, stream: Stream) -> None:
        """Both directions are over, so that the connection below can be kept."""
        try:
            async with asyncio.timeout(PEER_END_S):
                await stream.end()
                while await stream.read(READ_BYTES):
                    pass
        except (AgentMeshError, TimeoutError):
            stream.abort()

    def _lost(self, reason: str, *, clean: bool = False) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.upstream_lost(self, reason, clean=clean)
