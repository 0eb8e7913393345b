"""How fast bulk streams are: the fast path (TLS 1.3 over TCP) beside raw asyncio TLS, raw aioquic and our QUIC, in one run.

    python benchmarks/bulk.py [--megabytes 256] [--rounds 500] [--repeat 3]

Client and server are two processes on loopback, with uvloop on both sides of every row. Bulk: one stream, one direction,
until the reader has everything; the QUIC rows move an eighth of it. Echo: 20 kB there and back on one stream, the middle
value of all rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent))

import transport as quic_rows

from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.tls import TlsTransport
from agentmesh.mesh.tls_context import client_context, server_context
from agentmesh.mesh.transport import Connection

TIMEOUT_S = 180.0
QUIC_SHARE = 8  # the QUIC rows move this much less, or they take a minute


class TlsTalk:
    """A stream of asyncio's own classes over TLS, with their back-pressure."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, count: int) -> bytes:
        return await self._reader.read(count)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def end(self) -> None:
        """TLS has no half-close: the server of this row counts bytes instead."""


async def answer_raw(talk: TlsTalk) -> None:
    """As transport.answer; how much comes is told first, for want of an end."""
    kind = await talk.read(1)
    if kind == b"e":
        while data := await talk.read(quic_rows.PIECE_BYTES):
            await talk.write(data)
    elif kind == b"b":
        missing = int.from_bytes(await talk.read(8), "big")
        while missing > 0:
            missing -= len(await talk.read(quic_rows.PIECE_BYTES))
        await talk.write(b"!")


async def serve_raw(pipe: Pipe) -> None:
    async def on_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await answer_raw(TlsTalk(reader, writer))

    server = await asyncio.start_server(
        on_stream, "127.0.0.1", 0, ssl=server_context(NodeKey(quic_rows.SEED)), limit=256 * 1024
    )
    pipe.send(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(pipe.recv)
    server.close()


async def open_raw(port: int) -> TlsTalk:
    context: ssl.SSLContext = client_context()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="", limit=256 * 1024)
    return TlsTalk(reader, writer)


async def run_raw(port: int, arguments: argparse.Namespace) -> quic_rows.Figures:
    echo_ms, cpu_ms = await quic_rows.measure_echo(await open_raw(port), arguments.rounds)
    talk = await open_raw(port)
    pieces = arguments.megabytes * 1_000_000 // quic_rows.PIECE_BYTES
    piece = bytes(quic_rows.PIECE_BYTES)
    started = time.perf_counter()
    await talk.write(b"b" + (pieces * len(piece)).to_bytes(8, "big"))
    for _ in range(pieces):
        await talk.write(piece)
    assert await talk.read(1) == b"!"
    return pieces * len(piece) / 1e6 / (time.perf_counter() - started), echo_ms, cpu_ms


async def serve_fast(pipe: Pipe) -> None:
    """The transport alone: the first stream, admission's, is empty."""

    async def on_connection(connection: Connection) -> None:
        first = await connection.accept_stream()
        await first.end()
        await quic_rows.answer(await connection.accept_stream())
        await connection.wait_closed()

    server = TlsTransport(NodeKey(quic_rows.SEED))
    pipe.send(await server.listen("127.0.0.1", 0, on_connection))
    await asyncio.to_thread(pipe.recv)
    await server.close()


async def run_fast(port: int, arguments: argparse.Namespace) -> quic_rows.Figures:
    client = TlsTransport(NodeKey.generate())

    async def fresh() -> Any:
        link = await client.dial(NodeKey(quic_rows.SEED).public, f"127.0.0.1:{port}", 5.0)
        await (await link.open_stream()).end()
        return await link.open_stream()

    echo_ms, cpu_ms = await quic_rows.measure_echo(await fresh(), arguments.rounds)
    bulk = await quic_rows.measure_bulk(await fresh(), arguments.megabytes)
    await client.close()
    return bulk, echo_ms, cpu_ms


async def run_slow(run: Callable[..., Awaitable[Any]], port: int, arguments: argparse.Namespace) -> Any:
    """A QUIC row, with less to move."""
    less = argparse.Namespace(**vars(arguments))
    less.megabytes = max(8, arguments.megabytes // QUIC_SHARE)
    return await run(port, less)


async def run_aioquic(port: int, arguments: argparse.Namespace) -> Any:
    return await run_slow(quic_rows.run_aioquic, port, arguments)


async def run_quic(port: int, arguments: argparse.Namespace) -> Any:
    return await run_slow(quic_rows.run_agentmesh, port, arguments)


@dataclass(frozen=True)
class Row:
    name: str
    serve: Callable[[Pipe], Coroutine[Any, Any, None]]
    run: Callable[[int, argparse.Namespace], Coroutine[Any, Any, Any]]


ROWS = (
    Row("raw asyncio TLS 1.3", serve_raw, run_raw),
    Row("raw aioquic", quic_rows.serve_aioquic, run_aioquic),
    Row("agentmesh over QUIC", quic_rows.serve_agentmesh, run_quic),
    Row("agentmesh fast path", serve_fast, run_fast),
)


def server_process(number: int, pipe: Pipe) -> None:
    uvloop.run(ROWS[number].serve(pipe))


def client_process(number: int, port: int, pipe: Pipe, arguments: argparse.Namespace) -> None:
    pipe.send(uvloop.run(ROWS[number].run(port, arguments)))


def measure(number: int, arguments: argparse.Namespace) -> Any:
    """One row: a fresh server process and a fresh client process."""
    context = multiprocessing.get_context("spawn")
    server_end, far_server_end = context.Pipe()
    client_end, far_client_end = context.Pipe()
    server = context.Process(target=server_process, args=(number, far_server_end), daemon=True)
    server.start()
    if not server_end.poll(TIMEOUT_S):
        raise SystemExit("the server did not start")
    port = server_end.recv()
    client = context.Process(target=client_process, args=(number, port, far_client_end, arguments), daemon=True)
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
    parser = argparse.ArgumentParser(description="Bulk streams: the fast path beside raw TLS, raw aioquic, our QUIC.")
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    # Rows take turns, so that what else the machine does falls on all of them; the best of each is kept.
    turns = [[measure(number, arguments) for number in range(len(ROWS))] for _ in range(arguments.repeat)]
    best = [(max(t[n][0] for t in turns), *(min(t[n][i] for t in turns) for i in (1, 2))) for n in range(len(ROWS))]
    print("| one stream on loopback | bulk MB/s | ratio | 20 kB echo p50, ms | ratio | client CPU ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for row, figures in zip(ROWS, best, strict=True):
        cells = " | ".join(f"{figure:.2f} | {figure / base:.2f}" for figure, base in zip(figures, best[0], strict=True))
        print(f"| {row.name} | {cells} |")


if __name__ == "__main__":
    main()
