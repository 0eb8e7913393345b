"""The last head that a connection brought, so that the next one, which mostly differs in its Content-Length only, need not be read anew.

Pure. Exact: a head counts as known only if every byte but the length's digits is the same, so it would be understood in the same way.
"""

from __future__ import annotations

import re
from typing import Final, Generic, TypeVar

from agentmesh.inference.logic.proxy_limits import MAX_LENGTH_DIGITS

T = TypeVar("T")

MAX_REMEMBERED_BYTES: Final = 4_096  # of one head; larger ones are read each time
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d{1,%d})(?=\r\n)" % MAX_LENGTH_DIGITS)


class HeadMemo(Generic[T]):
    """What was made of the last head."""

    __slots__ = ("_after", "_after_bytes", "_before", "_before_bytes", "_value")

    def __init__(self) -> None:
        self._before = b""
        self._after = b""
        self._before_bytes = self._after_bytes = 0
        self._value: T | None = None

    def remember(self, head: bytes, value: T) -> None:
        """Keep `value` for heads like `head`, which is whole, with its empty line, and has exactly one Content-Length."""
        match = _LENGTH.search(head)
        if match is not None and len(head) <= MAX_REMEMBERED_BYTES:
            self._before, self._after, self._value = head[: match.start(1)], head[match.end(1) :], value
            self._before_bytes, self._after_bytes = len(self._before), len(self._after)

    def recall(self, data: bytes) -> tuple[T, int, int] | None:
        """If `data` begins with a head like the last: its value, its Content-Length, and where the head ends."""
        if self._value is None or not data.startswith(self._before):
            return None
        start = self._before_bytes
        end = data.find(b"\r\n", start, start + MAX_LENGTH_DIGITS + 2)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._after, end):
            return None
        return self._value, int(digits), end + self._after_bytes
