"""Relayed RPC for tests: members of a real mesh, streams that count what they carry, real programs of llama.cpp."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from agentmesh.core.errors import Unreachable
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.rpc.exit import RpcExits
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.mesh_nodes import TestNode
from tests.fakes.tiny_gguf import TinyModel

# 232 MB: twelve tensors of 16 MiB, whose hash is asked for, and small ones, which come as they are.
DENSE = TinyModel(name="dense", context=512, layers=4, embedding=1024, heads=8, kv_heads=2, feed_forward=4096)
START_S = 90.0
REACH_S = 60.0  # milliseconds as a rule
PROMPT = "The mesh joins machines as equals, and"


class CountingStream:
    """A stream that counts what really goes over it, whatever our own counters say."""

    def __init__(self, stream: Stream, carried: Carried) -> None:
        self.inner = stream
        self._carried = carried

    async def read(self, max_bytes: int) -> bytes:
        data = await self.inner.read(max_bytes)
        self._carried.received += len(data)
        if self._carried.kept is not None:
            self._carried.kept += data
        return data

    async def write(self, data: bytes) -> None:
        self._carried.sent += len(data)
        self._carried.writes += 1
        if self._carried.kept is not None:
            self._carried.kept += data
        await self.inner.write(data)

    async def end(self) -> None:
        await self.inner.end()

    def abort(self) -> None:
        self.inner.abort()


class Carried:
    """Of all streams of one opener, in bytes. With `keep` the bytes themselves as well, both ways, in the order in which they came."""

    def __init__(self, *, keep: bool = False) -> None:
        self.sent = self.received = self.streams = self.writes = 0
        self.kept = bytearray() if keep else None

    def opener(self, node: TestNode, peer: bytes) -> Callable[[], Awaitable[Stream]]:
        async def open_stream() -> Stream:
            self.streams += 1
            return CountingStream(await node.mesh.open_stream(peer, StreamKind.RPC), self)

        return open_stream


class WorkerNode(NamedTuple):
    """A member that lends RPC servers."""

    node: TestNode
    exits: RpcExits


@asynccontextmanager
async def members(
    root: Path, workers: int = 2, *, fast_path: bool = True
) -> AsyncGenerator[tuple[TestNode, list[WorkerNode]]]:
    """A host, and members with exits that it can open streams to."""
    async with AsyncExitStack() as stack:
        host = await TestNode(root, "host", fast_path=fast_path).found().start()
        stack.push_async_callback(host.mesh.stop)
        made: list[WorkerNode] = []
        for number in range(1, workers + 1):
            name = "worker" if workers == 1 else f"worker-{number}"
            worker = await (await TestNode(root, name, fast_path=fast_path).join(await host.token())).start()
            stack.push_async_callback(worker.mesh.stop)
            exits = RpcExits()
            worker.mesh.serve(StreamKind.RPC, exits.serve)
            await _reach(host, worker.key.public)
            made.append(WorkerNode(worker, exits))
        yield host, made


@asynccontextmanager
async def two_members(root: Path, *, fast_path: bool = True) -> AsyncGenerator[tuple[TestNode, TestNode, RpcExits]]:
    """A host, a worker, and the worker's exits."""
    async with members(root, 1, fast_path=fast_path) as (host, (worker,)):
        yield host, worker.node, worker.exits


async def _reach(host: TestNode, peer: bytes) -> None:
    """Until streams to the peer can be opened: it is known a moment before it is connected."""
    deadline = time.monotonic() + REACH_S
    while True:
        try:
            (await host.mesh.open_stream(peer, StreamKind.RPC)).abort()
        except Unreachable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return


def held_port() -> socket.socket:
    """A port that nobody else is given while this socket is open; a program that is told of it can listen there all the same."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Program:
    """A program of llama.cpp, in a session of its own, ended with the test."""

    def __init__(self, command: Sequence[str], log: Path, port: socket.socket | None = None) -> None:
        self.log = log
        self._port = port  # held until it has ended
        environ = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ, start_new_session=True
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        if not self.ended:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)
        if self._port is not None:
            self._port.close()

    def printed(self) -> str:
        return self.log.read_text("utf-8", "replace")


def rpc_server(engine: Engine, folder: Path, name: str = "rpc") -> tuple[Program, int]:
    assert engine.rpc_server is not None
    held = held_port()
    port = held.getsockname()[1]
    # One thread: ggml's threads spin, and on a busy machine two take ten times as long as one.
    command = [str(engine.rpc_server), "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
    return Program(command, folder / f"{name}.log", held), port


def is_listening(port: int) -> bool:
    """Without connecting: an RPC server serves whoever comes first."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    return wanted in Path("/proc/net/tcp").read_text()


class Server:
    """A llama-server on loopback."""

    def __init__(self, engine: Engine, model: Path, folder: Path, name: str, *arguments: str) -> None:
        held = held_port()
        self.port: int = held.getsockname()[1]
        self.program = Program(
            [
                *engine.command,
                *("--model", str(model), "--host", "127.0.0.1", "--port", str(self.port), "--ctx-size", "512"),
                *("--parallel", "1", "-fit", "off", "--load-mode", "none", "-t", "1", "--no-webui", *arguments),
            ],
            folder / f"{name}.log",
            held,
        )
        self.started_s = time.monotonic()

    async def ready(self) -> float:
        """Seconds from the start until it answers."""
        deadline = self.started_s + START_S
        while True:
            assert not self.program.ended, self.program.printed()[-3000:]
            assert time.monotonic() < deadline, self.program.printed()[-3000:]
            try:
                await asyncio.to_thread(self._get, "/health")
                return time.monotonic() - self.started_s
            except OSError:
                await asyncio.sleep(0.05)

    async def tokens(self, prompt: str = PROMPT, count: int = 24) -> list[int]:
        """What follows, greedily."""
        body = {"prompt": prompt, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        return (await self.complete(body))["tokens"]

    async def complete(self, body: Mapping[str, Any], timeout_s: float = 100) -> dict[str, Any]:
        """The answer of /completion. Raises: OSError: there is none, or not in time."""
        return await asyncio.to_thread(self._post, "/completion", body, timeout_s)

    def _get(self, path: str) -> None:
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5).read()

    def _post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode())
        return json.loads(urllib.request.urlopen(request, timeout=timeout_s).read())
