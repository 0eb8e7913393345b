"""Giving model files to members over `blob` streams, asked for by their SHA-256.

Owns how many go out at once and what ends one: a peer that does not take it, a file that is not any more what it was. What is
said is logic/blob_wire.py's, which files there are blob_index.py's. State: uploads by peer. Owner: the event loop; disks are read in
threads of its own, so that a slow disk holds up nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import msgspec

from agentmesh.core.errors import ProtocolError, StreamClosed
from agentmesh.inference.blob_index import BlobIndex, OfferedFile, open_offered, unchanged
from agentmesh.inference.logic.blob_limits import (
    MAX_BLOB_REQUEST_BYTES,
    MAX_BLOB_REQUESTS,
    MAX_UPLOADS,
    MAX_UPLOADS_PER_PEER,
    READ_BLOCK_BYTES,
    REQUEST_TIMEOUT_S,
    UPLOAD_STALL_S,
    WRITE_PIECE_BYTES,
)
from agentmesh.inference.logic.blob_wire import (
    LENGTH_BYTES,
    Answer,
    Find,
    Get,
    Request,
    Status,
    frame_of,
    request_decoder,
)
from agentmesh.mesh.logic.frames import decode, frame_length
from agentmesh.mesh.transport import Stream

_log = logging.getLogger(__name__)

T = TypeVar("T")


class BlobService:
    """For `mesh.serve(StreamKind.BLOB, service.serve)`. `close` once."""

    def __init__(self, index: BlobIndex, *, stall_s: float = UPLOAD_STALL_S) -> None:
        self._index = index
        self._stall_s = stall_s
        self._uploads: Counter[bytes] = Counter()
        self._threads = ThreadPoolExecutor(MAX_UPLOADS, thread_name_prefix="blob")
        self._closed = False
        self.sent_bytes = 0

    async def serve(self, peer: bytes, stream: Stream) -> None:
        """Answer one stream's requests. Ends or aborts it."""
        if self._closed:
            stream.abort()
            return
        try:
            for _ in range(MAX_BLOB_REQUESTS):
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    request = await read_frame(stream, request_decoder, MAX_BLOB_REQUEST_BYTES)
                if request is None:
                    await stream.end()
                    return
                if not await self._answer(peer, stream, request):
                    return
            stream.abort()
        except (ProtocolError, StreamClosed, TimeoutError) as error:
            _log.debug("a blob stream of %s: %s", peer.hex()[:8], error or "nothing came or went in time")
            stream.abort()

    async def close(self) -> None:
        """Let go of the threads; what is on its way ends with its present block."""
        self._closed = True
        await self._index.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, peer: bytes, stream: Stream, request: Request) -> bool:
        """Whether another request may follow."""
        if isinstance(request, Find):
            await self._write(stream, frame_of(await self._index.listing(request.repo, request.revision)))
            return True
        file = await self._index.find(request.sha256)
        answer = self._status(peer, file)
        if isinstance(request, Get) and request.offset > answer.size:
            answer = Answer(Status.NONE)
        if file is None or answer.status is not Status.HAVE or not isinstance(request, Get):
            await self._write(stream, frame_of(answer))
            return True
        self._uploads[peer] += 1
        try:
            return await self._give(stream, file, request.offset)
        finally:
            self._uploads[peer] -= 1
            if not self._uploads[peer]:
                del self._uploads[peer]

    def _status(self, peer: bytes, file: OfferedFile | None) -> Answer:
        if file is None:
            return Answer(Status.NONE)
        full = self._uploads[peer] >= MAX_UPLOADS_PER_PEER or self._uploads.total() >= MAX_UPLOADS
        return Answer(Status.BUSY if full else Status.HAVE, file.size)

    async def _give(self, stream: Stream, file: OfferedFile, offset: int) -> bool:
        blocks = await self._open(file, offset)
        if blocks is None:
            await self._write(stream, frame_of(Answer(Status.NONE)))
            return True
        try:
            await self._write(stream, frame_of(Answer(Status.HAVE, file.size)))
            while block := await blocks.next():
                if not unchanged(blocks.descriptor, file):
                    raise StreamClosed(f"{file.path} changed while it was given to a peer.")
                for piece in block:
                    await self._write(stream, piece)
                    self.sent_bytes += len(piece)
            if not blocks.at_end:
                raise StreamClosed(f"{file.path} was cut short while it was given to a peer.")
            await stream.end()
        finally:
            blocks.close()
        return False

    async def _open(self, file: OfferedFile, offset: int) -> _Blocks | None:
        """None if the file is not any more what it was. Whatever comes in between, the descriptor is closed."""
        opening = _submit(self._threads, lambda: open_offered(file))
        try:
            descriptor = await asyncio.wrap_future(opening)
            return None if descriptor is None else _Blocks(self._threads, descriptor, offset, file.size)
        except BaseException:
            opening.add_done_callback(_close_opened)
            raise

    async def _write(self, stream: Stream, data: bytes) -> None:
        async with asyncio.timeout(self._stall_s):
            await stream.write(data)


