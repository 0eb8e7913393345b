"""What is common to every stream: the header that names its kind, and frames over it. Knows no transport and no message's meaning.

The side that opens a stream sends one frame, [kind, version], before anything else. The header is read exactly, so a
stream whose kind carries raw bytes (`http`, `blob`) starts right behind it.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Final, TypeVar

import msgspec

from agentmesh.core.errors import ProtocolError, StreamClosed
from agentmesh.mesh.logic.frames import LENGTH_BYTES, FrameReader, decode, encode, encode_frame, frame_length
from agentmesh.mesh.logic.limits import MAX_FRAME_BYTES, STREAM_HEADER_TIMEOUT_MS
from agentmesh.mesh.logic.transport_limits import MAX_HEADER_BYTES, READ_BYTES
from agentmesh.mesh.transport import Connection, Stream

STREAM_VERSION: Final = 1


class StreamKind(StrEnum):
    """What a stream is for."""

    CONTROL = "control"
    GOSSIP = "gossip"
    RECORDS = "records"
    HTTP = "http"
    RPC = "rpc"
    BLOB = "blob"
    JOB = "job"


class StreamHeader(msgspec.Struct, array_like=True, frozen=True):
    """The first frame of a stream. `kind` is plain text: a later version may name kinds that this one refuses."""

    kind: str
    version: int

    @property
    def known_kind(self) -> StreamKind | None:
        """The kind, or None if this version does not know it; then the stream is aborted and nothing else happens."""
        try:
            return StreamKind(self.kind)
        except ValueError:
            return None


T = TypeVar("T")

_header_decoder = msgspec.msgpack.Decoder(StreamHeader)


async def write_header(stream: Stream, kind: StreamKind, *, version: int = STREAM_VERSION) -> None:
    """Say what a newly opened stream is for. Raises: StreamClosed."""
    await stream.write(encode_frame(encode(StreamHeader(kind.value, version)), limit=MAX_HEADER_BYTES))


async def read_header(stream: Stream, *, timeout_s: float = STREAM_HEADER_TIMEOUT_MS / 1000) -> StreamHeader:
    """What a stream that the far side opened is for. The stream is aborted when this fails.

    Raises:
        ProtocolError: no good header came in time.
        StreamClosed: the stream ended first.
    """
    try:
        async with asyncio.timeout(timeout_s):
            length = frame_length(await _read_exactly(stream, LENGTH_BYTES), limit=MAX_HEADER_BYTES)
            return decode(await _read_exactly(stream, length), _header_decoder)
    except TimeoutError as error:
        stream.abort()
        raise ProtocolError(f"A peer opened a stream and did not say what for within {timeout_s:g} s.") from error
    except (ProtocolError, StreamClosed):
        stream.abort()
        raise


async def _read_exactly(stream: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = await stream.read(count - len(data))
        if not chunk:
            raise StreamClosed("The peer ended a stream before its header.")
        data += chunk
    return data


class FrameStream:
    """Frames over one stream. Any number of tasks may write; one reads."""

    def __init__(self, stream: Stream, *, limit: int = MAX_FRAME_BYTES) -> None:
        self.stream = stream
        self._limit = limit
        self._reader = FrameReader(limit=limit)

    async def read_frame(self) -> bytes | None:
        """The next frame's body, or None at the far side's end. Waits as long as it takes: the caller bounds it.

        Raises:
            ProtocolError: a frame is over the limit, empty or cut off.
            StreamClosed: the stream was reset or its connection ended.
        """
        while (body := self._reader.next_frame()) is None:
            data = await self.stream.read(READ_BYTES)
            if not data:
                self._reader.end()
                return None
            self._reader.feed(data)
        return body

    async def write_frame(self, body: bytes) -> None:
        """Send one frame whole, waiting while the far side does not keep up. Raises: StreamClosed."""
        await self.stream.write(encode_frame(body, limit=self._limit))

    async def read_struct(self, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
        """The next frame as what `decoder` expects, or None at the end. Raises: ProtocolError, StreamClosed."""
        body = await self.read_frame()
        return None if body is None else decode(body, decoder)

    async def write_struct(self, structure: msgspec.Struct) -> None:
        """Send one structure as a frame. Raises: StreamClosed."""
        await self.write_frame(encode(structure))

    async def end(self) -> None:
        """No more frames from this side."""
        await self.stream.end()

    def abort(self) -> None:
        """Drop both directions at once."""
        self.stream.abort()


async def open_framed(connection: Connection, kind: StreamKind, *, limit: int = MAX_FRAME_BYTES) -> FrameStream:
    """Open a stream for frames of one kind. Raises: StreamClosed."""
    stream = await connection.open_stream()
    await write_header(stream, kind)
    return FrameStream(stream, limit=limit)
