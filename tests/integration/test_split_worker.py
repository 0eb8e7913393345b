"""A worker of splits with real RPC servers, over a real mesh: lending one, what ends it, and that nothing is left."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest

from agentmesh.core.errors import AgentMeshError
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.logic.job_wire import JobState
from agentmesh.inference.logic.rpc_stream import OpenStatus
from agentmesh.inference.logic.rpc_wire import Command, build_request
from agentmesh.inference.logic.split_offer import WorkedModel
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.rpc.gateway import RpcGateway
from agentmesh.inference.rpc.weights import WeightFiles, WeightHashes
from agentmesh.inference.settings import Lending, Weights
from agentmesh.inference.split.worker_files import FOLDER
from agentmesh.inference.split.worker_job import WorkState
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.mesh_nodes import eventually
from tests.fakes.rpc_world import Program, Server
from tests.fakes.tiny_gguf import write_tiny
from tests.fakes.worker_world import (
    LIMIT_S,
    MB,
    QUICK,
    FakeServer,
    Host,
    WorkerWorld,
    ask_for,
    lives,
    made,
    worker_worlds,
)

ENDED, REFUSED, READY = JobState.ENDED, JobState.REFUSED, JobState.READY
FETCH = Lending(everyone=True, weights=Weights.FETCH)
STALL_S = 2.0
MEMORY_OF_DEVICE = build_request(Command.GET_DEVICE_MEMORY, bytes(4))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")[0]


@pytest.fixture
async def world(tmp_path: Path, real_engine: Engine) -> AsyncIterator[WorkerWorld]:
    async with worker_worlds(tmp_path, real_engine) as made:
        yield made


def pid_of(world: WorkerWorld) -> int:
    [job] = world.worker.status()
    assert job.pid is not None
    return job.pid


async def answer(stream: Stream) -> bytes:
    async with asyncio.timeout(LIMIT_S):
        data = b""
        while len(data) < 8 + 16:
            more = await stream.read(100)
            assert more, "the stream ended"
            data += more
        return data


# ------------------------------------------------------------------ lending


async def test_a_host_gets_an_rpc_server_and_when_it_ends_the_stream_nothing_is_left(
    world: WorkerWorld, model: Path
) -> None:
    worker = world.begin()
    ask = ask_for([model], world.engine)
    host, ready = await world.serving(ask)
    assert ready.devices == ("",) and len(ready.job) == 32
    [job] = worker.status()
    assert (job.state, job.model, job.term, job.held, job.held_bytes) == (
        WorkState.SERVING,
        "tiny",
        1,
        (("", 100 * MB),),
        100 * MB,
    )
    assert job.host == world.host.key.public.hex()
    assert job.pid is not None and lives(job.pid)
    assert world.told.worked == [WorkedModel(ask.content, 1, (("", 100 * MB),))]
    assert world.memory.machine_free_bytes() == world.machine.total - 100 * MB
    assert (await host.until(JobState.BEAT)).sentence == ""
    stream, opened = await world.connect(ready.job)
    assert (opened.status, opened.rpc_version) == (OpenStatus.READY, (7, 0, 0))
    assert opened.devices[0].total <= 100 * MB  # the plan's share, not what the machine has
    await stream.write(MEMORY_OF_DEVICE)
    await answer(stream)
    assert job.counters is not None and job.counters.streams == 1
    await host.give_back()
    assert not lives(job.pid)
    await world.nothing_left()
    assert world.told.worked[-1] == WorkedModel(ask.content, 1, ())
    assert (await world.connect(ready.job))[1].status is OpenStatus.REFUSED
    began, ended = world.lines
    assert "computes a part of tiny with" in began
    assert ended.startswith("The part of tiny for ")


async def test_nobody_but_the_host_reaches_the_rpc_server(world: WorkerWorld, model: Path) -> None:
    world.begin()
    _, ready = await world.serving(ask_for([model], world.engine))
    assert (await world.connect(ready.job, by=world.other))[1].status is OpenStatus.REFUSED
    assert (await world.connect(ready.job))[1].status is OpenStatus.READY


async def test_connections_that_end_cleanly_end_nothing(world: WorkerWorld, model: Path) -> None:
    """llama-server opens eight in a row at its start, and closes them."""
    world.begin()
    host, ready = await world.serving(ask_for([model], world.engine))
    for _ in range(8):
        stream, _ = await world.connect(ready.job)
        await stream.write(MEMORY_OF_DEVICE)
        await answer(stream)
        await stream.end()
        assert await stream.read(1) == b""
    assert (await host.until(JobState.BEAT)).state is JobState.BEAT
    assert [job.state for job in world.worker.status()] == [WorkState.SERVING]


async def test_a_connection_that_breaks_ends_the_job_with_the_reason(world: WorkerWorld, model: Path) -> None:
    world.begin()
    host, ready = await world.serving(ask_for([model], world.engine))
    stream, _ = await world.connect(ready.job)
    await stream.write(MEMORY_OF_DEVICE[:5])  # llama-server died in the middle of a request
    await stream.end()
    assert "in the middle of a request" in (await host.until(ENDED)).sentence
    await host.at_end()
    await world.nothing_left()


async def test_a_ping_is_answered(world: WorkerWorld) -> None:
    world.begin()
    assert await world.ping() is not None


@pytest.mark.timeout(400)
async def test_llama_server_computes_on_the_lent_server(world: WorkerWorld, model: Path, tmp_path: Path) -> None:
    world.begin()
    host, ready = await world.serving(ask_for([model], world.engine, need=500 * MB))
    weights = await WeightFiles.open(model, FileIdentities(tmp_path / "identities.json"))
    gateway = RpcGateway(
        lambda: world.host.mesh.open_stream(world.node.key.public, StreamKind.RPC),
        job=ready.job,
        worker="worker",
        weights=weights,
        hashes=WeightHashes(),
        compress=False,
        on_lost=world.lines.append,
    )
    port = await gateway.listen()
    options = ("--rpc", f"127.0.0.1:{port}", "-ngl", "99", "--device", "RPC0")
    programs: list[Program] = []
    try:
        alone = Server(world.engine, model, tmp_path, "alone")
        programs.append(alone.program)
        await alone.ready()
        split = Server(world.engine, model, tmp_path, "split", *options)
        programs.append(split.program)
        await split.ready()
        assert await split.tokens(count=8) == await alone.tokens(count=8)
        # It dies, and what it held on the worker goes with the job.
        split.program.kill()
        await eventually(lambda: gateway.counters.overdue_s == 0, LIMIT_S)
    finally:
        for program in programs:
            program.kill()
        await gateway.close()
        weights.close()
    await host.give_back()
    await world.nothing_left()


# ------------------------------------------------------------------ what ends it


async def test_the_rpc_servers_death_ends_the_job_and_the_host_is_told(world: WorkerWorld, model: Path) -> None:
    world.begin()
    host, ready = await world.serving(ask_for([model], world.engine))
    stream, _ = await world.connect(ready.job)
    os.kill(pid_of(world), signal.SIGKILL)
    said = await host.until(ENDED)
    assert "RPC server" in said.sentence
    await host.at_end()
    with pytest.raises(AgentMeshError):
        while await asyncio.wait_for(stream.read(100), LIMIT_S):
            pass
        raise AgentMeshError("it ended")
    await world.nothing_left()


async def test_a_server_that_owes_a_reply_and_does_nothing_ends_the_job(world: WorkerWorld, model: Path) -> None:
    # A second in which this machine stands still, while the server is greeted, is no stall.
    world.begin(limits=replace(QUICK, stall_s=STALL_S))
    host, ready = await world.serving(ask_for([model], world.engine))
    stream, _ = await world.connect(ready.job)
    pid = pid_of(world)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(1.5 * STALL_S)  # nothing is owed yet
    assert [job.state for job in world.worker.status()] == [WorkState.SERVING]
    await stream.write(MEMORY_OF_DEVICE)
    assert "owed a reply and did nothing for 2 s" in (await host.until(ENDED)).sentence
    await host.at_end()
    assert not lives(pid)
    await world.nothing_left()


async def test_a_host_that_vanishes_leaves_nothing(world: WorkerWorld, model: Path) -> None:
    world.begin()
    host, _ = await world.serving(ask_for([model], world.engine))
    pid = pid_of(world)
    host.frames.abort()
    await world.nothing_left()
    assert not lives(pid)


async def test_a_host_whose_node_ends_leaves_nothing(world: WorkerWorld, model: Path) -> None:
    world.begin()
    await world.serving(ask_for([model], world.engine), by=world.other)
    await world.other.mesh.stop()
    await world.nothing_left()


async def test_a_host_that_leaves_while_its_server_starts_leaves_nothing(world: WorkerWorld, model: Path) -> None:
    world.begin()
    for _ in range(4):
        host = await world.ask(ask_for([model], world.engine))
        await eventually(lambda: world.worker.status() != [], LIMIT_S)
        host.frames.abort()
        await world.nothing_left()


async def test_a_node_that_stops_ends_all_within_its_grace(world: WorkerWorld, model: Path) -> None:
    worker = world.begin()
    host, _ = await world.serving(ask_for([model], world.engine))
    pid = pid_of(world)
    os.kill(pid, signal.SIGSTOP)  # SIGTERM does not reach it
    began = asyncio.get_running_loop().time()
    await worker.stop(LIMIT_S)
    assert asyncio.get_running_loop().time() - began < LIMIT_S - 5.0  # not because its grace was over
    assert not lives(pid)
    assert (await host.until(ENDED)).sentence == "The worker stops."
    refused = await world.ask(ask_for([model], world.engine, term=9))
    with pytest.raises((AgentMeshError, AssertionError)):
        await refused.until(READY)


# ------------------------------------------------------------------ two hosts


async def test_a_newer_host_takes_over_and_an_older_one_is_refused(world: WorkerWorld, model: Path) -> None:
    world.begin()
    older, _ = await world.serving(ask_for([model], world.engine, term=3))
    pid = pid_of(world)
    newer, _ = await world.serving(ask_for([model], world.engine, term=5), by=world.other)
    assert not lives(pid)
    assert "A newer host has this model" in (await older.until(ENDED)).sentence
    await older.at_end()
    assert pid_of(world) != pid
    late = await world.ask(ask_for([model], world.engine, term=4))
    said = await late.until(REFUSED)
    assert said.seen_term == 5 and "A newer host has this model" in said.sentence
    assert world.told.worked[-1].seen_term == 5
    again = await world.ask(ask_for([model], world.engine, term=5), by=world.other)
    assert (await again.until(REFUSED)).seen_term == 0
    await newer.give_back()
    await world.nothing_left()
    # Also when nothing of it is left, and with the next term it is welcome.
    assert (await (await world.ask(ask_for([model], world.engine, term=4))).until(REFUSED)).seen_term == 5
    await (await world.serving(ask_for([model], world.engine, term=6)))[0].give_back()


async def test_a_node_that_hosts_the_model_itself_computes_for_no_older_host_of_it(
    world: WorkerWorld, model: Path
) -> None:
    """Also where that one cannot be heard any more, and so will never give it back."""
    worker = world.begin()
    ask = ask_for([model], world.engine, term=3)
    older, _ = await world.serving(ask)
    worker.make_way("another model", 9)
    worker.make_way(ask.content, 3)
    assert pid_of(world)
    worker.make_way(ask.content, 4)
    assert (await older.until(ENDED)).sentence == "A newer host has this model: this node."
    await world.nothing_left()


async def test_of_two_that_wait_the_newest_is_served(world: WorkerWorld, model: Path) -> None:
    servers = [FakeServer(), stuck := FakeServer(stuck=True)]
    world.begin(make_server=made(servers.pop))
    first, _ = await world.serving(ask_for([model], world.engine, term=1))
    second = await world.ask(ask_for([model], world.engine, term=2), by=world.other)
    await eventually(lambda: 2 in world.terms(), LIMIT_S)  # it may have been told before that something is looked at
    third = await world.ask(ask_for([model], world.engine, term=3))
    said = await second.until(REFUSED)
    assert (said.seen_term, "A newer host" in said.sentence) == (3, True)
    await third.until(JobState.WAIT)
    await first.until(ENDED)
    stuck.stuck = False
    await third.until(READY)
    await first.at_end()
    await eventually(lambda: world.terms() == [3], LIMIT_S)


async def test_what_waits_and_leaves_is_not_served(world: WorkerWorld, model: Path) -> None:
    stuck = FakeServer(stuck=True)
    world.begin(make_server=made(lambda: stuck))
    await world.serving(ask_for([model], world.engine, term=1))
    waiting: Host = await world.ask(ask_for([model], world.engine, term=2), by=world.other)
    await eventually(lambda: 2 in world.terms(), LIMIT_S)
    await waiting.until(JobState.WAIT)
    waiting.frames.abort()
    await eventually(lambda: world.terms() == [1], LIMIT_S)
    stuck.stuck = False
    await world.nothing_left()


# ------------------------------------------------------------------ files


async def test_lacking_files_are_fetched_from_the_host_and_kept(world: WorkerWorld, tmp_path: Path) -> None:
    parts = write_tiny(tmp_path / "set.gguf", parts=2)
    service = await world.give(*parts)
    world.begin(lending=FETCH)
    ask = ask_for(parts, world.engine)
    host, ready = await world.serving(ask)
    assert ready.same_files
    assert service.sent_bytes == sum(path.stat().st_size for path in parts)
    digests = [file.sha256 for file in ask.files]
    assert (await world.connect(ready.job, digests))[1].same_files
    await host.give_back()
    await world.nothing_left()
    assert not [file for file in psutil.Process().open_files() if FOLDER in file.path]
    again, ready = await world.serving(msgspec.structs.replace(ask, term=2))
    assert ready.same_files
    assert service.sent_bytes == sum(path.stat().st_size for path in parts)
    await again.give_back()


async def test_with_weights_from_the_host_nothing_is_fetched(world: WorkerWorld, model: Path) -> None:
    service = await world.give(model)
    world.begin()
    _, ready = await world.serving(ask_for([model], world.engine))
    assert not ready.same_files and service.sent_bytes == 0
    [job] = world.worker.status()
    assert "weights come from the host" in job.sentence and not job.same_files


async def test_files_that_nobody_gives_come_from_the_host_as_weights(world: WorkerWorld, model: Path) -> None:
    world.begin(lending=FETCH)
    _, ready = await world.serving(ask_for([model], world.engine))
    assert not ready.same_files
    assert (await world.connect(ready.job))[1].status is OpenStatus.READY


async def test_a_disk_without_room_is_not_begun_to_fill(world: WorkerWorld, model: Path) -> None:
    service = await world.give(model)
    world.margin_bytes = 1 << 60
    world.begin(lending=FETCH)
    _, ready = await world.serving(ask_for([model], world.engine))
    assert not ready.same_files and service.sent_bytes == 0
    assert "free" in world.worker.status()[0].sentence


@pytest.mark.parametrize("given", [True, False])
async def test_a_file_changed_on_disk_is_fetched_again_if_given(world: WorkerWorld, model: Path, given: bool) -> None:
    await world.give(model)
    world.begin(lending=FETCH)
    ask = ask_for([model], world.engine)
    host, _ = await world.serving(ask)
    await host.give_back()
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    [blob] = [path for path in (world.node.home.root / FOLDER).rglob(digest) if not path.is_symlink()]
    blob.write_bytes(blob.read_bytes()[:-8] + b"tampered")
    if not given:
        model.unlink()
    _, ready = await world.serving(msgspec.structs.replace(ask, term=2))
    assert ready.same_files == given
    assert blob.exists() == given
    assert not given or hashlib.sha256(blob.read_bytes()).hexdigest() == digest
