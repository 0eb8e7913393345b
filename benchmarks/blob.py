"""How fast a model file comes from a peer: our transfer over the fast path beside a plain copy over raw asyncio TLS, in one run.

    python benchmarks/blob.py [--megabytes 1000] [--repeat 3]

Giver and taker are two processes on loopback with uvloop, each row reads the file from disk and writes it to another. "hashed" rows compute
the SHA-256 as they write and flush the file to disk at the end, as every download does; the plain row does neither.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agentmesh.inference.blob_index import BlobIndex
from agentmesh.inference.blob_source import PeerSource
from agentmesh.inference.blobs import BlobService
from agentmesh.inference.models.cache import HubCache
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.models.source import WantedFile
from agentmesh.inference.models.transfer import fetch
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.streams import StreamKind, read_header, write_header
from agentmesh.mesh.tls import TlsTransport
from agentmesh.mesh.tls_context import client_context, server_context
from agentmesh.mesh.tls_link import TlsLink
from agentmesh.mesh.transport import Connection, Stream

SEED = bytes(range(32))
TIMEOUT_S = 300.0
PIECE_BYTES = 256 * 1024
COMMIT = "c" * 40


@dataclass(frozen=True)
class Task:
    """What every row moves."""

    folder: Path
    size: int
    sha256: str

    @property
    def wanted(self) -> WantedFile:
        return WantedFile("maker/Model-GGUF", "main", COMMIT, "Model-Q4_K_M.gguf", self.size, self.sha256, None)

    @property
    def giver(self) -> HubCache:
        return HubCache(self.folder / "giver")


def make_file(folder: Path, size: int) -> Task:
    """A finished download of random content."""
    content = folder / "content"
    digest = hashlib.sha256()
    with content.open("wb") as file:
        written = file.write(b"GGUF")
        digest.update(b"GGUF")
        while written < size:
            block = os.urandom(min(4_000_000, size - written))
            digest.update(block)
            written += file.write(block)
    task = Task(folder, size, digest.hexdigest())
    task.giver.blob(task.wanted).parent.mkdir(parents=True)
    content.rename(task.giver.blob(task.wanted))
    task.giver.link(task.wanted)
    return task


async def serve_raw(pipe: Pipe, task: Task) -> None:
    async def on_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with task.giver.blob(task.wanted).open("rb") as file:
            while block := file.read(PIECE_BYTES):
                writer.write(block)
                await writer.drain()
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(on_stream, "127.0.0.1", 0, ssl=server_context(NodeKey(SEED)))
    pipe.send(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(pipe.recv)
    server.close()


async def take_raw(port: int, task: Task, *, hashed: bool = False) -> float:
    target = task.folder / "taken"
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=client_context(), server_hostname="", limit=PIECE_BYTES
    )
    digest, missing = hashlib.sha256(), task.size
    with target.open("wb") as file:
        while missing:
            block = await reader.read(PIECE_BYTES)
            file.write(block)
            missing -= len(block)
            if hashed:
                digest.update(block)
        if hashed:
            file.flush()
            os.fsync(file.fileno())
    took = time.perf_counter() - started
    writer.write(b"!")
    writer.close()
    if hashed and digest.hexdigest() != task.sha256:
        raise SystemExit("the raw copy is wrong")
    target.unlink()
    return task.size / 1e6 / took


async def take_raw_hashed(port: int, task: Task) -> float:
    return await take_raw(port, task, hashed=True)


async def serve_blobs(pipe: Pipe, task: Task) -> None:
    """The transport without the mesh's admission: the first stream, its handshake, is empty."""
    service = BlobService(BlobIndex(task.giver, FileIdentities(task.folder / "hashes.json")))

    async def on_connection(connection: Connection) -> None:
        await (await connection.accept_stream()).end()
        stream = await connection.accept_stream()
        await read_header(stream)
        await service.serve(b"p" * 32, stream)
        assert isinstance(connection, TlsLink)
        await connection.linger()

    server = TlsTransport(NodeKey(SEED))
    pipe.send(await server.listen("127.0.0.1", 0, on_connection))
    await asyncio.to_thread(pipe.recv)
    await server.close()


async def take_blob(port: int, task: Task) -> float:
    transport = TlsTransport(NodeKey.generate())

    async def open_stream(peer: bytes) -> Stream:
        link = await transport.dial(peer, f"127.0.0.1:{port}", 5.0)
        await (await link.open_stream()).end()
        stream = await link.open_stream()
        await write_header(stream, StreamKind.BLOB)
        return stream

    source = PeerSource(asyncio.get_running_loop(), open_stream, lambda: [NodeKey(SEED).public])
    cache = HubCache(task.folder / "taker")
    started = time.perf_counter()
    await asyncio.to_thread(fetch, task.wanted, [source], cache)
    took = time.perf_counter() - started
    cache.blob(task.wanted).unlink()
    await transport.close()
    return task.size / 1e6 / took


@dataclass(frozen=True)
class Row:
    name: str
    serve: Callable[[Pipe, Task], Coroutine[Any, Any, None]]
    take: Callable[[int, Task], Coroutine[Any, Any, float]]


ROWS = (
    Row("raw asyncio TLS, plain copy", serve_raw, take_raw),
    Row("raw asyncio TLS, hashed", serve_raw, take_raw_hashed),
    Row("agentmesh from a peer (hashed)", serve_blobs, take_blob),
)


def giver(number: int, pipe: Pipe, task: Task) -> None:
    uvloop.run(ROWS[number].serve(pipe, task))


def taker(number: int, port: int, pipe: Pipe, task: Task) -> None:
    pipe.send(uvloop.run(ROWS[number].take(port, task)))


def measure(number: int, task: Task) -> float:
    """MB/s of one row: two fresh processes."""
    context = multiprocessing.get_context("spawn")
    giver_end, far_giver_end = context.Pipe()
    taker_end, far_taker_end = context.Pipe()
    giving = context.Process(target=giver, args=(number, far_giver_end, task), daemon=True)
    giving.start()
    if not giver_end.poll(TIMEOUT_S):
        raise SystemExit("the giver did not start")
    taking = context.Process(target=taker, args=(number, giver_end.recv(), far_taker_end, task), daemon=True)
    taking.start()
    if not taker_end.poll(TIMEOUT_S):
        raise SystemExit("the measurement took too long")
    rate = taker_end.recv()
    giver_end.send("stop")
    for process in (taking, giving):
        process.join(10)
        if process.is_alive():
            process.kill()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description="A model file from a peer, beside a plain copy over raw asyncio TLS.")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = make_file(Path(folder), arguments.megabytes * 1_000_000)
        # Rows take turns, so that what else the machine does falls on all of them; the best of each is kept.
        turns = [[measure(number, task) for number in range(len(ROWS))] for _ in range(arguments.repeat)]
    best = [max(turn[number] for turn in turns) for number in range(len(ROWS))]
    print(f"| {arguments.megabytes} MB over loopback | MB/s | ratio |")
    print("|---|---|---|")
    for row, rate in zip(ROWS, best, strict=True):
        print(f"| {row.name} | {rate:.0f} | {rate / best[0]:.2f} |")


if __name__ == "__main__":
    main()
