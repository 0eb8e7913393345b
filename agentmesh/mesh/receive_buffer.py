"""What has arrived on one stream and has not been read yet. Shared by the transports; knows none of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from agentmesh.core.errors import StreamClosed
from agentmesh.mesh.wakeup import Wakeup


class ReceiveBuffer:
    """Chunks in the order they came, their end, and why it never comes.

    Args:
        on_read: told how many bytes a reader has just taken, which is what opens the flow again.
    """

    def __init__(self, on_read: Callable[[int], None]) -> None:
        self.size_bytes = 0
        self.ended = False
        self._on_read = on_read
        self._chunks: deque[bytes] = deque()
        self._failed: str | None = None
        self._wakeup = Wakeup()

    def feed(self, data: bytes) -> None:
        if data and self._failed is None:
            self._chunks.append(data)
            self.size_bytes += len(data)
            self._wakeup.wake()

    def end(self) -> None:
        """Nothing more comes; what is here can be read."""
        self.ended = True
        self._wakeup.wake()

    def fail(self, reason: str, *, discard: bool) -> None:
        """The rest will never come. A reset also takes back what was not read yet (RFC 9000 section 3.2)."""
        if self._failed is None:
            self._failed = reason
        if discard:
            self._chunks.clear()
            self.size_bytes = 0
            self.ended = False
        self._wakeup.wake()

    async def read(self, max_bytes: int) -> bytes:
        """Up to `max_bytes`, or `b""` at the end. Raises: StreamClosed."""
        if max_bytes <= 0:
            raise ValueError("max_bytes must be positive")
        while not self._chunks:
            if self.ended:
                return b""
            if self._failed is not None:
                raise StreamClosed(self._failed)
            await self._wakeup.wait()
        data = self._take(max_bytes)
        self.size_bytes -= len(data)
        self._on_read(len(data))
        return data

    def _take(self, max_bytes: int) -> bytes:
        first = self._chunks.popleft()
        if len(first) > max_bytes:
            self._chunks.appendleft(first[max_bytes:])
            return first[:max_bytes]
        if not self._chunks or len(first) == max_bytes:
            return first
        taken = [first]
        room = max_bytes - len(first)
        while self._chunks and room:
            chunk = self._chunks.popleft()
            if len(chunk) > room:
                self._chunks.appendleft(chunk[room:])
                chunk = chunk[:room]
            taken.append(chunk)
            room -= len(chunk)
        return b"".join(taken)
