"""What a worker of splits refuses, and what hostile hosts and servers that misbehave cost it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from agentmesh.core.errors import AgentMeshError
from agentmesh.inference.engine.engine import Device, Engine
from agentmesh.inference.logic.job_wire import MAX_ASK_BYTES, JobAsk, JobSaid, JobState
from agentmesh.inference.logic.rpc_wire import Command
from agentmesh.inference.logic.terms import highest_term
from agentmesh.inference.settings import Lending
from agentmesh.inference.split import worker as worker_module
from agentmesh.inference.split.worker import MAX_JOBS, MAX_STREAMS_PER_PEER, NOT_LENT
from agentmesh.inference.split.worker_job import WorkState
from agentmesh.mesh.streams import StreamKind
from tests.fakes.mesh_nodes import eventually
from tests.fakes.tiny_gguf import LLAMA, write_tiny
from tests.fakes.worker_world import (
    LIMIT_S,
    MB,
    QUICK,
    FakeServer,
    Host,
    WorkerWorld,
    ask_for,
    made,
    open_stream,
    worker_worlds,
)

ENDED, REFUSED, READY = JobState.ENDED, JobState.REFUSED, JobState.READY


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")[0]


@pytest.fixture
async def world(tmp_path: Path, real_engine: Engine) -> AsyncIterator[WorkerWorld]:
    async with worker_worlds(tmp_path, real_engine) as made:
        yield made


async def refusal(world: WorkerWorld, ask: JobAsk) -> JobSaid:
    host = await world.ask(ask)
    said = await host.until(REFUSED)
    await host.at_end()
    assert world.worker.status() == []
    return said


# ------------------------------------------------------------------ refused


async def test_who_may_not_use_it_hears_the_same_whatever_it_asks(world: WorkerWorld, model: Path) -> None:
    world.begin(lending=Lending(peers=frozenset((world.other.key.public,))))
    ask = ask_for([model], world.engine)
    wrong = msgspec.structs.replace(ask, engine_commit="other", content="0" * 32)
    assert {(await refusal(world, each)).sentence for each in (ask, wrong)} == {NOT_LENT}
    await world.serving(ask, by=world.other)
    host = await world.ask(msgspec.structs.replace(ask, term=1))
    said = await host.until(REFUSED)
    assert (said.sentence, said.seen_term) == (NOT_LENT, 0)


async def test_another_engine_is_refused_with_both_named(world: WorkerWorld, model: Path) -> None:
    world.begin()
    ask = msgspec.structs.replace(ask_for([model], world.engine), engine_commit="abcdef0")
    sentence = (await refusal(world, ask)).sentence
    assert "abcdef0 (RPC 7.0.0)" in sentence and world.engine.commit[:12] in sentence


async def test_another_rpc_version_is_refused_and_an_unknown_one_is_not(world: WorkerWorld, model: Path) -> None:
    world.begin()
    ask = ask_for([model], world.engine)
    sentence = (await refusal(world, msgspec.structs.replace(ask, rpc_version=(8, 1, 0)))).sentence
    assert "RPC 8.1.0" in sentence and "RPC 7.0.0" in sentence
    await world.serving(msgspec.structs.replace(ask, rpc_version=(0, 0, 0)))


async def test_an_engine_without_an_rpc_server_says_how_to_get_one(world: WorkerWorld, model: Path) -> None:
    ask = ask_for([model], world.engine)
    world.engine = replace(world.engine, rpc_server=None)
    world.begin()
    assert "agentmesh engine install" in (await refusal(world, ask)).sentence


async def test_more_memory_than_is_free_or_a_device_that_is_not_there_is_refused(
    world: WorkerWorld, model: Path
) -> None:
    world.devices = (Device("CUDA0", "a card", 1_000 * MB, 400 * MB),)
    world.begin()
    sentences = [
        (await refusal(world, ask_for([model], world.engine, need=need, device=device))).sentence
        for device, need in (("", 2_001 * MB), ("CUDA0", 401 * MB), ("CUDA1", 1), ("CUDA0,CUDA0", 1), ("none", 1))
    ]
    assert sentences[0] == "The worker has 2.0 GB free of its memory; 2.0 GB are asked for."
    assert sentences[1] == "The worker has 400 MB free on CUDA0; 401 MB are asked for."
    assert all("no device" in sentence for sentence in sentences[2:])
    await world.nothing_left()


async def test_a_device_that_the_user_keeps_for_nothing_is_not_lent(world: WorkerWorld, model: Path) -> None:
    world.devices = tuple(Device(name, "a card", 1_000 * MB, 1_000 * MB) for name in ("CUDA0", "CUDA1"))
    world.begin(device="cuda1", make_server=made(FakeServer))
    assert "lends no device 'CUDA0'" in (await refusal(world, ask_for([model], world.engine, device="CUDA0"))).sentence
    await world.serving(ask_for([model], world.engine, device="CUDA1"))
    await world.serving(ask_for([model], world.engine, term=2))


async def test_what_is_promised_to_one_host_is_not_free_for_another(
    world: WorkerWorld, model: Path, tmp_path: Path
) -> None:
    world.begin()
    second = write_tiny(tmp_path / "second.gguf", replace(LLAMA, name="second"))[0]
    host, _ = await world.serving(ask_for([model], world.engine, need=1_500 * MB))
    other = await world.ask(ask_for([second], world.engine, need=600 * MB))
    assert "500 MB free" in (await other.until(REFUSED)).sentence
    # A newer host of the same model is measured against what there is once the older one is gone.
    await world.serving(ask_for([model], world.engine, term=2, need=1_600 * MB), by=world.other)
    await host.until(ENDED)


async def test_a_newer_host_that_wants_more_than_there_is_does_not_end_the_older_one(
    world: WorkerWorld, model: Path
) -> None:
    world.begin()
    await world.serving(ask_for([model], world.engine))
    newer = await world.ask(ask_for([model], world.engine, term=2, need=2_001 * MB), by=world.other)
    await newer.until(REFUSED)
    assert [(job.term, job.state) for job in world.worker.status()] == [(1, WorkState.SERVING)]


async def test_only_so_many_models_are_served(world: WorkerWorld, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.begin(make_server=made(FakeServer))
    asks: list[JobAsk] = []
    for number in range(MAX_JOBS + 1):
        path = model.with_name(f"{number}.gguf")
        path.write_bytes(bytes([number]))
        asks.append(ask_for([path], world.engine))
    for ask in asks[:MAX_JOBS]:
        await world.serving(ask)
    full = await world.ask(asks[MAX_JOBS])
    assert str(MAX_JOBS) in (await full.until(REFUSED)).sentence
    monkeypatch.setattr(worker_module, "MAX_FENCES", 1)
    await world.serving(msgspec.structs.replace(asks[0], term=2))
    assert len(world.worker.status()) == MAX_JOBS


async def test_a_worker_that_has_to_look_for_long_says_so_meanwhile(world: WorkerWorld, model: Path) -> None:
    world.begin()
    async with world.memory.lock:  # somebody measures
        host = await world.ask(ask_for([model], world.engine))
        for _ in range(3):
            said = await host.next()
            assert said is not None and (said.state, said.sentence) == (JobState.WAIT, "looking at what is free")
    await host.until(READY)


async def test_a_devices_memory_is_promised_until_something_was_computed_there(world: WorkerWorld, model: Path) -> None:
    """Only then is what the job holds missing from what the device says is free."""
    world.devices = (Device("CUDA0", "a card", 1_000 * MB, 1_000 * MB),)
    world.begin(make_server=made(FakeServer))
    host, _ = await world.serving(ask_for([model], world.engine, need=400 * MB, device="CUDA0"))
    await host.until(JobState.BEAT)
    assert (await world.memory.rooms(await world.find_engine(), "CUDA0"))[0].free_bytes == 600 * MB
    counters = world.worker.status()[0].counters
    assert counters is not None
    counters.of(Command.GRAPH_COMPUTE).requests += 1
    world.devices = (Device("CUDA0", "a card", 1_000 * MB, 610 * MB),)
    async with asyncio.timeout(LIMIT_S):  # beats of before may have to be read first
        while (await world.memory.rooms(await world.find_engine(), "CUDA0"))[0].free_bytes != 610 * MB:
            await host.until(JobState.BEAT)


# ------------------------------------------------------------------ hostile hosts


async def test_malformed_asks_are_refused_before_anything_is_looked_at(world: WorkerWorld, model: Path) -> None:
    world.begin()
    ask = ask_for([model], world.engine)
    change = msgspec.structs.replace
    wrong = {
        "another model": change(ask, content="0" * 32),
        "a device twice": change(ask, needs=(("", 1), ("", 2))),
        "no memory": change(ask, needs=(("", 0),)),
        "another version": change(ask, format=2),
        "not one that a host can have": change(ask, term=1 << 60),
    }
    for sentence, each in wrong.items():
        assert sentence in (await refusal(world, each)).sentence
    assert world.told.worked == []
    # A term that no host can have leaves nothing that would refuse the next.
    await world.serving(ask)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x05hello",
        b"\xff\xff\xff\xff",
        (MAX_ASK_BYTES + 1).to_bytes(4, "big") + b"x" * 100,
        b"\x00\x00\x00\x04\x93\xa3ask",
        b"\x00\x00\x00\x03\x91\xc1\xc1",
    ],
)
async def test_garbage_ends_its_stream_and_nothing_else(world: WorkerWorld, model: Path, raw: bytes) -> None:
    world.begin()
    stream = await open_stream(world.host, world.node, StreamKind.JOB)
    await stream.write(raw)
    await stream.end()
    try:
        async with asyncio.timeout(LIMIT_S):
            while await stream.read(100):
                pass
    except AgentMeshError:
        pass
    assert world.worker.status() == []
    await world.serving(ask_for([model], world.engine))


async def test_a_host_that_says_nothing_is_left_and_one_that_says_more_than_it_may_loses_its_job(
    world: WorkerWorld, model: Path
) -> None:
    world.begin(limits=replace(QUICK, silence_s=0.3))
    silent = Host(await open_stream(world.host, world.node, StreamKind.JOB))
    with pytest.raises(AgentMeshError):
        await silent.next()
    world.limit(silence_s=LIMIT_S)  # it is patient with whoever comes after a stall of this machine
    ask = ask_for([model], world.engine)
    host, _ = await world.serving(ask)
    await host.frames.write_struct(ask)
    assert "not expected" in (await host.until(ENDED)).sentence
    await world.nothing_left()


async def test_one_member_holds_so_many_streams_only(world: WorkerWorld) -> None:
    world.begin()
    streams = [await open_stream(world.host, world.node, StreamKind.JOB) for _ in range(MAX_STREAMS_PER_PEER)]
    for stream in streams:
        await stream.write(b"\x00")  # the beginning of a frame that never comes
    await eventually(lambda: world.worker.stream_count == MAX_STREAMS_PER_PEER, LIMIT_S)
    more = await open_stream(world.host, world.node, StreamKind.JOB)
    with pytest.raises(AgentMeshError):
        await asyncio.wait_for(more.read(1), LIMIT_S)
    assert await asyncio.wait_for(_pings(world), LIMIT_S)
    for stream in streams:
        stream.abort()
    await eventually(lambda: world.worker.stream_count == 0, LIMIT_S)


async def _pings(world: WorkerWorld) -> bool:
    """Another member is not kept out."""
    host, world.host = world.host, world.other
    try:
        return await world.ping() is not None
    finally:
        world.host = host


async def test_names_that_a_host_says_are_shown_without_what_a_terminal_acts_on(
    world: WorkerWorld, model: Path
) -> None:
    world.begin()
    ask = msgspec.structs.replace(ask_for([model], world.engine), model="\x1b[31mevil\n" + "x" * 200)
    await world.serving(ask)
    [job] = world.worker.status()
    assert job.model.isprintable() and len(job.model) <= 80


# ------------------------------------------------------------------ servers that misbehave


async def test_a_server_that_computes_for_long_is_left_alone(world: WorkerWorld, model: Path) -> None:
    server = FakeServer()
    limits = replace(QUICK, stall_s=0.6)
    world.begin(make_server=made(lambda: server), limits=limits)
    host, _ = await world.serving(ask_for([model], world.engine))
    [job] = world.worker.status()
    assert job.counters is not None
    job.counters.asked()
    await eventually(lambda: server.used_s > 2.0, LIMIT_S)  # twenty looks at it
    assert job.counters.overdue_s > 2 * limits.stall_s
    await host.until(JobState.BEAT)
    assert [each.state for each in world.worker.status()] == [WorkState.SERVING]


async def test_memory_is_promised_until_the_system_lets_go_of_a_server(world: WorkerWorld, model: Path) -> None:
    server = FakeServer(stuck=True)
    world.begin(make_server=made(lambda: server))
    host, _ = await world.serving(ask_for([model], world.engine))
    await host.frames.end()
    await eventually(lambda: [job.state for job in world.worker.status()] == [WorkState.STUCK], LIMIT_S)
    assert world.memory.machine_free_bytes() == world.machine.total - 100 * MB
    server.stuck = False
    await world.nothing_left()


async def test_a_server_that_cannot_be_started_is_told_to_the_host(world: WorkerWorld, model: Path) -> None:
    world.devices = (Device("NOPE", "none", 1_000 * MB, 1_000 * MB),)
    world.begin()
    host = await world.ask(ask_for([model], world.engine, device="NOPE"))
    assert "unknown device: NOPE" in (await host.until(REFUSED)).sentence
    await host.at_end()
    await world.nothing_left()


async def test_what_nobody_expected_ends_the_job(world: WorkerWorld, model: Path) -> None:
    server = FakeServer(broken=ZeroDivisionError())
    world.begin(make_server=made(lambda: server))
    host = await world.ask(ask_for([model], world.engine))
    assert "nobody expected" in (await host.until(REFUSED)).sentence
    await world.nothing_left()


# ------------------------------------------------------------------ members that want another's place


async def test_a_host_that_does_not_say_to_all_that_it_hosts_ends_no_others_job(
    world: WorkerWorld, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else any member that may use this node could end any split with a number, and nobody would see who it is."""
    claims: dict[bytes, int] = {}
    world.begin(claimed=lambda node, _: claims.get(node, 0), make_server=made(FakeServer))
    served, _ = await world.serving(ask_for([model], world.engine, term=3))
    claims[world.other.key.public] = 8
    usurper = await world.ask(ask_for([model], world.engine, term=9), by=world.other)
    said = await usurper.until(REFUSED)
    assert "has not told the mesh" in said.sentence
    assert said.seen_term == 0
    assert [status.state for status in world.worker.status()] == [WorkState.SERVING]

    monkeypatch.setattr(worker_module, "CLAIM_LOOKS", 1_000)
    world.limit(claim_s=LIMIT_S)
    late = await world.ask(ask_for([model], world.engine, term=9), by=world.other)
    await late.until(JobState.WAIT)
    claims[world.other.key.public] = 9  # its record was on its way
    await late.until(READY)
    assert "A newer host has this model" in (await served.until(ENDED)).sentence


async def test_a_term_of_the_far_future_is_refused_and_leaves_nothing_behind(world: WorkerWorld, model: Path) -> None:
    world.begin(make_server=made(FakeServer))
    said = await refusal(world, ask_for([model], world.engine, term=1 << 40))
    assert "not one that a host can have" in said.sentence
    now = time.time_ns() // 1_000_000
    host, _ = await world.serving(ask_for([model], world.engine, term=highest_term(now)))
    await host.give_back()
    await world.nothing_left()
    # However high a member's term was, another host's is above it a moment later.
    _, ready = await world.serving(ask_for([model], world.engine, term=highest_term(now) + 1), by=world.other)
    assert ready.job
