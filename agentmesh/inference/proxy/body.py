"""The bodies of requests: kept whole until the answer has begun, so that they can be sent again to another target.

Owns the budget over all bodies, and where each lies: in memory, or beyond a size in an unlinked file. Writing to that file
blocks the loop for as long as a copy into the page cache takes (256 KiB: some 50 us), which is less than a thread would cost.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Final, Protocol, TypeVar

from agentmesh.core.errors import AgentMeshError
from agentmesh.inference.logic.proxy_limits import PIECE_BYTES
from agentmesh.inference.proxy.settings import ApiSettings

T = TypeVar("T")

CRUMB_BYTES: Final = 1024  # a smaller piece of a body is put to those before it


class BodyTooLarge(AgentMeshError):
    """The request's body is larger than this node accepts."""

    http_status = 413


class NoRoomForBody(AgentMeshError):
    """Too many large requests at once; try again in a moment."""

    http_status = 503
    retryable = True


class BodyBudget:
    """Bytes that bodies hold, over all requests, or over some of them: then they count in `whole` too."""

    def __init__(self, limit_bytes: int, whole: BodyBudget | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._whole = whole
        self.used_bytes = 0

    def take(self, count: int) -> None:
        """Raises: NoRoomForBody."""
        if self.used_bytes + count > self._limit_bytes:
            raise NoRoomForBody()
        if self._whole is not None:
            self._whole.take(count)
        self.used_bytes += count

    def give_back(self, count: int) -> None:
        self.used_bytes -= count
        if self._whole is not None:
            self._whole.give_back(count)


class Body(Protocol):
    """A whole body. `close` it exactly once or more; nothing may be read after that."""

    size: int

    @property
    def data(self) -> bytes | None:
        """Everything, if it is in memory."""
        ...

    def read(self, reader: Callable[[bytes | memoryview], T]) -> T:
        """What `reader` makes of everything; it keeps nothing of what it is given."""
        ...

    def piece(self, offset: int) -> bytes:
        """What comes at `offset`, at most PIECE_BYTES; nothing once it is closed."""
        ...

    def close(self) -> None: ...


class MemoryBody:
    """A body in memory."""

    __slots__ = ("_budget", "data", "size")

    def __init__(self, data: bytes, budget: BodyBudget) -> None:
        self.data: bytes | None = data
        self.size = len(data)
        self._budget: BodyBudget | None = budget

    def read(self, reader: Callable[[bytes | memoryview], T]) -> T:
        """See Body."""
        return reader(self.data or b"")

    def piece(self, offset: int) -> bytes:
        """See Body."""
        return (self.data or b"")[offset : offset + PIECE_BYTES]

    def close(self) -> None:
        """See Body."""
        if self._budget is not None:
            self._budget.give_back(self.size)
            self._budget = self.data = None


class FileBody:
    """A body in an unlinked file."""

    data = None

    def __init__(self, file: IO[bytes], size: int, budget: BodyBudget) -> None:
        self.size = size
        self._file = file
        self._budget: BodyBudget | None = budget
        self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)

    def read(self, reader: Callable[[bytes | memoryview], T]) -> T:
        """See Body."""
        with memoryview(self._map) as view:
            return reader(view)

    def piece(self, offset: int) -> bytes:
        """See Body."""
        if self._budget is None:
            return b""
        return self._map[offset : offset + PIECE_BYTES]

    def close(self) -> None:
        """See Body."""
        if self._budget is not None:
            self._budget.give_back(self.size)
            self._budget = None
            self._map.close()
            _drop(self._file)


class BodySpool:
    """A body that is still coming. Either `finish` it or `close` it."""

    def __init__(self, budget: BodyBudget, settings: ApiSettings) -> None:
        self.size = 0
        self._budget = budget
        self._settings = settings
        self._parts: list[bytes | bytearray] = []  # crumbs in a row are one: each alone costs 40 bytes more than it has
        self._file: IO[bytes] | None = None

    def add(self, data: bytes) -> None:
        """Raises: BodyTooLarge, NoRoomForBody (also when the disk has none)."""
        if self.size + len(data) > self._settings.max_body_bytes:
            raise BodyTooLarge(f"The request's body is larger than {self._settings.max_body_bytes:,} bytes.")
        self._budget.take(len(data))
        self.size += len(data)
        try:
            if self._file is not None:
                self._file.write(data)
            else:
                self._keep(data)
                if self.size > self._settings.spill_bytes:
                    self._spill()
        except OSError as error:
            raise NoRoomForBody(f"The request's body could not be kept: {error.strerror}.") from error

    def _keep(self, data: bytes) -> None:
        if len(data) >= CRUMB_BYTES:
            self._parts.append(data)
        elif self._parts and isinstance(last := self._parts[-1], bytearray):
            last += data
        else:
            self._parts.append(bytearray(data) if self._parts else data)

    def _spill(self) -> None:
        self._file = tempfile.TemporaryFile(dir=self._settings.spill_folder)  # noqa: SIM115 - `close` does
        self._file.writelines(self._parts)
        self._parts.clear()

    def finish(self) -> Body:
        """Everything that was added. The spool is empty afterwards. Raises: NoRoomForBody."""
        size, self.size = self.size, 0
        file, self._file = self._file, None
        if file is None:
            data = b"".join(self._parts)
            self._parts.clear()
            return MemoryBody(data, self._budget)
        try:
            file.flush()
            return FileBody(file, size, self._budget)
        except OSError as error:
            self._budget.give_back(size)
            _drop(file)
            raise NoRoomForBody(f"The request's body could not be kept: {error.strerror}.") from error

    def close(self) -> None:
        """Drop what came so far."""
        self._budget.give_back(self.size)
        self.size = 0
        self._parts.clear()
        if self._file is not None:
            _drop(self._file)
            self._file = None


def _drop(file: IO[bytes]) -> None:
    """Close a file whose content nobody needs: on a full disk, what it still holds cannot be written, which must not matter."""
    with suppress(OSError):
        file.close()
