"""A worker of splits and its hosts: members of a real mesh, real RPC servers (or a fake one), a machine whose memory the test chooses."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil

from agentmesh.core.errors import Unreachable
from agentmesh.inference.blob_index import BlobIndex
from agentmesh.inference.blobs import BlobService
from agentmesh.inference.engine.engine import Device, Engine
from agentmesh.inference.logic.job_wire import JobAsk, JobFile, JobPing, JobPong, JobSaid, JobState
from agentmesh.inference.logic.rpc_stream import Open, Opened, OpenStatus, frame_of, opened_decoder
from agentmesh.inference.logic.split_offer import WantedModel, WorkedModel, content_of
from agentmesh.inference.memory import Machine, MemoryBook
from agentmesh.inference.models.cache import HubCache
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.rpc.duplex import read_frame
from agentmesh.inference.rpc.exit import RpcExits
from agentmesh.inference.settings import Lending, Weights
from agentmesh.inference.split.worker import MakeServer, SplitWorker
from agentmesh.inference.split.worker_files import MeshWorkerFiles
from agentmesh.inference.split.worker_job import WorkerLimits
from agentmesh.mesh.streams import FrameStream, StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.mesh_nodes import TestNode, eventually
from tests.fakes.rpc_world import members

MB = 1_000_000
# Nothing of it ends what should go on because this machine stood still for some seconds.
QUICK = WorkerLimits(
    beat_s=0.05, silence_s=60.0, stall_s=60.0, grace_s=0.5, tell_s=30.0, remove_s=30.0, stuck_look_s=0.1, claim_s=0.5
)
LIMIT_S = 60.0  # of anything that is awaited
_said = msgspec.msgpack.Decoder(JobSaid)
_pong = msgspec.msgpack.Decoder(JobPong)


class FixedMachine(Machine):
    """So much memory, whatever else runs here."""

    def __init__(self, total: int = 2_000 * MB) -> None:
        self.total = total

    def total_bytes(self) -> int:
        return self.total

    def available_bytes(self) -> int:
        return self.total

    def held_bytes(self, pid: int) -> int:
        return 0

    def mapped_bytes(self, pid: int) -> int:
        return 0


class Told:
    """A Tells that remembers."""

    def __init__(self) -> None:
        self.worked: list[WorkedModel] = []

    def want(self, model: WantedModel) -> None:
        raise AssertionError(model)

    def unwant(self, content: str) -> None:
        raise AssertionError(content)

    def work(self, model: WorkedModel) -> None:
        self.worked.append(model)


def ask_for(files: Sequence[Path], engine: Engine, *, term: int = 1, need: int = 100 * MB, device: str = "") -> JobAsk:
    described = tuple(
        JobFile(hashlib.sha256(path.read_bytes()).digest(), path.stat().st_size, path.name) for path in files
    )
    content = content_of([file.sha256 for file in described])
    return JobAsk(content, "tiny", term, described, ((device, need),), engine.commit, (7, 0, 0))


class FakeServer:
    """An RPC server that is none. `stuck`: the system does not let go of it; `broken`: raised at its start."""

    def __init__(self, *, stuck: bool = False, broken: Exception | None = None) -> None:
        self.port, self.pid, self.confinement = 1, 0, "none"
        self.used_s = 0.0
        self.stopped = asyncio.Event()
        self.stuck = stuck
        self.broken = broken

    async def start(self) -> None:
        if self.broken is not None:
            raise self.broken

    async def ended(self) -> str:
        await self.stopped.wait()
        return "It was ended."

    async def stop(self, grace_s: float) -> bool:
        if not self.stuck:
            self.stopped.set()
        return not self.stuck

    def cpu_seconds(self) -> float:
        self.used_s += 0.1
        return self.used_s


def made(make: Callable[[], FakeServer]) -> MakeServer:
    def make_server(_engine: Engine, _devices: tuple[str, ...], _number: int) -> FakeServer:
        return make()

    return make_server


class Host:
    """One `job` stream, as a host has it."""

    def __init__(self, stream: Stream) -> None:
        self.frames = FrameStream(stream)
        self.heard: list[JobSaid] = []

    async def next(self) -> JobSaid | None:
        async with asyncio.timeout(LIMIT_S):
            word = await self.frames.read_struct(_said)
        if word is not None:
            self.heard.append(word)
        return word

    async def until(self, state: JobState) -> JobSaid:
        """Its first word of this state; what it says before is in `heard`."""
        while word := await self.next():
            if word.state is state:
                return word
        raise AssertionError(f"the stream ended before {state!r}: {self.heard[-3:]}")

    async def at_end(self) -> None:
        """The worker's end."""
        while await self.next() is not None:
            pass

    async def give_back(self) -> None:
        await self.frames.end()
        await self.at_end()


