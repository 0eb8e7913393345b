"""The heads of HTTP/1.1 messages: read strictly, as they come from anybody, and written anew for the next hop. Pure.

Nothing of a received head is ever passed on as it was: the target's head and the client's are built from what was
understood. That is what makes request smuggling and response splitting impossible rather than filtered.
llhttp reads what is accepted here the same way (tests/property/test_http_head.py holds the two against each other); it is not
used itself because it cannot stop where a message ends, which pipelining and exact relaying need.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from agentmesh.core.errors import AgentMeshError
from agentmesh.inference.logic.proxy_limits import MAX_HEADERS, MAX_LENGTH_DIGITS

HEAD_END: Final = b"\r\n\r\n"

_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([\x21-\x7e]+) HTTP/(\d)\.(\d)", re.DOTALL)
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?", re.DOTALL)
_TOKEN_BYTES: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FIELD_BYTES: Final = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_USUAL_NAMES: Final = frozenset(b"Host Accept Content-Type Content-Length User-Agent Connection Authorization".split())
_ABSOLUTE = re.compile(r"(?i)https?://([^/?#]*)(.*)", re.DOTALL)

_ONCE: Final = frozenset(
    b"authorization content-encoding content-length content-type expect host origin transfer-encoding x-api-key".split()
)
HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split()
)
"""RFC 9110 section 7.6.1. They are between two neighbours; what `Connection` names besides is dropped too."""

_NOT_FOR_CLIENTS: Final = HOP_BY_HOP | frozenset((b"content-length", b"server", b"set-cookie", b"alt-svc"))
_OWN_PREFIX: Final = b"x-agentmesh-"
_CORS_PREFIX: Final = b"access-control-"
PASSED_ON: Final = (b"accept", b"anthropic-version", b"anthropic-beta")
"""The client's headers that a target may see. All others, keys and cookies among them, stay here."""

MODEL_HEADER: Final = b"x-agentmesh-model"
NOT_BEGUN_HEADER: Final = b"x-agentmesh-not-begun"

_REASONS: Final[dict[int, str]] = {
    200: "OK", 204: "No Content", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 413: "Content Too Large", 415: "Unsupported Media Type",
    417: "Expectation Failed",
    426: "Upgrade Required", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip
_STATUS_LINES: Final = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in _REASONS.items()}


