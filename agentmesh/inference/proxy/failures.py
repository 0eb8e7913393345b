"""What a target that did not answer said: its reason, and when to ask again. Owns nothing."""

from __future__ import annotations

import msgspec

from agentmesh.inference.logic.http_body import ChunkedFraming, EndFraming
from agentmesh.inference.logic.http_head import BadMessage, ResponseHead
from agentmesh.inference.logic.proxy_limits import KEPT_ERROR_BYTES


class _ErrorInside(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorInside


def retry_after_s(head: ResponseHead) -> float | None:
    """When it wants to be asked again, if it says so in seconds."""
    text = head.headers.get(b"retry-after", b"")
    return float(text) if text.isdigit() and len(text) <= 6 else None


def quote(head: ResponseHead, data: bytes) -> str:
    """What a failed target said, as far as it is known at once."""
    try:
        content: list[bytes] = []
        (ChunkedFraming(content) if head.chunked else EndFraming(content)).feed(data[:KEPT_ERROR_BYTES])
        said = msgspec.json.decode(b"".join(content), type=_ErrorBody).error.message
    except (msgspec.DecodeError, BadMessage, UnicodeDecodeError):
        said = ""
    return f"{head.status} {said[:500]}".rstrip()
