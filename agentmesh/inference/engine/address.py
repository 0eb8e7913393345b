"""Where an engine listens: a Unix socket that only this user reaches, or a loopback port with a key.

Owns the choice, and the socket's file and folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import stat
from pathlib import Path
from typing import Final

from agentmesh.core.errors import HomeError
from agentmesh.core.paths import MAX_SOCKET_PATH_BYTES
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.logic.target import EngineAddress

NAME_BYTES: Final = 4
KEY_BYTES: Final = 32
LOOPBACK: Final = "127.0.0.1"


def unique_name() -> str:
    """The stem of one engine's files in its folder."""
    return f"e-{secrets.token_hex(NAME_BYTES)}"


def choose_address(engine: Engine, folder: Path, name: str) -> EngineAddress:
    """A free one: `folder/NAME.sock` where the engine can, else a port and a new key.

    The port was free a moment ago; an engine that finds it taken ends at once, and is started anew with another one by whoever asks.

    Raises:
        HomeError: the folder for the socket belongs to somebody else, or cannot be made.
    """
    if engine.unix_sockets:
        path = socket_path(folder, name)
        prepare_folder(path.parent)
        return EngineAddress(socket=str(path))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return EngineAddress(port=port, api_key=secrets.token_urlsafe(KEY_BYTES))


def socket_path(folder: Path, name: str) -> Path:
    """Where the socket goes: in the folder, or in the runtime directory when that is too deep for a socket address."""
    path = folder / f"{name}.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/agentmesh-{os.getuid()}"  # noqa: S108 - created 0700, its owner checked
    return Path(runtime) / f"agentmesh-{digest}" / f"{name}.sock"


def left_sockets(folder: Path) -> list[Path]:
    """The files of sockets of engines that had this folder."""
    return sorted(socket_path(folder, unique_name()).parent.glob("e-*.sock"))


def release_address(address: EngineAddress) -> None:
    """Remove the socket's file; the engine is not there any more, or not yet."""
    if address.socket is not None:
        with contextlib.suppress(OSError):
            Path(address.socket).unlink()


def prepare_folder(folder: Path) -> None:
    """Make it, for this user alone.

    Raises:
        HomeError: others can change it, or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In a directory that everybody shares, the one above is ours too (see socket_path).
        for each in [folder.parent, folder] if folder.name.startswith("agentmesh-") else [folder]:
            found = each.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
                raise HomeError(f"{each} can be changed by other users; nothing of an engine is put there.")
    except OSError as error:
        raise HomeError(f"The folder {folder} cannot be made: {error.strerror or error}.") from error
