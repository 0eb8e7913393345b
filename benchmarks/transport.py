"""How fast the QUIC transport is, beside aioquic's own asyncio classes, in the same run on the same machine.

    python benchmarks/transport.py [--megabytes 64] [--rounds 500] [--repeat 3] [--uvloop]

Client and server are two processes on loopback. Three rows: `aioquic` is its asyncio connect() and serve() with their
defaults (1,200-byte datagrams); `agentmesh, 1,200-byte datagrams` is what our transport does on any network; `agentmesh` is
what it does on loopback, where it uses datagrams of 16,000 bytes. Bulk: one stream, one direction, until the reader has
everything. Echo: 20 kB there and back on one stream, the middle value of all rounds; the client's CPU time
for a round is less disturbed by what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import ssl
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Protocol

import uvloop
from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agentmesh.mesh import quic_tls
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.quic import QuicTransport
from agentmesh.mesh.quic_tls import ALPN, make_certificate
from agentmesh.mesh.transport import Connection, Stream

ECHO_BYTES = 20_000
PIECE_BYTES = 64 * 1024
TIMEOUT_S = 120.0
SEED = bytes(range(32))  # the server's key, so that the client knows it


Figures = tuple[float, float, float]
"""Bulk MB/s, milliseconds of an echo, CPU milliseconds of the client for an echo."""


class Talk(Protocol):
    """One stream, whatever is below it."""

    async def read(self, count: int) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def end(self) -> None: ...


class AioquicTalk:
    """A stream of aioquic's asyncio classes. Its writer never waits (drain returns at once), as they have no back-pressure."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, count: int) -> bytes:
        return await self._reader.read(count)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def end(self) -> None:
        self._writer.write_eof()


async def answer(talk: Talk | Stream) -> None:
    """The server's side of one stream: first byte `e` echoes, `b` swallows and confirms the end."""
    kind = await talk.read(1)
    if kind == b"e":
        while data := await talk.read(PIECE_BYTES):
            await talk.write(data)
    elif kind == b"b":
        while await talk.read(PIECE_BYTES):
            pass
        await talk.write(b"!")
    await talk.end()


async def measure_echo(talk: Talk | Stream, rounds: int) -> tuple[float, float]:
    """Milliseconds of the middle round, and of this process's CPU for a round."""
    await talk.write(b"e")
    payload, times = bytes(ECHO_BYTES), []
    cpu = time.process_time()
    for _ in range(rounds):
        started = time.perf_counter()
        await talk.write(payload)
        missing = ECHO_BYTES
        while missing:
            missing -= len(await talk.read(PIECE_BYTES))
        times.append(time.perf_counter() - started)
    cpu = (time.process_time() - cpu) / rounds
    await talk.end()
    return statistics.median(times) * 1000, cpu * 1000


async def measure_bulk(talk: Talk | Stream, megabytes: int) -> float:
    """Megabytes per second until the far side has read everything."""
    piece = bytes(PIECE_BYTES)
    pieces = megabytes * 1_000_000 // PIECE_BYTES
    started = time.perf_counter()
    await talk.write(b"b")
    for _ in range(pieces):
        await talk.write(piece)
    await talk.end()
    assert await talk.read(1) == b"!"
    return pieces * PIECE_BYTES / 1e6 / (time.perf_counter() - started)


# ------------------------------------------------------------------ the two stacks


async def serve_agentmesh(pipe: Pipe) -> None:
    async def on_connection(connection: Connection) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(answer(await connection.accept_stream()))

    server = QuicTransport(NodeKey(SEED))
    pipe.send(await server.listen("127.0.0.1", 0, on_connection))
    await asyncio.to_thread(pipe.recv)
    await server.close()


