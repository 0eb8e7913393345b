"""Frames: how structures become a byte stream and come back, whatever the splits. Knows no stream and no task.

A frame is a 4-byte big-endian length followed by that many bytes of msgpack. The length is looked at before anything is
kept for the frame, so that a peer cannot make us allocate what it merely claims. The meaning of messages is not known
here; only which of them this version can read.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.limits import MAX_FRAME_BYTES
from agentmesh.mesh.logic.messages import KNOWN_TAGS, AnyMessage

LENGTH_BYTES: Final = 4

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_message_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


class _Tagged(msgspec.Struct, array_like=True):
    """The first element of any message; the rest is skipped unread."""

    tag: int


_tag_decoder = msgspec.msgpack.Decoder(_Tagged)


def encode_frame(body: bytes, *, limit: int = MAX_FRAME_BYTES) -> bytes:
    """`body` as one frame.

    Raises:
        ValueError: the body is empty or over the limit, which is our own mistake.
    """
    if not 0 < len(body) <= limit:
        raise ValueError(f"a frame of {len(body)} bytes cannot be sent; the limit is {limit}")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def frame_length(prefix: bytes, *, limit: int = MAX_FRAME_BYTES) -> int:
    """The length that a frame's first four bytes claim.

    Raises:
        ProtocolError: nothing may have that length.
    """
    length = int.from_bytes(prefix, "big")
    if length == 0:
        raise ProtocolError("A peer sent an empty frame.")
    if length > limit:
        raise ProtocolError(f"A peer announced a frame of {length} bytes; at most {limit} are allowed.")
    return length


class FrameReader:
    """Cuts fed bytes into frames. After a ProtocolError it is of no further use.

    Holds at most one frame and what was fed in one go beyond it, if `next_frame` is drained between feeds.
    """

    def __init__(self, *, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._start = 0
        self._length: int | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes fed and not yet given out."""
        return len(self._buffer) - self._start

    def feed(self, data: bytes) -> None:
        """Take in what arrived, in any split."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The body of the next whole frame, or None until more is fed.

        Raises:
            ProtocolError: the frame is empty or claims more than the limit.
        """
        body_at = self._start + LENGTH_BYTES
        if self._length is None:
            if len(self._buffer) < body_at:
                return None
            self._length = frame_length(bytes(self._buffer[self._start : body_at]), limit=self._limit)
        end = body_at + self._length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            body = bytes(view[body_at:end])
        self._start = end
        self._length = None
        return body

    def end(self) -> None:
        """The stream has ended.

        Raises:
            ProtocolError: it ended inside a frame.
        """
        if self.buffered_bytes:
            raise ProtocolError("A peer ended a stream in the middle of a frame.")


def encode(structure: msgspec.Struct) -> bytes:
    """A structure as a frame's body."""
    return _encoder.encode(structure)


def decode(body: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """A frame's body as what `decoder` expects.

    Raises:
        ProtocolError: the body is something else.
    """
    try:
        return decoder.decode(body)
    # Deep nesting ends in RecursionError, broken UTF-8 in UnicodeDecodeError (both seen in the property tests).
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"A peer sent a malformed frame: {error}") from error


def encode_message(message: AnyMessage, *, limit: int = MAX_FRAME_BYTES) -> bytes:
    """A gossip message as one frame. Raises: ValueError: it is over the limit, which is our own mistake."""
    return encode_frame(_encoder.encode(message), limit=limit)


class MessageReader:
    """Reads gossip messages from frames' bodies; those of a later version are skipped and counted."""

    def __init__(self) -> None:
        self.skipped = 0

    def read(self, body: bytes) -> AnyMessage | None:
        """The message, or None if this version does not know its tag.

        Raises:
            ProtocolError: the body is not a message, or not a good one of its tag.
        """
        try:
            return _message_decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if decode(body, _tag_decoder).tag in KNOWN_TAGS:
                raise ProtocolError(f"A peer sent a malformed message: {error}") from error
        self.skipped += 1
        return None