class BadMessage(AgentMeshError):
    """The bytes are no HTTP message that this program accepts."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class RequestHead(msgspec.Struct):
    """A request's head, understood.

    Attributes:
        path, query: of the target, still percent-encoded.
        minor: 1 for HTTP/1.1, 0 for HTTP/1.0.
        headers: by lower-case name; repeated ones are joined with commas.
        length: of the body in bytes; None if it is chunked.
        keep_alive: whether another request may follow on the connection.
    """

    method: str
    path: str
    query: str
    minor: int
    headers: dict[bytes, bytes]
    length: int | None
    keep_alive: bool


class ResponseHead(msgspec.Struct):
    """A response's head, understood.

    Attributes:
        length: of the body in bytes; None if it is chunked or ends with the connection.
        chunked: how the body is framed if it has no length.
        keep_alive: whether the connection can carry another request.
    """

    status: int
    headers: dict[bytes, bytes] = {}
    length: int | None = 0
    chunked: bool = False
    keep_alive: bool = True

    @property
    def is_event_stream(self) -> bool:
        return self.headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")


def parse_request_head(head: bytes) -> RequestHead:
    """Understand a head, given without its empty last line (but with the CRLF before it).

    Raises:
        BadMessage: with the status to answer: 400, 431 or 505.
    """
    line, _, rest = head.partition(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadMessage("The request line is malformed.")
    if match[3] != b"1" or match[4] not in (b"0", b"1"):
        raise BadMessage("Only HTTP/1.0 and HTTP/1.1 are spoken here.", 505)
    minor = 1 if match[4] == b"1" else 0
    headers = _parse_fields(rest)
    path, query = _split_target(match[2].decode("ascii"), headers)
    if minor and b"host" not in headers:
        raise BadMessage("An HTTP/1.1 request needs a Host header.")
    chunked = _is_chunked(headers, minor)
    length = None if chunked else _content_length(headers)
    return RequestHead(
        match[1].decode("ascii"), path, query, minor, headers, 0 if length is None and not chunked else length,
        _keep_alive(headers, minor),
    )  # fmt: skip


def replace_length(head: RequestHead, length: int) -> RequestHead:
    """The same head for a body of another length. `headers` are shared; nobody changes them."""
    return RequestHead(head.method, head.path, head.query, head.minor, head.headers, length, head.keep_alive)


def parse_response_head(head: bytes) -> ResponseHead:
    """Understand the head of an answer to a POST. Raises: BadMessage."""
    line, _, rest = head.partition(b"\r\n")
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise BadMessage("The status line is malformed.", 502)
    minor, status = (1 if match[1] == b"1" else 0), int(match[2])
    headers = _parse_fields(rest)
    if status < 200:
        if status == 101:
            raise BadMessage("The protocol was switched, which nobody asked for.", 502)
        return ResponseHead(status, headers)
    chunked = _is_chunked(headers, minor)
    length = None if chunked else _content_length(headers)
    if status in (204, 304):
        chunked, length = False, 0
    framed = chunked or length is not None
    return ResponseHead(status, headers, length, chunked, framed and _keep_alive(headers, minor))


def _parse_fields(fields: bytes) -> dict[bytes, bytes]:
    if fields.replace(b"\r\n", b"").translate(None, _FIELD_BYTES):  # NUL, bare CR or LF, other controls
        raise BadMessage("A header line is malformed.")
    headers: dict[bytes, bytes] = {}
    lines = fields.split(b"\r\n")
    if len(lines) - 1 > MAX_HEADERS:
        raise BadMessage(f"There are more than {MAX_HEADERS} headers.", 431)
    lines.pop()  # behind the last CRLF
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or (name not in _USUAL_NAMES and name.translate(None, _TOKEN_BYTES)):
            raise BadMessage("A header line is malformed.")  # also folded lines, and space before the colon
        name = name.lower()
        if name in headers:
            if name in _ONCE:
                raise BadMessage(f"The header {name.decode('ascii')} is there twice.")
            headers[name] += b", " + value.strip(b" \t")
        else:
            headers[name] = value.strip(b" \t")
    return headers


def _split_target(target: str, headers: dict[bytes, bytes]) -> tuple[str, str]:
    if not target.startswith("/"):
        match = _ABSOLUTE.fullmatch(target)
        if match is None:
            if target == "*":
                return "*", ""
            raise BadMessage("The request target is malformed.")
        headers[b"host"] = match[1].encode("ascii")  # RFC 9112 section 3.2.2: it overrides Host
        target = match[2] if match[2].startswith("/") else f"/{match[2]}"
    path, _, query = target.partition("?")
    return path, query


def _is_chunked(headers: dict[bytes, bytes], minor: int) -> bool:
    coding = headers.get(b"transfer-encoding")
    if coding is None:
        return False
    if b"content-length" in headers:  # RFC 9112 section 6.1: how requests are smuggled
        raise BadMessage("Transfer-Encoding and Content-Length exclude each other.")
    if coding.lower() != b"chunked" or not minor:
        raise BadMessage("The only Transfer-Encoding accepted is chunked, with HTTP/1.1.")
    return True


def _content_length(headers: dict[bytes, bytes]) -> int | None:
    text = headers.get(b"content-length")
    if text is None:
        return None
    if not text.isdigit() or len(text) > MAX_LENGTH_DIGITS:
        raise BadMessage("The Content-Length is no number.")
    return int(text)


def _keep_alive(headers: dict[bytes, bytes], minor: int) -> bool:
    connection = headers.get(b"connection")
    if connection is None:
        return minor == 1
    options = [option.strip(b" \t") for option in connection.lower().split(b",")]
    return b"close" not in options and (minor == 1 or b"keep-alive" in options)


# ------------------------------------------------------------------ writing


def target_request_head(
    path: str, headers: dict[bytes, bytes], length: int, *, engine_key: str | None = None, model: str | None = None
) -> bytes:
    """The head for an engine (with its own key) or a peer (with the served model's id, percent-encoded ASCII)."""
    fields = target_request_fields(path, headers, engine_key=engine_key, model=model)
    return b"%bContent-Length: %d\r\n\r\n" % (fields, length)


def target_request_fields(
    path: str, headers: dict[bytes, bytes], *, engine_key: str | None = None, model: str | None = None
) -> bytes:
    """The part of the head that is the same for all such requests, whatever the length of their bodies, which is to follow."""
    lines = [b"POST ", path.encode("ascii"), b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"]
    for name in PASSED_ON:
        if name in headers:
            lines += (name, b": ", headers[name], b"\r\n")
    if engine_key is not None:
        lines += (b"Authorization: Bearer ", engine_key.encode("ascii"), b"\r\n")
    if model is not None:
        lines += (MODEL_HEADER, b": ", model.encode("ascii"), b"\r\n")
    return b"".join(lines)


def answer_head(status: int, fields: bytes, length: int | None, chunked: bool) -> bytes:
    """A response's head. `fields` are whole header lines, each with its CRLF."""
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
    if length is not None:
        return b"%b%bContent-Length: %d\r\n\r\n" % (line, fields, length)
    coding = b"Transfer-Encoding: chunked\r\n" if chunked else b""
    return b"%b%b%b\r\n" % (line, fields, coding)


def end_to_end_fields(headers: dict[bytes, bytes]) -> bytes:
    """The header lines of a target's answer that its client gets."""
    named = headers.get(b"connection")
    dropped = _NOT_FOR_CLIENTS
    if named is not None:
        dropped = dropped | {option.strip(b" \t") for option in named.lower().split(b",")}
    return b"".join(
        b"%b: %b\r\n" % (name, value)
        for name, value in headers.items()
        if name not in dropped and not name.startswith((_OWN_PREFIX, _CORS_PREFIX))
    )
