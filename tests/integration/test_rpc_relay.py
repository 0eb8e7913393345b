"""The relay against a fake RPC server: what is answered where, what never crosses, and every way in which either side misbehaves."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.inference.logic.rpc_stream import Open, Opened, OpenStatus, RelayCommand, frame_of, opened_decoder
from agentmesh.inference.logic.rpc_wire import Command, build_request, build_tensor
from agentmesh.inference.rpc import gateway as gateway_module
from agentmesh.inference.rpc.duplex import read_frame
from agentmesh.inference.rpc.errors import WorkerLost, WorkerRefused
from agentmesh.inference.rpc.exit import RpcJob
from agentmesh.inference.rpc.gateway import RpcGateway
from agentmesh.inference.rpc.weights import WeightHashes
from tests.fakes.fake_rpc_server import BASE, FREE, FakeClient, FakeRpcServer, activation
from tests.fakes.mesh_nodes import eventually
from tests.fakes.relay_world import JOB, RelayWorld, relay_worlds, tensors, wire_tensor
from tests.fakes.rpc_world import Carried, two_members
from tests.fakes.tiny_gguf import LLAMA

BIG = 1 << 30
UP = "blk.1.ffn_up.weight"  # 32 KiB


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RelayWorld]:
    async with relay_worlds(tmp_path) as made:
        yield made


async def same_files(world: RelayWorld, server: FakeRpcServer, **options: bool):
    """A gateway and a worker that hold the same model; the port, and the model's path."""
    host, worker = await world.files("host"), await world.files("worker")
    world.job(server, worker)
    gateway, port = await world.gateway(host, **options)
    return gateway, port, tensors(world.root / "host" / "tiny.gguf")


# ------------------------------------------------------------------ what is answered where


async def test_what_the_worker_is_is_asked_once_and_no_capability_passes(world: RelayWorld) -> None:
    server = await world.server(FakeRpcServer(version=(7, 0, 3), devices=2))
    world.job(server)
    _, port = await world.gateway()
    for _ in range(3):
        client = await world.client(port)
        assert await client.hello() == bytes((7, 0, 3)).ljust(28, b"\0")
        assert await client.ask(Command.DEVICE_COUNT) == (2).to_bytes(4, "little")
        assert await client.ask(Command.GET_ALIGNMENT, (1).to_bytes(4, "little")) == (64).to_bytes(8, "little")
        assert await client.ask(Command.GET_MAX_SIZE, bytes(4)) == b"\xff" * 8
        client.close()
    await eventually(lambda: world.ends == [None])
    assert world.carried.streams == 1
    assert server.hellos == [bytes(24)]
    assert world.lost == []


async def test_every_other_command_reaches_the_rpc_server_and_its_reply_comes_back(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server)
    gateway, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    assert (await client.alloc(10_000))[1] == 10_000
    data = random.Random(1).randbytes(9_000)
    await client.set_tensor(activation(9_000), data)
    await client.tell(Command.BUFFER_CLEAR, bytes(9))
    await client.tell(Command.INIT_TENSOR, bytes(296))
    await client.tell(Command.MEMSET_TENSOR, bytes(296 + 17))
    await client.tell(Command.GRAPH_COMPUTE, bytes(5_000))
    await client.tell(Command.GRAPH_RECOMPUTE, bytes(4))
    assert await client.get_tensor(activation(9_000), 9_000) == data
    assert await client.ask(Command.COPY_TENSOR, bytes(592)) == b"\1"
    assert await client.ask(Command.GET_ALLOC_SIZE, bytes(4 + 11 * 296)) == (4096).to_bytes(8, "little")
    assert await client.ask(Command.BUFFER_GET_BASE, bytes(8)) == BASE.to_bytes(8, "little")
    assert await client.set_hash(activation(9_000), 1) == 0
    count = gateway.counters.by_name()["get_tensor"]
    assert (count.requests, count.round_trips, count.reply_bytes) == (1, 1, 9_008)
    assert gateway.counters.by_name()["set_tensor"].round_trips == 0
    assert gateway.counters.overdue_s == 0
    client.close()
    await eventually(lambda: world.ends == [None])


async def test_small_tensors_go_out_with_the_request_that_needs_them(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server)
    _, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    await client.alloc(100_000)
    before = world.carried.writes
    for number in range(5):
        await client.set_tensor(activation(2_000, data=BASE + number), bytes(2_000))
    await client.tell(Command.GRAPH_RECOMPUTE, bytes(4))
    await eventually(lambda: server.commands()[-1:] == [Command.GRAPH_RECOMPUTE])
    assert world.carried.writes == before + 1
    await client.set_tensor(activation(2_000), b"x" * 2_000)  # nobody waits for it, but it is not lost at the end
    client.close()
    await eventually(lambda: world.ends == [None])
    assert server.memory[BASE] == b"x" * 2_000