class WorkerWorld:
    """See the module. `worker` is the SplitWorker on `node`."""

    def __init__(
        self, root: Path, host: TestNode, other: TestNode, node: TestNode, exits: RpcExits, engine: Engine
    ) -> None:
        self.root, self.host, self.other, self.node, self.exits = root, host, other, node, exits
        self.engine = engine
        self.machine = FixedMachine()
        self.devices: tuple[Device, ...] = ()
        self.memory = MemoryBook(self._devices_now, self.machine)
        self.told = Told()
        self.lines: list[str] = []
        self.served: list[Path] = []  # files that the host gives
        self.margin_bytes = 0
        self.worker: SplitWorker
        self._services: list[BlobService] = []

    def begin(
        self,
        *,
        lending: Lending | None = None,
        limits: WorkerLimits = QUICK,
        make_server: MakeServer | None = None,
        version: tuple[int, int, int] = (7, 0, 0),
        device: str | None = None,
        claimed: Callable[[bytes, str], int] | None = None,
    ) -> SplitWorker:
        identities = FileIdentities.of_home(self.node.home)
        files = MeshWorkerFiles(
            self.node.home,
            BlobIndex(HubCache(self.root / "hub"), identities),
            identities,
            lambda peer: self.node.mesh.open_stream(peer, StreamKind.BLOB),
            margin_bytes=self.margin_bytes,
        )
        self.worker = SplitWorker(
            self.exits,
            self.told,
            self.memory,
            self.find_engine,
            files,
            lending or Lending(everyone=True, weights=Weights.STREAM),
            self.node.home,
            self.lines.append,
            claimed=claimed,
            rpc_version=lambda: version,
            device=device,
            limits=limits,
            threads=1,
            make_server=make_server,
        )
        self.node.mesh.serve(StreamKind.JOB, self.worker.serve_job)
        return self.worker

    def limit(self, **changes: float) -> None:
        """Change these of its limits, for whoever asks from now on."""
        self.worker._limits = replace(self.worker._limits, **changes)

    async def give(self, *files: Path) -> BlobService:
        """The host gives these files to members."""
        index = BlobIndex(HubCache(self.root / "host-hub"), FileIdentities.of_home(self.host.home), lambda: files)
        service = BlobService(index)
        self._services.append(service)
        self.host.mesh.serve(StreamKind.BLOB, service.serve)
        for file in files:
            digest = hashlib.sha256(file.read_bytes()).digest()
            while await index.find(digest) is None:  # it is hashed in the background
                await asyncio.sleep(0.02)
        return service

    async def ask(self, ask: JobAsk, *, by: TestNode | None = None) -> Host:
        host = Host(await open_stream(by or self.host, self.node, StreamKind.JOB))
        await host.frames.write_struct(ask)
        return host

    def terms(self) -> list[int]:
        """Of the jobs that are not over."""
        return [job.term for job in self.worker.status()]

    async def ping(self) -> JobPong | None:
        frames = FrameStream(await open_stream(self.host, self.node, StreamKind.JOB))
        await frames.write_struct(JobPing())
        pong = await frames.read_struct(_pong)
        assert await frames.read_frame() is None
        await frames.end()
        return pong

    async def connect(
        self, job: str, files: Sequence[bytes] = (), *, by: TestNode | None = None
    ) -> tuple[Stream, Opened]:
        """An `rpc` stream to the job."""
        stream = await open_stream(by or self.host, self.node, StreamKind.RPC)
        await stream.write(frame_of(Open(job, tuple(files))))
        async with asyncio.timeout(LIMIT_S):
            opened = await read_frame(stream, opened_decoder)
        return stream, opened

    async def serving(self, ask: JobAsk, *, by: TestNode | None = None) -> tuple[Host, JobSaid]:
        host = await self.ask(ask, by=by)
        return host, await host.until(JobState.READY)

    async def nothing_left(self) -> None:
        """No job, and nothing of one."""
        await eventually(lambda: self.worker.status() == [], LIMIT_S)
        assert self.memory.machine_free_bytes() == self.machine.total
        assert self.told.worked == [] or self.told.worked[-1].held == ()
        folder = self.node.home.run / "engines"
        assert not folder.exists() or list(folder.iterdir()) == []

    async def stop(self) -> None:
        await self.worker.stop(10.0)
        for service in self._services:
            await service.close()

    async def find_engine(self) -> Engine:
        return replace(self.engine, devices=self.devices)

    async def _devices_now(self, _: Engine) -> tuple[Device, ...]:
        return self.devices


def lives(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def open_stream(by: TestNode, to: TestNode, kind: StreamKind) -> Stream:
    """Also where the two have not met yet."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await by.mesh.open_stream(to.key.public, kind)
            except Unreachable:
                await asyncio.sleep(0.05)


def is_refused(opened: Opened) -> bool:
    return opened.status is OpenStatus.REFUSED


@asynccontextmanager
async def worker_worlds(root: Path, engine: Engine) -> AsyncGenerator[WorkerWorld]:
    """A host, another one, and a worker that has yet to `begin`."""
    async with members(root, 2, fast_path=False) as (host, (worker, other)):
        world = WorkerWorld(root, host, other.node, worker.node, worker.exits, engine)
        try:
            yield world
        finally:
            await world.stop()
