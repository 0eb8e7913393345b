"""The relay against a fake RPC server: who may use it, one after the other, and how everything ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agentmesh.inference.logic.rpc_stream import (
    Device,
    Opened,
    OpenStatus,
    frame_of,
    open_decoder,
)
from agentmesh.inference.logic.rpc_wire import Command, build_request
from agentmesh.inference.rpc import gateway as gateway_module
from agentmesh.inference.rpc.duplex import read_frame
from agentmesh.inference.rpc.errors import WorkerLost, WorkerRefused
from agentmesh.inference.rpc.exit import RpcJob
from agentmesh.inference.rpc.gateway import RpcGateway
from agentmesh.inference.rpc.weights import WeightHashes
from agentmesh.mesh.transport import Stream
from tests.fakes.fake_rpc_server import BASE, FREE, FakeClient, FakeRpcServer, activation
from tests.fakes.mesh_nodes import eventually
from tests.fakes.relay_world import BIG, JOB, UP, RelayWorld, relay_worlds, same_files, wire_tensor
from tests.fakes.rpc_world import Carried, two_members

AT_ONCE_S = 30.0  # far less than the minutes for which a reply may take, more than a busy machine needs


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RelayWorld]:
    async with relay_worlds(tmp_path) as made:
        yield made


# ------------------------------------------------------------------ who may, and when


async def test_a_job_that_is_not_there_and_one_for_another_host_are_refused_alike(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server).may_use = lambda peer: False
    sentences: set[str] = set()
    for job in (JOB, "nothing"):
        gateway, port = await world.gateway(job=job)
        client = await world.client(port)
        await client.tell(Command.HELLO, bytes(24))
        assert await client.at_end()
        with pytest.raises(WorkerRefused):
            await gateway.ask_worker()
    sentences.update(world.lost)
    assert len(world.lost) == 2 and len(sentences) == 1
    assert server.connections == 0


async def test_connections_are_served_one_after_the_other(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server)
    _, port = await world.gateway()
    first = await world.client(port)
    await first.hello()
    await first.alloc(1)
    second = await world.client(port)
    await second.hello()
    waiting = asyncio.ensure_future(second.alloc(2))
    await first.alloc(3)
    assert not waiting.done()
    first.close()
    assert (await waiting)[1] == 2
    assert server.most_open == 1


async def test_a_connection_that_never_gets_the_place_is_told_so(
    world: RelayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "RPC_PLACE_WAIT_S", 0.05)
    server = await world.server()
    world.job(server)
    _, port = await world.gateway()
    first, second = await world.client(port), await world.client(port)
    await first.hello()
    await first.alloc(1)
    await second.hello()
    await second.tell(Command.ALLOC_BUFFER, bytes(12))
    assert await second.at_end()
    assert "open" in world.lost[0]
    assert (await first.alloc(4))[1] == 4


# ------------------------------------------------------------------ ends


@pytest.mark.parametrize("command", [Command.ALLOC_BUFFER, Command.GRAPH_RECOMPUTE])
async def test_an_rpc_server_that_dies_ends_the_connection_at_once(world: RelayWorld, command: Command) -> None:
    server = await world.server(FakeRpcServer(die_on=command))
    world.job(server)
    _, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    await client.tell(command, bytes(12 if command == Command.ALLOC_BUFFER else 4))
    assert await client.at_end()
    await eventually(lambda: len(world.lost) == 1 and len(world.ends) == 1)
    assert world.ends != [None]


async def test_a_worker_that_goes_away_ends_the_connection_at_once(world: RelayWorld) -> None:
    server = await world.server(FakeRpcServer(silent_on=Command.ALLOC_BUFFER))
    world.job(server)
    gateway, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    await client.tell(Command.ALLOC_BUFFER, bytes(12))
    await eventually(lambda: gateway.counters.overdue_s > 0)
    world.connection.close("gone")
    assert await client.at_end()
    await eventually(lambda: len(world.lost) == 1)
    assert gateway.counters.overdue_s == 0


async def test_a_host_that_goes_away_ends_the_rpc_servers_connection(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server)
    _, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    await client.alloc(1)
    world.connection.close("gone")
    await eventually(lambda: server.open_now == 0 and len(world.ends) == 1)
    assert world.ends != [None]


async def test_a_job_that_is_taken_away_cuts_its_host_off(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server)
    _, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    await client.alloc(1)
    await asyncio.wait_for(world.exits.remove(JOB), AT_ONCE_S)
    assert world.ends != [None] and len(world.ends) == 1  # nothing uses its files any more
    assert await client.at_end()
    await eventually(lambda: server.open_now == 0)


async def test_a_job_whose_rpc_server_has_stalled_is_taken_away_at_once(world: RelayWorld) -> None:
    """A request waits to be written and a reply to be read: nobody there looks at the stream."""
    server = await world.server(FakeRpcServer(stall_on=Command.SET_TENSOR))
    job = world.job(server)
    _, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    size = BIG // 8  # more than sockets hold
    client.writer.write(build_request(Command.SET_TENSOR, activation(size) + bytes(9 + size)))
    await eventually(lambda: job.counters.overdue_s > 0.2)
    await asyncio.wait_for(world.exits.remove(JOB), AT_ONCE_S)
    assert len(world.ends) == 1
    assert world.ends != [None]


async def test_a_gateway_that_closes_leaves_nothing_open(world: RelayWorld) -> None:
    server = await world.server()
    _, port, held = await same_files(world, server)
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    tensor, data = held[UP]
    # It is in the middle of comparing: a thread waits for the rest.
    client.writer.write(build_request(Command.SET_TENSOR, wire_tensor(tensor) + bytes(9) + data)[:-100])
    await asyncio.wait_for(world._gateways[0].close(), AT_ONCE_S)
    assert await client.at_end()
    await eventually(lambda: server.open_now == 0)
    assert world.lost == []


@pytest.mark.parametrize("missing", [1, 9_002, 9_310])
async def test_llama_server_that_dies_in_the_middle_of_a_request_is_no_clean_end(
    world: RelayWorld, missing: int
) -> None:
    server = await world.server()
    world.job(server)
    _, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    client.writer.write(build_request(Command.SET_TENSOR, activation(9_000) + bytes(9 + 9_000))[:-missing])
    await client.writer.drain()
    client.close()
    await eventually(lambda: len(world.ends) == 1)
    assert world.ends != [None]
    assert Command.SET_TENSOR not in server.commands()


async def test_a_silent_rpc_server_is_given_up_in_the_end(world: RelayWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmesh.inference.rpc.duplex.OVERDUE_CHECK_S", 0.02)
    monkeypatch.setattr("agentmesh.inference.rpc.duplex.REPLY_OVERDUE_S", 0.1)
    server = await world.server(FakeRpcServer(silent_on=Command.ALLOC_BUFFER))
    world.job(server)
    _, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    await client.tell(Command.ALLOC_BUFFER, bytes(12))
    assert await client.at_end()
    await eventually(lambda: len(world.ends) == 1 and len(world.lost) == 1)
    assert any("neither taken nor given" in said for said in (world.ends[0] or "", world.lost[0]))


class OtherExits:
    """A worker that says what it is told to and then ends."""

    def __init__(self, *answers: Opened) -> None:
        self.answers = list(answers)

    async def serve(self, peer: bytes, stream: Stream) -> None:
        await read_frame(stream, open_decoder)
        await stream.write(frame_of(self.answers.pop(0)))
        await stream.end()


async def test_a_worker_that_ends_a_stream_by_itself_is_lost(world: RelayWorld) -> None:
    world.exits = OtherExits(Opened(OpenStatus.READY, "", (7, 0, 0), (Device(1, 2, 3, 4),)))  # type: ignore[assignment]
    _, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    assert await client.at_end()
    await eventually(lambda: world.lost == ["The worker ended the connection."])


async def test_a_worker_that_was_replaced_is_not_gone_on_with(world: RelayWorld) -> None:
    first = Opened(OpenStatus.READY, "", (7, 0, 0), (Device(1, 2, 3, 4),))
    same, other = Device(1, 2, 5, 6), Device(64, 2, 3, 4)
    world.exits = OtherExits(
        first, msgspec.structs.replace(first, devices=(same,)), Opened(first.status, "", (7, 0, 0), (other,))
    )  # type: ignore[assignment]
    _, port = await world.gateway()
    for lost in (1, 2, 3):
        client = await world.client(port)
        await client.hello()
        if lost > 1:
            await client.tell(Command.ALLOC_BUFFER, bytes(12))
        assert await client.at_end()
        await eventually(lambda lost=lost: len(world.lost) == lost)
    assert ["not what it was" in said for said in world.lost] == [False, False, True]


async def test_an_rpc_server_that_was_never_started_is_said_to_be_missing(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server)
    await server.stop()
    gateway, _ = await world.gateway()
    with pytest.raises(WorkerLost, match="cannot be connected"):
        await gateway.ask_worker()


async def test_a_worker_can_be_asked_before_anything_connects(world: RelayWorld) -> None:
    server = await world.server(FakeRpcServer(devices=3))
    world.job(server)
    gateway, port = await world.gateway()
    facts = await gateway.ask_worker()
    assert (len(facts.devices), facts.devices[0].free) == (3, FREE)
    client = await world.client(port)
    assert await client.ask(Command.HELLO, bytes(24))
    assert world.carried.streams == 1


@pytest.mark.parametrize("fast_path", [True, False])
async def test_a_job_on_a_real_mesh_is_used_and_taken_away(tmp_path: Path, fast_path: bool) -> None:
    async with two_members(tmp_path, fast_path=fast_path) as (host, worker, exits):
        server, ends, carried = await FakeRpcServer().start(), [], Carried()
        allowed = host.key.public
        exits.add(RpcJob(JOB, server.port, lambda peer: peer == allowed, on_end=ends.append))
        opener = carried.opener(host, worker.key.public)
        gateway = RpcGateway(opener, job=JOB, worker="worker", weights=None, hashes=WeightHashes())
        client = await FakeClient.connect(await gateway.listen())
        await client.hello()
        await client.alloc(1 << 20)
        data = random.Random(3).randbytes(1 << 20)
        await client.set_tensor(activation(1 << 20), data)
        assert await client.get_tensor(activation(1 << 20), 1 << 20) == data
        await asyncio.wait_for(exits.remove(JOB), AT_ONCE_S)
        assert len(ends) == 1
        assert await client.at_end()
        client.close()
        await gateway.close()
        await server.stop()


def test_the_relay_works_on_the_loop_that_nodes_run_on(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def relay() -> None:
        async with relay_worlds(tmp_path) as world:
            server = await world.server()
            _, port, held = await same_files(world, server)
            client = await world.client(port)
            await client.hello()
            await client.alloc(BIG)
            for number, (tensor, data) in enumerate(held.values()):
                await client.set_tensor(wire_tensor(tensor, data=BASE + number), data)
            await client.get_tensor(activation(1), 1)
            assert [server.memory[BASE + number] for number in range(len(held))] == [data for _, data in held.values()]
            client.close()
            await eventually(lambda: world.ends == [None])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(relay())