# ------------------------------------------------------------------ weights


async def test_no_weight_crosses_not_even_the_first_time(world: RelayWorld) -> None:
    server = await world.server()
    gateway, port, held = await same_files(world, server)
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    for number, (tensor, data) in enumerate(held.values()):
        await client.set_tensor(wire_tensor(tensor, data=BASE + number), data)
    await client.get_tensor(activation(1), 1)
    assert [server.memory[BASE + number] for number in range(len(held))] == [data for _, data in held.values()]
    small = sum(len(data) + 314 for _, data in held.values() if len(data) < 512)
    assert world.carried.sent < 1_500 + len(held) * 314 + small
    assert gateway.counters.referenced_bytes == sum(len(data) for _, data in held.values() if len(data) >= 512)


async def test_a_hash_is_believed_once_the_bytes_behind_it_were_the_files(world: RelayWorld) -> None:
    server = await world.server()
    gateway, port, held = await same_files(world, server)
    tensor, data = held[UP]
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    assert await client.set_hash(wire_tensor(tensor), 77) == 0
    await client.set_tensor(wire_tensor(tensor), data)
    assert await client.set_hash(wire_tensor(tensor, data=BASE + 5), 77) == 1
    assert await client.set_hash(wire_tensor(tensor), 78) == 0
    assert await client.get_tensor(wire_tensor(tensor, data=BASE + 5), len(data)) == data
    assert gateway.counters.of(Command.SET_TENSOR_HASH).round_trips == 0
    assert Command.SET_TENSOR_HASH not in server.commands()
    client.close()
    await eventually(lambda: world.ends == [None])
    await gateway.close()
    assert WeightHashes(world.root / "fnv.json")._known.popitem()[1] == {UP: 77}  # kept for the next start


async def test_a_second_hash_for_the_same_bytes_makes_both_doubtful(world: RelayWorld) -> None:
    server = await world.server()
    _, port, held = await same_files(world, server)
    tensor, data = held[UP]
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    for fnv in (77, 78):
        assert await client.set_hash(wire_tensor(tensor), fnv) == 0
        await client.set_tensor(wire_tensor(tensor), data)
    for fnv in (77, 78):
        assert await client.set_hash(wire_tensor(tensor), fnv) == 0
        await client.set_tensor(wire_tensor(tensor), data)
    assert await client.get_tensor(wire_tensor(tensor), len(data)) == data


@pytest.mark.parametrize("at", [0, 1, 16_383, 32_767])
async def test_other_bytes_under_a_files_name_arrive_as_they_are(world: RelayWorld, at: int) -> None:
    server = await world.server()
    gateway, port, held = await same_files(world, server)
    tensor, data = held[UP]
    changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    assert await client.set_hash(wire_tensor(tensor), 5) == 0
    await client.set_tensor(wire_tensor(tensor), changed)
    assert await client.get_tensor(wire_tensor(tensor), len(data)) == changed
    assert await client.set_hash(wire_tensor(tensor), 5) == 0
    assert gateway.counters.referenced_bytes == 0


