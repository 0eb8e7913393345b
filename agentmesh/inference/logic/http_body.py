"""Where the body of an HTTP/1.1 message ends, found while its bytes pass by. Pure; keeps nothing of them but half a chunk line.

`feed(data)` returns how many of the bytes belong to the message; `done` says that it is whole. With `parts` set to a list, the
content is collected there, free of its framing.
"""

from __future__ import annotations

import re
from typing import Protocol

from agentmesh.inference.logic.http_head import BadMessage
from agentmesh.inference.logic.proxy_limits import MAX_CHUNK_LINE_BYTES, MAX_LENGTH_DIGITS, MAX_TRAILER_BYTES

_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,%d})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?" % (MAX_LENGTH_DIGITS - 2), re.DOTALL
)
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*", re.DOTALL)
LAST_CHUNK = b"0\r\n\r\n"
_USUAL_LINE_BYTES = 10  # of a size with its CRLF


class Framing(Protocol):
    """See the module. `at_boundary`: between two chunks, where another one may be put in."""

    done: bool
    parts: list[bytes] | None

    @property
    def at_boundary(self) -> bool: ...

    def feed(self, data: bytes) -> int:
        """Raises: BadMessage."""
        ...


class LengthFraming:
    """A body of known length in bytes."""

    at_boundary = False

    def __init__(self, length: int, parts: list[bytes] | None = None) -> None:
        self.left = length
        self.done = length == 0
        self.parts = parts

    def feed(self, data: bytes) -> int:
        """See Framing."""
        used = min(len(data), self.left)
        self.left -= used
        self.done = self.left == 0
        if self.parts is not None and used:
            self.parts.append(data[:used])
        return used


class EndFraming:
    """A body that ends with its connection."""

    at_boundary = True

    def __init__(self, parts: list[bytes] | None = None) -> None:
        self.done = False
        self.parts = parts

    def feed(self, data: bytes) -> int:
        """See Framing."""
        if self.parts is not None:
            self.parts.append(data)
        return len(data)


class ChunkedFraming:
    """RFC 9112 section 7.1. Lines end with CRLF and nothing else; extensions and trailers are bounded and mean nothing here."""

    def __init__(self, parts: list[bytes] | None = None) -> None:
        self.done = False
        self.parts = parts
        self._left = 0  # of the present chunk, its CRLF included
        self._line = b""  # the beginning of a line whose end has not come
        self._in_trailer = False
        self._trailer_bytes = 0

    @property
    def at_boundary(self) -> bool:
        return not (self._left or self._line or self._in_trailer or self.done)

    def feed(self, data: bytes) -> int:
        """See Framing."""
        position, end = 0, len(data)
        if not self._left and self.parts is None and not self._line and not self._in_trailer:
            # Mostly it is one whole chunk and nothing else, as engines write each event. What is not written in the one
            # usual way (lower-case digits, no extension) is left to the full reading. Saves 1 us a chunk.
            size = end - data.find(b"\r\n", 0, _USUAL_LINE_BYTES) - 4
            if size > 0 and data.startswith(b"%x\r\n" % size) and data.endswith(b"\r\n"):
                return end
        while position < end and not self.done:
            left = self._left
            if left > 2:
                used = min(left - 2, end - position)
                if self.parts is not None:
                    self.parts.append(data[position : position + used])
                position += used
                self._left = left = left - used
                if left > 2:
                    break
            if left == 2 and data.startswith(b"\r\n", position):
                position += 2
                self._left = 0
            elif left:
                if position < end:
                    position = self._pass_line_end(data, position)
            elif position < end:
                position = self._read_line(data, position)
        return position

    def _pass_line_end(self, data: bytes, position: int) -> int:
        if data[position] != (0x0D if self._left == 2 else 0x0A):
            raise BadMessage("A chunk does not end where it should.")
        self._left -= 1
        return position + 1

    def _read_line(self, data: bytes, position: int) -> int:
        at = data.find(b"\r\n", position)
        if self._line or at < 0:
            return self._read_split_line(data, position)
        self._understand(data[position:at])
        return at + 2

    def _read_split_line(self, data: bytes, position: int) -> int:
        at = data.find(b"\n", position)
        piece = data[position:] if at < 0 else data[position : at + 1]
        self._line += piece
        if len(self._line) > (MAX_TRAILER_BYTES if self._in_trailer else MAX_CHUNK_LINE_BYTES):
            raise BadMessage("A chunk's size line is too long.")
        if at >= 0:
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n"):
                raise BadMessage("A chunk's size line ends without CRLF.")
            self._understand(line[:-2])
        return position + len(piece)

    def _understand(self, line: bytes) -> None:
        if self._in_trailer:
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > MAX_TRAILER_BYTES:
                raise BadMessage("The trailer is too long.")
            if line and _TRAILER_LINE.fullmatch(line) is None:
                raise BadMessage("The trailer is malformed.")
            self.done = not line
            return
        match = _CHUNK_LINE.fullmatch(line)
        if match is None or len(line) > MAX_CHUNK_LINE_BYTES:
            raise BadMessage("A chunk's size is malformed.")
        size = int(match[1], 16)
        if size:
            self._left = size + 2
        else:
            self._in_trailer = True


def as_chunk(data: bytes) -> bytes:
    """One chunk; nothing for no data, which would be the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
