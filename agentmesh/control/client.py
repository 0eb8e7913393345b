"""The thin client: one request to the node of a home over its Unix socket, blocking or on asyncio.

Owns how a request travels and how the node's errors come back. Does not know how a node is started (start.py) and imports
nothing that costs time: asyncio only inside the asynchronous client. One connection for each request: on a Unix socket
that costs some 50 us, and no half-dead connection has to be told from a live one.
"""

from __future__ import annotations

import json as jsonlib
import os
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from agentmesh.control.errors import ForeignSocket, NodeLost, NodeSilent, error_from_response
from agentmesh.control.http1 import BadResponse, Query, ResponseReader, build_event_request, build_request, build_target
from agentmesh.control.sse import EventParser, ServerEvent
from agentmesh.core.errors import AgentMeshError, NoNode
from agentmesh.core.paths import Home

if TYPE_CHECKING:
    import asyncio

REQUEST_TIMEOUT_S: Final = 30.0  # the slowest plain call is a post behind a scrub worker that has to start (some 3 s)
CONNECT_TIMEOUT_S: Final = 5.0
CONNECT_POLL_S: Final = 0.02
STREAM_SILENCE_S: Final = 60.0  # the node sends a comment every 15 s on a quiet event stream
MAX_BODY_BYTES: Final = 32 * 1024 * 1024  # 200 posts of 4 KiB, escaped, are some 5 MiB
_READ_BYTES: Final = 64 * 1024


class _Socket:
    """Where the node of a home listens, and whether it is this user's."""

    def __init__(self, home: Home | Path | str) -> None:
        self.home = home if isinstance(home, Home) else Home(Path(home))

    def _find(self) -> Path:
        """In the home, unless that is too deep: then where the node says, whose `$XDG_RUNTIME_DIR` may have been another."""
        usual = self.home.socket
        if usual.parent == self.home.run:
            return usual
        try:
            said = cast("dict[str, Any]", jsonlib.loads(self.home.node_json.read_bytes()))
            return Path(str(said["socket"]))
        except (OSError, ValueError, KeyError, TypeError):
            return usual

    def check(self) -> str:
        """The path to connect to. Raises: NoNode: nothing is there; ForeignSocket: another user put it there."""
        path = self._find()
        try:
            owner = path.lstat().st_uid
        except OSError as error:
            raise self.missing() from error
        if owner != os.getuid():
            raise ForeignSocket(f"{path} belongs to another user; it is not used.")
        return str(path)

    def try_connect(self) -> socket.socket | None:
        """A connection, or None when so many others want one at this moment that the node has not taken them yet.

        A Unix socket connects at once or, when its backlog is full, fails at once (EAGAIN) instead of waiting.
        """
        path = self.check()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(path)
        except BlockingIOError:
            connection.close()
            return None
        except OSError as error:
            connection.close()
            raise self.missing() from error
        return connection

    def missing(self) -> NoNode:
        return NoNode(f"No agentmesh node runs in {self.home.root}.")


