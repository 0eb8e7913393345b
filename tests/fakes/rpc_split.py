"""Splits for tests, without nodes: a host, workers with files and RPC servers of their own, gateways, and what llama-server says over them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.models.gguf import read_header
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.rpc.exit import RpcJob
from agentmesh.inference.rpc.gateway import RpcGateway
from agentmesh.inference.rpc.weights import WeightFiles, WeightHashes
from tests.fakes.mesh_nodes import TestNode, eventually
from tests.fakes.rpc_world import Carried, Program, Server, WorkerNode, is_listening, members, rpc_server
from tests.fakes.split_models import BYTE_TOKENS

JOB = "split"
# Weights in a plain CPU buffer are computed with other kernels than repacked ones, which sum in another order: Q4_0 then differs in the
# first decimal of a logarithm. An RPC server never repacks, so neither may the machine that a split is compared with.
PLAIN = ("--no-repack",)
# As agentmesh splits: the host keeps the embedding and the output.
OUTPUT_ON_HOST = ("-ot", r"^(output|token_embd)\.weight$=CPU")
ALL_ON_WORKERS = ("-ngl", "99")
ANSWER_S = 180.0
SAMPLE_BYTES = 32
# The special tokens, and bytes that begin or go on with a character of several: llama-server tells no likelihoods of half a character.
NOT_TEXT = (*range(BYTE_TOKENS - 256), *range(BYTE_TOKENS - 128, BYTE_TOKENS))


@dataclass(frozen=True)
class Said:
    """An answer: token numbers, text, for each token the five likeliest with their logarithms (none with drafts), and what became of drafts."""

    tokens: list[int]
    text: str
    likeliest: list[dict[int, float]]
    read_tokens: int
    drafted: int
    accepted: int

    def assert_as(self, other: Said, what: str = "") -> None:
        """The same tokens and text, and the same five likeliest within a thousandth."""
        assert self.tokens == other.tokens, what
        assert self.text == other.text, what
        for at, (mine, theirs) in enumerate(zip(self.likeliest, other.likeliest, strict=True)):
            assert mine.keys() == theirs.keys(), f"{what}, token {at}"
            assert all(abs(mine[token] - theirs[token]) < 1e-3 for token in mine), f"{what}, token {at}"


async def say(server: Server, prompt: Sequence[int], count: int = 32) -> Said:
    """What follows these tokens, greedily; `count` tokens, whatever the model would like to end with."""
    body = {
        "prompt": list(prompt),
        "n_predict": count,
        "temperature": 0,
        "n_probs": 5,
        "ignore_eos": True,
        "logit_bias": [[token, False] for token in NOT_TEXT],
        "return_tokens": True,
        "cache_prompt": False,
    }
    row = await server.complete(body, ANSWER_S)
    likeliest = [
        {each["id"]: each["logprob"] for each in one["top_logprobs"]} for one in row["completion_probabilities"]
    ]
    timings = row["timings"]
    return Said(
        row["tokens"],
        row["content"],
        likeliest,
        row["tokens_evaluated"],
        timings.get("draft_n", 0),
        timings.get("draft_n_accepted", 0),
    )


@dataclass
class Worker:
    """A worker's part of a split: its RPC server, and the files that it holds for the job."""

    member: WorkerNode
    folder: Path
    program: Program
    port: int
    files: list[Path] = field(default_factory=list[Path])
    weights: WeightFiles | None = None
    ends: list[str | None] = field(default_factory=list[str | None])

    def lend(self) -> None:
        """Let the host use the RPC server, with the files held now."""
        job = RpcJob(JOB, self.port, lambda _: True, self.weights, on_end=self.ends.append)
        self.member.exits.add(job)

    async def hold(self, files: Sequence[Path], *, link: bool = False) -> None:
        """Take copies of these files as the model (or links to them, where they are large), and lend the RPC server with them."""
        self.files = [self.folder / file.name for file in files]
        for file, own in zip(files, self.files, strict=True):
            if link:
                own.hardlink_to(file)
            else:
                shutil.copyfile(file, own)
        await self.open()

    async def open(self) -> None:
        """Look at the files as they are now, and lend the RPC server with them."""
        if self.weights is not None:
            await self.member.exits.remove(JOB)
            self.weights.close()
        self.weights = await WeightFiles.open(self.files[0], FileIdentities(self.folder / "identities.json"))
        self.lend()


@dataclass
class Served:
    """A llama-server over gateways, one for each worker, in order."""

    server: Server
    gateways: list[RpcGateway]
    carried: list[Carried]
    lost: list[str]

    async def close(self) -> None:
        """End llama-server as an operator would, then the gateways."""
        self.server.program.process.terminate()
        await asyncio.to_thread(self.server.program.process.wait, 100)
        await self.close_gateways()

    async def close_gateways(self) -> None:
        for gateway in self.gateways:
            await gateway.close()


