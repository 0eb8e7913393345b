"""The fake engine's HTTP/1.1 server: keep-alive, chunked event streams, slots, and a client's leaving noticed at once.

Owns connections and timing; the bodies are fake_engine_answers.py's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fakes.fake_engine_answers import GENERATING, Answer, count_tokens, embeddings, error

PUBLIC = ("/health", "/v1/health", "/models", "/v1/models", "/")
JSON_TYPE = "application/json; charset=utf-8"
MAX_HEAD_BYTES = 1 << 20


class ClientLeft(Exception):
    """The connection ended before its answer did."""


class FakeServer:
    """Listens where told and answers until SIGTERM or its planned crash."""

    def __init__(
        self, options: argparse.Namespace, request_log: Any, log: Callable[[str], None], die: Callable[[str], None]
    ) -> None:
        self.options = options
        self.request_log = request_log
        self.log = log
        self.die = die
        self.model = options.alias.split(",")[0] or Path(options.model or "fake").stem
        self.ready = False
        self.free = asyncio.Semaphore(max(1, options.parallel))
        self.processing = 0
        self.answered = 0
        self.failures_left = options.fail_times or (1 << 60 if options.status else 0)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        if not self.options.ignore_sigterm:
            loop.add_signal_handler(signal.SIGTERM, ended.set)
        loop.add_signal_handler(signal.SIGUSR1, self.die, self.options.crash_with)
        server = await self._listen()
        loading = asyncio.create_task(self._load())
        await ended.wait()
        loading.cancel()
        server.close()
        self.log("srv  operator(): cleaning up before exit...")

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        host = self.options.host
        if host.endswith(".sock"):
            server = await loop.create_unix_server(lambda: Connection(self), host)
            self.log(f"srv  llama_server: listening on unix://{host}")
            return server
        listening = socket.create_server((host, self.options.port), backlog=512)
        server = await loop.create_server(lambda: Connection(self), sock=listening)
        port = listening.getsockname()[1]
        self.log(f"srv  llama_server: listening on http://{host}:{port}")
        print(json.dumps({"port": port}), flush=True)
        return server

    async def _load(self) -> None:
        self.log(f"srv    load_model: loading model '{self.options.model}'")
        if self.options.never_ready:
            return  # and wakes for nothing: where the machine is slow, that alone would be a sign of life
        until = time.monotonic() + self.options.ready_after
        awaited = Path(self.options.ready_when) if self.options.ready_when else None
        while (left := until - time.monotonic()) > 0 or (awaited is not None and not awaited.exists()):
            if self.options.load_noise:
                self.log("load_tensors: .")
            if self.options.load_work:
                sum(range(400_000))
            await asyncio.sleep(min(left, 0.05) if left > 0 else 0.05)
        self.ready = True
        self.log("srv  llama_server: model loaded")

    def props(self) -> dict[str, Any]:
        context = self.options.ctx_size // max(1, self.options.parallel)
        return {
            "default_generation_settings": {"params": {}, "n_ctx": context},
            "total_slots": self.options.parallel,
            "model_alias": self.model,
            "model_path": self.options.model,
            "chat_template": "",
            "modalities": {"vision": bool(self.options.mmproj), "audio": False},
            "build_info": "b1-fake",
            "is_sleeping": False,
        }

    def models(self) -> dict[str, Any]:
        entry = {"id": self.model, "aliases": self.options.alias.split(","), "object": "model", "owned_by": "llamacpp"}
        meta = {"n_vocab": 259, "n_ctx_train": 4096, "n_embd": 8, "n_params": 1000, "size": 4000}
        return {"object": "list", "data": [entry | {"created": int(time.time()), "meta": meta}]}

    def slots(self) -> list[dict[str, Any]]:
        context = self.options.ctx_size // max(1, self.options.parallel)
        numbers = range(max(1, self.options.parallel))
        return [{"id": i, "n_ctx": context, "is_processing": i < self.processing} for i in numbers]

    def metrics(self) -> str:
        return f"llamacpp:requests_processing {self.processing}\nllamacpp:tokens_predicted_total {self.answered}\n"


class Connection(asyncio.Protocol):
    """One client's connection; its requests are answered one after the other."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.buffer = bytearray()
        self.more = asyncio.Event()
        self.gone = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.more.set()

    def eof_received(self) -> bool:
        self._left()  # llama-server takes a half-closed connection for a closed one, too
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        self._left()

    def _left(self) -> None:
        self.gone.set()
        self.more.set()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    # ------------------------------------------------------------------ requests

    async def _serve(self) -> None:
        number = 0
        with contextlib.suppress(ClientLeft, ConnectionError):
            while True:
                method, path, headers, body = await self._request()
                number += 1
                identity = f"{id(self):x}.{number}"
                entry = {"id": identity, "method": method, "path": path}
                shown = body.decode("utf-8", "replace")
                self.server.request_log.write(event="began", headers=headers, body=shown, **entry)
                try:
                    await self._answer(method, path, headers, body)
                except ClientLeft:
                    self.server.request_log.write(event="cancelled", **entry)
                    raise
                self.server.request_log.write(event="ended", **entry)
                if headers.get("connection", "").lower() == "close" or self.transport.is_closing():
                    break
        self.transport.close()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.gone.is_set():
                raise ClientLeft
            self.more.clear()
            await self.more.wait()

    async def _request(self) -> tuple[str, str, dict[str, str], bytes]:
        await self._until(lambda: b"\r\n\r\n" in self.buffer or len(self.buffer) > MAX_HEAD_BYTES)
        head, _, _ = bytes(self.buffer).partition(b"\r\n\r\n")
        del self.buffer[: len(head) + 4]
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in headers.get("transfer-encoding", ""):
            body = await self._chunked_body()
        else:
            length = int(headers.get("content-length", "0"))
            await self._until(lambda: len(self.buffer) >= length)
            body = bytes(self.buffer[:length])
            del self.buffer[:length]
        return method, target.partition("?")[0], headers, body

    async def _chunked_body(self) -> bytes:
        body = b""
        while True:
            await self._until(lambda: b"\r\n" in self.buffer)
            line, _, _ = bytes(self.buffer).partition(b"\r\n")
            size = int(line.split(b";")[0], 16)
            whole = len(line) + 2 + size + 2
            await self._until(lambda whole=whole: len(self.buffer) >= whole)
            body += bytes(self.buffer[len(line) + 2 : whole - 2])
            del self.buffer[:whole]
            if size == 0:
                return body

    # ------------------------------------------------------------------ answers

    def _head(self, status: int, content_type: str, length: int | None, *extra: str) -> bytes:
        size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        lines = [
            f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}",
            "Server: llama.cpp",
            f"Content-Type: {content_type}",
        ]
        return "\r\n".join([*lines, *extra, size, "Keep-Alive: timeout=5, max=100", "", ""]).encode()

    def _send(self, status: int, value: object, content_type: str = JSON_TYPE, *extra: str) -> None:
        body = value.encode() if isinstance(value, str) else json.dumps(value, separators=(",", ":")).encode()
        self.transport.write(self._head(status, content_type, len(body), *extra) + body)

    def _is_allowed(self, path: str, headers: dict[str, str]) -> bool:
        keys = [key for key in self.server.options.api_key.split(",") if key]
        given = headers.get("authorization") or headers.get("x-api-key", "")
        return not keys or path in PUBLIC or given.removeprefix("Bearer ") in keys

    async def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        server = self.server
        if server.options.garbage:
            self.transport.write(b"\x16\x03\x01 this is no HTTP at all\r\n\r\n\x00\x01")
            self.transport.close()
        elif not self._is_allowed(path, headers):
            self._send(401, error(401, "Invalid API Key", "authentication_error"))
        elif not server.ready:
            self._send(503, error(503, "Loading model", "unavailable_error"))
        elif method == "GET":
            self._answer_get(path)
        elif method == "POST":
            await self._answer_post(path, body)
        else:
            self._send(404, error(404, "File Not Found", "not_found_error"))

    def _answer_get(self, path: str) -> None:
        server = self.server
        if path in ("/health", "/v1/health"):
            self._send(200, {"status": "ok"})
        elif path in ("/v1/models", "/models"):
            self._send(200, server.models())
        elif path == "/props":
            self._send(200, server.props())
        elif path == "/slots" and not server.options.no_slots:
            self._send(200, server.slots())
        elif path == "/metrics" and server.options.metrics:
            self._send(200, server.metrics(), "text/plain; version=0.0.4")
        else:
            self._send(404, error(404, "File Not Found", "not_found_error"))

    async def _answer_post(self, path: str, raw: bytes) -> None:
        server = self.server
        try:
            body = json.loads(raw)
            assert isinstance(body, dict)
        except (ValueError, AssertionError):
            self._send(500, error(500, "[json.exception.parse_error.101] parse error", "server_error"))
            return
        if server.failures_left > 0:
            server.failures_left -= 1
            status = server.options.status or 500
            after = [f"Retry-After: {server.options.retry_after}"] if server.options.retry_after else []
            self._send(status, error(status, f"The fake engine says {status}.", "server_error"), JSON_TYPE, *after)
        elif path in GENERATING:
            answer = Answer(
                GENERATING[path],
                str(body.get("model") or server.model),
                body,
                server.options.word,
                server.options.tokens,
            )
            await self._in_slot(answer)
        elif path in ("/v1/embeddings", "/embeddings"):
            self._answer_embeddings(body)
        elif path == "/v1/messages/count_tokens":
            self._send(200, {"input_tokens": count_tokens(body)})
        elif path in ("/v1/rerank", "/rerank", "/tokenize", "/detokenize", "/infill"):
            self._send(200, {"model": server.model, "object": "list", "results": [], "tokens": [], "content": ""})
        else:
            self._send(404, error(404, "File Not Found", "not_found_error"))

    def _answer_embeddings(self, body: dict[str, Any]) -> None:
        if self.server.options.embedding:
            self._send(200, embeddings(body, self.server.model))
            return
        message = "This server does not support embeddings. Start it with `--embeddings`"
        self._send(501, error(501, message, "not_supported_error"))

    async def _in_slot(self, answer: Answer) -> None:
        taking = asyncio.ensure_future(self.server.free.acquire())
        try:
            await self._unless_gone(taking)
        except ClientLeft:
            if not taking.cancel() and not taking.cancelled() and taking.result():
                self.server.free.release()
            raise
        self.server.processing += 1
        try:
            await self._pause(self.server.options.first_token_after)
            await (self._stream(answer) if answer.is_stream else self._whole(answer))
        finally:
            self.server.processing -= 1
            self.server.free.release()

    async def _unless_gone(self, waiting: asyncio.Future[Any]) -> None:
        leaving = asyncio.ensure_future(self.gone.wait())
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if self.gone.is_set():
            raise ClientLeft

    async def _pause(self, seconds: float) -> None:
        """Wait so long; the client's leaving ends it."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.gone.wait(), seconds)
        else:
            await asyncio.sleep(0)
        if self.gone.is_set():
            raise ClientLeft

    async def _next_token(self, index: int) -> bool:
        """Wait for it; whether the answer goes on."""
        options, rate = self.server.options, self.server.options.tokens_per_second
        if options.crash_after_tokens and index == options.crash_after_tokens:
            self.server.die(options.crash_with)
        if options.stall_after_tokens and index == options.stall_after_tokens:
            await self._pause(3600)
        if options.drop_after_tokens and index == options.drop_after_tokens:
            self.transport.abort() if index % 2 else self.transport.close()
            return False
        await self._pause(1 / rate if rate else 0)
        self.server.answered += 1
        return True

    async def _whole(self, answer: Answer) -> None:
        for index in range(answer.count):
            if not await self._next_token(index):
                return
        self._send(200, answer.whole())

    async def _chunk(self, data: bytes) -> None:
        await self.writable.wait()
        if self.gone.is_set():
            raise ClientLeft
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def _stream(self, answer: Answer) -> None:
        self.transport.write(self._head(200, "text/event-stream", None, "X-Accel-Buffering: no"))
        for each in answer.opening():
            await self._chunk(each)
        for index in range(answer.count):
            if not await self._next_token(index):
                return
            await self._chunk(answer.token_event(index))
        for each in answer.closing():
            await self._chunk(each)
        self.transport.write(b"0\r\n\r\n")
        if self.server.options.close_after_stream:
            self.transport.close()