async def test_a_slice_another_type_and_an_offset_are_not_the_files_tensor(world: RelayWorld) -> None:
    server = await world.server()
    gateway, port, held = await same_files(world, server)
    tensor, data = held[UP]
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    half = data[: len(data) // 2]
    await client.set_tensor(build_tensor(UP, 0, (64, 64), data=BASE), half)
    assert await client.get_tensor(wire_tensor(tensor), len(half)) == half
    await client.set_tensor(build_tensor(UP, 26, tensor.shape, data=BASE + 1), data)
    await client.set_tensor(wire_tensor(tensor, data=BASE + 2), data[4:], offset=4)
    await client.get_tensor(activation(1), 1)
    assert gateway.counters.referenced_bytes == 0
    assert server.memory[BASE + 1] == data


async def test_a_reshaped_tensor_is_still_the_files(world: RelayWorld) -> None:
    server = await world.server()
    gateway, port, held = await same_files(world, server)
    tensor, data = held[UP]
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    reshaped = build_tensor(UP, tensor.type_number, (tensor.elements,), data=BASE)
    await client.set_tensor(reshaped, data)
    assert await client.get_tensor(reshaped, len(data)) == data
    assert gateway.counters.referenced_bytes == len(data)


async def test_other_files_under_the_same_name_mean_that_bytes_flow(world: RelayWorld) -> None:
    server = await world.server()
    host, worker = await world.files("host"), await world.files("worker", dataclasses.replace(LLAMA, seed=2))
    world.job(server, worker)
    gateway, port = await world.gateway(host)
    tensor, data = tensors(world.root / "host" / "tiny.gguf")[UP]
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    assert await client.set_hash(wire_tensor(tensor), 5) == 0
    await client.set_tensor(wire_tensor(tensor), data)
    assert await client.get_tensor(wire_tensor(tensor), len(data)) == data
    assert gateway.facts is not None and not gateway.facts.same_files
    assert Command.SET_TENSOR_HASH in server.commands()


async def test_parts_are_one_model(world: RelayWorld) -> None:
    server = await world.server()
    host, worker = await world.files("host", parts=3), await world.files("worker", parts=3)
    assert len(host.digests) == 3
    world.job(server, worker)
    gateway, port = await world.gateway(host)
    held = tensors(next((world.root / "host").glob("*-00001-of-00003.gguf")))
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    for number, (tensor, data) in enumerate(held.values()):
        await client.set_tensor(wire_tensor(tensor, data=BASE + number), data)
    await client.get_tensor(activation(1), 1)
    assert [server.memory[BASE + number] for number in range(len(held))] == [data for _, data in held.values()]
    assert gateway.counters.referenced_bytes > 0


@pytest.mark.parametrize("which", ["host", "worker"])
async def test_a_file_that_changed_ends_the_connection(world: RelayWorld, which: str) -> None:
    server = await world.server()
    _, port, held = await same_files(world, server)
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    os.utime(world.root / which / "tiny.gguf", ns=(1, 1))
    tensor, data = held[UP]
    await client.set_tensor(wire_tensor(tensor), data)
    assert await client.at_end()
    assert len(world.lost) == 1
    assert BASE not in server.memory


async def test_graphs_and_masks_are_deflated_and_arrive_whole(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server)
    gateway, port = await world.gateway(compress=True)
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    mask, noise = bytes(700_000), random.Random(2).randbytes(700_000)
    await client.set_tensor(build_tensor("KQ_mask", 24, (700_000,), data=BASE), mask)
    await client.set_tensor(activation(700_000, data=BASE + 1), noise)
    await client.tell(Command.GRAPH_COMPUTE, bytes(50_000))
    assert await client.get_tensor(activation(700_000), 700_000) == mask
    assert server.memory[BASE + 1] == noise
    assert server.seen[-2].size == 50_000
    assert gateway.counters.of(Command.GRAPH_COMPUTE).out_bytes < 5_000
    assert 700_000 < gateway.counters.of(Command.SET_TENSOR).out_bytes < 720_000


# ------------------------------------------------------------------ the worker's limits


async def test_a_worker_gives_no_more_memory_than_its_user_allows(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server, limit=50_000)
    gateway, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    assert gateway.facts is not None
    assert (gateway.facts.devices[0].free, gateway.facts.devices[0].total) == (50_000, 50_000)
    pointer, size = await client.alloc(30_000)
    assert pointer and size == 30_000
    memory = await client.ask(Command.GET_DEVICE_MEMORY, bytes(4))
    assert int.from_bytes(memory[:8], "little") == 20_000
    assert await client.alloc(20_001) == (0, 0)
    await client.tell(Command.FREE_BUFFER, pointer.to_bytes(8, "little"))
    assert (await client.alloc(50_000))[1] == 50_000


@pytest.mark.parametrize("size", [10_001, 1 << 30])
async def test_a_tensor_that_lies_nowhere_is_refused_before_the_rpc_server_makes_room(
    world: RelayWorld, size: int
) -> None:
    server = await world.server()
    world.job(server)
    _, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    await client.alloc(10_000)
    await client.tell(Command.GET_TENSOR, activation(1) + bytes(8) + size.to_bytes(8, "little"))
    assert await client.at_end()
    assert Command.GET_TENSOR not in server.commands()


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
    await asyncio.wait_for(world.exits.remove(JOB), 5)
    assert world.ends != [None] and len(world.ends) == 1  # nothing uses its files any more
    assert await client.at_end()
    await eventually(lambda: server.open_now == 0)


async def test_a_gateway_that_closes_leaves_nothing_open(world: RelayWorld) -> None:
    server = await world.server()
    _, port, held = await same_files(world, server)
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    tensor, data = held[UP]
    # It is in the middle of comparing: a thread waits for the rest.
    client.writer.write(build_request(Command.SET_TENSOR, wire_tensor(tensor) + bytes(9) + data)[:-100])
    await asyncio.wait_for(world._gateways[0].close(), 5)
    assert await client.at_end()
    await eventually(lambda: server.open_now == 0)
    assert world.lost == []


async def test_llama_server_that_dies_in_the_middle_of_a_request_is_no_clean_end(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server)
    _, port = await world.gateway()
    client = await world.client(port)
    await client.hello()
    await client.alloc(BIG)
    client.writer.write(build_request(Command.SET_TENSOR, activation(9_000) + bytes(9 + 9_000))[:-1])
    await client.writer.drain()
    client.close()
    await eventually(lambda: len(world.ends) == 1)
    assert world.ends != [None]
    assert Command.SET_TENSOR not in server.commands()


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
        await asyncio.wait_for(exits.remove(JOB), 5)
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


# ------------------------------------------------------------------ other versions, and nonsense


@pytest.mark.parametrize("fake", [{"version": (8, 0, 0)}, {"version": (7, 1, 0)}, {"hello_bytes": 4}])
async def test_an_unknown_version_is_relayed_without_looking(
    world: RelayWorld, fake: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    server = await world.server(FakeRpcServer(raw_echo=True, **fake))  # type: ignore[arg-type]
    host = await world.files("host")
    world.job(server, host)
    gateway, port = await world.gateway(host)
    for _ in range(2):
        client = await world.client(port)
        client.writer.write(b"\xfeanything at all")
        assert await asyncio.wait_for(client.reader.readexactly(16), 10) == b"\xfeanything at all"
        client.close()
    await eventually(lambda: world.ends == [None, None])
    assert [record.getMessage() for record in caplog.records if "without looking" in record.getMessage()]
    assert gateway.counters.blind_bytes > 0


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x63" + bytes(8),
        b"\x06" + b"\xff" * 8,
        b"\x0e" + (3).to_bytes(8, "little") + b"abc",
        build_request(Command.GET_ALIGNMENT, (9).to_bytes(4, "little")),
        build_request(RelayCommand.FILE_TENSOR, bytes(305)),
    ],
)
async def test_nonsense_of_a_client_ends_its_connection_and_no_other(world: RelayWorld, nonsense: bytes) -> None:
    server = await world.server()
    world.job(server)
    _, port = await world.gateway()
    for greeted in (False, True):
        client = await world.client(port)
        if greeted:
            await client.hello()
        client.writer.write(nonsense)
        assert await client.at_end()
    client = await world.client(port)
    await client.hello()
    assert (await client.alloc(8))[1] == 8


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff" * 9,
        build_request(Command.HELLO, bytes(24)),
        build_request(RelayCommand.DEFLATED_PIECE, b"x"),
        build_request(RelayCommand.DEFLATED, b"\x08" + (312).to_bytes(8, "little")),
        build_request(RelayCommand.DEFLATED, b"\x0a" + (1 << 40).to_bytes(8, "little")),
        build_request(RelayCommand.DEFLATED, b"\x06" + (1 << 30).to_bytes(8, "little")),
        build_request(RelayCommand.DEFLATED, b"\x0a" + (99).to_bytes(8, "little")) + build_request(15),
        build_request(RelayCommand.FILE_TENSOR, build_tensor("../../etc/passwd", 0, (64,)) + bytes(9)),
        build_request(RelayCommand.FILE_TENSOR, build_tensor(UP, 0, (64, 127)) + bytes(9)),
        build_request(RelayCommand.FILE_TENSOR, build_tensor(UP, 0, (64, 128)) + bytes(9)),  # nothing is allocated
        build_request(Command.SET_TENSOR, bytes(306)),
    ],
)
async def test_nonsense_of_a_host_never_reaches_the_rpc_server(world: RelayWorld, nonsense: bytes) -> None:
    server = await world.server()
    weights = await world.files("worker")
    world.job(server, weights)
    stream = await world.connection.open_stream()
    await stream.write(frame_of(Open(JOB, weights.digests)))
    opened: Opened = await asyncio.wait_for(read_frame(stream, opened_decoder), 10)
    assert (opened.status, opened.same_files) == (OpenStatus.READY, True)
    asked = len(server.seen)
    await stream.write(nonsense)
    await eventually(lambda: len(world.ends) == 1)
    assert world.ends != [None]
    assert len(server.seen) == asked


@pytest.mark.parametrize("opening", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1\xc1", b"\0\0\0\3\x93\1\2"])
async def test_an_opening_that_is_none_ends_the_stream(world: RelayWorld, opening: bytes) -> None:
    server = await world.server()
    world.job(server)
    stream = await world.connection.open_stream()
    await stream.write(opening)
    with pytest.raises(Exception, match=r"reset|ended"):
        await asyncio.wait_for(read_frame(stream, opened_decoder), 10)
    assert server.connections == 0


async def test_a_later_format_of_the_stream_is_refused(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server)
    stream = await world.connection.open_stream()
    await stream.write(frame_of(Open(JOB, format=2)))
    opened: Opened = await asyncio.wait_for(read_frame(stream, opened_decoder), 10)
    assert opened.status is OpenStatus.REFUSED
