"""A stream that tells when it is over, so that its connection is kept as long as it is used."""

from __future__ import annotations

from collections.abc import Callable

from agentmesh.core.errors import StreamClosed
from agentmesh.mesh.links import OnStream
from agentmesh.mesh.logic.events import LinkUsed
from agentmesh.mesh.transport import Stream


def holding(service: OnStream, feed: Callable[[LinkUsed], None]) -> OnStream:
    """The service of a kind of bulk, during which the link to the peer stays."""

    async def serve(peer: bytes, stream: Stream) -> None:
        feed(LinkUsed(peer, 1))
        try:
            await service(peer, stream)
        finally:
            feed(LinkUsed(peer, -1))

    return serve


class HeldStream:
    """See transport.Stream. `on_over` is called once: at an abort, a failure, or when both directions have ended."""

    def __init__(self, stream: Stream, on_over: Callable[[], None]) -> None:
        self._stream = stream
        self._on_over: Callable[[], None] | None = on_over
        self._read_over = False
        self._write_over = False

    async def read(self, max_bytes: int) -> bytes:
        """See Stream."""
        try:
            data = await self._stream.read(max_bytes)
        except StreamClosed:
            self._over()
            raise
        if not data:
            self._read_over = True
            if self._write_over:
                self._over()
        return data

    async def write(self, data: bytes) -> None:
        """See Stream."""
        try:
            await self._stream.write(data)
        except StreamClosed:
            self._write_over = True  # what the far side still sends may be read
            raise

    async def end(self) -> None:
        """See Stream."""
        await self._stream.end()
        self._write_over = True
        if self._read_over:
            self._over()

    def abort(self) -> None:
        """See Stream."""
        self._stream.abort()
        self._over()

    def _over(self) -> None:
        if self._on_over is not None:
            on_over, self._on_over = self._on_over, None
            on_over()
