"""What a post is: its payload on the wire, how kind, topic and branch are read from its text, and which are refused.

Owns the format of the record kinds `post` and `retraction` of the blackboard. Knows nothing of storage, scrubbing or faces.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from agentmesh.blackboard.logic.hidden import readable
from agentmesh.blackboard.logic.limits import (
    MAX_AUTHOR_BYTES,
    MAX_BRANCH_CHARS,
    MAX_POST_BYTES,
    MAX_POST_PAYLOAD_BYTES,
    MAX_RETRACTION_PAYLOAD_BYTES,
    MAX_TOPIC_CHARS,
    RETRACTION_LIFETIME_MS,
)
from agentmesh.core.errors import InvalidInput, ProtocolError
from agentmesh.mesh.logic.kinds import KindRule, Register
from agentmesh.mesh.logic.limits import POST_LIFETIME_MS
from agentmesh.mesh.logic.record import ID_BYTES, Record

POST = "post"
RETRACTION = "retraction"


class PostKind(StrEnum):
    """What the text's prefix says that it is."""

    NOTE = "NOTE"
    STATUS = "STATUS"
    QUESTION = "QUESTION"
    FINDING = "FINDING"
    TIP = "TIP"
    DONE = "DONE"
    CLAIM = "CLAIM"


class PostPayload(msgspec.Struct, frozen=True, omit_defaults=True):
    """The payload of a `post` record. Fields of later versions are ignored."""

    text: str
    author: str
    topic: str | None = None
    branch: str | None = None
    kind: str = PostKind.NOTE
    reply_to: bytes | None = None
    idempotency: bytes | None = None


@dataclass(frozen=True, slots=True)
class Heading:
    """What a text says of itself in its first words."""

    kind: PostKind
    topic: str | None
    branch: str | None


_KIND = re.compile(r"\s*(STATUS|QUESTION|FINDING|TIP|DONE|CLAIM|NOTE):")
_NAME = r"[\w.-]+"
_BRACKET = re.compile(rf"\s*\[\s*({_NAME}/{_NAME})(?:\s+branch:\s*([^\s\]]+))?\s*\]")
_TOPIC = re.compile(rf"{_NAME}(?:/{_NAME})*")
# A kind that a later version adds is shown as it is; anything else in its place is not a kind.
_WIRE_KIND = re.compile(r"[A-Z]{1,16}")
# Control and format characters (bidirectional overrides among them) would let a name pass for another.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_decoder = msgspec.msgpack.Decoder(PostPayload)
_encoder = msgspec.msgpack.Encoder()


def read_heading(text: str) -> Heading:
    """Kind from the prefix; topic and branch from a bracket at the start or right after the prefix."""
    bracket = _BRACKET.match(text)
    kind = _KIND.match(text, bracket.end() if bracket else 0)
    if bracket is None and kind is not None:
        bracket = _BRACKET.match(text, kind.end())
    topic, branch = (bracket[1], bracket[2]) if bracket else (None, None)
    if topic is not None and len(topic) > MAX_TOPIC_CHARS:
        topic, branch = None, None
    if branch is not None and len(branch) > MAX_BRANCH_CHARS:
        branch = None
    return Heading(PostKind(kind[1]) if kind else PostKind.NOTE, topic, branch)


def check_topic(topic: str) -> str:
    """A topic that a poster or searcher named.

    Raises:
        InvalidInput: it is not one or more names joined by `/`, or too long.
    """
    topic = topic.strip()
    if len(topic) > MAX_TOPIC_CHARS or not _TOPIC.fullmatch(topic):
        raise InvalidInput(
            f"A topic is like org/repo: letters, digits, dots, dashes, at most {MAX_TOPIC_CHARS} characters."
        )
    return topic


def check_author(name: str) -> str:
    """An author's name, trimmed.

    Raises:
        InvalidInput: it is empty, over 64 bytes, or holds characters that cannot be seen.
    """
    name = name.strip()
    if not name:
        raise InvalidInput("The author's name is empty.")
    if not is_utf8(name) or any(unicodedata.category(c) in _UNPRINTABLE for c in name):
        raise InvalidInput("The author's name holds characters that cannot be shown.")
    if (size := len(name.encode())) > MAX_AUTHOR_BYTES:
        raise InvalidInput(f"The author's name is {size} bytes long; at most {MAX_AUTHOR_BYTES} are allowed.")
    return name


