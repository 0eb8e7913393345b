"""The host's side of a running split: its workers' RPC servers leased, a gateway to each, and llama-server's options for them.

    host = SplitHost(parts, plan, job, on_lost=lost, say_progress=show)
    words = await host.open()        # then llama-server may start with them
    await host.close()               # after llama-server has ended; the workers end their RPC servers

Owns leases, gateways and the model's open files for one run of one plan. Starts no process. Owner: the event loop. docs/splits.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.split_arguments import Endpoint, SplitWords, check_engine, devices_of, split_words
from agentmesh.inference.logic.job_wire import JobAsk, JobFile, JobSaid
from agentmesh.inference.logic.model_parts import is_on_workers
from agentmesh.inference.logic.rpc_stream import Opened, OpenStatus, is_device
from agentmesh.inference.logic.split_offer import content_of
from agentmesh.inference.logic.split_values import NO_RPC_VERSION, Share, Split
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.rpc.counters import CommandCount, RelayCounters
from agentmesh.inference.rpc.errors import WorkerLost, WorkerRefused
from agentmesh.inference.rpc.gateway import RpcGateway
from agentmesh.inference.rpc.hashing import hash_tensors
from agentmesh.inference.rpc.weights import WeightFiles, WeightHashes
from agentmesh.inference.split.host_lease import DEFAULT_LIMITS, HostLease, LeaseLimits
from agentmesh.inference.split.parts import OpenStream
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream

ASK_RPC_S: Final = 120.0  # for a worker's RPC server to say what it is: the gateway's own bounds together
CLOSE_S: Final = 20.0  # for all of one worker's ends


@dataclass(frozen=True, slots=True)
class HostJob:
    """One run.

    Attributes:
        content: split_offer.content_of its files.
        term: of this host's claim.
        files: of the model, all parts in order.
        rpc_version: of the engine's RPC client; zeros if unknown.
    """

    content: str
    model_id: str
    term: int
    files: tuple[Path, ...]
    engine: Engine
    rpc_version: tuple[int, int, int] = NO_RPC_VERSION


@dataclass(frozen=True, slots=True)
class HostParts:
    """What the runs of a node share.

    Attributes:
        name_of: what sentences call a node.
        is_near: whether a node is on this machine, so that nothing is worth compressing.
    """

    open_stream: OpenStream
    name_of: Callable[[bytes], str]
    is_near: Callable[[bytes], bool]
    identities: FileIdentities
    hashes: WeightHashes


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker of a run.

    Attributes:
        layers, need_bytes: of its shares together.
        sentence: what it does, or why it is lost.
        same_files: whether it has the model's files, so that no weight travels; None before that is known.
        is_blind: its RPC server speaks a version that is relayed without being looked at.
        counts: requests, round trips and bytes of each command, by its name.
        overdue_s: how long its oldest unanswered request has waited.
    """

    worker: bytes
    name: str
    layers: int
    need_bytes: int
    sentence: str
    same_files: bool | None
    is_blind: bool
    counts: dict[str, CommandCount]
    round_trips: int
    out_bytes: int
    reply_bytes: int
    referenced_bytes: int
    overdue_s: float


class _Worker:
    """What there is of one worker."""

    def __init__(self, node: bytes, name: str, shares: Sequence[Share]) -> None:
        self.node = node
        self.name = name
        self.shares = tuple(shares)
        self.lease: HostLease | None = None
        self.gateway: RpcGateway | None = None
        self.endpoint: Endpoint | None = None
        self.loss = ""  # why the gateway's connection ended

    def status(self) -> WorkerStatus:
        gateway = self.gateway
        counters = gateway.counters if gateway is not None else RelayCounters(lambda: 0.0)
        facts = gateway.facts if gateway is not None else None
        return WorkerStatus(
            worker=self.node,
            name=self.name,
            layers=sum(share.layers for share in self.shares),
            need_bytes=sum(share.need_bytes for share in self.shares),
            sentence=self.loss or (self.lease.sentence if self.lease is not None else "not asked yet"),
            same_files=facts.same_files if facts is not None else None,
            is_blind=facts is not None and facts.status is OpenStatus.BLIND,
            counts=counters.by_name(),
            round_trips=counters.round_trips,
            out_bytes=counters.out_bytes + counters.blind_bytes,
            reply_bytes=counters.reply_bytes,
            referenced_bytes=counters.referenced_bytes,
            overdue_s=counters.overdue_s,
        )


