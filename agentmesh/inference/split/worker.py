"""A worker's side of splits: RPC servers lent to hosts, one for each model, on `job` streams. docs/splits.md, "The worker".

    worker = SplitWorker(exits, tells, memory, find_engine, files, lending, home)
    mesh.serve(StreamKind.JOB, worker.serve_job)
    mesh.serve(StreamKind.RPC, exits.serve)
    await worker.stop(5.0)           # nothing of any job is left

Owns which jobs there are, and for each model who may have it (WorkerFence). What becomes of one is worker_job.py's. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.paths import Home
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.rpc_server import RpcServerProcess
from agentmesh.inference.logic.job_wire import (
    MAX_ASK_BYTES,
    JobAsk,
    JobPing,
    JobPong,
    JobState,
    ask_decoder,
    said,
    shown,
    wrong_in,
)
from agentmesh.inference.logic.split_offer import WorkedModel
from agentmesh.inference.logic.split_values import NO_RPC_VERSION, short_id_text
from agentmesh.inference.logic.terms import highest_term
from agentmesh.inference.logic.worker_fence import (
    Admit,
    Effect,
    EndServer,
    Event,
    Job,
    JobAsked,
    JobLeft,
    Refuse,
    ServerEnded,
    WorkerFence,
)
from agentmesh.inference.memory import MemoryBook
from agentmesh.inference.rpc.exit import RpcExits
from agentmesh.inference.settings import Lending, Weights
from agentmesh.inference.split.parts import Tells
from agentmesh.inference.split.work_status import WorkStatus, status_of
from agentmesh.inference.split.worker_files import WorkerFiles
from agentmesh.inference.split.worker_job import JobParts, Server, WorkerJob, WorkerLimits, check_room
from agentmesh.mesh.streams import FrameStream
from agentmesh.mesh.transport import Stream

_log = logging.getLogger(__name__)

MAX_JOBS: Final = 4  # models of which parts are served at once
MAX_STREAMS_PER_PEER: Final = 2 * MAX_JOBS + 4  # jobs, those that follow them, and pings
CLAIM_LOOKS: Final = 10  # at a host's record, while it may be on its way
MAX_FENCES: Final = 256  # models whose highest term is remembered; the oldest go first
DEFAULT_LIMITS: Final = WorkerLimits()
NOT_LENT: Final = "The worker does not lend its memory to this host."
STOPPING: Final = "The worker stops."

MakeServer = Callable[[Engine, tuple[str, ...], int], Server]
"""An RPC server of this engine, for these devices; the number is its own among those that run."""


class SplitWorker:
    """See the module. Register `serve_job` for streams of kind `job`.

    Args:
        find_engine: the engine that this node uses.
        files: where the models' files are from.
        say: told one line when a job begins to serve or has ended.
        name_of: what sentences call a node.
        claimed: the term with which a node says in its record that it hosts a content, 0 if it does not; None: nobody looks.
        rpc_version: of this node's RPC server, as its record says; zeros if unknown.
        device: where the user lets models run, as in ServeSettings; None: anywhere. The machine's memory is lent in any case.
        threads: of an RPC server's CPU device; None: as it decides.
    """

    def __init__(
        self,
        exits: RpcExits,
        tells: Tells,
        memory: MemoryBook,
        find_engine: Callable[[], Awaitable[Engine]],
        files: WorkerFiles,
        lending: Lending,
        home: Home,
        say: Callable[[str], None] = lambda _: None,
        *,
        name_of: Callable[[bytes], str] = short_id_text,
        claimed: Callable[[bytes, str], int] | None = None,
        rpc_version: Callable[[], tuple[int, int, int]] = lambda: NO_RPC_VERSION,
        device: str | None = None,
        limits: WorkerLimits = DEFAULT_LIMITS,
        threads: int | None = None,
        make_server: MakeServer | None = None,
    ) -> None:
        self._exits = exits
        self._tells = tells
        self._memory = memory
        self._find_engine = find_engine
        self._files = files
        self._lending = lending
        self._home = home
        self._say = say
        self._name_of = name_of
        self._claimed = claimed
        self._rpc_version = rpc_version
        self._device = device
        self._limits = limits
        self._threads = threads
        self._make_server = make_server or self._rpc_server
        self._fences: dict[str, WorkerFence] = {}
        self._jobs: dict[tuple[str, Job], WorkerJob] = {}
        self._numbers: dict[tuple[str, Job], int] = {}
        self._streams: Counter[bytes] = Counter()
        self._tasks = TaskSet("split worker")
        self._stopping = False

    async def serve_job(self, peer: bytes, stream: Stream) -> None:
        """Serve one stream of a member: a ping, or a job until nothing of it is left."""
        if self._stopping or self._streams[peer] >= MAX_STREAMS_PER_PEER:
            stream.abort()
            return
        self._streams[peer] += 1
        try:
            await self._serve(peer, FrameStream(stream, limit=MAX_ASK_BYTES))
        except (AgentMeshError, TimeoutError) as error:
            _log.debug("a job stream of %s ended: %s", peer.hex()[:8], error or "it said nothing in time")
        finally:
            stream.abort()  # does nothing to one that is over
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    @property
    def stream_count(self) -> int:
        """`job` streams of members that are open, whatever they are for."""
        return self._streams.total()

    def status(self) -> list[WorkStatus]:
        """Every job that is not over."""
        return [status_of(job) for job in self._jobs.values()]

    def make_way(self, content: str, term: int) -> None:
        """This node hosts the model itself now, with this term: what it computes for an older host of it ends, heard of or not."""
        for (name, job), working in self._jobs.items():
            if name == content and job.term < term:
                working.end("A newer host has this model: this node.")

    async def stop(self, grace_s: float) -> None:
        """End every job; when this returns, nothing of them is left, or their guards end it. Nothing new begins."""
        self._stopping = True
        for job in list(self._jobs.values()):
            job.end(STOPPING)
        await self._tasks.finish(grace_s)

    # ------------------------------------------------------------------ one stream

    async def _serve(self, peer: bytes, frames: FrameStream) -> None:
        async with asyncio.timeout(self._limits.silence_s):
            first = await frames.read_struct(ask_decoder)
        if isinstance(first, JobPing):
            async with asyncio.timeout(self._limits.silence_s):
                await frames.write_struct(JobPong())
            await self._finish(frames)
        elif isinstance(first, JobAsk):
            await self._serve_ask(peer, first, frames)

    async def _serve_ask(self, peer: bytes, ask: JobAsk, frames: FrameStream) -> None:
        # Who does not hear for JOB_SILENCE_S gives up, and to ask a cold device takes longer than that.
        looking = self._tasks.spawn(self._refusal(peer, ask), name="look")
        while not (await asyncio.wait({looking}, timeout=self._limits.beat_s))[0]:
            async with asyncio.timeout(self._limits.silence_s):
                await frames.write_struct(said(JobState.WAIT, "looking at what is free"))
        refusal, engine = looking.result()
        if refusal or engine is None:
            await self._refuse(frames, refusal)
            return
        job = WorkerJob(ask, peer, frames, self._parts_for(ask, engine, Job(ask.term, peer)))
        if not await self._enter(job, frames):
            return
        living = self._tasks.spawn(self._live(job), name=ask.content[:8])
        try:
            await asyncio.shield(living)
        except asyncio.CancelledError:
            job.end(STOPPING)
            raise
        await self._finish(frames)

    async def _finish(self, frames: FrameStream) -> None:
        """End our side, and see theirs, so that the last word arrives."""
        async with asyncio.timeout(self._limits.tell_s):
            await frames.end()
            while await frames.read_frame() is not None:
                pass

    async def _refuse(self, frames: FrameStream, sentence: str, seen_term: int = 0) -> None:
        async with asyncio.timeout(self._limits.tell_s):
            await frames.write_struct(said(JobState.REFUSED, sentence, seen_term))
        await self._finish(frames)

    # ------------------------------------------------------------------ what is refused

    async def _refusal(self, peer: bytes, ask: JobAsk) -> tuple[str, Engine | None]:
        """Why it cannot be, before anything is begun; the engine if it can."""
        if not self._lending.may_use(peer):
            return NOT_LENT, None  # the same words whatever there is here
        try:
            wrong, engine = await self._wrong_here(ask)
            return wrong or await self._usurped(peer, ask), engine
        except AgentMeshError as error:
            return error.message, None

    async def _wrong_here(self, ask: JobAsk) -> tuple[str, Engine | None]:
        """The same, of what may differ from node to node. Raises: AgentMeshError: that, too, is why not."""
        if wrong := wrong_in(ask):
            return wrong, None
        if ask.term > highest_term(time.time_ns() // 1_000_000):
            return "The term is not one that a host can have now.", None
        engine = await self._find_engine()
        if engine.is_embedded or not engine.has_rpc:
            return (
                "The worker's llama.cpp engine has no RPC server; one that has: agentmesh engine install (on the worker)."
            ), None
        if wrong := self._other_engine(ask, engine):
            return wrong, None
        if kept := [device for device, _ in ask.needs if device and not self._may_lend(device)]:
            return f"The worker lends no device '{shown(kept[0])}'.", None
        contents = self._contents()
        async with self._memory.lock:
            for device, need in ask.needs:
                await check_room(self._memory, engine, device, need, whole=ask.content in contents)
        return "", engine

    async def _usurped(self, peer: bytes, ask: JobAsk) -> str:
        """Whose place this host asks for without a right to it; records take a moment, so it is looked several times."""
        for _ in range(CLAIM_LOOKS):
            if not self._usurps(peer, ask):
                break
            await asyncio.sleep(self._limits.claim_s / CLAIM_LOOKS)
        return self._usurps(peer, ask)

    def _usurps(self, peer: bytes, ask: JobAsk) -> str:
        """Another host leaves only for one that tells all nodes, in its record, that it hosts the model: so the older one hears of it,
        and people see who it is."""
        fence = self._fences.get(ask.content)
        if self._claimed is None or fence is None or fence.current is None or fence.current.host == peer:
            return ""
        if self._claimed(peer, ask.content) == ask.term:
            return ""
        return f"{self._name_of(fence.current.host)} uses this worker, and the host has not told the mesh that it hosts the model now."

    def _may_lend(self, device: str) -> bool:
        if self._device is None:
            return True
        return device.lower() in [name.strip().lower() for name in self._device.split(",")]

    def _other_engine(self, ask: JobAsk, engine: Engine) -> str:
        ours, theirs = self._rpc_version(), ask.rpc_version
        versions_differ = NO_RPC_VERSION not in (ours, theirs) and ours != theirs
        if ask.engine_commit == engine.commit and engine.commit and not versions_differ:
            return ""
        return (
            f"The worker's engine is llama.cpp {_engine_text(engine.commit, ours)}, the host's is "
            f"{_engine_text(shown(ask.engine_commit), theirs)}; both have to be the same."
        )

    # ------------------------------------------------------------------ one job at a time

    async def _enter(self, job: WorkerJob, frames: FrameStream) -> bool:
        """Put it before its model's fence; whether it has a place, now or when an older one is gone."""
        contents = self._contents() | {job.ask.content}
        if self._stopping or len(contents) > MAX_JOBS:
            full = f"The worker serves parts of {MAX_JOBS} models already."
            await self._refuse(frames, STOPPING if self._stopping else full)
            return False
        if usurped := self._usurps(job.job.host, job.ask):
            await self._refuse(frames, usurped)
            return False
        fence = self._fence(job.ask.content)
        effects = fence.handle(JobAsked(job.job))
        for effect in effects:
            if isinstance(effect, Refuse) and effect.job == job.job:
                newer = fence.highest is not None and fence.highest.goes_before(job.job)
                await self._refuse(frames, effect.sentence, fence.highest.term if newer and fence.highest else 0)
                return False
        self._jobs[job.ask.content, job.job] = job
        self._apply(job.ask.content, effects)
        return True

    async def _live(self, job: WorkerJob) -> None:
        try:
            await job.run()
        finally:
            content = job.ask.content
            del self._jobs[content, job.job]
            self._numbers.pop((content, job.job), None)
            if job.rpc_job is not None:
                self._say(f"The part of {job.model} for {self._name_of(job.job.host)} has ended: {job.sentence}")
            for event in (JobLeft(job.job), ServerEnded(job.job)):
                self._handle(content, event)

    def _handle(self, content: str, event: Event) -> None:
        self._apply(content, self._fence(content).handle(event))

    def _apply(self, content: str, effects: list[Effect]) -> None:
        highest = self._fence(content).highest
        for effect in effects:
            job = self._jobs.get((content, effect.job))
            if job is None:
                continue  # it has gone meanwhile
            match effect:
                case Admit():
                    job.admit()
                case EndServer():
                    newer = self._name_of(highest.host) if highest and highest != effect.job else "nobody"
                    job.end(f"A newer host has this model: {newer}.")
                case Refuse():
                    job.end(effect.sentence, state=JobState.REFUSED, seen_term=highest.term if highest else 0)

    def _contents(self) -> set[str]:
        """The models of which there are jobs."""
        return {content for content, _ in self._jobs}

    def _fence(self, content: str) -> WorkerFence:
        fence = self._fences.pop(content, None) or WorkerFence(self._name_of)
        self._fences[content] = fence  # the newest last
        idle = [name for name, each in self._fences.items() if each.current is None and name != content]
        for name in idle[: max(len(self._fences) - MAX_FENCES, 0)]:
            del self._fences[name]
        return fence

    # ------------------------------------------------------------------ what jobs work with

    def _parts_for(self, ask: JobAsk, engine: Engine, job: Job) -> JobParts:
        def make_server(devices: tuple[str, ...]) -> Server:
            used = set(self._numbers.values())
            number = next(each for each in range(len(used) + 1) if each not in used)
            self._numbers[ask.content, job] = number
            return self._make_server(engine, devices, number)

        return JobParts(
            exits=self._exits,
            memory=self._memory,
            files=self._files,
            engine=engine,
            make_server=make_server,
            fetches=self._lending.weights is Weights.FETCH,
            holding=lambda held: self._hold(ask.content, held),
            host=self._name_of(job.host),
            say=self._say,
            limits=self._limits,
        )

    def _hold(self, content: str, held: tuple[tuple[str, int], ...]) -> None:
        """What this node says of itself."""
        highest = self._fence(content).highest
        self._tells.work(WorkedModel(content, highest.term if highest is not None else 0, held))

    def _rpc_server(self, engine: Engine, devices: tuple[str, ...], number: int) -> Server:
        assert engine.rpc_server is not None  # noqa: S101 - looked at before the job began
        return RpcServerProcess(
            engine.rpc_server,
            devices,
            folder=self._home.run / "engines",
            log=self._home.logs / f"rpc-server-{number}.log",
            threads=self._threads,
            homes=(self._home.root,),
        )


def _engine_text(commit: str, version: tuple[int, int, int]) -> str:
    rpc = "" if version == NO_RPC_VERSION else f" (RPC {'.'.join(map(str, version))})"
    return f"{commit[:12] or 'of an unknown version'}{rpc}"
