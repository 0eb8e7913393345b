"""Whether the API proxy's memory grows with the requests it has served.

    python benchmarks/proxy_memory.py [--requests 100000] [--clients 32]

The whole data path (routing, queues, metrics) runs in a process of its own, in front of a backend that answers at once. Of ten
requests six are asked on a kept connection, one is a stream, one comes on a connection of its own in pieces, one names a model
that nobody serves (a new name each time), and one leaves before its answer. The process's memory after half of the requests is
compared with its memory after all; the target is at most 5 % more. Exits with 1 beyond it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psutil
import uvloop
from proxy import ROOT, child, ours, port_of
from proxy_load import request

MAX_RATIO = 1.05
SETTLE_S = 1.0  # until what is in progress has ended
WAIT_S = 30.0
UNKNOWN = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"  # length, body


class Client:
    """Asks one request after another, each in its own manner; `numbers` are shared by all."""

    def __init__(self, port: int, numbers: Iterator[int]) -> None:
        self._port = port
        self._numbers = numbers
        self._kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, until: int) -> None:
        for number in self._numbers:
            if number > until:
                return
            async with asyncio.timeout(WAIT_S):
                await self._ask(number)

    async def _ask(self, number: int) -> None:
        manner = number % 10
        if manner == 7:
            await self._ask_apart(request(stream=False))
        elif manner == 8:
            _, writer = await self._open()
            writer.write(request(stream=True))
            await asyncio.sleep(0)
            writer.transport.abort()
        else:
            body = b'{"model":"nobody-%d"}' % number
            sent = request(stream=manner == 6) if manner != 9 else UNKNOWN % (len(body), body)
            self._kept = self._kept or await self._open()
            reader, writer = self._kept
            writer.write(sent)
            await _whole_answer(reader, 404 if manner == 9 else 200)

    async def _ask_apart(self, sent: bytes) -> None:
        reader, writer = await self._open()
        for piece in (sent[:20], sent[20:150], sent[150:]):
            writer.write(piece)
            await asyncio.sleep(0)
        await _whole_answer(reader, 200)
        writer.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)


async def _whole_answer(reader: asyncio.StreamReader, status: int) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 %d" % status):
        raise SystemExit(f"unexpected answer: {head[:200]!r}")
    if b"content-length:" in head:
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        return
    await reader.readuntil(b"\r\n0\r\n\r\n")


async def _memory_bytes(port: int, clients: int, total: int, process: psutil.Process) -> tuple[int, int]:
    """After half of the requests, and after all."""
    numbers = count(1)
    asking = [Client(port, numbers) for _ in range(clients)]
    seen: list[int] = []
    for until in (total // 2, total):
        await asyncio.gather(*(client.run(until) for client in asking))
        await asyncio.sleep(SETTLE_S)
        seen.append(process.memory_info().rss)
    return seen[0], seen[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.sock"
        script = str(ROOT / "benchmarks/proxy_backend.py")
        with child([sys.executable, script, "--socket", str(path), "--chunks", "8"], 1) as backend:
            port_of(backend)
            with ours(path) as proxy:
                assert proxy.process is not None
                began = time.monotonic()
                work = _memory_bytes(proxy.port, options.clients, options.requests, proxy.process)
                half, whole = uvloop.run(work)
                took_s = time.monotonic() - began
    ratio = whole / half
    print("| requests | MiB after half | MiB after all | ratio | target | seconds |\n|---|---|---|---|---|---|")
    print(
        f"| {options.requests:,} | {half / 2**20:.1f} | {whole / 2**20:.1f} | {ratio:.3f} | <= {MAX_RATIO} | {took_s:.0f} |"
    )
    sys.exit(0 if ratio <= MAX_RATIO else 1)


if __name__ == "__main__":
    main()