class _Blocks:
    """A file's blocks, the next one read while the last one is written. Closes the descriptor."""

    def __init__(self, threads: ThreadPoolExecutor, descriptor: int, offset: int, size: int) -> None:
        self._threads = threads
        self.descriptor = descriptor
        self._at = offset
        self._size = size
        self._reading = self._read()

    @property
    def at_end(self) -> bool:
        """Whether all blocks were given."""
        return self._at >= self._size

    def _read(self) -> Future[list[bytes]]:
        start = self._at
        return _submit(self._threads, lambda: _pieces(self.descriptor, start, self._size))

    async def next(self) -> list[bytes]:
        """The next block in pieces, or nothing at the end. Raises: StreamClosed: the disk does not give it."""
        try:
            block = await asyncio.wrap_future(self._reading)
        except OSError as error:
            raise StreamClosed(f"A model file could not be read: {error.strerror}.") from error
        self._at += sum(map(len, block))
        self._reading = self._read()
        return block

    def close(self) -> None:
        """Close the file once nobody reads it."""
        self._reading.add_done_callback(lambda _: os.close(self.descriptor))


def _submit(threads: ThreadPoolExecutor, work: Callable[[], T]) -> Future[T]:
    """Raises: StreamClosed: the node stops."""
    try:
        return threads.submit(work)
    except RuntimeError as error:
        raise StreamClosed("The node stops.") from error


def _close_opened(opening: Future[int | None]) -> None:
    """Nobody took the descriptor."""
    if not opening.cancelled() and opening.exception() is None and (descriptor := opening.result()) is not None:
        os.close(descriptor)


def _pieces(descriptor: int, start: int, size: int) -> list[bytes]:
    """In a thread: one block, each piece read on its own so that none is copied again."""
    pieces: list[bytes] = []
    end = min(start + READ_BLOCK_BYTES, size)
    while start < end and (piece := os.pread(descriptor, min(WRITE_PIECE_BYTES, end - start), start)):
        pieces.append(piece)
        start += len(piece)
    return pieces


async def read_frame(stream: Stream, decoder: msgspec.msgpack.Decoder[T], limit: int) -> T | None:
    """One frame, read exactly: what follows may be raw bytes. None at the end. The caller bounds the wait.

    Raises:
        ProtocolError: it is none, or over `limit`. StreamClosed: the stream ended inside of it.
    """
    prefix = await _read_exactly(stream, LENGTH_BYTES)
    if not prefix:
        return None
    body = await _read_exactly(stream, frame_length(prefix, limit=limit))
    if not body:
        raise StreamClosed("The peer ended a stream in the middle of a frame.")
    return decode(body, decoder)


async def _read_exactly(stream: Stream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = await stream.read(count - len(data))
        if not chunk:
            if data:
                raise StreamClosed("The peer ended a stream in the middle of a frame.")
            return b""
        data += chunk
    return bytes(data)
