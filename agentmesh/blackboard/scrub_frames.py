"""What the node and its scrub worker say to each other: msgpack frames with a length in front, over the worker's pipes.

Owns the shapes and the framing; knows neither scrubadub nor asyncio. A conversation: `Setup`, answered by `Ready` or `Broken`,
then any number of `Text`, each answered in order by one `Scrubbed`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agentmesh.blackboard.logic.redaction import Redaction
from agentmesh.blackboard.logic.scrub_limits import MAX_RAW_TEXT_BYTES, MAX_REPLY_BYTES
from agentmesh.blackboard.logic.scrub_machine import ScrubContext

HEADER_BYTES: Final = 4
MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024  # the set-up carries the environment's secrets: at most 256 of 8 KiB
MAX_ANSWER_BYTES: Final = MAX_REPLY_BYTES + 1024
assert MAX_REQUEST_BYTES > MAX_RAW_TEXT_BYTES  # noqa: S101


class Setup(msgspec.Struct, frozen=True, tag=True):
    """The first frame: what the worker must know, and never on its command line."""

    context: ScrubContext
    alarm_s: float


class Text(msgspec.Struct, frozen=True, tag=True):
    """A text to scrub. Numbers rise by one."""

    number: int
    text: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker has imported everything and masked a sample."""


class Broken(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot work; `reason` names the failure and quotes no text."""

    reason: str


class Scrubbed(msgspec.Struct, frozen=True, tag=True):
    """The answer to a text. `settled` false: masking it does not come to an end, it cannot be posted."""

    number: int
    text: str
    redactions: tuple[Redaction, ...]
    mostly_secret: bool
    settled: bool = True


class FrameError(Exception):
    """A frame is too long or cannot be read."""


_encoder: Final = msgspec.msgpack.Encoder()
_requests: Final = msgspec.msgpack.Decoder(Setup | Text)
_answers: Final = msgspec.msgpack.Decoder(Ready | Broken | Scrubbed)


def encode(message: Setup | Text | Ready | Broken | Scrubbed) -> bytes:
    """A frame: four bytes of length, big endian, and the message."""
    body = _encoder.encode(message)
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def body_length(header: bytes, limit: int) -> int:
    """The length of the body that follows.

    Raises:
        FrameError: it is over the limit.
    """
    length = int.from_bytes(header, "big")
    if length > limit:
        raise FrameError(f"a frame of {length} bytes")
    return length


def decode_request(body: bytes) -> Setup | Text:
    """What the node sent."""
    try:
        return _requests.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError("not a request") from error


def decode_answer(body: bytes) -> Ready | Broken | Scrubbed:
    """What the worker sent."""
    try:
        return _answers.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError("not an answer") from error
