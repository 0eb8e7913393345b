"""What errors look like to clients of OpenAI's API and to clients of Anthropic's: bodies, and events in a stream.

Owns both forms. The path decides: `/messages` and what is below it is Anthropic's, everything else OpenAI's. No JSON of a
model's answer is touched here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

JSON: Final = "application/json"

# https://docs.claude.com/en/api/errors: the types that clients know, by status.
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OPENAI_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# What will not change by itself. Both vendors' SDKs would try a 5xx again, some agents for minutes, unless this header says no.
MODEL_FAILED: Final = "model_failed"
_NO_RETRY: Final = (("x-should-retry", "false"),)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer that is made here. `headers` come besides Content-Type and Content-Length."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def json_answer(status: int, value: object, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """An answer of JSON."""
    return Answer(status, JSON, _encode(value), headers)


def is_anthropic(path: str) -> bool:
    """Whether clients of this path expect Anthropic's forms."""
    rest = path.partition("?")[0].removeprefix("/v1")
    return rest == "/messages" or rest.startswith("/messages/")


def error_answer(
    path: str,
    status: int,
    code: str,
    message: str,
    retry_after_s: float | None = None,
    *,
    anthropic: bool | None = None,
) -> Answer:
    """An error as the client of `path` expects it.

    Args:
        path: of the request.
        code: a stable identifier such as `model_not_found`.
        message: a sentence for people.
        retry_after_s: when it is worth trying again; sent in whole seconds, at least one.
        anthropic: which form, when the path does not tell (`/v1/models` is both's).
    """
    headers: tuple[tuple[str, str], ...] = ()
    if retry_after_s is not None:
        headers = (("Retry-After", str(max(1, -int(-retry_after_s // 1)))),)
    if code == MODEL_FAILED:
        headers = _NO_RETRY
    value = _anthropic(status, message) if _form(path, anthropic) else {"error": _openai(status, code, message)}
    return json_answer(status, value, headers)


def sse_error(path: str, message: str, *, status: int = 502, code: str = "stream_broken") -> bytes:
    """The event that ends a stream which broke in the middle; the connection is closed after it.

    It begins with an empty line, so that what came before, if it was a whole line, stays an event of its own.
    """
    if _form(path, None):
        return b"\n\nevent: error\ndata: " + _encode(_anthropic(status, message)) + b"\n\n"
    error = _openai(status, code, message)
    if path.partition("?")[0].removeprefix("/v1") == "/responses":
        # The documented event has code and message beside the type; the SDKs look for `error` as in the other streams.
        event = {"type": "error", "sequence_number": 0, "code": code, "message": message, "param": None, "error": error}
        return b"\n\nevent: error\ndata: " + _encode(event) + b"\n\n"
    return b"\n\ndata: " + _encode({"error": error}) + b"\n\n"


def _form(path: str, anthropic: bool | None) -> bool:
    return is_anthropic(path) if anthropic is None else anthropic


def _openai(status: int, code: str, message: str) -> dict[str, object]:
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = "model" if code == "model_not_found" else None
    return {"message": message, "type": kind, "param": param, "code": code}


def _anthropic(status: int, message: str) -> dict[str, object]:
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}