class SplitHost:
    """See the module. `open` once; `close` once, also after an `open` that failed.

    Args:
        on_lost: called once, with a sentence that names the worker, when a lease or a gateway's connection is lost while it is open.
        say_progress: told what workers say while they get ready.
    """

    def __init__(
        self,
        parts: HostParts,
        plan: Split,
        job: HostJob,
        *,
        on_lost: Callable[[str], None],
        say_progress: Callable[[str], None] = lambda _: None,
        limits: LeaseLimits = DEFAULT_LIMITS,
    ) -> None:
        self._parts = parts
        self._plan = plan
        self._job = job
        self._on_lost = on_lost
        self._say = say_progress
        self._limits = limits
        self._weights: WeightFiles | None = None
        self._is_open = False
        self._closed = False
        self._lost = asyncio.Event()
        self._loss = ""  # the first one's sentence
        self.blamed = b""  # the worker that refused, or was lost first
        self._ends = TaskSet("ends of a split")
        self._hashing = TaskSet("hashes of a split")
        self._workers = tuple(
            _Worker(node, parts.name_of(node), [share for share in plan.shares if share.place.node == node])
            for node in plan.workers
        )

    # ------------------------------------------------------------------ what others see

    @property
    def overdue_s(self) -> float:
        """How long the oldest unanswered request of all workers has waited."""
        gateways = [worker.gateway for worker in self._workers if worker.gateway is not None]
        return max((gateway.counters.overdue_s for gateway in gateways), default=0.0)

    def status(self) -> tuple[WorkerStatus, ...]:
        """Of each worker, in the plan's order."""
        return tuple(worker.status() for worker in self._workers)

    # ------------------------------------------------------------------ opening

    async def open(self) -> SplitWords:
        """Lease every worker's RPC server and open the way to it. Nothing is left when this fails.

        Raises:
            EngineTooOld: this engine cannot host a split. EngineFailed: no port can be had.
            ModelFileUnusable: the files are not those of the job.
            WorkerTermSeen, WorkerRefused, WorkerLost: of the first worker that does not take part; the sentence names it.
        """
        try:
            check_engine(self._job.engine, self._plan)
            ask = await self._questions()
            self._begin_hashing()
            await _all_or_none(
                [self._blamed_lease(worker, ask(worker)) for worker in self._workers], self._fail_when_lost()
            )
            endpoints = [worker.endpoint for worker in self._workers if worker.endpoint is not None]
            words = split_words(self._job.engine, self._plan, endpoints)
            if self._lost.is_set():
                raise WorkerLost(self._loss)
            self._is_open = True
        except BaseException:
            await self.close()
            raise
        return words

    async def _questions(self) -> Callable[[_Worker], JobAsk]:
        """Open and identify the files; what each worker is asked."""
        job = self._job
        self._say("The model's files are being checked.")
        self._weights = weights = await WeightFiles.open_parts(job.files, self._parts.identities)
        if content_of(weights.digests) != job.content:
            raise ModelFileUnusable(f"The files of {job.model_id} changed since the plan was made.")
        sizes = await asyncio.to_thread(_sizes, job.files)
        files = tuple(
            JobFile(digest, size, path.name)
            for digest, size, path in zip(weights.digests, sizes, job.files, strict=True)
        )

        def ask(worker: _Worker) -> JobAsk:
            needs = zip(devices_of(self._plan, worker.node), (share.need_bytes for share in worker.shares), strict=True)
            return JobAsk(job.content, job.model_id, job.term, files, tuple(needs), job.engine.commit, job.rpc_version)

        return ask

    def _begin_hashing(self) -> None:
        """While workers get ready, and beyond: nobody waits for it, and llama-server may find some values known."""
        program, weights = self._job.engine.tensor_hash, self._weights
        if program is not None and weights is not None and not self._closed:
            wanted = is_on_workers(self._plan)
            self._hashing.spawn(hash_tensors(program, weights, self._parts.hashes, wanted=wanted), name="hash")

    async def _blamed_lease(self, worker: _Worker, ask: JobAsk) -> None:
        """The same errors; who refused or was lost first is remembered."""
        try:
            await self._lease(worker, ask)
        except (WorkerRefused, WorkerLost):
            self.blamed = self.blamed or worker.node
            raise

    async def _lease(self, worker: _Worker, ask: JobAsk) -> None:
        """Raises: WorkerTermSeen, WorkerRefused, WorkerLost, EngineFailed."""
        worker.lease = lease = HostLease(
            self._parts.open_stream,
            worker.node,
            worker.name,
            ask,
            say=lambda sentence: self._say(f"{worker.name}: {sentence}"),
            on_lost=lambda sentence: self._was_lost(sentence, worker.node),
            limits=self._limits,
        )
        said = await lease.open()
        if missing := set(devices_of(self._plan, worker.node)) - set(said.devices):
            raise WorkerRefused(f"The worker {worker.name} lends no {' or '.join(map(_shown, sorted(missing)))}.")
        worker.gateway = gateway = self._gateway(worker, said)
        try:
            async with asyncio.timeout(ASK_RPC_S):
                facts = await gateway.ask_worker()
        except TimeoutError:
            raise WorkerLost(f"The worker {worker.name} did not answer within {ASK_RPC_S:g} s.") from None
        except (WorkerRefused, WorkerLost):
            raise
        except AgentMeshError as error:
            raise WorkerLost(f"The connection to the worker {worker.name} failed: {error.message}") from error
        self._check(worker, said, facts)
        try:
            worker.endpoint = Endpoint(worker.node, await gateway.listen(), said.devices)
        except OSError as error:
            raise EngineFailed(f"No port of 127.0.0.1 can be had for the engine: {error.strerror}.") from error

    def _gateway(self, worker: _Worker, said: JobSaid) -> RpcGateway:
        parts, node, name = self._parts, worker.node, worker.name

        def open_stream() -> Awaitable[Stream]:
            return parts.open_stream(node, StreamKind.RPC)

        def lost(reason: str) -> None:
            worker.loss = worker.loss or f"The connection to the worker {name} ended: {reason}"
            self._was_lost(worker.loss, node)

        return RpcGateway(
            open_stream,
            job=said.job,
            worker=name,
            weights=self._weights,
            hashes=parts.hashes,
            compress=not parts.is_near(node),
            on_lost=lost,
        )

    def _check(self, worker: _Worker, said: JobSaid, facts: Opened) -> None:
        """Whether the RPC server is the one that was asked for. Raises: WorkerRefused."""
        wanted = self._job.rpc_version
        if wanted not in (NO_RPC_VERSION, facts.rpc_version):
            theirs, ours = (".".join(map(str, version)) for version in (facts.rpc_version, wanted))
            raise WorkerRefused(
                f"The RPC server of the worker {worker.name} speaks version {theirs}, this one {ours}. "
                "Install the same engine on both: agentmesh engine install"
            )
        if facts.status is OpenStatus.READY and len(facts.devices) != len(said.devices):
            raise WorkerRefused(
                f"The RPC server of the worker {worker.name} has {len(facts.devices)} devices, not {len(said.devices)}."
            )
        if not all(map(is_device, facts.devices)):
            raise WorkerRefused(f"The RPC server of the worker {worker.name} says what cannot be of its devices.")

    # ------------------------------------------------------------------ ends

    def _was_lost(self, sentence: str, worker: bytes) -> None:
        if self._closed or self._lost.is_set():
            return
        self.blamed = self.blamed or worker
        self._loss = sentence
        self._lost.set()
        if self._is_open:
            self._on_lost(sentence)

    async def _fail_when_lost(self) -> None:
        """While other workers still get ready. Raises: WorkerLost."""
        await self._lost.wait()
        raise WorkerLost(self._loss)

    async def close(self, within_s: float = CLOSE_S) -> None:
        """Close the gateways, give the leases back, and let go of the files. Bounded, whatever workers do. May be called again."""
        if not self._closed:
            self._closed = True
            for worker in self._workers:
                self._ends.spawn(_end(worker), name=worker.name)
        await self._hashing.close()
        await self._ends.finish(within_s)
        if self._weights is not None:
            self._weights.close()


