"""A backend as fast as this language allows, for measuring what is in front of it: raw asyncio protocols, fixed answers.

    python benchmarks/proxy_backend.py --port 0 [--chunks 64 --rate 20]

Answers every POST: with a fixed chat completion, or, if the body holds `"stream":true`, with an SSE stream of so many chunks
at so many a second (0: as fast as possible). Listens on a Unix socket too with --socket. Prints `port N` when ready.
"""

from __future__ import annotations

import argparse
import asyncio

import uvloop

COMPLETION = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"A fixed answer of about the length that a short answer has."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":12,"completion_tokens":13,"total_tokens":25}}'
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nKeep-Alive: timeout=5, max=100000\r\nAccess-Control-Allow-Origin: *\r\n"
    b"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n%b" % (len(COMPLETION), COMPLETION)
)
EVENT = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" word"}}],"created":1700000000,'
    b'"id":"chatcmpl-1","model":"m","system_fingerprint":"b1-1","object":"chat.completion.chunk"}\n\n'
)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
STREAM_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Backend(asyncio.Protocol):
    """One connection. Requests are taken to come whole or with a Content-Length."""

    chunks = 64
    rate = 0.0

    def __init__(self) -> None:
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            at = self._buffer.lower().find(b"content-length:")
            length = (
                int(self._buffer[at + 15 : self._buffer.find(b"\r\n", at)]) if at >= 0 else 0
            )  # LiteLLM's GET has none
            total = end + 4 + length
            if len(self._buffer) < total:
                return
            is_stream = b'"stream":true' in self._buffer[end:total]
            self._buffer = self._buffer[total:]
            if is_stream:
                self._transport.write(STREAM_HEAD)
                self._left = self.chunks
                self._next()
            else:
                self._transport.write(ANSWER)

    def _next(self) -> None:
        if self.rate == 0:
            self._transport.write(CHUNK * self._left + STREAM_END)
            return
        self._transport.write(CHUNK)
        self._left -= 1
        if self._left:
            self._timer = asyncio.get_running_loop().call_later(1 / self.rate, self._next)
        else:
            self._transport.write(STREAM_END)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()


async def serve(port: int, path: str | None, chunks: int, rate: float) -> None:
    Backend.chunks, Backend.rate = chunks, rate
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Backend, "127.0.0.1", port, backlog=1024)
    also = await loop.create_unix_server(Backend, path, backlog=1024) if path is not None else None
    print(f"port {server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()
    del also  # a server that nothing refers to is closed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--socket")
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.0, help="chunks a second of each stream; 0: all at once")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.socket, options.chunks, options.rate))


if __name__ == "__main__":
    main()
