"""What a client's connection is doing; docs/proxy.md has the table of what ends each phase. Also: whether it takes anything."""

from __future__ import annotations

import math
from enum import Enum, auto
from typing import Final

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
PROCESSING: Final = b"HTTP/1.1 102 Processing\r\n\r\n"
CLOSE: Final = b"Connection: close\r\n"
KEEP: Final = b"Connection: keep-alive\r\n"


class Phase(Enum):
    """See the module."""

    IDLE = auto()  # between requests
    HEAD = auto()  # some of a head came
    BODY = auto()
    ANSWERING = auto()  # an exchange has the request; what comes meanwhile waits
    LINGERING = auto()  # the last answer is out; what comes is thrown away until the client ends


class StallWatch:
    """Whether a client takes anything of the bytes that wait for it."""

    __slots__ = ("_until_s", "_waiting")

    def __init__(self) -> None:
        self.begin(0, math.inf)

    def begin(self, waiting: int, until_s: float) -> None:
        """So many bytes wait now, some of which must be gone by then; `math.inf`: the first look decides."""
        self._waiting = waiting
        self._until_s = until_s

    def is_stalled(self, waiting: int, now_s: float, allowed_s: float) -> bool:
        """Look again."""
        if waiting < self._waiting or math.isinf(self._until_s):
            self.begin(waiting, now_s + allowed_s)
        return now_s > self._until_s


# An enum's member costs 65 ns to look up in its class, a global 5; a request needs ten of them.
IDLE: Final = Phase.IDLE
HEAD: Final = Phase.HEAD
BODY: Final = Phase.BODY
ANSWERING: Final = Phase.ANSWERING
LINGERING: Final = Phase.LINGERING
