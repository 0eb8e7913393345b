"""The host's side of a split with RPC servers that do what the test says, over streams in memory: what open refuses, what close leaves."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.core.errors import AgentMeshError
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineTooOld
from agentmesh.inference.engine.split_arguments import SplitWords
from agentmesh.inference.logic.job_wire import JobSaid, JobState
from agentmesh.inference.logic.rpc_wire import Command
from agentmesh.inference.logic.split_offer import content_of
from agentmesh.inference.logic.split_values import Place, Share, Split
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.rpc.errors import WorkerLost, WorkerRefused
from agentmesh.inference.rpc.weights import WeightFiles, WeightHashes
from agentmesh.inference.split.host import CLOSE_S, HostJob, HostParts, SplitHost
from agentmesh.inference.split.host_lease import DEFAULT_LIMITS, LeaseLimits, WorkerTermSeen
from agentmesh.mesh.streams import StreamKind
from tests.fakes.fake_rpc_server import FakeClient, FakeRpcServer
from tests.fakes.job_worker import JobWorker, MemoryWorkers, memory_workers
from tests.fakes.mesh_nodes import eventually
from tests.fakes.tiny_gguf import write_tiny

WAIT_S = 60.0  # for what comes at once where nothing else runs
HOST, ANNA, BERT = b"h" * 32, b"a" * 32, b"b" * 32
NAMES = {ANNA: "anna", BERT: "bert"}
# Whoever is lost is told by the loss: where nobody is given up for saying nothing, nothing else can tell it.
PATIENT = replace(DEFAULT_LIMITS, silence_s=600.0)
FLAGS = ("--rpc", "--device", "--split-mode", "--tensor-split", "--n-gpu-layers", "--override-tensor", "--no-mmap")
ENGINE = Engine(("s",), Path("rpc"), None, None, "cpu", "PATH", 1, "0c1e570", frozenset(FLAGS), (), True)


def a_plan(*workers: bytes) -> Split:
    """One layer on the host, one on each worker."""
    places = [Place(HOST, None, 1 << 30, True), *(Place(worker, None, 1 << 30, False) for worker in workers)]
    shares = tuple(Share(place, number, 1, 1000 + number) for number, place in enumerate(places))
    return Split(HOST, workers, shares, (1,) * len(workers), len(workers), True, 512, 1, 0)


class World:
    """Two workers with an RPC server each, and what their host is made of."""

    def __init__(self, root: Path, workers: MemoryWorkers) -> None:
        self.root = root
        self.workers = workers
        self.servers = {ANNA: FakeRpcServer(), BERT: FakeRpcServer()}
        self.made: dict[bytes, JobWorker] = {}
        self.lost: list[str] = []
        self.said: list[str] = []
        self.model = write_tiny(root / "m.gguf")[0]
        self.identities = FileIdentities(root / "identities.json")
        self.weights: list[WeightFiles] = []

    async def start(self) -> None:
        for node, server in self.servers.items():
            await server.start()
            self.made[node] = JobWorker(self._starter(server), _nothing)
            await self.workers.add(node, self.made[node])

    async def same_files(self) -> None:
        for worker in self.made.values():
            worker.weights = await WeightFiles.open(self.model, self.identities)
            self.weights.append(worker.weights)

    async def stop(self) -> None:
        for server in self.servers.values():
            await server.stop()
        for weights in self.weights:
            weights.close()

    def host(self, *nodes: bytes, limits: LeaseLimits = DEFAULT_LIMITS, **changes: object) -> SplitHost:
        parts = HostParts(
            self.workers.open_stream, NAMES.__getitem__, lambda _: True, self.identities, WeightHashes(None)
        )
        content = content_of([hashlib.sha256(self.model.read_bytes()).digest()])
        job = replace(HostJob(content, "m", 7, (self.model,), ENGINE, (7, 0, 0)), **changes)
        return SplitHost(
            parts,
            a_plan(*(nodes or (ANNA, BERT))),
            job,
            on_lost=self.lost.append,
            say_progress=self.said.append,
            limits=limits,
        )

    async def refused(self, host: SplitHost, error: type[AgentMeshError], match: str) -> AgentMeshError:
        """Opening fails so, and nothing is left of it."""
        files = open_files(self.root)
        with pytest.raises(error, match=match) as caught:
            await host.open()
        await eventually(lambda: all(worker.open_now == 0 for worker in self.made.values()), WAIT_S)
        assert open_files(self.root) == files
        assert self.lost == []
        await host.close()
        return caught.value

    @staticmethod
    def _starter(server: FakeRpcServer) -> Callable[[], Awaitable[int]]:
        async def start() -> int:
            return server.port

        return start


async def _nothing() -> None:
    pass


def open_files(root: Path) -> int:
    """Model files of this folder that this process has open: threads of tests before may still close theirs."""
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            file = os.readlink(each)
            found += file.endswith(".gguf") and file.startswith(f"{root}/")
        except OSError:  # its own
            continue
    return found


def ports(words: SplitWords) -> list[int]:
    named = words.extra[words.extra.index("--rpc") + 1]
    return [int(each.removeprefix("127.0.0.1:")) for each in named.split(",")]


@asynccontextmanager
async def worlds(root: Path) -> AsyncGenerator[World]:
    async with memory_workers() as workers:
        world = World(root, workers)
        await world.start()
        try:
            yield world
        finally:
            await world.stop()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with worlds(tmp_path) as made:
        yield made


async def test_open_leases_every_worker_and_close_leaves_nothing(world: World) -> None:
    await world.same_files()
    files = open_files(world.root)
    world.made[ANNA].words = (JobSaid(JobState.WAIT, "fetching 40 %"),)
    host = world.host()
    assert [each.sentence for each in host.status()] == ["not asked yet"] * 2
    words = await host.open()
    assert words.devices == ("RPC0", "RPC1")
    assert world.said == ["The model's files are being checked.", "anna: fetching 40 %"]
    ask = world.made[BERT].asks[0]
    assert (ask.content, ask.model, ask.term, ask.needs) == (host._job.content, "m", 7, (("", 1002),))  # pyright: ignore
    assert [(file.name, file.size_bytes) for file in ask.files] == [("m.gguf", world.model.stat().st_size)]
    assert (ask.engine_commit, ask.rpc_version) == ("0c1e570", (7, 0, 0))
    anna, bert = host.status()
    assert (anna.worker, anna.name, anna.layers, anna.need_bytes) == (ANNA, "anna", 1, 1001)
    assert (anna.same_files, anna.is_blind, anna.overdue_s) == (True, False, 0.0)
    assert (bert.sentence, bert.counts) == ("lends its RPC server", {})
    clients = [await FakeClient.connect(port) for port in ports(words)]
    for client in clients:
        assert await client.ask(Command.DEVICE_COUNT) == (1).to_bytes(4, "little")
        assert len(await client.ask(Command.BUFFER_GET_BASE, bytes(8))) == 8
    anna, bert = host.status()
    assert (bert.round_trips, bert.counts["buffer_get_base"].requests) == (1, 1)
    assert bert.out_bytes > 0 < bert.reply_bytes
    for client in clients:
        client.close()
    await host.close()
    assert world.lost == []
    assert all(worker.open_now == 0 for worker in world.made.values())
    assert open_files(world.root) == files
    for port in ports(words):
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 1):
            pass
    assert host.status()[0].sentence == "given back"


async def test_one_that_refuses_ends_the_others(world: World) -> None:
    world.made[BERT].instead = JobSaid(JobState.REFUSED, "It lends to nobody.")
    await world.refused(world.host(), WorkerRefused, "The worker bert refused: It lends to nobody")


async def test_one_that_has_seen_a_newer_host_says_its_term(world: World) -> None:
    world.made[ANNA].instead = JobSaid(JobState.REFUSED, "A newer host.", seen_term=9)
    error = await world.refused(world.host(), WorkerTermSeen, "The worker anna refused")
    assert isinstance(error, WorkerTermSeen)
    assert error.seen_term == 9


async def test_one_that_is_lost_while_another_still_gets_ready_ends_the_wait(world: World) -> None:
    world.made[ANNA].start_rpc = asyncio.Event().wait  # pyright: ignore - never ready
    host = world.host(limits=PATIENT)
    opening = asyncio.create_task(host.open())
    await eventually(lambda: host.status()[1].same_files is not None, WAIT_S)
    world.workers.drop(BERT)
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(WorkerLost, match="bert"):
            await opening
    assert world.lost == []


async def test_another_version_of_the_rpc_server_is_refused(world: World) -> None:
    world.servers[BERT].version = (7, 1, 0)
    await world.refused(world.host(), WorkerRefused, r"worker bert speaks version 7\.1\.0, this one 7\.0\.0")


async def test_other_devices_than_the_plan_s_are_refused(world: World) -> None:
    world.servers[ANNA].devices = 2
    await world.refused(world.host(), WorkerRefused, "worker anna has 2 devices, not 1")
    world.servers[ANNA].devices = 1
    world.made[BERT].devices = ("CUDA0",)
    await world.refused(world.host(), WorkerRefused, "worker bert lends no machine memory")


@pytest.mark.parametrize("alignment", [0, 48, 1 << 40])
async def test_a_device_that_would_end_the_engine_is_refused(world: World, alignment: int) -> None:
    world.servers[BERT].alignment = alignment
    await world.refused(world.host(), WorkerRefused, "worker bert says what cannot be")


async def test_files_that_are_not_the_job_s_are_refused_before_anybody_is_asked(world: World) -> None:
    await world.refused(world.host(content="0" * 32), ModelFileUnusable, "changed since the plan was made")
    assert world.workers.opened == []


async def test_an_engine_that_cannot_is_refused_before_anybody_is_asked(world: World) -> None:
    engine = replace(ENGINE, flags=frozenset(FLAGS) - {"--rpc"})
    await world.refused(world.host(engine=engine), EngineTooOld, "--rpc")
    assert world.workers.opened == []


async def test_an_rpc_server_that_does_not_answer_is_named(world: World) -> None:
    world.servers[BERT].die_on = Command.DEVICE_COUNT
    await world.refused(world.host(), WorkerLost, "The worker bert failed")


async def test_a_lost_worker_is_told_once_whoever_notices_first(world: World) -> None:
    host = world.host(limits=PATIENT)
    words = await host.open()
    client = await FakeClient.connect(ports(words)[0])
    await client.ask(Command.BUFFER_GET_BASE, bytes(8))
    world.workers.drop(ANNA)
    await eventually(lambda: world.lost != [], WAIT_S)
    await eventually(lambda: "anna" in host.status()[0].sentence, WAIT_S)
    client.close()
    await host.close()
    assert len(world.lost) == 1
    assert "anna" in world.lost[0]


async def test_an_rpc_server_that_dies_is_told_by_the_gateway(world: World) -> None:
    host = world.host(limits=PATIENT)
    words = await host.open()
    client = await FakeClient.connect(ports(words)[1])
    world.servers[BERT].die_on = Command.BUFFER_GET_BASE
    await client.tell(Command.BUFFER_GET_BASE, bytes(8))
    await eventually(lambda: world.lost != [], WAIT_S)
    assert world.lost[0].startswith("The connection to the worker bert ended: ")
    assert host.status()[1].sentence == world.lost[0]
    client.close()
    await host.close()


async def test_an_unanswered_request_shows_in_status(world: World) -> None:
    host = world.host()
    words = await host.open()
    world.servers[BERT].silent_on = Command.BUFFER_GET_BASE
    client = await FakeClient.connect(ports(words)[1])
    await client.tell(Command.BUFFER_GET_BASE, bytes(8))
    await eventually(lambda: host.overdue_s > 0.05, WAIT_S)
    anna, bert = host.status()
    assert anna.overdue_s == 0
    assert bert.overdue_s > 0.05
    client.close()
    await host.close()
    assert world.lost == []


async def test_close_is_bounded_by_workers_that_do_not_end(world: World) -> None:
    for worker in world.made.values():
        worker.stubborn = True
    host = world.host(limits=replace(DEFAULT_LIMITS, end_s=0.3))
    await host.open()
    async with asyncio.timeout(CLOSE_S - 2):  # by the lease's bound, and not by the one of all ends together
        await host.close()


async def test_cancelled_while_workers_get_ready_nothing_is_left(world: World) -> None:
    files = open_files(world.root)
    gate = asyncio.Event()
    world.made[ANNA].start_rpc = gate.wait  # pyright: ignore
    host = world.host(limits=PATIENT)
    opening = asyncio.create_task(host.open())
    await eventually(lambda: world.made[ANNA].asks != [] and host.status()[1].same_files is not None, WAIT_S)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gate.set()
    await eventually(lambda: all(worker.open_now == 0 for worker in world.made.values()), WAIT_S)
    assert open_files(world.root) == files
    assert world.workers.opened.count(StreamKind.JOB) == 2
