"""Cursors: where a listing goes on. Opaque to callers, positions (never offsets into a changing list) to us."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final, TypeVar

import msgspec

from agentmesh.core.errors import InvalidInput

MAX_CURSOR_CHARS: Final = 256
_DIGEST_BYTES: Final = 8


class FeedCursor(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """After the post at this place in the order of time."""

    digest: bytes
    below: int


class UnreadCursor(msgspec.Struct, frozen=True, array_like=True, tag="u"):
    """More is unread; the position itself is kept by the node."""

    digest: bytes


class SearchCursor(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """`newest`: newer posts are left out, so that pages do not shift. `place` in the ranking, or `below` once past it."""

    digest: bytes
    newest: int
    place: int
    below: int | None


Cursor = FeedCursor | UnreadCursor | SearchCursor
AnyCursor = TypeVar("AnyCursor", FeedCursor, UnreadCursor, SearchCursor)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Cursor] = msgspec.msgpack.Decoder(FeedCursor | UnreadCursor | SearchCursor)


def question_digest(query: str, filters_digest: bytes) -> bytes:
    """Names what was asked, so that a cursor is not used for another question."""
    data = query.encode("utf-8", "surrogatepass") + b"\x00" + filters_digest
    return hashlib.blake2s(data, digest_size=_DIGEST_BYTES).digest()


def encode_cursor(cursor: Cursor) -> str:
    return base64.urlsafe_b64encode(_encoder.encode(cursor)).rstrip(b"=").decode()


def decode_cursor(text: str, kind: type[AnyCursor], digest: bytes) -> AnyCursor:
    """The cursor that we gave out for this question.

    Raises:
        InvalidInput: it is not one of ours, or belongs to another question.
    """
    cursor = _decode(text)
    if not isinstance(cursor, kind) or cursor.digest != digest:
        raise InvalidInput("This cursor belongs to another listing; use it with the same query and filters.")
    return cursor


def _decode(text: str) -> Cursor:
    try:
        if len(text) > MAX_CURSOR_CHARS:
            raise ValueError("too long")
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = _decoder.decode(raw)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise InvalidInput("The cursor is not one that this node gave out; start without a cursor.") from error
    numbers = [n for n in (getattr(cursor, "newest", 0), getattr(cursor, "place", 0), getattr(cursor, "below", 0)) if n]
    if any(not 0 <= n < 2**63 for n in numbers):
        raise InvalidInput("The cursor is not one that this node gave out; start without a cursor.")
    return cursor
