"""run/node.json: what programs of this user need to find and call the node over TCP.

Owns the file's shape and permissions (0600: it holds the bearer token). Written by the holder of the home's lock only.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from agentmesh.core.errors import HomeError


class NodeFile(msgspec.Struct, frozen=True):
    """A running node, as other programs of its user see it. Ports are None where nothing listens."""

    pid: int
    version: str
    background: bool
    started_at: int
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
