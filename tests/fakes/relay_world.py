"""A gateway and an exit with a mesh stream in memory between them, a fake RPC server, and model files that are the same or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.gguf_header import Tensor as FileTensor
from agentmesh.inference.logic.rpc_tensor import build_tensor
from agentmesh.inference.models.gguf import part_files, read_header
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.rpc.exit import RpcExits, RpcJob
from agentmesh.inference.rpc.gateway import RpcGateway
from agentmesh.inference.rpc.weights import WeightFiles, WeightHashes
from agentmesh.mesh.memory import MemoryNetwork, MemoryTransport
from agentmesh.mesh.transport import Connection, Stream
from tests.fakes.fake_rpc_server import BASE, WAIT_S, FakeClient, FakeRpcServer
from tests.fakes.rpc_world import Carried, CountingStream
from tests.fakes.tiny_gguf import LLAMA, TinyModel, write_tiny

HOST, WORKER = b"h" * 32, b"w" * 32
JOB = "tiny"
BIG = 1 << 30
UP = "blk.1.ffn_up.weight"  # 32 KiB


class RelayWorld:
    """See the module."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.carried = Carried()
        self.lost: list[str] = []
        self.ends: list[str | None] = []
        self.exits = RpcExits()
        self.hashes = WeightHashes(root / "fnv.json")
        self.identities = FileIdentities(root / "identities.json")
        self.weights: list[WeightFiles] = []
        self.tasks = TaskSet("relay world")
        self.connection: Connection
        self._gateways: list[RpcGateway] = []
        self._servers: list[FakeRpcServer] = []
        self._clients: list[FakeClient] = []

    async def start(self) -> None:
        network = MemoryNetwork()
        self._far, self._near = MemoryTransport(network, WORKER), MemoryTransport(network, HOST)
        port = await self._far.listen("memory", 0, self._on_connection)
        self.connection = await self._near.dial(WORKER, f"memory:{port}", WAIT_S)

    async def stop(self) -> None:
        for client in self._clients:
            client.close()
        for gateway in self._gateways:
            await gateway.close()
        await self._near.close()
        await self._far.close()
        await self.tasks.close()
        for server in self._servers:
            await server.stop()
        for weights in self.weights:
            weights.close()

    async def open_stream(self) -> Stream:
        self.carried.streams += 1
        return CountingStream(await self.connection.open_stream(), self.carried)

    async def server(self, server: FakeRpcServer | None = None) -> FakeRpcServer:
        self._servers.append(await (server or FakeRpcServer()).start())
        return self._servers[-1]

    async def files(self, name: str, model: TinyModel = LLAMA, *, parts: int = 1) -> WeightFiles:
        path = self.root / name / "tiny.gguf"
        path.parent.mkdir(exist_ok=True)
        first = write_tiny(path, model, parts=parts)[0]
        self.weights.append(await WeightFiles.open(first, self.identities))
        return self.weights[-1]

    def job(self, server: FakeRpcServer, weights: WeightFiles | None = None, limit: int | None = None) -> RpcJob:
        job = RpcJob(JOB, server.port, lambda peer: peer == HOST, weights, limit, on_end=self.ends.append)
        self.exits.add(job)
        return job

    async def gateway(
        self, weights: WeightFiles | None = None, *, compress: bool = False, job: str = JOB
    ) -> tuple[RpcGateway, int]:
        gateway = RpcGateway(
            self.open_stream,
            job=job,
            worker="worker",
            weights=weights,
            hashes=self.hashes,
            compress=compress,
            on_lost=self.lost.append,
        )
        self._gateways.append(gateway)
        return gateway, await gateway.listen()

    async def client(self, port: int) -> FakeClient:
        self._clients.append(await FakeClient.connect(port))
        return self._clients[-1]

    async def _on_connection(self, connection: Connection) -> None:
        while True:
            stream = await connection.accept_stream()
            self.tasks.spawn(self.exits.serve(HOST, stream), name="stream")


@asynccontextmanager
async def relay_worlds(root: Path) -> AsyncIterator[RelayWorld]:
    world = RelayWorld(root)
    await world.start()
    try:
        yield world
    finally:
        await asyncio.wait_for(world.stop(), WAIT_S)


def tensors(path: Path) -> dict[str, tuple[FileTensor, bytes]]:
    """What a file holds, over all parts."""
    result: dict[str, tuple[FileTensor, bytes]] = {}
    for file in part_files(path):
        header, content = read_header(file), np.fromfile(file, dtype=np.uint8)
        for tensor in header.tensors:
            start = header.data_offset + tensor.offset
            result[tensor.name] = tensor, content[start : start + tensor.size_bytes].tobytes()
    return result


def wire_tensor(tensor: FileTensor, *, data: int = BASE) -> bytes:
    """As llama-server sends a tensor of a file."""
    return build_tensor(tensor.name, tensor.type_number, tensor.shape, data=data)


async def same_files(
    world: RelayWorld, server: FakeRpcServer, *, compress: bool = False
) -> tuple[RpcGateway, int, dict[str, tuple[FileTensor, bytes]]]:
    """A gateway and a worker that hold the same model; the port, and what the model holds."""
    host, worker = await world.files("host"), await world.files("worker")
    world.job(server, worker)
    gateway, port = await world.gateway(host, compress=compress)
    return gateway, port, tensors(world.root / "host" / "tiny.gguf")
