"""Connections to this node's own engines: raw HTTP/1.1 over a Unix socket or a loopback port, kept alive between requests.

Owns the connections. Knows nothing of answers: it carries a request's bytes there and hands the answer's bytes to the
exchange. An idle connection holds one of the engine's threads, so no more are kept than it has slots.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from agentmesh.inference.logic.head_memo import MAX_REMEMBERED_BYTES
from agentmesh.inference.logic.http_head import PASSED_ON, target_request_fields
from agentmesh.inference.logic.proxy_limits import MAX_IDLE_ENGINE_CONNECTIONS, MAX_KNOWN_HEADS
from agentmesh.inference.logic.target import EngineAddress, Target
from agentmesh.inference.proxy.body import Body
from agentmesh.inference.proxy.parts import Parts

if TYPE_CHECKING:
    from agentmesh.inference.proxy.exchange import Exchange, Request


class EngineConnection(asyncio.Protocol):
    """One connection, for one exchange at a time. See parts.Upstream."""

    def __init__(self, pool: EnginePool, exchange: Exchange, request: tuple[bytes, Body]) -> None:
        self.reused = False
        self.idle_since_s = 0.0
        self._pool = pool
        self._exchange: Exchange | None = exchange
        self._request: tuple[bytes, Body] | None = request
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._sent = 0
        self._write_paused = False
        self._read_paused = False
        self._is_over = False

    @property
    def is_usable(self) -> bool:
        """Whether another request can be sent."""
        return not self._is_over and self._transport is not None and not self._transport.is_closing()

    # ------------------------------------------------------------------ from the pool

    def connect(self, parts: Parts, address: EngineAddress) -> None:
        """Begin; `upstream_lost` tells if it fails."""
        self._connecting = parts.tasks.spawn(
            self._connect(parts.settings.connect_s, address), name="connect to an engine"
        )

    async def _connect(self, timeout_s: float, address: EngineAddress) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                if address.socket is not None:
                    await loop.create_unix_connection(lambda: self, address.socket)
                else:
                    await loop.create_connection(lambda: self, "127.0.0.1", address.port or 0)
        except (OSError, ValueError) as error:  # TimeoutError is an OSError; ValueError: a path too long for a socket
            self._over(f"No connection to the engine: {error or 'it did not accept one in time'}.", clean=False)
        finally:
            self._connecting = None

    def begin(self, exchange: Exchange, request: tuple[bytes, Body]) -> None:
        """Send another request on a connection that was idle."""
        self.reused = True
        self._exchange = exchange
        self._request = request
        self._send()

    def close(self) -> None:
        """End the connection without telling anybody."""
        self._is_over = True
        self._exchange = self._request = None
        self._pool.forget(self)
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ Upstream

    def pause(self) -> None:
        """See Upstream."""
        self._read_paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """See Upstream."""
        if self._read_paused and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._read_paused = False

    def release(self, reusable: bool) -> None:
        """See Upstream."""
        is_sent = self._request is None
        self._exchange = self._request = None
        if reusable and is_sent and self.is_usable:
            if self._read_paused:
                self.resume()
            self._pool.put(self)
        else:
            self.close()

    def abort(self) -> None:
        """See Upstream. llama-server looks whether its client is there between two tokens, and stops."""
        self.close()

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no class of asyncio's
        if self._is_over:
            self._transport.abort()
            return
        self._send()

    def data_received(self, data: bytes) -> None:
        """Hand it on; bytes that nobody asked for end the connection."""
        if self._exchange is not None:
            self._exchange.upstream_data(self, data)
        else:
            self.close()

    def eof_received(self) -> None:
        """The engine has no more to say."""
        self._over("The engine closed the connection.", clean=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """It ended, whoever ended it."""
        self._over(f"The connection to the engine was lost: {exc or 'closed'}.", clean=exc is None)

    def pause_writing(self) -> None:
        """The engine does not keep up with the request's body."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._write_paused = False
        if self._request is not None:
            self._pump()

    # ------------------------------------------------------------------ within

    def _send(self) -> None:
        assert self._request is not None and self._transport is not None  # noqa: S101 - called with both
        head, body = self._request
        if body.data is not None:
            self._request = None
            self._pool.outbox.write(self._transport.write, head + body.data)
        else:
            self._sent = 0
            self._transport.write(head)
            self._pump()

    def _pump(self) -> None:
        assert self._request is not None and self._transport is not None  # noqa: S101 - called with both
        body = self._request[1]
        while self._sent < body.size and not self._write_paused:
            piece = body.piece(self._sent)
            self._sent += len(piece)
            self._transport.write(piece)
        if self._sent >= body.size:
            self._request = None

    def _over(self, reason: str, *, clean: bool) -> None:
        if self._is_over:
            return
        exchange = self._exchange
        self.close()
        if exchange is not None:
            exchange.upstream_lost(self, reason, clean=clean)


