"""The worker's side of the RPC relay: streams of hosts, led to the RPC servers that were started for them. docs/rpc-relay.md.

Owns the jobs (one RPC server each) and who may use them. Starts and ends no process. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agentmesh.core.errors import AgentMeshError, StreamClosed
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.rpc_limits import OPEN_WAIT_S, RPC_CONNECT_S, RPC_PLACE_WAIT_S
from agentmesh.inference.logic.rpc_memory import Allocations
from agentmesh.inference.logic.rpc_stream import STREAM_FORMAT, Device, Open, Opened, OpenStatus, frame_of, open_decoder
from agentmesh.inference.rpc.counters import RelayCounters
from agentmesh.inference.rpc.duplex import read_frame, run_blind
from agentmesh.inference.rpc.errors import RpcServerGone
from agentmesh.inference.rpc.exit_connection import Greeting, WorkerRelay, greet
from agentmesh.inference.rpc.local_socket import LocalSocket
from agentmesh.inference.rpc.weights import WeightFiles
from agentmesh.mesh.transport import Stream

_log = logging.getLogger(__name__)


def _new_counters() -> RelayCounters:
    return RelayCounters(time.monotonic)


@dataclass(slots=True, eq=False)
class RpcJob:
    """One RPC server, and what may be done with it.

    Attributes:
        name: what hosts call it.
        port: where it listens, on 127.0.0.1.
        may_use: whether a peer is its host.
        weights: the files that this node has of the model; None: every weight travels. The caller closes them.
        limit_bytes: of all buffers together, also what is told as its memory; None: what the RPC server has.
        on_end: told when a connection of a host is over, with a sentence if it did not end as it should.
    """

    name: str
    port: int
    may_use: Callable[[bytes], bool]
    weights: WeightFiles | None = None
    limit_bytes: int | None = None
    on_end: Callable[[str | None], None] = lambda _: None
    counters: RelayCounters = field(default_factory=_new_counters)
    place: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True, eq=False)
class _Served:
    """One stream that is being served."""

    job: RpcJob
    stream: Stream
    work: asyncio.Task[None]


class RpcExits:
    """See the module. Register `serve` for streams of kind `rpc`."""

    def __init__(self) -> None:
        self._jobs: dict[str, RpcJob] = {}
        self._served: list[_Served] = []
        self._tasks = TaskSet("rpc exits")

    def add(self, job: RpcJob) -> None:
        """From now on its host may connect."""
        self._jobs[job.name] = job

    async def remove(self, name: str) -> None:
        """Nobody may connect any more, and who is connected is cut off, whatever the RPC server does. When this returns, nothing
        uses the job's files."""
        job = self._jobs.pop(name, None)
        ending = [served for served in self._served if served.job is job]
        for served in ending:
            served.stream.abort()
            served.work.cancel()  # it may wait for an RPC server that neither takes nor gives anything
        if ending:
            await asyncio.wait([served.work for served in ending])

    async def serve(self, peer: bytes, stream: Stream) -> None:
        """Serve a host's stream. It is over when this returns."""
        try:
            await self._serve(peer, stream)
        except (AgentMeshError, TimeoutError) as error:
            _log.debug("an rpc stream of %s ended: %s", peer.hex()[:8], error)
        finally:
            stream.abort()  # does nothing to one that is over

    async def _serve(self, peer: bytes, stream: Stream) -> None:
        async with asyncio.timeout(OPEN_WAIT_S):
            opening = await read_frame(stream, open_decoder)
        job = self._jobs.get(opening.job)
        if opening.format != STREAM_FORMAT:
            await _refuse(stream, OpenStatus.REFUSED, "it runs another version of agentmesh.")
        elif job is None or not job.may_use(peer):
            # The same words for both: who may not use a job need not know that it is there.
            await _refuse(stream, OpenStatus.REFUSED, "it has no such job for this node.")
        else:
            await self._serve_until_removed(job, opening, stream)

    async def _serve_until_removed(self, job: RpcJob, opening: Open, stream: Stream) -> None:
        """Raises: AgentMeshError."""
        work = self._tasks.spawn(self._guarded(job, opening, stream), name=job.name[:8])
        served = _Served(job, stream, work)
        self._served.append(served)
        try:
            await asyncio.wait([work])
        finally:
            if not work.done():  # this one is cancelled
                work.cancel()
                await asyncio.wait([work])
            self._served.remove(served)

    async def _guarded(self, job: RpcJob, opening: Open, stream: Stream) -> None:
        try:
            await self._serve_job(job, opening, stream)
        except (AgentMeshError, TimeoutError) as error:
            _log.debug("an rpc stream of the job %s ended: %s", job.name[:8], error)

    async def _serve_job(self, job: RpcJob, opening: Open, stream: Stream) -> None:
        try:
            async with asyncio.timeout(RPC_PLACE_WAIT_S):
                await job.place.acquire()
        except TimeoutError:
            await _refuse(stream, OpenStatus.BUSY, "its RPC server is in use.")
            return
        reason: str | None = "The connection was cut off."
        try:
            await self._relay(job, opening, stream)
            reason = None
        except AgentMeshError as error:
            reason = error.message
            _log.info("the RPC connection for %s ended: %s", job.name, reason)
            raise
        finally:
            job.place.release()
            job.on_end(reason)

    async def _relay(self, job: RpcJob, opening: Open, stream: Stream) -> None:
        try:
            server, greeting = await _connect(job)
        except RpcServerGone as error:
            await _refuse(stream, OpenStatus.FAILED, error.message)
            raise
        job.counters.streams += 1
        try:
            if not isinstance(greeting, Greeting):
                await stream.write(frame_of(Opened(OpenStatus.BLIND, rpc_version=greeting)))
                await run_blind(server, b"", stream, job.counters)
            else:
                weights = job.weights
                same = weights is not None and len(opening.files) > 0 and weights.digests == opening.files
                opened = Opened(OpenStatus.READY, "", greeting.version, _within(greeting, job), same)
                await stream.write(frame_of(opened))
                await WorkerRelay(stream, server, weights if same else None, job.limit_bytes, job.counters).run()
        finally:
            server.close()
        await stream.end()


def _within(greeting: Greeting, job: RpcJob) -> tuple[Device, ...]:
    """The devices with no more memory than the job may use."""
    memory = Allocations(job.limit_bytes)
    return tuple(
        Device(device.alignment, device.max_size, *memory.told(device.free, device.total))
        for device in greeting.devices
    )


async def _connect(job: RpcJob) -> tuple[LocalSocket, Greeting | tuple[int, int, int]]:
    """Raises: RpcServerGone."""
    server = await _dial(job)
    try:
        greeting = await greet(server)
    except BaseException:
        server.close()
        raise
    if isinstance(greeting, Greeting):
        return server, greeting
    server.close()  # what it was told may mean anything to it: begin anew, without looking
    return await _dial(job), greeting


async def _dial(job: RpcJob) -> LocalSocket:
    try:
        return await LocalSocket.connect(job.port, RPC_CONNECT_S)
    except (OSError, TimeoutError) as error:
        raise RpcServerGone("The RPC server cannot be connected to.") from error


async def _refuse(stream: Stream, status: OpenStatus, reason: str) -> None:
    try:
        await stream.write(frame_of(Opened(status, reason)))
        await stream.end()
        async with asyncio.timeout(RPC_CONNECT_S):
            await stream.read(1)  # until it was read
    except (StreamClosed, TimeoutError):
        return
