"""MCP over streamable HTTP on a loopback port, guarded like the node's console.

Whoever may use this port may post in the node's name, so it asks for the node's own token (from `run/node.json`, which
only this user can read) and for a Host and an Origin on this machine: a web page that the user visits can reach loopback
and, with a DNS name that it rebinds, can even read the answers; it can neither send the token nor fake these headers.
"""

from __future__ import annotations

import hmac
import json
import logging
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import uvicorn
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from agentmesh.blackboard.board_client import NodeBoardClient
from agentmesh.blackboard.logic import mcp_limits as limits
from agentmesh.blackboard.mcp_server import BoardServer, build_server, caller_from
from agentmesh.control.start import say_on_stderr
from agentmesh.core.clock import SystemClock
from agentmesh.core.errors import HomeError, PortInUse
from agentmesh.core.paths import Home
from agentmesh.core.tasks import TaskSet

_log = logging.getLogger(__name__)

PATH: Final = "/mcp"
MIN_TOKEN_CHARS: Final = 16  # an empty one in a damaged file must not open the port
TOKENS_KEPT: Final = 8
LOOPBACK: Final = "127.0.0.1"
LOCAL_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")


async def serve_http(home: Home, port: int, author: str | None, ensure: Callable[[], object]) -> None:
    """Serve until interrupted.

    Raises:
        PortInUse: another program listens there.
        HomeError: the node's token cannot be read.
    """
    token = NodeToken(home)
    token.read()
    tasks = TaskSet("mcp-http")
    board = NodeBoardClient(home, ensure)
    server = build_server(board, caller_from(author, None), SystemClock(), tasks)
    with _listen(port) as listener:
        real_port = int(listener.getsockname()[1])
        config = uvicorn.Config(
            build_app(server, token),
            http="h11",  # httptools leaves white space at the end of header values (RFC 9110, section 5.5)
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=limits.MAX_HTTP_CONNECTIONS,
            timeout_graceful_shutdown=1,
            lifespan="on",
        )
        say_on_stderr(f"MCP at http://{LOOPBACK}:{real_port}{PATH} (Authorization: Bearer, token in {home.node_json})")
        try:
            await uvicorn.Server(config).serve(sockets=[listener])
        finally:
            await tasks.close(1.0)


def build_app(server: BoardServer, token: NodeToken) -> ASGIApp:
    """The ASGI application: the guard, then the SDK's session manager for both eras."""
    manager = StreamableHTTPSessionManager(
        app=server,
        security_settings=TransportSecuritySettings(
            allowed_hosts=[f"{name}:*" for name in LOCAL_NAMES],
            allowed_origins=[f"http://{name}:*" for name in LOCAL_NAMES],
        ),
        session_idle_timeout=limits.HTTP_SESSION_IDLE_S,
        max_sessions=limits.MAX_HTTP_SESSIONS,
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        async with manager.run():
            yield

    routes = [Route(PATH, endpoint=StreamableHTTPASGIApp(manager))]
    return Guard(Starlette(routes=routes, lifespan=lifespan), token)


class NodeToken:
    """The token of the home's node, read again when the node wrote another.

    A node draws a new token whenever it starts. Clients that were given an earlier one of this process's life go on: they
    could read it then, and a restart of the node must not end their sessions.
    """

    def __init__(self, home: Home) -> None:
        self._path = home.node_json
        self._seen: tuple[int, int] | None = None
        self._tokens: deque[bytes] = deque(maxlen=TOKENS_KEPT)

    def read(self) -> None:
        """Look for a new token. Raises HomeError: the file is missing or damaged and no token was ever read."""
        try:
            stat = self._path.stat()
            if (stat.st_mtime_ns, stat.st_ino) != self._seen:
                self._tokens.append(_token_in(self._path.read_bytes()))
                self._seen = (stat.st_mtime_ns, stat.st_ino)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not self._tokens:  # a node that restarts leaves none for a moment
                raise HomeError(f"The node's token cannot be read from {self._path}.") from error

    def matches(self, authorization: bytes) -> bool:
        """Whether an Authorization header carries the token; a wrong one takes as long as another wrong one."""
        self.read()
        scheme, _, given = authorization.partition(b" ")
        fits = [hmac.compare_digest(given.strip(), token) for token in self._tokens]
        return scheme.lower() == b"bearer" and any(fits)


def _token_in(content: bytes) -> bytes:
    token = cast("dict[str, Any]", json.loads(content))["token"]
    if not isinstance(token, str) or len(token) < MIN_TOKEN_CHARS:
        raise ValueError("no token")
    return token.encode("utf-8")


class Guard:
    """Lets only requests with the token through."""

    def __init__(self, app: ASGIApp, token: NodeToken) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = cast("list[tuple[bytes, bytes]]", scope["headers"])
            given = [value for name, value in headers if name == b"authorization"]
            if len(given) != 1 or not self._token.matches(given[0]):
                message = "Send 'Authorization: Bearer TOKEN' with the token of the node (run/node.json in its home)."
                body = {"error": {"code": "unauthorized", "message": message, "retryable": False}}
                response = JSONResponse(body, status_code=401, headers={"WWW-Authenticate": "Bearer"})
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"Port {port} on {LOOPBACK} cannot be used: {error.strerror}. Give another, or 0 for any."
        ) from error
    listener.listen(128)
    return listener