class Split:
    """See the module. Made by `splits`."""

    def __init__(self, engine: Engine, folder: Path, host: TestNode, workers: list[Worker]) -> None:
        self.engine, self.folder, self.host, self.workers = engine, folder, host, workers
        self.programs = [worker.program for worker in workers]
        self.hashes = WeightHashes(folder / "fnv.json")
        self.weights: WeightFiles | None = None
        self._started = 0

    async def hold(self, files: Sequence[Path], *, link: bool = False) -> None:
        """Host and workers have the same files; the host's are these."""
        await self.host_holds(files[0])
        for worker in self.workers:
            await worker.hold(files, link=link)

    async def host_holds(self, first: Path) -> None:
        """What the gateways of the next llama-server go by."""
        if self.weights is not None:
            self.weights.close()
        self.weights = await WeightFiles.open(first, FileIdentities(self.folder / "identities.json"))

    async def solo(self, model: Path, *arguments: str) -> Server:
        """A llama-server that is alone."""
        server = self._server(model, *arguments)
        await server.ready()
        return server

    async def serve(
        self, model: Path, *arguments: str, workers: int | None = None, compress: bool = False, keep: bool = False
    ) -> Served:
        """A llama-server that is ready, with the first `workers` workers, all unless told."""
        served = await self.start(model, *arguments, workers=workers, compress=compress, keep=keep)
        await served.server.ready()
        return served

    async def start(
        self, model: Path, *arguments: str, workers: int | None = None, compress: bool = False, keep: bool = False
    ) -> Served:
        """As `serve`, but it may fail to load."""
        lost: list[str] = []
        chosen = self.workers[:workers]
        carried = [Carried(keep=keep) for _ in chosen]
        gateways = [
            RpcGateway(
                count.opener(self.host, worker.member.node.key.public),
                job=JOB,
                worker=worker.member.node.name,
                weights=self.weights,
                hashes=self.hashes,
                compress=compress,
                on_lost=lost.append,
            )
            for worker, count in zip(chosen, carried, strict=True)
        ]
        ports = [await gateway.listen() for gateway in gateways]
        words = ["--rpc", ",".join(f"127.0.0.1:{port}" for port in ports)]
        words += ["--device", ",".join(f"RPC{number}" for number in range(len(ports)))]
        return Served(self._server(model, *words, *arguments), gateways, carried, lost)

    def _server(self, model: Path, *arguments: str) -> Server:
        self._started += 1
        server = Server(self.engine, model, self.folder, f"server-{self._started}", *PLAIN, *arguments)
        self.programs.append(server.program)
        return server

    async def restart(self, worker: Worker) -> None:
        """Another RPC server in the place of the worker's."""
        worker.program.kill()
        worker.program, worker.port = rpc_server(self.engine, worker.folder)
        self.programs.append(worker.program)
        await eventually(lambda: is_listening(worker.port))
        worker.lend()


@asynccontextmanager
async def splits(engine: Engine, folder: Path, workers: int = 2) -> AsyncGenerator[Split]:
    """Members of a mesh, and an RPC server on each worker."""
    async with AsyncExitStack() as stack:
        host, made = await stack.enter_async_context(members(folder, workers))
        sides: list[Worker] = []
        for number, member in enumerate(made):
            own = folder / f"files-{number}"
            own.mkdir()
            program, port = rpc_server(engine, own)
            stack.callback(program.kill)
            await eventually(lambda port=port: is_listening(port))
            sides.append(Worker(member, own, program, port))
        split = Split(engine, folder, host, sides)
        try:
            yield split
        finally:
            for program in split.programs:
                program.kill()
            for worker in sides:
                await worker.member.exits.remove(JOB)
            for weights in (split.weights, *(worker.weights for worker in sides)):
                if weights is not None:
                    weights.close()


def samples(file: Path) -> list[bytes]:
    """Of every tensor of the file a few bytes from its start, middle and end."""
    header = read_header(file)
    with file.open("rb") as opened:

        def at(position: int) -> bytes:
            opened.seek(header.data_offset + position)
            return opened.read(SAMPLE_BYTES)

        found: list[bytes] = []
        for tensor in header.tensors:
            last = tensor.size_bytes - SAMPLE_BYTES
            found += [at(tensor.offset + position) for position in (0, last // 2, last)]
    return found


def found(data: bytes | bytearray, wanted: Iterable[bytes]) -> set[bytes]:
    """Which of these samples are in the data, anywhere: a pass over it, where `in` would take one for each."""
    every = set(wanted)
    begins = np.zeros(1 << 16, dtype=np.bool_)
    begins[[int.from_bytes(sample[:2], "little") for sample in every]] = True
    view, hits = memoryview(data), set[bytes]()
    for shift in (0, 1):
        pairs = np.frombuffer(view[shift : shift + (len(data) - shift) // 2 * 2], dtype="<u2")
        places = np.flatnonzero(begins[pairs]) * 2 + shift
        hits.update(each for at in places.tolist() if (each := bytes(view[at : at + SAMPLE_BYTES])) in every)
    return hits
