"""HTTP/1.1 as a client needs it to talk to its own node, without I/O: bytes of a request out, bytes of a response in.

Used over the home's Unix socket by the thin clients, where the start of the process counts (http.client alone would load
ssl and email). Knows no sockets and no routes. RFC 9112.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from agentmesh.core.errors import AgentMeshError

MAX_HEAD_BYTES: Final = 64 * 1024  # our node's heads are some hundred bytes; more is not our node
MAX_CHUNK_LINE_BYTES: Final = 1024

Query = Mapping[str, str | int | float | bool | None]


class BadResponse(AgentMeshError):
    """What answered on the node's socket does not speak the node's protocol."""


def build_target(path: str, params: Query | None) -> str:
    """`path` with the parameters that are not None as its query; a bool becomes `true` or `false`."""
    pairs = [
        f"{quote(name, safe='')}={quote(_text(value), safe='')}"
        for name, value in (params or {}).items()
        if value is not None
    ]
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def _text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def build_request(method: str, target: str, body: object = None) -> bytes:
    """The whole request; `body`, unless None, is sent as JSON. The connection serves this one request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Accept: application/json", "Connection: close"]
    payload = b""
    if body is not None:
        payload = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
    elif method not in ("GET", "DELETE"):
        lines.append("Content-Length: 0")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + payload


def build_event_request(target: str, last_event_id: str | None) -> bytes:
    """Ask for an event stream, from the event after `last_event_id` on."""
    lines = [f"GET {target} HTTP/1.1", "Host: localhost", "Accept: text/event-stream", "Connection: close"]
    if last_event_id is not None:
        lines.append(f"Last-Event-ID: {quote(last_event_id)}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


class ResponseReader:
    """Takes the bytes of one response as they come and gives its status and body.

    `status` is None until the head is complete; `take()` gives the body bytes so far, once each; `complete` says that the
    body has ended.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.complete = False
        self._buffer = bytearray()
        self._body = bytearray()
        self._remaining: int | None = None  # of a body with a length, or of the chunk being read
        self._chunked = False

    def feed(self, data: bytes) -> None:
        """Raises: BadResponse: these bytes are no HTTP response."""
        self._buffer += data
        if self.status is None and not self._read_head():
            return
        if self._chunked:
            while self._read_chunk():
                pass
        else:
            self._read_plain()

    def feed_eof(self) -> bool:
        """The far side ended. Returns whether the response is whole."""
        if self.status is not None and not self._chunked and self._remaining is None:
            self.complete = True  # RFC 9112 section 6.3, item 8: a body without length ends with the connection
        return self.complete

    def take(self) -> bytes:
        body, self._body = bytes(self._body), bytearray()
        return body

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise BadResponse()
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = lines[0].partition(" ")
        code = rest[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0") or len(code) != 3 or not (code.isascii() and code.isdigit()):
            raise BadResponse()
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        if code[0] == "1":  # an interim response; the real one follows (RFC 9110 section 15.2)
            self.headers.clear()
            return self._read_head()
        self.status = int(code)
        self._set_framing()
        return True

    def _set_framing(self) -> None:
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if self._chunked:
            return
        length = self.headers.get("content-length")
        if self.status in (204, 304):
            length = "0"
        if length is not None:
            if not (length.isascii() and length.isdigit() and len(length) < 16):
                raise BadResponse()
            self._remaining = int(length)

    def _read_plain(self) -> None:
        if self._remaining is None:
            self._body += self._buffer
            self._buffer.clear()
            return
        taken = self._buffer[: self._remaining]
        self._body += taken
        self._remaining -= len(taken)
        self._buffer.clear()
        self.complete = self._remaining == 0

    def _read_chunk(self) -> bool:
        """Read one piece of a chunked body (RFC 9112 section 7.1); returns whether there may be another."""
        if self.complete:
            self._buffer.clear()
            return False
        if self._remaining is None:
            return self._read_chunk_size()
        if self._remaining > 0:
            taken = self._buffer[: self._remaining]
            self._body += taken
            del self._buffer[: len(taken)]
            self._remaining -= len(taken)
            if self._remaining > 0:
                return False
        if len(self._buffer) < 2:
            return False
        if not self._buffer.startswith(b"\r\n"):
            raise BadResponse()
        del self._buffer[:2]
        self._remaining = None
        return True

    def _read_chunk_size(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > MAX_CHUNK_LINE_BYTES:
                raise BadResponse()
            return False
        size_text = self._buffer[:end].split(b";")[0].strip()
        try:
            size = int(size_text, 16) if 0 < len(size_text) < 16 and size_text.isalnum() else -1
        except ValueError:
            size = -1
        if size < 0:
            raise BadResponse()
        del self._buffer[: end + 2]
        if size == 0:
            self.complete = True  # our node sends no trailers, and the connection serves one request
            return False
        self._remaining = size
        return True
