"""What a client's connection is doing; docs/proxy.md has the table of what ends each phase."""

from __future__ import annotations

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
