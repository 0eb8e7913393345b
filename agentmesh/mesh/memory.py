"""The transport of tests: connections inside one process, with real back-pressure and links that can be cut.

A `MemoryNetwork` is the world: who listens where, and which pairs of nodes cannot reach each other. Nothing here keeps
time, apart from the time-outs that callers give.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from agentmesh.core.errors import AgentMeshError, NotAdmitted, PortInUse, StreamClosed, Unreachable
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.logic.limits import MAX_STREAMS_PER_PEER
from agentmesh.mesh.logic.reasons import clip_reason
from agentmesh.mesh.logic.transport_limits import MEMORY_WINDOW_BYTES
from agentmesh.mesh.receive_buffer import ReceiveBuffer
from agentmesh.mesh.transport import OnConnection
from agentmesh.mesh.wakeup import Wakeup

FIRST_EPHEMERAL_PORT: Final = 49_152  # RFC 6335 section 6
RTT_MS: Final = 0.1

_log = logging.getLogger(__name__)


class MemoryNetwork:
    """Addresses, and the faults between nodes."""

    def __init__(self) -> None:
        self._listeners: dict[str, MemoryTransport] = {}
        self._next_port = FIRST_EPHEMERAL_PORT
        self._cuts: set[frozenset[bytes]] = set()
        self._refusing: set[bytes] = set()
        self._links: list[_Link] = []

    def cut(self, a: bytes, b: bytes, *, drop: bool = False) -> None:
        """Nothing passes between nodes `a` and `b` any more.

        Connections hold what is written until `heal`, as over a dead wire; with `drop` they end at once on both sides,
        as after the idle time-out.
        """
        self._cuts.add(frozenset((a, b)))
        if drop:
            for link in self._between(a, b):
                for end in link.ends:
                    end.finish("the connection timed out")

    def heal(self, a: bytes, b: bytes) -> None:
        """The nodes reach each other again; what was held arrives."""
        self._cuts.discard(frozenset((a, b)))
        for link in self._between(a, b):
            link.flush()

    def refuse(self, node: bytes, refusing: bool = True) -> None:
        """Dials to `node` fail at once, as to a port where nobody listens."""
        (self._refusing.add if refusing else self._refusing.discard)(node)

    def is_cut(self, nodes: frozenset[bytes]) -> bool:
        return nodes in self._cuts

    def is_refusing(self, node: bytes) -> bool:
        return node in self._refusing

    def bind(self, transport: MemoryTransport, host: str, port: int) -> int:
        """Give `transport` an address. Raises: PortInUse."""
        if port == 0:
            while f"{host}:{self._next_port}" in self._listeners:
                self._next_port += 1
            port, self._next_port = self._next_port, self._next_port + 1
        if f"{host}:{port}" in self._listeners:
            raise PortInUse(f"Port {port} is in use by another program.")
        self._listeners[f"{host}:{port}"] = transport
        return port

    def unbind(self, transport: MemoryTransport) -> None:
        self._listeners = {a: t for a, t in self._listeners.items() if t is not transport}

    def listener(self, address: str) -> MemoryTransport | None:
        return self._listeners.get(address)

    def add(self, link: _Link) -> None:
        self._links.append(link)

    def discard(self, link: _Link) -> None:
        if link in self._links:
            self._links.remove(link)

    def _between(self, a: bytes, b: bytes) -> list[_Link]:
        return [link for link in self._links if link.nodes == frozenset((a, b))]


class MemoryTransport:
    """A node's place on the network.

    Args:
        node: the public key that this side proves when it is dialled.
    """

    def __init__(self, network: MemoryNetwork, node: bytes) -> None:
        self.node = node
        self._network = network
        self._address = f"memory-{node[:4].hex()}:1"
        self._on_connection: OnConnection | None = None
        self._tasks = TaskSet("memory transport")
        self._open: list[MemoryConnection] = []

    async def listen(self, host: str, port: int, on_connection: OnConnection) -> int:
        """See Transport."""
        bound = self._network.bind(self, host, port)
        self._address = f"{host}:{bound}"
        self._on_connection = on_connection
        return bound

    async def dial(self, node: bytes, address: str, timeout_s: float) -> MemoryConnection:
        """See Transport."""
        far = self._network.listener(address)
        if far is None or self._network.is_refusing(far.node):
            await asyncio.sleep(0)
            raise Unreachable(f"Nobody answers at {address}.")
        nodes = frozenset((self.node, far.node))
        if self._network.is_cut(nodes):
            await asyncio.sleep(timeout_s)
            raise Unreachable(f"{address} did not answer within {timeout_s:g} s.")
        await asyncio.sleep(0)
        if far.node != node:
            raise NotAdmitted(f"Another node answers at {address}.")
        link = _Link(self._network, nodes)
        near_end = MemoryConnection(link, server=far.node, dialled=True, remote_address=address)
        far_end = MemoryConnection(link, server=far.node, dialled=False, remote_address=self._address)
        link.connect(near_end, far_end)
        self._track(near_end)
        far.accept(far_end)
        return near_end

    def accept(self, connection: MemoryConnection) -> None:
        """A connection from another transport of the network."""
        self._track(connection)
        self._tasks.spawn(self._serve(connection), name=f"connection from {connection.remote_address}")

    def _track(self, connection: MemoryConnection) -> None:
        self._open = [c for c in self._open if not c.is_closed]
        self._open.append(connection)

    async def _serve(self, connection: MemoryConnection) -> None:
        assert self._on_connection is not None  # noqa: S101 - an address is bound only together with it
        try:
            await self._on_connection(connection)
        except* AgentMeshError as errors:
            _log.debug("connection from %s ended: %s", connection.remote_address, errors.exceptions[0])
        finally:
            connection.close("done")

    async def close(self) -> None:
        """See Transport."""
        self._network.unbind(self)
        for connection in self._open:
            connection.close("the node stops")
        await self._tasks.close()


class _Link:
    """The wire between two ends. While it is cut, deliveries queue up."""

    def __init__(self, network: MemoryNetwork, nodes: frozenset[bytes]) -> None:
        self.nodes = nodes
        self.ends: tuple[MemoryConnection, ...] = ()
        self._network = network
        self._held: deque[Callable[[], None]] = deque()

    def connect(self, a: MemoryConnection, b: MemoryConnection) -> None:
        self.ends = (a, b)
        a.far, b.far = b, a
        self._network.add(self)

    def deliver(self, action: Callable[[], None]) -> None:
        if self._network.is_cut(self.nodes):
            self._held.append(action)
        else:
            action()

    def flush(self) -> None:
        while self._held:
            self._held.popleft()()

    def end_finished(self) -> None:
        """Forget the link once neither end can say anything more."""
        if all(end.is_closed for end in self.ends):
            self._network.discard(self)


class MemoryConnection:
    """One end of a connection. See transport.Connection."""

    far: MemoryConnection

    def __init__(self, link: _Link, *, server: bytes, dialled: bool, remote_address: str) -> None:
        self.link = link
        self.changed = Wakeup()
        self._server = server
        self._dialled = dialled
        self._remote_address = remote_address
        self._reason: str | None = None
        self._accepted: deque[MemoryStream] = deque()
        self._streams: list[MemoryStream] = []
        self._opened = 0

    @property
    def remote_address(self) -> str:
        return self._remote_address

    @property
    def server_node(self) -> bytes:
        return self._server

    @property
    def dialled(self) -> bool:
        return self._dialled

    @property
    def rtt_ms(self) -> float | None:
        return RTT_MS

    @property
    def is_closed(self) -> bool:
        return self._reason is not None

    @property
    def reason(self) -> str:
        return self._reason or ""

    async def open_stream(self) -> MemoryStream:
        """See Connection. Waits while the far side has as many of our streams as it allows."""
        while self._opened >= MAX_STREAMS_PER_PEER and not self.is_closed:
            await self.changed.wait()
        if self.is_closed:
            raise StreamClosed(f"The connection is closed: {self.reason}")
        await asyncio.sleep(0)
        near, far = MemoryStream(self, ours=True), MemoryStream(self.far, ours=False)
        near.far, far.far = far, near
        self._opened += 1
        self._streams.append(near)
        self.link.deliver(lambda: self.far.arrive(far))
        return near

    def arrive(self, stream: MemoryStream) -> None:
        """The far end opened a stream."""
        if not self.is_closed:
            self._streams.append(stream)
            self._accepted.append(stream)
            self.changed.wake()

    def forget(self, stream: MemoryStream, *, ours: bool) -> None:
        """Both directions of a stream are over."""
        if stream in self._streams:
            self._streams.remove(stream)
            self._opened -= ours
            self.changed.wake()

    async def accept_stream(self) -> MemoryStream:
        """See Connection."""
        while not self._accepted:
            if self.is_closed:
                raise StreamClosed(f"The connection is closed: {self.reason}")
            await self.changed.wait()
        return self._accepted.popleft()

    async def wait_closed(self) -> str:
        """See Connection."""
        while not self.is_closed:
            await self.changed.wait()
        return self.reason

    def close(self, reason: str) -> None:
        """See Connection."""
        if not self.is_closed:
            reason = clip_reason(reason)
            self.finish(reason)
            self.link.deliver(lambda: self.far.finish(reason))

    def finish(self, reason: str) -> None:
        """This end is over, whoever ended it."""
        if self.is_closed:
            return
        self._reason = reason
        self._accepted.clear()
        for stream in self._streams:
            stream.fail(f"The connection is closed: {reason}")
        self._streams.clear()
        self.changed.wake()
        self.link.end_finished()


class MemoryStream:
    """One end of a stream. See transport.Stream."""

    far: MemoryStream

    def __init__(self, connection: MemoryConnection, *, ours: bool) -> None:
        self._connection = connection
        self._ours = ours
        self._incoming = ReceiveBuffer(self._was_read)
        self._unread_by_far = 0
        self._write_over: str | None = None
        self._read_over = False
        self._room = Wakeup()

    async def read(self, max_bytes: int) -> bytes:
        """See Stream."""
        data = await self._incoming.read(max_bytes)
        if not data:
            self._read_over = True
            self._settle()
        return data

    async def write(self, data: bytes) -> None:
        """See Stream."""
        while self._write_over is None and self._unread_by_far >= MEMORY_WINDOW_BYTES:
            await self._room.wait()
        if self._write_over is not None:
            raise StreamClosed(self._write_over)
        self._unread_by_far += len(data)
        copied = bytes(data)
        self._deliver(lambda: self.far.take(copied))
        await asyncio.sleep(0)

    async def end(self) -> None:
        """See Stream."""
        if self._write_over is None:
            self._write_over = "This side has ended the stream."
            self._deliver(self.far.take_end)
            self._settle()

    def abort(self) -> None:
        """See Stream."""
        if not self._connection.is_closed and not (self._read_over and self._write_over):
            self.fail("The stream was aborted.")
            self._deliver(lambda: self.far.fail("The stream was reset by the peer."))

    def take(self, data: bytes) -> None:
        """Bytes arrive."""
        self._incoming.feed(data)

    def take_end(self) -> None:
        """The far side's end arrives."""
        self._incoming.end()

    def fail(self, reason: str) -> None:
        """Both directions are over: by a reset, which discards, or with the connection, which does not."""
        self._write_over = self._write_over or reason
        self._read_over = True
        self._incoming.fail(reason, discard=not self._connection.is_closed)
        self._room.wake()
        self._settle()

    def give_room(self, count: int) -> None:
        """The far side has read `count` bytes."""
        self._unread_by_far -= count
        self._room.wake()

    def _was_read(self, count: int) -> None:
        self._deliver(lambda: self.far.give_room(count))

    def _deliver(self, action: Callable[[], None]) -> None:
        self._connection.link.deliver(action)

    def _settle(self) -> None:
        if self._read_over and self._write_over is not None:
            self._connection.forget(self, ours=self._ours)
