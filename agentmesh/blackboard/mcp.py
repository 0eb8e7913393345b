"""`agentmesh blackboard --mcp`: the MCP server as a process, on stdio or on a loopback HTTP port.

Owns how such a process starts and ends. It is a thin client: everything it knows comes from the home's node, which it
finds or starts beside its own start, so that a client's handshake never waits for the node. This module imports nothing
heavy; the MCP SDK costs some 0.7 s and is loaded while the node is being looked for.
"""

from __future__ import annotations

import asyncio
import gc
import getpass
import hashlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from agentmesh.control.start import ensure_node, say_on_stderr
from agentmesh.core.errors import EXIT_DONE, EXIT_FAILED, AgentMeshError
from agentmesh.core.paths import Home

AUTHOR_VARIABLE: Final = "AGENTMESH_AUTHOR"
READER_VARIABLE: Final = "AGENTMESH_READER"  # whose "unread" is kept; two agents with one value share it
MAX_READER_CHARS: Final = 120


def run_stdio(home: Home, author: str | None = None) -> int:
    """Serve one MCP client on stdin and stdout until it closes them. Gives the exit code.

    `author` (`--from`) signs posts that name no author; else `$AGENTMESH_AUTHOR`, else whatever the node says.
    """
    _log_to_stderr()
    if sys.stdin.isatty():
        say_on_stderr("an agent starts this and speaks MCP on stdin and stdout; Ctrl-C ends it.")
    threading.Thread(target=_ensure_early, args=(home,), name="ensure-node", daemon=True).start()
    _import_server()
    from agentmesh.blackboard.mcp_server import serve_stdio

    try:
        asyncio.run(serve_stdio(home, author_name(author, os.environ), _ensure(home)))
    except AgentMeshError as error:
        say_on_stderr(error.message)
        return error.exit_code
    except OSError as error:
        say_on_stderr(f"MCP on stdio failed: {error.strerror or error}.")
        return EXIT_FAILED
    return EXIT_DONE


def run_http(home: Home, port: int, author: str | None = None) -> int:
    """Serve MCP over streamable HTTP on loopback until interrupted; port 0 means any. Gives the exit code."""
    _log_to_stderr()
    try:
        ensure_node(home)  # its token guards this port, so here the node comes first
        _import_server()
        from agentmesh.blackboard.mcp_http import serve_http

        asyncio.run(serve_http(home, port, author_name(author, os.environ), _ensure(home)))
    except AgentMeshError as error:
        say_on_stderr(error.message)
        return error.exit_code
    return EXIT_DONE


def author_name(given: str | None, environ: Mapping[str, str]) -> str | None:
    """`--from`, else `$AGENTMESH_AUTHOR`, else None: the node then takes its own name or its user's."""
    for name in (given, environ.get(AUTHOR_VARIABLE)):
        if name and name.strip():
            return name.strip()
    return None


def reader_name(client: str, author: str | None, environ: Mapping[str, str], place: Path | None) -> str:
    """Who has read what: stable over restarts, different for two agents in two projects or of two names.

    `$AGENTMESH_READER` if set; else client, author (or user) and the directory that the client runs in.
    """
    if configured := environ.get(READER_VARIABLE, "").strip():
        return configured[:MAX_READER_CHARS]
    where = hashlib.sha256(os.fsencode(place)).hexdigest()[:8] if place is not None else "http"
    parts = (client or "mcp", author or _user(), where)
    return "/".join("".join(char for char in part if char.isprintable())[:50] for part in parts)[:MAX_READER_CHARS]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers (KeyError before Python 3.13)
        return str(os.getuid())


def _ensure(home: Home) -> Callable[[], object]:
    return lambda: ensure_node(home)


def _ensure_early(home: Home) -> None:
    """Look for the node, or start it, while this process still loads. What fails here is tried again by the first call."""
    try:
        ensure_node(home)
    except AgentMeshError as error:
        say_on_stderr(f"{error.message} The first call tries again.")


def _import_server() -> None:
    """Load the SDK. Nothing that it makes is garbage, and looking for some costs a tenth of the time."""
    gc.disable()
    try:
        import agentmesh.blackboard.mcp_server  # noqa: F401  # pyright: ignore[reportUnusedImport]
    finally:
        gc.freeze()
        gc.enable()


def _log_to_stderr() -> None:
    """stdout carries MCP alone."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="agentmesh: %(message)s")