def check_kind(kind: str) -> PostKind:
    """A kind that a searcher named, in any case.

    Raises:
        InvalidInput: there is no such kind.
    """
    try:
        return PostKind(kind.strip().upper())
    except ValueError:
        raise InvalidInput(f"There is no kind '{kind[:40]}'; kinds are {', '.join(PostKind)}.") from None


def check_text(text: str, limit_bytes: int = MAX_POST_BYTES) -> int:
    """The text's size in bytes.

    Raises:
        InvalidInput: it is empty, not UTF-8, or too long.
    """
    if not is_utf8(text):
        raise InvalidInput("The text is not valid UTF-8.")
    if not text.strip():
        raise InvalidInput("The text is empty.")
    size = len(text.encode())
    if size > limit_bytes:
        raise InvalidInput(f"The text is {size:,} bytes long; at most {limit_bytes:,} are allowed.")
    return size


def is_utf8(text: str) -> bool:
    """Whether a Python string can be written as UTF-8, which lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode_post(payload: PostPayload) -> bytes:
    return _encoder.encode(payload)


def decode_post(raw: bytes) -> PostPayload:
    """The payload of a `post` record.

    Raises:
        ProtocolError: it is not a post's payload.
    """
    try:
        return _decoder.decode(raw)
    # Deep nesting in a field that is skipped ends in RecursionError, broken UTF-8 in UnicodeDecodeError (found by fuzzing).
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"A post's payload is malformed: {error}") from error


def shown(name: str) -> str:
    """A name that a peer sent, without the characters that would let it pass for another."""
    return " ".join("".join(c for c in readable(name) if unicodedata.category(c) not in _UNPRINTABLE).split()) or "?"


def shown_topic(name: str) -> str:
    """A topic or branch that a peer sent: one word, without the brackets that end it in a heading."""
    return "".join(c for c in shown(name) if c not in ' []()<>"') or "?"


def _is_wire_name(name: str, limit_bytes: int) -> bool:
    # Looser than what a poster may choose, and free of Unicode tables: those differ between Python versions, and what
    # one node accepts every node must accept.
    return 0 < len(name.encode()) <= limit_bytes and not any(c < " " or "\x7f" <= c <= "\x9f" for c in name)


def validate_post(record: Record) -> str | None:
    """Why no honest node could have sent this post, or None."""
    try:
        payload = decode_post(record.payload)
        check_text(payload.text)
    except ProtocolError:
        return "the payload is not a post's"
    except InvalidInput as error:
        return error.message
    if not _is_wire_name(payload.author, MAX_AUTHOR_BYTES):
        return "the author's name is impossible"
    if payload.topic is not None and not _is_wire_name(payload.topic, 4 * MAX_TOPIC_CHARS):
        return "the topic is impossible"
    if payload.branch is not None and not _is_wire_name(payload.branch, 4 * MAX_BRANCH_CHARS):
        return "the branch is impossible"
    if not _WIRE_KIND.fullmatch(payload.kind):
        return "the kind is not a word in capitals"
    if any(field is not None and len(field) != ID_BYTES for field in (payload.reply_to, payload.idempotency)):
        return "an id has an impossible size"
    return None


POST_RULE: Final = KindRule(
    name=POST,
    max_payload_bytes=MAX_POST_PAYLOAD_BYTES,
    max_lifetime_ms=POST_LIFETIME_MS,
    register=Register.ID,
    quota=True,
    validate=validate_post,
)
# Subkey: the post's id; timestamp: the post's; no payload yet, and room for a reason in a later version.
RETRACTION_RULE: Final = KindRule(
    name=RETRACTION,
    max_payload_bytes=MAX_RETRACTION_PAYLOAD_BYTES,
    max_lifetime_ms=RETRACTION_LIFETIME_MS,
    register=Register.SUBKEY,
    quota=True,
    retracts=POST,
)
BLACKBOARD_KINDS: Final = (POST_RULE, RETRACTION_RULE)
