"""Requests that travel deflated: which, in what pieces, and how they come back without growing beyond what they said."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from agentmesh.core.errors import ProtocolError
from agentmesh.inference.logic.rpc_limits import (
    DEFLATE_INPUT_BYTES,
    DEFLATE_LEVEL,
    DEFLATE_MIN_BYTES,
    DEFLATE_SAMPLE_BYTES,
    DEFLATE_WORTH,
    INFLATE_BLOCK_BYTES,
    MAX_REFUSED_NAMES,
)
from agentmesh.inference.logic.rpc_stream import MAY_BE_DEFLATED, RelayCommand
from agentmesh.inference.logic.rpc_wire import build_request


class DeflateChoice:
    """Which requests of one connection are worth it. Activations are noise and are tried once for each name."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._refused: dict[str, None] = {}

    def may(self, command: int, size: int, name: str | None) -> bool:
        """Whether the beginning of this request should be tried."""
        return (
            self._enabled
            and size >= DEFLATE_MIN_BYTES
            and command in MAY_BE_DEFLATED
            and (name or "") not in self._refused
        )

    def is_worth(self, name: str | None, sample: bytes | memoryview) -> bool:
        """Whether the request shrinks, judged by its beginning; one that does not is remembered by its name."""
        sample = sample[:DEFLATE_SAMPLE_BYTES]
        if len(zlib.compress(sample, DEFLATE_LEVEL)) <= DEFLATE_WORTH * len(sample):
            return True
        if name:
            self._refused[name] = None
            if len(self._refused) > MAX_REFUSED_NAMES:
                del self._refused[next(iter(self._refused))]
        return False


class Deflater:
    """One request on its way out."""

    def __init__(self, command: int, size: int) -> None:
        self._left = size
        self._deflate = zlib.compressobj(DEFLATE_LEVEL)
        self.announcement = build_request(
            RelayCommand.DEFLATED, command.to_bytes(1, "little") + size.to_bytes(8, "little")
        )

    def pieces(self, data: bytes | memoryview) -> Iterator[bytes]:
        """The requests that carry the next bytes of the payload."""
        view = memoryview(data)
        while view:
            part, view = view[:DEFLATE_INPUT_BYTES], view[DEFLATE_INPUT_BYTES:]
            self._left -= len(part)
            end = zlib.Z_FINISH if self._left == 0 else zlib.Z_SYNC_FLUSH
            yield build_request(RelayCommand.DEFLATED_PIECE, self._deflate.compress(part) + self._deflate.flush(end))


class Inflater:
    """One request on its way in: exactly `size` bytes, or an error.

    Raises (from `feed`):
        ProtocolError: the pieces are no zlib, hold more than was announced, or end early.
    """

    def __init__(self, size: int) -> None:
        self.left = size
        self._inflate = zlib.decompressobj()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """What a piece holds, in blocks of at most INFLATE_BLOCK_BYTES."""
        pending = piece
        while True:
            try:
                block = self._inflate.decompress(pending, INFLATE_BLOCK_BYTES)
            except zlib.error as error:
                raise ProtocolError(f"A deflated RPC request is damaged: {error}") from error
            if len(block) > self.left or self._inflate.unused_data:
                raise ProtocolError("A deflated RPC request holds more than was announced.")
            self.left -= len(block)
            if block:
                yield block
            pending = self._inflate.unconsumed_tail
            # Output may be left inside zlib when the block came out full.
            if not pending and len(block) < INFLATE_BLOCK_BYTES:
                break
        if self._inflate.eof != (self.left == 0):
            raise ProtocolError("A deflated RPC request does not end where it should.")
