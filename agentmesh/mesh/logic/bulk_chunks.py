"""How streams are cut into chunks on a TLS connection, without I/O. Knows neither TLS nor what a stream is for.

    length: 4 bytes, unsigned, big-endian, then that many bytes    1 to MAX_CHUNK_BYTES
    0x00000000                                                     the end of this side's stream
    0xffffffff                                                     the stream is aborted; the connection ends

TLS cannot close one direction, and a connection that a third party cut looks like one that was closed: only the end
marker is an end. Streams follow each other on a connection; what comes after an end belongs to the next.
"""

from __future__ import annotations

import struct
from typing import Final

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.bulk_limits import (
    BULK_BUFFER_BYTES,
    FIRST_BULK_BUFFER_BYTES,
    MAX_CHUNK_BYTES,
    SMALL_CHUNK_BYTES,
)

LENGTH: Final = struct.Struct(">I")
END: Final = LENGTH.pack(0)
ABORT_LENGTH: Final = 0xFFFFFFFF
ABORT: Final = LENGTH.pack(ABORT_LENGTH)


def chunks_of(data: bytes) -> list[bytes | memoryview]:
    """What goes out for `data`, in order; large data is not copied."""
    size = len(data)
    if size <= SMALL_CHUNK_BYTES:
        return [LENGTH.pack(size) + data] if size else []
    if size <= MAX_CHUNK_BYTES:
        return [LENGTH.pack(size), data]
    parts: list[bytes | memoryview] = []
    view = memoryview(data)
    for start in range(0, size, MAX_CHUNK_BYTES):
        piece = view[start : start + MAX_CHUNK_BYTES]
        parts += (LENGTH.pack(len(piece)), piece)
    return parts


class ChunkBuffer:
    """Received bytes of one connection, parsed as they are taken: one copy from here to the reader.

    It begins small and grows, while `may_grow`, when it was filled faster than it was read. A full one takes nothing
    more (`is_full`): its owner stops reading from the network.
    """

    def __init__(self) -> None:
        self.may_grow = False
        self.at_end = False  # the present stream's end has been reached by the reader
        self.aborted = False
        self._data = bytearray(FIRST_BULK_BUFFER_BYTES)
        self._view = memoryview(self._data)
        self._start = 0
        self._end = 0
        self._left = 0  # bytes of the present chunk that were not taken yet
        self._skipping = False

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def is_full(self) -> bool:
        """Whether there is no room at all."""
        return len(self) == len(self._data)

    @property
    def is_roomy(self) -> bool:
        """Whether at least half is free, so that it is worth reading from the network again."""
        return 2 * len(self) <= len(self._data)

    def space(self) -> memoryview:
        """Where the next bytes go; empty only if `is_full`. Followed by `filled`."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start and len(self._data) - self._end < len(self._data) // 4:
            size = len(self)
            self._data[:size] = self._data[self._start : self._end]
            self._start, self._end = 0, size
        return self._view[self._end :]

    def filled(self, count: int) -> None:
        """`count` bytes were written to `space()`. Raises: ProtocolError, while a rest is being skipped."""
        self._end += count
        if self._skipping:
            self._skip()
        if self.may_grow and self.is_full and len(self._data) < BULK_BUFFER_BYTES:
            grown = bytearray(BULK_BUFFER_BYTES)
            size = len(self)
            grown[:size] = self._view[self._start : self._end]
            self._data, self._view = grown, memoryview(grown)
            self._start, self._end = 0, size

    def take(self, max_bytes: int) -> bytes | None:
        """Bytes of the present stream, at most `max_bytes`; None if there are none: see `at_end`, `aborted`.

        Raises:
            ProtocolError: a chunk over the limit.
        """
        if self._left == 0 and not self._next_chunk():
            return None
        count = min(self._left, self._end - self._start, max_bytes)
        if count == 0:
            return None
        start = self._start
        self._start += count
        self._left -= count
        return bytes(self._view[start : start + count])

    def has_something(self) -> bool:
        """Whether something of the present stream has come, an end or abort included. Raises: ProtocolError."""
        if self._left == 0:
            self._next_chunk()
        return bool(self._left) or self.at_end or self.aborted

    def next_stream(self) -> None:
        """What is left of the present stream is dropped, now and as it comes. Raises: ProtocolError."""
        if self.at_end:
            self.at_end = False
        else:
            self._skipping = True
            self._skip()

    def shrink(self) -> None:
        """Nothing comes for now: an idle connection holds little."""
        if self._start == self._end and len(self._data) > FIRST_BULK_BUFFER_BYTES:
            self.discard()

    def discard(self) -> None:
        """Nobody reads any more."""
        self._data = bytearray(FIRST_BULK_BUFFER_BYTES)
        self._view = memoryview(self._data)
        self._start = self._end = 0

    def _next_chunk(self) -> bool:
        """Read the next length, if it is there; whether a chunk begins."""
        if self.at_end or self.aborted or self._end - self._start < LENGTH.size:
            return False
        (length,) = LENGTH.unpack_from(self._data, self._start)
        if MAX_CHUNK_BYTES < length < ABORT_LENGTH:
            raise ProtocolError(f"A peer sent a chunk of {length} bytes; the limit is {MAX_CHUNK_BYTES}.")
        self._start += LENGTH.size
        if length == 0:
            self.at_end = True
        elif length == ABORT_LENGTH:
            self.aborted = True
        else:
            self._left = length
        return self._left > 0

    def _skip(self) -> None:
        while self._left or self._next_chunk():
            count = min(self._left, self._end - self._start)
            if count == 0:
                return
            self._start += count
            self._left -= count
        if self.at_end:
            self.at_end = self._skipping = False
