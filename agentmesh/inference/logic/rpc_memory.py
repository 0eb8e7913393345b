"""What one host may allocate on a worker's RPC server, and what it is told of the worker's memory. All in bytes."""

from __future__ import annotations

from collections import deque

from agentmesh.core.errors import ProtocolError
from agentmesh.inference.logic.rpc_limits import MAX_BUFFERS


class Allocations:
    """The buffers of one connection; the RPC server frees them when it ends.

    Args:
        limit_bytes: of all buffers together; None: whatever the RPC server gives.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit = limit_bytes
        self._sizes: dict[int, int] = {}
        self._asked: deque[int] = deque()

    @property
    def held_bytes(self) -> int:
        """Allocated, and asked for."""
        return sum(self._sizes.values()) + sum(self._asked)

    def ask(self, size: int) -> bool:
        """Whether a buffer of this size may be asked for; if so, it counts from now on. Raises: ProtocolError: too many."""
        if len(self._sizes) + len(self._asked) >= MAX_BUFFERS:
            raise ProtocolError(f"More than {MAX_BUFFERS} RPC buffers.")
        if self._limit is not None and self.held_bytes + size > self._limit:
            return False
        self._asked.append(size)
        return True

    def answered(self, pointer: int, size: int) -> None:
        """The RPC server's answer to the oldest request; pointer 0: it had no memory."""
        self._asked.popleft()
        if pointer:
            self._sizes[pointer] = size

    def freed(self, pointer: int) -> None:
        """A buffer is no more. One that never was ends the RPC server's connection, not ours."""
        self._sizes.pop(pointer, None)

    def check(self, size: int) -> None:
        """A tensor of this size must lie in what was allocated: the RPC server makes room for it before it looks.

        Raises:
            ProtocolError: it cannot.
        """
        if size > self.held_bytes:
            raise ProtocolError(
                f"A tensor of {size} bytes does not lie in the {self.held_bytes} bytes that were allocated."
            )

    def told(self, free: int, total: int) -> tuple[int, int]:
        """(free, total) of a device as the host may know them."""
        if self._limit is None:
            return free, total
        return min(free, max(0, self._limit - self.held_bytes)), min(total, self._limit)
