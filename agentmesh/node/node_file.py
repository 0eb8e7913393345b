"""run/node.json: what programs of this user need to find and call the node over TCP; run/bind_port: where peers find it.

Owns the files' shape and permissions (0600: node.json holds the bearer token). Written by the holder of the home's lock only.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

import msgspec

from agentmesh.core.errors import HomeError
from agentmesh.core.paths import Home

_log = logging.getLogger(__name__)


class NodeFile(msgspec.Struct, frozen=True):
    """A running node, as other programs of its user see it. Ports are None where nothing listens."""

    pid: int
    version: str
    background: bool
    started_at: int
    socket: str
    token: str
    console_port: int | None
    bind_port: int | None
    api_port: int | None


def new_token() -> str:
    """A bearer token of 256 random bits, new at each start."""
    return secrets.token_urlsafe(32)


def write_node_file(path: Path, content: NodeFile) -> None:
    """Put the file there whole or not at all. Raises: HomeError: it cannot be written."""
    temporary = path.with_suffix(".new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
        temporary.replace(path)
    except OSError as error:
        raise HomeError(f"{path} cannot be written: {error.strerror}.") from error


def read_node_file(path: Path) -> NodeFile | None:
    """The node that wrote the file, or None when there is none or it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=NodeFile)
    except (OSError, msgspec.DecodeError):
        return None


def last_bind_port(home: Home) -> int:
    """The UDP port of the last run, or 0: tokens and peers know it, so it is worth taking again."""
    try:
        text = _bind_port_file(home).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.isdecimal() and len(text) <= 5 and int(text) <= 65535 else 0


def remember_bind_port(home: Home, port: int) -> None:
    """For `last_bind_port`. A disk that does not take it costs no more than another port next time."""
    try:
        _bind_port_file(home).write_text(f"{port}\n", "ascii")
    except OSError as error:
        _log.info("the port is not remembered: %s", error)


def _bind_port_file(home: Home) -> Path:
    return home.run / "bind_port"
