"""The proxy's surroundings in one process: a dispatch that takes targets in order, raw backends, raw clients, peers in memory.

Backends and clients write and read plain bytes, so that tests see exactly what passes.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentmesh.core.errors import Unreachable
from agentmesh.inference.logic.target import EngineAddress, ServedModel, Target
from agentmesh.inference.proxy.answers import LocalAnswers
from agentmesh.inference.proxy.metrics import Metrics
from agentmesh.inference.proxy.ports import Outcome, Refused, TargetKey, Wanted
from agentmesh.inference.proxy.server import ApiServer
from agentmesh.inference.proxy.settings import ApiSettings
from agentmesh.mesh.memory import MemoryConnection, MemoryNetwork, MemoryTransport
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Connection, Stream
from tests.fakes.raw_client import WAIT_S, Client, Reply

OWN = bytes(32)
CHAT = "/v1/chat/completions"


def fast(**settings: Any) -> ApiSettings:
    """Deadlines are looked at often. Time to connect to engines and peers also where a process stands still for a second.

    Tests of what must come at once wait for WAIT_S / 2: less than connect_s and peer_open_s, which alone show there that no
    time-out brought it. Whoever shortens these two takes from such tests what they say.
    """
    return ApiSettings(**{"sweep_s": 0.02, "connect_s": WAIT_S, "peer_open_s": WAIT_S, **settings})


FAST = fast()


def model(name: str, slots: int = 4) -> ServedModel:
    return ServedModel(id=name, ready=True, slots=slots, capabilities=("chat",))


class FakeLease:
    """Remembers how it was used."""

    def __init__(self, dispatch: FakeDispatch, target: Target) -> None:
        self.target = target
        self.outcomes: list[Outcome] = []
        self.retry_after_s: float | None = None
        self.first_bytes = 0
        self._dispatch = dispatch

    def first_byte(self) -> None:
        self.first_bytes += 1

    def release(self, outcome: Outcome, *, retry_after_s: float | None = None) -> None:
        self.outcomes.append(outcome)
        self.retry_after_s = retry_after_s
        self._dispatch.changed.set()


class FakeDispatch:
    """Gives the first target of the model that is not to be avoided. `full`: one has to wait until it is set to False."""

    def __init__(self, targets: Sequence[Target] = ()) -> None:
        self.targets = list(targets)
        self.wanted: list[Wanted] = []
        self.leases: list[FakeLease] = []
        self.full = False
        self.sessions = False
        self.left_queue = 0
        self.changed = asyncio.Event()

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for lease in self.leases for outcome in lease.outcomes]

    def try_acquire(self, wanted: Wanted, avoid: frozenset[TargetKey] = frozenset()) -> FakeLease | None:
        fitting = [
            t for t in self.targets if t.model.id == wanted.model and not (wanted.local_only and t.engine is None)
        ]
        if not fitting:
            raise Refused(404, "model_not_found", f"There is no model {wanted.model}; there are: {self._names()}.")
        left = [t for t in fitting if t.key not in avoid]
        if not left:
            raise Refused(503, "no_host", "No host can answer now.", 2)
        if self.full:
            return None
        self.wanted.append(wanted)
        self.leases.append(FakeLease(self, left[0]))
        return self.leases[-1]

    async def acquire(self, wanted: Wanted, avoid: frozenset[TargetKey] = frozenset()) -> FakeLease:
        while True:
            lease = self.try_acquire(wanted, avoid)
            if lease is not None:
                return lease
            self.changed.clear()
            try:
                await self.changed.wait()
            except asyncio.CancelledError:
                self.left_queue += 1
                raise

    def by_session(self, model: str) -> bool:
        return self.sessions

    def models(self) -> Sequence[tuple[ServedModel, Sequence[bytes]]]:
        return [(target.model, [target.node]) for target in self.targets]

    def _names(self) -> str:
        return ", ".join(target.model.id for target in self.targets)


Handler = Callable[["Call"], Awaitable[None]]


class Call:
    """One request that a backend received."""

    def __init__(self, head: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = head
        self.body = body
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_client_leaves(self) -> None:
        await asyncio.wait_for(self.reader.read(), WAIT_S)


def answer(body: bytes, status: str = "200 OK", headers: str = "Content-Type: application/json\r\n") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def says(data: bytes) -> Handler:
    """A handler that always answers with these bytes."""

    async def handler(call: Call) -> None:
        await call.send(data)

    return handler


class Backend:
    """A raw HTTP/1.1 server on a Unix socket whose handler writes what it likes; it closes when the handler raises EOFError."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self.path = path
        self.handler = handler
        self.calls: list[Call] = []
        self.connections = 0
        self.failures: list[BaseException] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    def target(self, name: str = "m", node: bytes = OWN, slots: int = 4) -> Target:
        return Target(node, model(name, slots), EngineAddress(socket=str(self.path), api_key="engine-key"))

    def kill(self) -> None:
        """As if its process had ended."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
                call = Call(head, await reader.readexactly(length), reader, writer)
                self.calls.append(call)
                await self.handler(call)
        except (EOFError, ConnectionError):
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            self._writers.discard(writer)
            writer.close()


def post(body: bytes | dict[str, object], path: str = CHAT, headers: str = "", version: str = "1.1") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    start = f"POST {path} HTTP/{version}\r\nHost: localhost\r\n{headers}Content-Length: {len(data)}\r\n\r\n"
    return start.encode("latin-1") + data


async def no_peer(node: bytes, kind: StreamKind) -> Stream:
    raise Unreachable(f"There is no peer {node.hex()[:8]}.")


class World:
    """One API server with whatever is behind it."""

    def __init__(self, folder: Path, settings: ApiSettings = FAST) -> None:
        self.folder = folder
        self.dispatch = FakeDispatch()
        self.metrics = Metrics()
        own = LocalAnswers(self.dispatch.models, self.metrics.render, created_s=1_700_000_000)
        self.open_peer: Callable[[bytes, StreamKind], Awaitable[Stream]] = no_peer
        self.server = ApiServer(self.dispatch, own, settings, self._open_peer, self.metrics)
        self.port = 0
        self.backends: list[Backend] = []
        self.clients: list[Client] = []

    async def _open_peer(self, node: bytes, kind: StreamKind) -> Stream:
        return await self.open_peer(node, kind)

    async def listen(self) -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        await self.server.listen(sock)

    async def backend(self, handler: Handler, name: str = "m", *, node: bytes | None = None, slots: int = 4) -> Backend:
        """Another engine with a target of its own, chosen after those before it."""
        number = len(self.backends)
        backend = Backend(self.folder / f"e{number}.sock", handler)
        await backend.start()
        self.backends.append(backend)
        self.dispatch.targets.append(backend.target(name, node or bytes([number]) * 32, slots))
        return backend

    async def client(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        self.clients.append(Client(reader, writer))
        return self.clients[-1]

    async def ask(self, data: bytes) -> Reply:
        return await (await self.client()).ask(data)

    async def pass_time(self, seconds: float) -> None:
        """So much time passes at once for whatever has a deadline here; back when the server has noticed."""
        await self.looked()
        parts, before = self.server.parts, self.server.parts.now
        parts.now = lambda: before() + seconds
        await self.looked()

    async def looked(self) -> None:
        """The server has looked once more at all deadlines."""
        engines, has_looked = self.server.parts.engines, asyncio.Event()
        sweep = engines.sweep

        def look(now_s: float) -> None:  # the last one in each round
            sweep(now_s)
            has_looked.set()

        engines.sweep = look
        await asyncio.wait_for(has_looked.wait(), WAIT_S)
        engines.sweep = sweep

    async def settled(self) -> None:
        """Nothing is in progress any more, and nothing is held for it."""
        await until(lambda: self.server.exchanges == 0)
        await until(lambda: self.server.parts.budget.used_bytes == 0)
        assert all(len(lease.outcomes) == 1 for lease in self.dispatch.leases)

    async def close(self) -> None:
        for client in self.clients:
            client.close()
        await self.server.close()
        for backend in self.backends:
            backend.kill()
            assert backend.failures == []


@asynccontextmanager
async def proxy_world(folder: Path, settings: ApiSettings = FAST) -> AsyncIterator[World]:
    world = World(folder, settings)
    await world.listen()
    try:
        yield world
    finally:
        await world.close()


async def until(is_so: Callable[[], bool], within_s: float = WAIT_S) -> None:
    """Wait, bounded, until something is so."""
    async with asyncio.timeout(within_s):
        while not is_so():
            await asyncio.sleep(0.005)


class PeerLinks:
    """Peers in memory: `world`'s open_peer leads to the `serve_peer` of others."""

    def __init__(self, world: World) -> None:
        self.network = MemoryNetwork()
        self._own = MemoryTransport(self.network, OWN)
        self._connections: dict[bytes, MemoryConnection] = {}
        self._transports: list[MemoryTransport] = []
        self._addresses: dict[bytes, str] = {}
        world.open_peer = self.open

    async def add(self, node: bytes, serve: Callable[[bytes, Stream], Awaitable[None]]) -> None:
        """A peer whose streams are given to `serve`."""
        transport = MemoryTransport(self.network, node)

        async def on_connection(connection: Connection) -> None:
            async with asyncio.TaskGroup() as group:
                while True:
                    group.create_task(serve(OWN, await connection.accept_stream()))

        port = await transport.listen("memory", 0, on_connection)
        self._transports.append(transport)
        self._addresses[node] = f"memory:{port}"

    async def open(self, node: bytes, kind: StreamKind) -> Stream:
        assert kind is StreamKind.HTTP
        if node not in self._addresses:
            raise Unreachable("No such peer.")
        if node not in self._connections or self._connections[node].is_closed:
            self._connections[node] = await self._own.dial(node, self._addresses[node], 5)
        return await self._connections[node].open_stream()

    def drop(self, node: bytes) -> None:
        """The connection ends, as when the host's process was killed and its kernel said so."""
        self.network.cut(OWN, node, drop=True)

    async def close(self) -> None:
        for transport in (self._own, *self._transports):
            await transport.close()


def peer_target(node: bytes, name: str = "m") -> Target:
    return Target(node, model(name))