class EnginePool:
    """The connections to one engine."""

    def __init__(self, parts: Parts) -> None:
        self.outbox = parts.outbox
        self._parts = parts
        self._idle: list[EngineConnection] = []
        self._all: set[EngineConnection] = set()
        self._heads: dict[tuple[str | bytes | None, ...], bytes] = {}  # see _head
        self.max_idle = 1

    @property
    def is_empty(self) -> bool:
        return not self._all

    @property
    def idle(self) -> int:
        """How many are ready."""
        return len(self._idle)

    def start(self, target: Target, exchange: Exchange, *, fresh: bool) -> EngineConnection:
        """Send the exchange's request, on an idle connection unless a `fresh` one is asked for."""
        assert target.engine is not None  # noqa: S101 - whose pool this is
        request = exchange.request
        head = self._head(request, target.engine)
        self.max_idle = min(target.model.slots, MAX_IDLE_ENGINE_CONNECTIONS)
        while self._idle and not fresh:
            connection = self._idle.pop()  # the youngest: the least likely to be closed by the engine right now
            if connection.is_usable:
                connection.begin(exchange, (head, request.body))
                return connection
            connection.close()
        connection = EngineConnection(self, exchange, (head, request.body))
        self._all.add(connection)
        connection.connect(self._parts, target.engine)
        return connection

    def _head(self, request: Request, engine: EngineAddress) -> bytes:
        """The request's head. Clients say mostly the same, so what they said last is kept (saves 1 us a request)."""
        key = (request.path, *map(request.headers.get, PASSED_ON))
        fields = self._heads.get(key)
        if fields is None:
            fields = target_request_fields(request.path, request.headers, engine_key=engine.api_key)
            if len(self._heads) >= MAX_KNOWN_HEADS:
                self._heads.clear()
            if len(fields) <= MAX_REMEMBERED_BYTES:
                self._heads[key] = fields
        return b"%bContent-Length: %d\r\n\r\n" % (fields, request.body.size)

    def put(self, connection: EngineConnection) -> None:
        """Keep it for the next request."""
        if len(self._idle) >= self.max_idle or self._parts.draining:
            connection.close()
            return
        connection.idle_since_s = self._parts.now()
        self._idle.append(connection)

    def forget(self, connection: EngineConnection) -> None:
        """It has ended."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, before_s: float) -> None:
        """Close what has been idle since before then."""
        for connection in [c for c in self._idle if c.idle_since_s < before_s]:
            connection.close()

    def close(self) -> None:
        """End all connections."""
        for connection in list(self._all):
            connection.close()


class EnginePools:
    """A pool for each engine in use; an engine that was started anew has another address or key, and another pool."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._pools: dict[EngineAddress, EnginePool] = {}

    def start(self, target: Target, exchange: Exchange, *, fresh: bool = False) -> EngineConnection:
        """See EnginePool.start."""
        assert target.engine is not None  # noqa: S101 - the caller looked
        pool = self._pools.get(target.engine)
        if pool is None:
            pool = self._pools[target.engine] = EnginePool(self._parts)
        return pool.start(target, exchange, fresh=fresh)

    @property
    def idle(self) -> int:
        """Connections that are ready, to all engines."""
        return sum(pool.idle for pool in self._pools.values())

    def sweep(self, now_s: float) -> None:
        """Close idle connections before the engines do, and forget engines that are no longer used."""
        for address, pool in list(self._pools.items()):
            pool.sweep(now_s - self._parts.settings.engine_idle_s)
            if pool.is_empty:
                del self._pools[address]

    def close(self) -> None:
        """End all connections."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