class NodeClient:
    """Blocking calls to the node of one home.

    Raises, for every call: NoNode (nothing listens), NodeLost (it ended before it answered: a call with an idempotency key
    may be repeated), NodeSilent (too slow), and whatever error the node reports.
    """

    def __init__(self, home: Home | Path | str) -> None:
        self._socket = _Socket(home)

    @property
    def home(self) -> Home:
        return self._socket.home

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Query | None = None,
        json: object = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Send one request and give the JSON object that the node answers."""
        deadline = time.monotonic() + timeout_s
        reader, body = ResponseReader(), bytearray()
        with self._connect() as connection:
            _send(connection, build_request(method, build_target(path, params), json), deadline)
            while not reader.complete:
                _feed(reader, _receive(connection, deadline))
                body += reader.take()
                if len(body) > MAX_BODY_BYTES:
                    raise BadResponse()
        return _answer(reader, bytes(body))

    def stream_events(
        self, path: str, params: Query | None = None, *, last_event_id: str | None = None
    ) -> Iterator[ServerEvent]:
        """The events of an SSE route, until the node ends the stream. Raises NodeLost when it just ends."""
        reader, parser = ResponseReader(), EventParser()
        with self._connect() as connection:
            request = build_event_request(build_target(path, params), last_event_id)
            _send(connection, request, time.monotonic() + CONNECT_TIMEOUT_S)
            while not reader.complete:
                _feed(reader, _receive(connection, time.monotonic() + STREAM_SILENCE_S))
                if reader.status in (None, 200):
                    yield from parser.feed(reader.take())
        _answer_if_error(reader)

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while (connection := self._socket.try_connect()) is None:
            if time.monotonic() >= deadline:
                raise NodeSilent()
            time.sleep(CONNECT_POLL_S)
        return connection


class AsyncNodeClient:
    """The same calls on asyncio; a cancelled call closes its connection."""

    def __init__(self, home: Home | Path | str) -> None:
        self._socket = _Socket(home)

    @property
    def home(self) -> Home:
        return self._socket.home

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Query | None = None,
        json: object = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Send one request and give the JSON object that the node answers."""
        import asyncio

        reader, body = ResponseReader(), bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                source, sink = await self._connect()
                try:
                    sink.write(build_request(method, build_target(path, params), json))
                    while not reader.complete:
                        _feed(reader, await _read(source))
                        body += reader.take()
                        if len(body) > MAX_BODY_BYTES:
                            raise BadResponse()
                finally:
                    sink.close()
        except TimeoutError as error:
            raise NodeSilent() from error
        return _answer(reader, bytes(body))

    async def stream_events(
        self, path: str, params: Query | None = None, *, last_event_id: str | None = None
    ) -> AsyncGenerator[ServerEvent, None]:
        """The events of an SSE route, until the node ends the stream. Close the iterator (`aclosing`) to stop early."""
        import asyncio

        reader, parser = ResponseReader(), EventParser()
        source, sink = await self._connect()
        try:
            sink.write(build_event_request(build_target(path, params), last_event_id))
            while not reader.complete:
                try:
                    async with asyncio.timeout(STREAM_SILENCE_S):
                        data = await _read(source)
                except TimeoutError as error:
                    raise NodeSilent() from error
                _feed(reader, data)
                if reader.status in (None, 200):
                    for event in parser.feed(reader.take()):
                        yield event
        finally:
            sink.close()
        _answer_if_error(reader)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        import asyncio

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                while (connection := self._socket.try_connect()) is None:  # noqa: ASYNC110 - the kernel tells nobody
                    await asyncio.sleep(CONNECT_POLL_S)
                connection.setblocking(False)
                return await asyncio.open_unix_connection(sock=connection)
        except TimeoutError as error:
            raise NodeSilent() from error
        except OSError as error:
            raise self._socket.missing() from error


async def _read(source: asyncio.StreamReader) -> bytes:
    try:
        return await source.read(_READ_BYTES)
    except OSError as error:
        raise NodeLost() from error


def _send(connection: socket.socket, data: bytes, deadline: float) -> None:
    connection.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        connection.sendall(data)
    except TimeoutError as error:
        raise NodeSilent() from error
    except OSError as error:
        raise NodeLost() from error


def _receive(connection: socket.socket, deadline: float) -> bytes:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise NodeSilent()
    connection.settimeout(remaining)
    try:
        return connection.recv(_READ_BYTES)
    except TimeoutError as error:
        raise NodeSilent() from error
    except OSError as error:
        raise NodeLost() from error


def _feed(reader: ResponseReader, data: bytes) -> None:
    if data:
        reader.feed(data)
    elif not reader.feed_eof():
        raise NodeLost()


def _answer(reader: ResponseReader, body: bytes) -> dict[str, Any]:
    status = reader.status or 0
    try:
        value: object = jsonlib.loads(body) if body else {}
    except ValueError as error:
        if status >= 400:
            raise error_from_response(status, None) from error
        raise BadResponse() from error
    if status >= 400:
        raise error_from_response(status, value)
    if not isinstance(value, dict):
        raise BadResponse()
    return cast("dict[str, Any]", value)


def _answer_if_error(reader: ResponseReader) -> None:
    if reader.status != 200:
        _answer(reader, reader.take())


__all__ = ["AgentMeshError", "AsyncNodeClient", "NodeClient", "ServerEvent"]
