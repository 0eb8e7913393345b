"""The relay between the real llama-server and ggml-rpc-server, over two members of a real mesh on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.logic.rpc_wire import Command
from agentmesh.inference.models.gguf import read_header
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.rpc.exit import RpcExits, RpcJob
from agentmesh.inference.rpc.gateway import RpcGateway
from agentmesh.inference.rpc.weights import WeightFiles, WeightHashes
from tests.fakes.mesh_nodes import TestNode, eventually
from tests.fakes.rpc_world import DENSE, Carried, Program, Server, is_listening, rpc_server, two_members
from tests.fakes.tiny_gguf import write_tiny

MIB = 1 << 20
JOB = "dense"
AT_ONCE_S = 60.0  # less than the minutes for which a reply may take, more than a busy machine needs
ON_WORKER = ("-ngl", "99", "--device", "RPC0")

pytestmark = pytest.mark.timeout(400)  # a minute where three others compute


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "dense.gguf"
    write_tiny(path, DENSE)
    sizes = [tensor.size_bytes for tensor in read_header(path).tensors]
    assert min(sizes) < 10 * MIB < max(sizes)  # below it llama-server sends a tensor, above it asks for its hash first
    return path


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.kill()


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[tuple[TestNode, TestNode, RpcExits]]:
    async with two_members(tmp_path) as made:
        yield made


class Split:
    """A worker for the model, and gateways to it."""

    def __init__(
        self,
        members: tuple[TestNode, TestNode, RpcExits],
        engine: Engine,
        model: Path,
        folder: Path,
        programs: list[Program],
    ) -> None:
        self.host, self.worker, self.exits = members
        self.engine, self.model, self.folder, self.programs = engine, model, folder, programs
        self.lost: list[str] = []
        self.ends: list[str | None] = []
        self.hashes = WeightHashes(folder / "fnv.json")
        self.weights: WeightFiles
        self.rpc: Program

    async def begin(self) -> None:
        self.rpc, port = rpc_server(self.engine, self.folder)
        self.programs.append(self.rpc)
        await eventually(lambda: is_listening(port))
        self.weights = await WeightFiles.open(self.model, FileIdentities(self.folder / "identities.json"))
        self.exits.add(RpcJob(JOB, port, lambda _: True, self.weights, on_end=self.ends.append))

    async def serve(self, name: str, *, compress: bool = False) -> tuple[Server, RpcGateway, Carried, float]:
        """A llama-server with every layer on the worker; and how long it took to load."""
        carried = Carried()
        gateway = RpcGateway(
            carried.opener(self.host, self.worker.key.public),
            job=JOB,
            worker="worker",
            weights=self.weights,
            hashes=self.hashes,
            compress=compress,
            on_lost=self.lost.append,
        )
        port = await gateway.listen()
        server = Server(self.engine, self.model, self.folder, name, "--rpc", f"127.0.0.1:{port}", *ON_WORKER)
        self.programs.append(server.program)
        return server, gateway, carried, await server.ready()


@pytest.fixture
async def split(
    members: tuple[TestNode, TestNode, RpcExits],
    real_engine: Engine,
    model: Path,
    tmp_path: Path,
    programs: list[Program],
) -> AsyncIterator[Split]:
    made = Split(members, real_engine, model, tmp_path, programs)
    await made.begin()
    yield made
    made.weights.close()


async def end(server: Server) -> None:
    server.program.process.terminate()
    await asyncio.to_thread(server.program.process.wait, AT_ONCE_S)


async def test_a_split_says_what_one_machine_says_and_no_weight_crosses(
    split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    solo = Server(split.engine, split.model, split.folder, "solo")
    split.programs.append(solo.program)
    solo_s = await solo.ready()
    wanted = await solo.tokens()
    await end(solo)
    weights = split.model.stat().st_size
    said = [f"solo: loaded in {solo_s:.1f} s"]
    for load, compress in ((1, False), (2, True)):
        server, gateway, carried, loaded_s = await split.serve(f"load-{load}", compress=compress)
        # Graphs, hashes, references: not even the first load carries a weight, and nothing asked the worker for one's hash.
        assert carried.sent < 400_000 < weights / 500
        assert gateway.counters.referenced_bytes > 0.95 * weights
        hashes = gateway.counters.of(Command.SET_TENSOR_HASH)
        assert hashes.requests == hashes.answered_here == 3 * DENSE.layers
        tensors = gateway.counters.of(Command.SET_TENSOR).in_bytes
        # At the second load not even llama-server hands out what it asked the hash of.
        assert tensors > 0.9 * weights if load == 1 else tensors < 0.25 * weights
        loading = carried.sent
        trips, reads = gateway.counters.round_trips, gateway.counters.of(Command.GET_TENSOR).round_trips
        assert await server.tokens(count=24) == wanted
        said.append(
            f"load {load}: {loaded_s:.1f} s, {loading:,} bytes to the worker; 24 tokens: "
            f"{carried.sent - loading:,} bytes, {gateway.counters.round_trips - trips} round trips"
        )
        # One round trip a token; a graph of a new shape asks for a few sizes more.
        assert gateway.counters.of(Command.GET_TENSOR).round_trips - reads == 24
        assert gateway.counters.round_trips - trips <= 24 + 8
        await end(server)
        await eventually(lambda: len(split.ends) > 0 and split.ends[-1] is None)
        await gateway.close()
    assert split.lost == []
    assert set(split.ends) == {None}
    with capsys.disabled():
        print("\n" + "\n".join(said))


async def test_a_worker_that_dies_ends_llama_server_at_once_and_the_next_one_is_served(split: Split) -> None:
    server, gateway, _, _ = await split.serve("dies")
    answer = asyncio.create_task(server.tokens(count=400))
    trips = gateway.counters.round_trips
    await eventually(lambda: gateway.counters.round_trips > trips + 3)
    split.rpc.kill()
    await eventually(lambda: server.program.ended, AT_ONCE_S)
    with pytest.raises(OSError):
        await answer
    await eventually(lambda: len(split.lost) == 1 and split.ends[-1] is not None)
    await gateway.close()

    await split.begin()
    again, gateway, _, _ = await split.serve("again")
    assert len(await again.tokens(count=4)) == 4
    await end(again)
    await gateway.close()


async def test_llama_server_killed_while_it_answers_leaves_the_rpc_server_free_for_the_next(split: Split) -> None:
    server, gateway, _, _ = await split.serve("first")
    answer = asyncio.create_task(server.tokens(count=400))
    trips = gateway.counters.round_trips
    await eventually(lambda: gateway.counters.round_trips > trips + 3)
    ends = len(split.ends)
    server.program.kill()
    with pytest.raises(OSError):
        await answer
    await eventually(lambda: len(split.ends) == ends + 1)
    await gateway.close()
    again, gateway, carried, _ = await split.serve("second")
    assert carried.sent < 400_000
    assert len(await again.tokens(count=4)) == 4
    await end(again)
    await gateway.close()
