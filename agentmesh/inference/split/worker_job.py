"""One RPC server lent to one host: from what was asked until nothing of it is left. docs/splits.md has its states.

    job = WorkerJob(ask, peer, frames, parts)
    job.admit()                      # nothing older is in its way any more
    await job.run()                  # until it is over; `job.end(why)` ends it, so does the host

Owns the RPC server, the promise of memory, the open files, the relay's job, and what the host is told. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from agentmesh.core.errors import AgentMeshError, InvalidInput
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.logic.fit import NO_DEVICE, size
from agentmesh.inference.logic.job_wire import (
    JOB_BEAT_S,
    JOB_SILENCE_S,
    MAX_SENTENCE_CHARS,
    JobAsk,
    JobSaid,
    JobState,
    said,
    shown,
)
from agentmesh.inference.logic.split_offer import MACHINE
from agentmesh.inference.logic.worker_fence import Job
from agentmesh.inference.memory import MemoryBook
from agentmesh.inference.rpc.exit import RpcExits, RpcJob
from agentmesh.inference.split.worker_files import OpenedFiles, WorkerFiles
from agentmesh.mesh.streams import FrameStream

_log = logging.getLogger(__name__)

MIN_CPU_S: Final = 0.02  # two ticks: less is what a process that does nothing may show
JOB_NAME_BYTES: Final = 16
LOOKS: Final = 5  # at a server that owes a reply, in the time after which it counts as stalled


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """In seconds.

    Attributes:
        stall_s: a reply is owed, and the RPC server used no processor.
        grace_s: of an RPC server between SIGTERM and SIGKILL; it has nothing to save.
        tell_s: for a last word to the host.
        remove_s: for relayed connections to end.
        stuck_look_s: between two looks at an RPC server that the kernel does not let go of.
        claim_s: for a host's record to arrive that says what the host asks for.
    """

    beat_s: float = JOB_BEAT_S
    silence_s: float = JOB_SILENCE_S
    stall_s: float = 15.0
    grace_s: float = 1.0
    tell_s: float = 2.0
    remove_s: float = 5.0
    stuck_look_s: float = 5.0
    claim_s: float = 5.0


class WorkState(StrEnum):
    """Where a job is on its way."""

    WAITING = "waiting"  # until an older job is gone
    PREPARING = "preparing"
    SERVING = "serving"
    ENDING = "ending"
    STUCK = "stuck"  # the system does not let go of the RPC server


class Server(Protocol):
    """An RPC server; engine/rpc_server.py: RpcServerProcess."""

    @property
    def port(self) -> int: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def confinement(self) -> str: ...
    async def start(self) -> None: ...
    async def ended(self) -> str: ...
    async def stop(self, grace_s: float) -> bool: ...
    def cpu_seconds(self) -> float: ...


@dataclass(frozen=True, slots=True)
class JobParts:
    """What a job works with; the same for all jobs of a node.

    Attributes:
        make_server: for these devices.
        fetches: whether files are fetched that are not here.
        holding: told when the job holds memory, and when it does not any more.
        host: what it is called.
        say: one line for the user.
    """

    exits: RpcExits
    memory: MemoryBook
    files: WorkerFiles
    engine: Engine
    make_server: Callable[[tuple[str, ...]], Server]
    fetches: bool
    holding: Callable[[tuple[tuple[str, int], ...]], None]
    host: str
    say: Callable[[str], None]
    limits: WorkerLimits


class WorkerJob:
    """See the module. `run` once.

    Attributes:
        sentence: what it does, or why it ended.
    """

    def __init__(self, ask: JobAsk, peer: bytes, frames: FrameStream, parts: JobParts) -> None:
        self.ask = ask
        self.job = Job(ask.term, peer)
        self.model = shown(ask.model)
        self.state = WorkState.WAITING
        self.sentence = "waiting for the host before to be gone"
        self.server: Server | None = None
        self.rpc_job: RpcJob | None = None
        self.held: tuple[tuple[str, int], ...] = ()
        self._frames = frames
        self._parts = parts
        self._opened = OpenedFiles(None)
        self._settled = False
        self._writing = asyncio.Lock()  # what is said is read in the order in which it was true
        self._admitted = asyncio.Event()
        self._ends = asyncio.Event()
        self._last = said(JobState.ENDED)
        self._since_s = 0.0  # since when it says the same sentence
        self._tasks = TaskSet("split job")

    def admit(self) -> None:
        """Nothing of another job is in its way."""
        self._admitted.set()

    def end(self, why: str, *, state: JobState = JobState.ENDED, seen_term: int = 0) -> None:
        """End it; the host is told. The first reason counts."""
        if not self._ends.is_set():
            self.sentence = why
            self._last = said(state, why, seen_term)
            self._ends.set()

    async def run(self) -> None:
        """Until nothing of it is left. Cancelled, it leaves an RPC server to its guard."""
        self._say(self.sentence)
        for work in (self._watch_host, self._beat, self._work):
            self._tasks.spawn(self._guarded(work), name=work.__name__)
        try:
            await self._ends.wait()
            self.state = WorkState.ENDING
            _log.info("the part of '%s' for %s ends: %s", self.model, self._parts.host, self.sentence)
            await self._tell(self._last)
        finally:
            await self._tasks.close()
            await self._release()

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except AgentMeshError as error:
            self.end(error.message, state=self._failed)
        except Exception:  # noqa: BLE001 - a task's root: the host must not be told for ever that all is well
            _log.exception("the part of '%s' broke", self.model)
            self.end("The worker failed in a way that nobody expected; its log says more.", state=self._failed)

    @property
    def _failed(self) -> JobState:
        return JobState.ENDED if self.state is WorkState.SERVING else JobState.REFUSED

    # ------------------------------------------------------------------ the host

    async def _watch_host(self) -> None:
        try:
            body = await self._frames.read_frame()
        except AgentMeshError as error:
            self.end(f"The host is gone: {error.message}")
            return
        self.end("The host gave it back." if body is None else "The host said something that is not expected here.")

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._parts.limits.beat_s)
            if self._ends.is_set():
                return
            sentence = self.sentence
            if self.state is WorkState.SERVING:
                self._settle_devices()
                await self._write(said(JobState.BEAT))
            else:
                minutes = int(loop.time() - self._since_s) // 60
                await self._write(said(JobState.WAIT, f"{sentence} ({minutes} min)" if minutes else sentence))

    async def _write(self, message: JobSaid) -> None:
        try:
            async with asyncio.timeout(self._parts.limits.silence_s), self._writing:
                await self._frames.write_struct(message)
        except TimeoutError:
            self.end("The host takes nothing any more.")

    async def _tell(self, message: JobSaid) -> None:
        with contextlib.suppress(AgentMeshError, TimeoutError):
            async with asyncio.timeout(self._parts.limits.tell_s), self._writing:
                await self._frames.write_struct(message)

    def _say(self, sentence: str) -> None:
        """For status and the next beat."""
        if not self._ends.is_set():
            self.sentence = sentence
            self._since_s = asyncio.get_running_loop().time()

    # ------------------------------------------------------------------ the work

    async def _work(self) -> None:
        parts, ask = self._parts, self.ask
        await self._admitted.wait()
        self.state = WorkState.PREPARING
        self._say("taking memory")
        await self._take_memory()
        self._opened = await parts.files.open(ask.files, self.job.host, self._say, fetch=parts.fetches)
        if self._opened.weights is None:
            _log.info("weights of '%s' come from the host: %s", self.model, self._opened.sentence)
        self._say("starting the RPC server")
        devices = tuple(device for device, _ in ask.needs)
        server = self.server = parts.make_server(devices)
        await server.start()
        job = self.rpc_job = RpcJob(
            name=secrets.token_hex(JOB_NAME_BYTES),
            port=server.port,
            may_use=lambda peer: peer == self.job.host,
            weights=self._opened.weights,
            limit_bytes=sum(need for _, need in ask.needs),
            on_end=self._on_connection_ended,
        )
        parts.exits.add(job)
        parts.memory.settle((self, MACHINE), server.pid)  # what it has not taken yet counts on
        self.state = WorkState.SERVING
        self._say(
            "serving" if job.weights is not None else f"serving; weights come from the host: {self._opened.sentence}"
        )
        lacks = shown(self._opened.sentence, MAX_SENTENCE_CHARS)
        ready = JobSaid(JobState.READY, lacks, job.name, devices, same_files=job.weights is not None)
        await self._write(ready)
        parts.say(
            f"{parts.host} computes a part of {self.model} with {size(sum(need for _, need in ask.needs))} of this machine's memory."
        )
        self._tasks.spawn(self._guarded(self._watch_stall), name="stall")
        self.end(await server.ended())

    async def _take_memory(self) -> None:
        """Raises: InvalidInput: what is asked for is not free."""
        memory = self._parts.memory
        async with memory.lock:
            for device, need in self.ask.needs:
                await check_room(memory, self._parts.engine, device, need, whole=False)
                memory.promise_bytes((self, device), device or None, need)
                self.held += ((device, need),)
        self._parts.holding(self.held)

    def _settle_devices(self) -> None:
        """Once something was computed, what is free on the devices shows what the job has taken there."""
        counts = self.rpc_job.counters.by_name() if self.rpc_job is not None else {}
        if not self._settled and "graph_compute" in counts:
            self._settled = True
            for device, _ in self.held:
                if device != MACHINE:
                    self._parts.memory.settle((self, device), None)

    def _on_connection_ended(self, why: str | None) -> None:
        """A relayed connection is over; llama-server opens several in a row, so a clean end says nothing."""
        if why is not None:
            self.end(f"The host's connection to the RPC server ended: {why}")

    async def _watch_stall(self) -> None:
        """An RPC server that owes a reply and does not compute will never give it: RPC has no timeouts."""
        limit_s, loop = self._parts.limits.stall_s, asyncio.get_running_loop()
        server, job = self.server, self.rpc_job
        assert server is not None  # noqa: S101 - started before this
        assert job is not None  # noqa: S101
        still: tuple[float, float] | None = None  # since when, at which processor time
        while True:
            await asyncio.sleep(limit_s / LOOKS)
            if not job.counters.overdue_s:
                still = None
                continue
            used_s = await asyncio.to_thread(server.cpu_seconds)
            if still is None or used_s - still[1] >= MIN_CPU_S:
                still = (loop.time(), used_s)
            elif min(loop.time() - still[0], job.counters.overdue_s) >= limit_s:
                self.end(f"The RPC server owed a reply and did nothing for {limit_s:g} s.")
                return

    # ------------------------------------------------------------------ the end

    async def _release(self) -> None:
        """What was taken is given back, in the reverse order. Ends what a cancelled start may have left, too."""
        parts = self._parts
        tasks = TaskSet("end of a split job")
        removing = (
            tasks.spawn(parts.exits.remove(self.rpc_job.name), name="exits") if self.rpc_job is not None else None
        )
        if removing is not None:
            await asyncio.wait({removing}, timeout=parts.limits.remove_s)
        if self.server is not None:
            while not await self.server.stop(parts.limits.grace_s):
                self.state = WorkState.STUCK
                await asyncio.sleep(parts.limits.stuck_look_s)
        if removing is not None:
            await asyncio.wait({removing}, timeout=parts.limits.remove_s)
        weights = self._opened.weights
        if weights is not None and (removing is None or removing.done()):
            weights.close()
        elif weights is not None:
            _log.error("connections of '%s' do not end; its files stay open", self.model)
        await tasks.close()
        if self.held:
            for device, _ in self.held:
                parts.memory.release((self, device))
            self.held = ()
            parts.holding(())


async def check_room(memory: MemoryBook, engine: Engine, device: str, need: int, *, whole: bool) -> None:
    """Whether so much is free on a device ("": in the machine's memory), or is there at all. To be called with the book's lock.

    Raises:
        InvalidInput: no, or there is no such device. EngineFailed: the engine does not tell.
    """
    if device and device not in [each.name for each in engine.devices]:
        raise InvalidInput(f"The worker has no device '{shown(device)}'.")
    [room, *_] = await memory.rooms(engine, device or NO_DEVICE)
    have = room.total_bytes if whole else room.free_bytes
    if need > have:
        where = f"on {device}" if device else "of its memory"
        raise InvalidInput(
            f"The worker has {size(have)} {'' if whole else 'free '}{where}; {size(need)} are asked for."
        )
