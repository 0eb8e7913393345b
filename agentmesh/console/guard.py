"""ASGI layers around the management API: who may call it over TCP, how much a body may hold, whether somebody is there.

Knows headers and sizes, no routes' meaning. The Unix socket needs no `Guard`: the file system admits its owner only.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES: Final = 256 * 1024  # a post is at most 16 KiB before scrubbing, a token 16 KiB
OPEN_PATHS: Final = frozenset(("/healthz", "/", "/docs", "/openapi.json"))  # they say nothing of the board or its owner

_LOOPBACK: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_LOOPBACK_ORIGIN: Final = re.compile(r"https?://" + _LOOPBACK.pattern, re.IGNORECASE)


class Guard:
    """Admits a request on loopback TCP only from programs of this user.

    Host must name loopback, else a foreign web page has rebound its own name to this address; Origin, when a browser sends
    one, must be loopback too (cross-site requests); and the bearer token shows that the caller can read node.json, which
    other users of the machine cannot.
    """

    def __init__(self, app: App, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no websockets here: leaving unanswered lets the server refuse the upgrade
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        refusal = self._refusal(str(scope["path"]), headers)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await answer_error(send, *refusal)

    def _refusal(self, path: str, headers: list[tuple[bytes, bytes]]) -> tuple[int, str, str] | None:
        hosts, origins = _values(headers, b"host"), _values(headers, b"origin")
        if len(hosts) != 1 or not _LOOPBACK.fullmatch(hosts[0]):
            return 403, "forbidden", "The Host header must name this machine: localhost, 127.0.0.1 or [::1]."
        if not all(_LOOPBACK_ORIGIN.fullmatch(origin) for origin in origins):
            return 403, "forbidden", "Requests from web pages of other hosts are refused."
        if path in OPEN_PATHS:
            return None
        given = _values(headers, b"authorization")
        if len(given) != 1 or not secrets.compare_digest(given[0].encode("utf-8"), self._expected):
            return (
                401,
                "unauthorized",
                "Send the header 'Authorization: Bearer TOKEN'; the token is in run/node.json in the home.",
            )
        return None


class BodyLimit:
    """Refuses a request body beyond `MAX_BODY_BYTES`, announced or not, before the application holds it."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        announced = _values(scope.get("headers") or [], b"content-length")
        if announced and (not announced[0].isdigit() or int(announced[0]) > MAX_BODY_BYTES):
            await answer_error(send, 413, "invalid_input", f"The request is larger than {MAX_BODY_BYTES} bytes.")
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            # To the application it looks as if the client had gone; nothing more is read of an unannounced flood.
            return {"type": "http.disconnect"} if seen > MAX_BODY_BYTES else message

        await self._app(scope, counted, send)


class Activity:
    """The requests in progress: whether anybody is there (what `idle_exit` looks at), and how they end with the node.

    A request that is cancelled because the node stops gets an answer that tells its client to look for the next node.
    """

    def __init__(self, app: App, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._monotonic = monotonic
        self._last = monotonic()
        self._waiting: set[asyncio.Task[Any]] = set()
        self.in_progress = 0

    def idle_s(self) -> float:
        """Seconds since the last client left; 0 while one is there."""
        return 0.0 if self.in_progress else self._monotonic() - self._last

    def end_waiting(self) -> None:
        """End event streams and long polls, which would otherwise hold up the node's end."""
        for task in list(self._waiting):
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/healthz":  # a monitor is not a user
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        task = asyncio.current_task()
        if task is not None and _waits(scope):
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        self.in_progress += 1
        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if started:
                await send({"type": "http.response.body", "body": b""})
            else:
                await answer_error(send, 503, "node_stopping", "The node is stopping.", retryable=True)
        finally:
            self.in_progress -= 1
            self._last = self._monotonic()


def _waits(scope: Scope) -> bool:
    """Whether the request may take as long as it likes."""
    return str(scope.get("path", "")).endswith("/events") or b"wait_seconds=" in scope.get("query_string", b"")


async def answer_error(send: Send, status: int, code: str, message: str, *, retryable: bool = False) -> None:
    """Send an error in the form that every route uses."""
    body = json.dumps({"error": {"code": code, "message": message, "retryable": retryable}}).encode("utf-8")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode("ascii"))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key.lower() == name]
