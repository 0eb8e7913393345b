"""A relay that understands nothing: what is the least that any proxy in this language costs.

    python benchmarks/proxy_relay.py --socket PATH

For each client one connection to the Unix socket; whatever comes is written to the other side at once. The same reads and
writes for a request and for a chunk as the API proxy makes, and nothing else. Prints `port N` when ready.
"""

from __future__ import annotations

import argparse
import asyncio
import socket

import uvloop


class Side(asyncio.Protocol):
    """One side of a pair. What comes before the pair is whole waits."""

    def __init__(self) -> None:
        self.other: asyncio.Transport | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)
        else:
            self.early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.abort()


class Client(Side):
    """The side that a pair begins with."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._task = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        backend = Side()
        await asyncio.get_running_loop().create_unix_connection(lambda: backend, self._path)
        backend.other, self.other = self.transport, backend.transport  # type: ignore[assignment]
        backend.transport.write(b"".join(self.early))  # type: ignore[attr-defined]


async def serve(path: str) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    server = await asyncio.get_running_loop().create_server(lambda: Client(path), sock=sock, backlog=1024)
    print(f"port {sock.getsockname()[1]}", flush=True)
    await asyncio.Event().wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    uvloop.run(serve(parser.parse_args().socket))


if __name__ == "__main__":
    main()
