"""The worker's side of a lease for tests of hosts: what it says is the test's choice; and hosts and workers with streams in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.job_wire import JOB_BEAT_S, JobAsk, JobSaid, JobState
from agentmesh.inference.rpc.exit import RpcExits, RpcJob
from agentmesh.inference.rpc.weights import WeightFiles
from agentmesh.mesh.memory import MemoryNetwork, MemoryTransport
from agentmesh.mesh.streams import FrameStream, StreamKind, read_header, write_header
from agentmesh.mesh.transport import Connection, Stream

asked = msgspec.msgpack.Decoder(JobAsk)


@dataclass
class JobWorker:
    """One that lends the RPC servers that `start_rpc` starts, one for each lease.

    Attributes:
        start_rpc: starts one, waits until it listens, says its port.
        end_rpc: ends it.
        words: said before READY.
        instead: said in READY's place; nothing more follows.
        silent: no beats.
        stubborn: does not end its side when the host has ended the lease.
    """

    start_rpc: Callable[[], Awaitable[int]]
    end_rpc: Callable[[], Awaitable[None]]
    weights: WeightFiles | None = None
    devices: tuple[str, ...] = ("",)
    words: tuple[JobSaid, ...] = ()
    instead: JobSaid | None = None
    silent: bool = False
    stubborn: bool = False
    exits: RpcExits = field(default_factory=RpcExits)
    asks: list[JobAsk] = field(default_factory=list[JobAsk])
    open_now: int = 0
    ends: list[str | None] = field(default_factory=list[str | None])
    streams: list[Stream] = field(default_factory=list[Stream])

    async def serve(self, peer: bytes, stream: Stream) -> None:
        """For streams of kind `job`."""
        frames = FrameStream(stream)
        self.streams.append(stream)
        self.open_now += 1
        try:
            ask = await frames.read_struct(asked)
            assert ask is not None
            self.asks.append(ask)
            for word in self.words:
                await frames.write_struct(word)
            if self.instead is not None:
                await frames.write_struct(self.instead)
                await frames.end()
                await frames.read_frame()
                return
            await self._lend(peer, frames, f"job-{len(self.asks)}")
            if self.stubborn:
                await asyncio.Event().wait()
            await frames.end()
        except AgentMeshError:
            pass
        finally:
            stream.abort()
            self.open_now -= 1

    async def _lend(self, peer: bytes, frames: FrameStream, name: str) -> None:
        port = await self.start_rpc()
        self.exits.add(RpcJob(name, port, lambda who: who == peer, self.weights, on_end=self.ends.append))
        tasks = TaskSet("lease")
        try:
            ready = JobSaid(JobState.READY, "", name, self.devices, same_files=self.weights is not None)
            await frames.write_struct(ready)
            if not self.silent:
                tasks.spawn(self._beat(frames), name="beat")
            with suppress(AgentMeshError):
                await frames.read_frame()
        finally:
            await tasks.close()
            await self.exits.remove(name)
            await self.end_rpc()

    async def _beat(self, frames: FrameStream) -> None:
        with suppress(AgentMeshError):
            while True:
                await asyncio.sleep(JOB_BEAT_S)
                await frames.write_struct(JobSaid(JobState.BEAT))


class MemoryWorkers:
    """Connections in memory from one host to any number of workers. Made by `memory_workers`."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.host = MemoryTransport(self.network, b"h" * 32)
        self.tasks = TaskSet("workers")
        self.opened: list[StreamKind] = []
        self._transports: list[MemoryTransport] = []
        self._connections: dict[bytes, Connection] = {}

    async def add(self, node: bytes, worker: JobWorker) -> None:
        """A worker with this id."""

        async def on_connection(connection: Connection) -> None:
            await self._accept(connection, worker)

        transport = MemoryTransport(self.network, node)
        self._transports.append(transport)
        port = await transport.listen("memory", 0, on_connection)
        self._connections[node] = await self.host.dial(node, f"memory:{port}", 5)

    async def open_stream(self, node: bytes, kind: StreamKind) -> Stream:
        """As a mesh does it."""
        self.opened.append(kind)
        stream = await self._connections[node].open_stream()
        await write_header(stream, kind)
        return stream

    def drop(self, node: bytes) -> None:
        """The worker's machine is gone."""
        self.network.cut(self.host.node, node, drop=True)

    async def stop(self) -> None:
        await self.host.close()
        for transport in self._transports:
            await transport.close()
        await self.tasks.close()

    async def _accept(self, connection: Connection, worker: JobWorker) -> None:
        with suppress(AgentMeshError):
            while True:
                stream = await connection.accept_stream()
                self.tasks.spawn(self._serve(stream, worker), name="stream")

    async def _serve(self, stream: Stream, worker: JobWorker) -> None:
        kind = (await read_header(stream)).known_kind
        serve = worker.serve if kind is StreamKind.JOB else worker.exits.serve
        await serve(self.host.node, stream)


@asynccontextmanager
async def memory_workers() -> AsyncGenerator[MemoryWorkers]:
    made = MemoryWorkers()
    try:
        yield made
    finally:
        await made.stop()
