"""Hosts of the benchmarks of splits: this process is the first, workers are processes of their own; joined by loopback or by a line.

With a line every host is a network namespace, so all that they say to each other crosses it, raw RPC and the mesh alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agentmesh.core.errors import AgentMeshError, Unreachable
from agentmesh.core.paths import Home
from agentmesh.inference.engine.engine import Engine, EngineSearch
from agentmesh.inference.engine.locate import find_engines
from agentmesh.inference.engine.probe import probe
from agentmesh.inference.models.gguf import read_model
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.rpc.gateway import RpcGateway
from agentmesh.inference.rpc.hashing import hash_tensors
from agentmesh.inference.rpc.weights import WeightFiles, WeightHashes
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream
from benchmarks.split_worker import JOB, Ready, Wanted
from tests.fakes.delay_line import DelayLine
from tests.fakes.engines import engine_search
from tests.fakes.mesh_nodes import TestNode
from tests.fakes.rpc_world import Server

READY_S = 90.0
END_S = 20.0
ANSWER_S = 120.0
WORKER = Path(__file__).with_name("split_worker.py")


@dataclass(frozen=True)
class Answer:
    """What one completion took. `drafted` and `accepted` are tokens of the draft."""

    tokens_per_s: float
    tokens: int
    text: str
    drafted: int
    accepted: int


class TimedServer(Server):
    """A llama-server that says how fast it was."""

    async def measure(self, prompt: str, count: int) -> Answer:
        """So many tokens, greedily, none of the prompt remembered."""
        body = {"prompt": prompt, "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer: dict[str, Any] = await self.complete(body, ANSWER_S)
        timings = answer["timings"]
        return Answer(
            # Its clock begins when the first one is there.
            (timings["predicted_n"] - 1) / max(1e-9, timings["predicted_ms"] / 1000),
            timings["predicted_n"],
            answer["content"],
            timings.get("draft_n", 0),
            timings.get("draft_n_accepted", 0),
        )

    async def end(self) -> None:
        """Ended, and the RPC servers told of it."""
        self.program.process.terminate()
        await asyncio.to_thread(self.program.process.wait, END_S)
        await asyncio.sleep(0.3)


@dataclass(frozen=True)
class Worker:
    """One worker as the host sees it."""

    key: bytes
    address: str
    raw_port: int


class Hosts:
    """The mesh, its workers, and the model that all have. Made by `split_hosts`."""

    def __init__(self, engine: Engine, model: Path, folder: Path, node: TestNode, weights: WeightFiles) -> None:
        self.engine = engine
        self.model = model
        self.folder = folder
        self.workers: list[Worker] = []
        self._node = node
        self._weights = weights
        self._number = 0

    def opener(self, worker: int) -> Callable[[], Awaitable[Stream]]:
        """Opens `rpc` streams to a worker."""
        return lambda: self._node.mesh.open_stream(self.workers[worker].key, StreamKind.RPC)

    def raw_endpoints(self, count: int) -> list[str]:
        """Of the first `count` workers' RPC servers."""
        return [f"{worker.address}:{worker.raw_port}" for worker in self.workers[:count]]

    @asynccontextmanager
    async def gateways(
        self, count: int, hashes: WeightHashes | None = None, *, compress: bool = True
    ) -> AsyncGenerator[list[tuple[RpcGateway, str]]]:
        """Gateways to the first `count` workers, with their endpoints."""
        known = hashes or WeightHashes()
        made = [
            RpcGateway(
                self.opener(n), job=JOB, worker=f"worker {n}", weights=self._weights, hashes=known, compress=compress
            )
            for n in range(count)
        ]
        try:
            yield [(gateway, f"127.0.0.1:{await gateway.listen()}") for gateway in made]
        finally:
            for gateway in made:
                await gateway.close()

    def serve(self, *arguments: str) -> TimedServer:
        """A llama-server on the first host."""
        self._number += 1
        return TimedServer(self.engine, self.model, self.folder, f"server-{self._number}", *arguments)

    async def hash(self, hashes: WeightHashes, layers: int) -> None:
        """What a host does before it serves: the weights of the last so many layers, by the program beside the engine."""
        if self.engine.tensor_hash is None:
            raise SystemExit("The program that hashes weights is not beside the engine: agentmesh engine install")
        count = read_model(self.model).facts.layer_count
        wanted = tuple(f"blk.{number}." for number in range(count - layers, count))
        await hash_tensors(self.engine.tensor_hash, self._weights, hashes, wanted=lambda name: name.startswith(wanted))

    async def reach_all(self) -> None:
        """Until streams to every worker can be opened."""
        deadline = time.monotonic() + READY_S
        for number in range(len(self.workers)):
            while True:
                try:
                    (await self.opener(number)()).abort()
                    break
                except Unreachable:
                    if time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.1)


@asynccontextmanager
async def split_hosts(
    engine: Engine, model: Path, count: int, line: DelayLine | None = None, *, direct: bool = False
) -> AsyncGenerator[Hosts]:
    """A host and `count` workers. With a line, call it `with line.inside(0)`."""
    with tempfile.TemporaryDirectory(prefix="split-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        host = TestNode(folder, "host", fast_path=True, bind_host=line.address(0) if line else "127.0.0.1").found()
        await host.start()
        weights = await WeightFiles.open(model, FileIdentities(folder / "identities.json"))
        hosts = Hosts(engine, model, folder, host, weights)
        processes: list[subprocess.Popen[str]] = []
        try:
            for number in range(1, count + 1):
                address = line.address(number) if line else "127.0.0.1"
                process = _start(line.command(number, _COMMAND) if line else _COMMAND)
                processes.append(process)
                assert engine.rpc_server is not None
                wanted = Wanted(
                    f"worker{number}", name, address, await host.token(), str(engine.rpc_server), str(model), direct
                )
                ready = await asyncio.wait_for(asyncio.to_thread(_tell, process, wanted), READY_S)
                hosts.workers.append(Worker(bytes.fromhex(ready.key_hex), address, ready.raw_port))
            await hosts.reach_all()
            yield hosts
        finally:
            for process in processes:
                _end(process)
            weights.close()
            with contextlib.suppress(AgentMeshError):
                await host.mesh.stop()


_COMMAND = (sys.executable, str(WORKER))


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _tell(process: subprocess.Popen[str], wanted: Wanted) -> Ready:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(wanted).decode() + "\n")
    process.stdin.flush()
    return msgspec.json.decode(process.stdout.readline(), type=Ready)


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_S)


async def find_engine(bin_dir: Path | None) -> Engine:
    """The engine in a folder, or the one that is installed for tests."""
    with tempfile.TemporaryDirectory() as name:
        search = EngineSearch(bin_dir, Home(Path(name)), None, {"PATH": ""}) if bin_dir else engine_search(Path(name))
        found = next((each for each in find_engines(search) if each.rpc_server is not None), None)
        if found is None:
            raise SystemExit("No llama.cpp with an RPC server was found; name its folder with --bin-dir.")
        return await probe(found)


ON_HOST = r"^(output|token_embd)\.weight$=CPU"  # logits and embeddings need not travel


def split_arguments(endpoints: Sequence[str], layers: int) -> list[str]:
    """llama-server's: `layers` of them in equal parts on the workers, the rest and the output on the host."""
    devices = ",".join(f"RPC{number}" for number in range(len(endpoints)))
    return [
        *("--rpc", ",".join(endpoints), "--device", devices, "--split-mode", "layer"),
        *("-ngl", str(layers + 1), "-ts", ",".join("1" for _ in endpoints), "-ot", ON_HOST),
    ]