def _sizes(files: Sequence[Path]) -> list[int]:
    """In a thread. Raises: ModelFileUnusable."""
    try:
        return [file.stat().st_size for file in files]
    except OSError as error:
        raise ModelFileUnusable(f"{error.filename} cannot be read: {error.strerror}.") from error


async def _end(worker: _Worker) -> None:
    """The gateway first: what it relays ends before the RPC server does."""
    if worker.gateway is not None:
        await worker.gateway.close()
    if worker.lease is not None:
        await worker.lease.close()


async def _all_or_none(jobs: Sequence[Coroutine[object, object, None]], lost: Coroutine[object, object, None]) -> None:
    """Run all at once; the first failure, or `lost`, which only ever raises, ends them and is raised. Raises: AgentMeshError."""
    tasks = TaskSet("workers of a split")
    watching = tasks.spawn(_guarded(lost), name="watch")
    running = {tasks.spawn(_guarded(job), name="lease") for job in jobs}
    try:
        while running:
            done, _ = await asyncio.wait({watching, *running}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (error := task.result()) is not None:
                    raise error
            running -= done
    finally:
        await tasks.close()


async def _guarded(job: Coroutine[object, object, None]) -> AgentMeshError | None:
    try:
        await job
    except AgentMeshError as error:
        return error
    return None


def _shown(device: str) -> str:
    return device or "machine memory"