async def serve_aioquic(pipe: Pipe) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=[ALPN])
    key = NodeKey(SEED)
    with tempfile.TemporaryDirectory() as folder:
        certificate_file, key_file = Path(folder, "certificate"), Path(folder, "key")
        certificate_file.write_bytes(make_certificate(key).public_bytes(Encoding.PEM))
        key_file.write_bytes(key.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        configuration.load_cert_chain(certificate_file, key_file)
    tasks: set[asyncio.Task[None]] = set()

    def on_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(answer(AioquicTalk(reader, writer)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await serve("127.0.0.1", 0, configuration=configuration, stream_handler=on_stream, retry=True)
    pipe.send(server._transport.get_extra_info("sockname")[1])
    await asyncio.to_thread(pipe.recv)
    server.close()


async def run_agentmesh(port: int, arguments: argparse.Namespace) -> Figures:
    client = QuicTransport(NodeKey.generate())
    connection = await client.dial(NodeKey(SEED).public, f"127.0.0.1:{port}", 5.0)
    echo_ms, cpu_ms = await measure_echo(await connection.open_stream(), arguments.rounds)
    bulk = await measure_bulk(await connection.open_stream(), arguments.megabytes)
    await client.close()
    return bulk, echo_ms, cpu_ms


async def run_aioquic(port: int, arguments: argparse.Namespace) -> Figures:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE)
    async with connect("127.0.0.1", port, configuration=configuration) as protocol:
        echo_ms, cpu_ms = await measure_echo(AioquicTalk(*await protocol.create_stream()), arguments.rounds)
        bulk = await measure_bulk(AioquicTalk(*await protocol.create_stream()), arguments.megabytes)
    return bulk, echo_ms, cpu_ms


@dataclass(frozen=True)
class Row:
    name: str
    serve: Callable[[Pipe], Awaitable[None]]
    run: Callable[[int, argparse.Namespace], Coroutine[Any, Any, Figures]]
    datagram_bytes: int | None = None


ROWS = (
    Row("aioquic", serve_aioquic, run_aioquic),
    Row("agentmesh, 1,200-byte datagrams", serve_agentmesh, run_agentmesh, quic_tls.INTERNET_DATAGRAM_BYTES),
    Row("agentmesh", serve_agentmesh, run_agentmesh),
)


def on_loop(coroutine: Coroutine[Any, Any, Any], row: Row, use_uvloop: bool) -> Any:
    """Run with this row's settings."""
    if row.datagram_bytes is not None:
        quic_tls.LOOPBACK_DATAGRAM_BYTES = row.datagram_bytes  # type: ignore[misc]
    return uvloop.run(coroutine) if use_uvloop else asyncio.run(coroutine)


def server_process(number: int, pipe: Pipe, use_uvloop: bool) -> None:
    row = ROWS[number]
    on_loop(row.serve(pipe), row, use_uvloop)


def client_process(number: int, port: int, pipe: Pipe, arguments: argparse.Namespace) -> None:
    row = ROWS[number]
    pipe.send(on_loop(row.run(port, arguments), row, arguments.uvloop))


def measure(number: int, arguments: argparse.Namespace) -> Figures:
    """One row: a fresh server process and a fresh client process."""
    context = multiprocessing.get_context("spawn")
    server_end, far_server_end = context.Pipe()
    client_end, far_client_end = context.Pipe()
    server = context.Process(target=server_process, args=(number, far_server_end, arguments.uvloop), daemon=True)
    server.start()
    if not server_end.poll(TIMEOUT_S):
        raise SystemExit("the server did not start")
    client = context.Process(
        target=client_process, args=(number, server_end.recv(), far_client_end, arguments), daemon=True
    )
    client.start()
    if not client_end.poll(TIMEOUT_S):
        raise SystemExit("the measurement took too long")
    result = client_end.recv()
    server_end.send("stop")
    for process in (client, server):
        process.join(10)
        if process.is_alive():
            process.kill()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="QUIC transport beside raw aioquic, on loopback.")
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--uvloop", action="store_true", help="on both sides of every row")
    arguments = parser.parse_args()
    # Rows take turns, so that what else the machine does falls on all of them; the best of each is kept.
    turns = [[measure(number, arguments) for number in range(len(ROWS))] for _ in range(arguments.repeat)]
    best = [(max(t[n][0] for t in turns), *(min(t[n][i] for t in turns) for i in (1, 2))) for n in range(len(ROWS))]
    print(f"{'':32}{'bulk MB/s':>11}{'ratio':>7}{'echo p50 ms':>13}{'ratio':>7}{'client CPU ms':>15}{'ratio':>7}")
    for row, figures in zip(ROWS, best, strict=True):
        cells = [
            f"{figure:{width}.2f}{figure / base:7.2f}"
            for figure, base, width in zip(figures, best[0], (11, 13, 15), strict=True)
        ]
        print(f"{row.name:32}{''.join(cells)}")


if __name__ == "__main__":
    main()
