"""Whether a request may come from where it says: Host and Origin, against pages that reach for programs on loopback. Pure.

A page on any site can have its visitor's browser send requests to loopback, and can let its own name point there (DNS
rebinding). The browser then says so: in Host the page's name, in Origin the page's site.
"""

from __future__ import annotations

import re
from typing import Final

_HOST = re.compile(r"(?i)(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?")
_ORIGIN = re.compile(r"(?i)https?://(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?")

_ALLOW_METHODS: Final = "GET, HEAD, POST, OPTIONS"
_MAX_AGE_S: Final = 600  # browsers ask again after it; Chrome's own cap is 7,200


def is_loopback_host(host: bytes) -> bool:
    """Whether a Host header names this machine itself."""
    return _HOST.fullmatch(host.decode("latin-1")) is not None


def is_loopback_origin(origin: bytes) -> bool:
    """Whether an Origin header names a page that this machine itself serves. `null` is anybody's."""
    return _ORIGIN.fullmatch(origin.decode("latin-1")) is not None


def cors_fields(origin: bytes) -> bytes:
    """Header lines that let a loopback page read the answer. `origin` was checked."""
    return b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n" % origin


def preflight_fields(origin: bytes, asked_headers: bytes) -> bytes:
    """Header lines that answer a preflight. `asked_headers` is echoed if it is a list of plain names."""
    allowed = (
        asked_headers if re.fullmatch(rb"[A-Za-z0-9\-, \t]{1,1024}", asked_headers) else b"content-type, authorization"
    )
    return (
        b"%bAccess-Control-Allow-Methods: %b\r\nAccess-Control-Allow-Headers: %b\r\nAccess-Control-Max-Age: %d\r\n"
        % (
            cors_fields(origin),
            _ALLOW_METHODS.encode("ascii"),
            allowed,
            _MAX_AGE_S,
        )
    )
