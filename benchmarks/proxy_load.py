"""A load generator of raw asyncio protocols: so many keep-alive connections, each asking again as soon as it was answered.

    python benchmarks/proxy_load.py --port N --connections 64 --seconds 5 [--stream]

Prints one line of JSON: requests, chunks, seconds, errors, p50_ms and p99_ms of a request's first byte.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import uvloop

BODY = b'{"model":"%b","messages":[{"role":"system","content":"You are helpful."},{"role":"user","content":"What is a mesh?"}]%b}'


def request(stream: bool, model: str = "m") -> bytes:
    body = BODY % (model.encode(), b',"stream":true' if stream else b"")
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
        b"Content-Type: application/json\r\nUser-Agent: OpenAI/Python 2.1.0\r\nX-Stainless-Lang: python\r\n"
        b"Authorization: Bearer none\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


class Load:
    """What all connections count together."""

    def __init__(self, stream: bool, model: str = "m") -> None:
        self.request = request(stream, model)
        self.stream = stream
        self.requests = self.chunks = self.errors = 0
        self.running = True
        self.first_ms: list[float] = []


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._need = -1
        self._tail = b""
        self._has_first = False
        self._asked = time.perf_counter()
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        load = self._load
        if not self._has_first:
            self._has_first = True
            load.first_ms.append((time.perf_counter() - self._asked) * 1000)
            if not data.startswith(b"HTTP/1.1 200"):
                load.errors += 1
        if load.stream:
            load.chunks += data.count(b"data: ")
            self._tail = (self._tail + data)[-5:]
            if self._tail != b"0\r\n\r\n":
                return
        elif not self._is_whole(data):
            return
        load.requests += 1
        if load.running:
            self._ask()
        else:
            self._transport.close()

    def _is_whole(self, data: bytes) -> bool:
        if self._need < 0:
            end = data.find(b"\r\n\r\n")
            at = data.lower().find(b"content-length: ")
            self._need = end + 4 + int(data[at + 16 : data.find(b"\r\n", at)])
        self._need -= len(data)
        return self._need <= 0

    def connection_lost(self, exc: Exception | None) -> None:
        if self._load.running:
            self._load.errors += 1


async def run(port: int, connections: int, seconds: float, stream: bool, model: str) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    load = Load(stream, model)
    began = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(lambda: Connection(load), "127.0.0.1", port)
    await asyncio.sleep(seconds)
    load.running = False
    took = time.perf_counter() - began
    first = sorted(load.first_ms) or [0.0]
    return {
        "requests": load.requests,
        "chunks": load.chunks,
        "seconds": took,
        "errors": load.errors,
        "p50_ms": first[len(first) // 2],
        "p99_ms": first[len(first) * 99 // 100],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--model", default="m")
    options = parser.parse_args()
    loaded = run(options.port, options.connections, options.seconds, options.stream, options.model)
    print(json.dumps(uvloop.run(loaded)))


if __name__ == "__main__":
    main()
