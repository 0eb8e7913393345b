"""A trial, for split_decode.py --direct only: activations that go from worker to worker, not over the host.

llama-server reads an activation of worker 1 and writes it to worker 2 without looking at it. Once that was seen for a name, the gateway of worker 1
answers such a read at once with a placeholder, and worker 1 sends the bytes to worker 2; the write that brings the placeholder becomes "take these".
Not fit for the product: where the bytes are for the host itself, it computes with the placeholder. The way between workers is bare TCP here.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, ClassVar

from agentmesh.inference.logic import rpc_stream
from agentmesh.inference.logic.rpc_tensor import TENSOR_BYTES, Tensor
from agentmesh.inference.logic.rpc_wire import (
    SET_TENSOR_HEAD_BYTES,
    Body,
    Command,
    Reply,
    Request,
    Shape,
    build_reply,
    build_request,
    reply_size,
    request_head,
)
from agentmesh.inference.rpc import exit as exit_module
from agentmesh.inference.rpc import gateway as gateway_module
from agentmesh.inference.rpc.exit_connection import WorkerRelay
from agentmesh.inference.rpc.gateway_connection import HostRelay

SEND_ON, TAKE = 0x90, 0x91
KEY_BYTES = 16
PORT = 39_000
ARRIVE_S = 30.0


def _learn_commands() -> None:
    shapes: Any = rpc_stream.STREAM_SHAPES
    shapes[SEND_ON] = Shape(TENSOR_BYTES + 16 + KEY_BYTES, TENSOR_BYTES + 16 + KEY_BYTES)
    shapes[TAKE] = Shape(SET_TENSOR_HEAD_BYTES + KEY_BYTES, SET_TENSOR_HEAD_BYTES + KEY_BYTES)


# ------------------------------------------------------------------ the host


class Activations:
    """What the gateways of one split know together."""

    names: ClassVar[set[str]] = set()  # of activations that were read from one worker and written to another
    last: tuple[str, bytes] | None = None  # what was read last
    pending: tuple[bytes, bytes] | None = None  # key and placeholder that llama-server holds
    direct = 0


class DirectHostRelay(HostRelay):
    """See the module."""

    _reading: str | None = None
    _read: bytes = b""

    async def _on_request(self, request: Request) -> None:
        if Activations.pending is not None and request.command != Command.SET_TENSOR:
            raise RuntimeError("a placeholder was not written to a worker")
        if request.command == Command.GET_TENSOR:
            name = Tensor(request.head).name or ""
            size = reply_size(request) or 0
            if name in Activations.names and size >= KEY_BYTES:
                key = secrets.token_bytes(KEY_BYTES)
                placeholder = (key * (size // KEY_BYTES + 1))[:size]
                Activations.pending = key, placeholder
                Activations.direct += 1
                await self._send(SEND_ON, build_request(SEND_ON, request.head + key))
                await self._answer_here(request, build_reply(placeholder))
                return
            self._reading, self._read = name, b""
        await super()._on_request(request)

    async def _on_tensor(self, request: Request) -> None:
        if request.body_bytes > 1 << 20 or Tensor(request.head).name is None:
            await super()._on_tensor(request)
            return
        body = b"".join([bytes(piece) async for piece in self._body()])
        pending = Activations.pending
        if pending is not None and body == pending[1]:
            Activations.pending = None
            await self._send(TAKE, build_request(TAKE, request.head + pending[0]), may_wait=True)
            return
        if Activations.last is not None and body == Activations.last[1]:
            Activations.names.add(Activations.last[0])
        await self._send(
            request.command, request_head(request.command, request.size) + request.head + body, may_wait=True
        )

    async def _answer(self) -> None:
        write = self._client.write

        async def written(data: Any) -> None:
            if self._reading is not None:
                self._read += bytes(data)
                Activations.last = self._reading, self._read[8:]
            await write(data)

        self._client.write = written
        await super()._answer()


def use_on_host() -> None:
    """From now on gateways of this process do so."""
    _learn_commands()
    gateway_module.HostRelay = DirectHostRelay


# ------------------------------------------------------------------ the workers


class Arrivals:
    """What other workers sent here, by key; and the way to the next worker."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._writer: asyncio.StreamWriter | None = None

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, self._address, PORT)

    async def _serve(self, reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while head := await reader.read(KEY_BYTES + 8):
            head += await reader.readexactly(KEY_BYTES + 8 - len(head))
            data = await reader.readexactly(int.from_bytes(head[KEY_BYTES:], "little"))
            self._future(head[:KEY_BYTES]).set_result(data)

    def _future(self, key: bytes) -> asyncio.Future[bytes]:
        return self._waiting.setdefault(key, asyncio.get_running_loop().create_future())

    async def take(self, key: bytes) -> bytes:
        async with asyncio.timeout(ARRIVE_S):
            data = await self._future(key)
        del self._waiting[key]
        return data

    async def send(self, key: bytes, data: bytes) -> None:
        if self._writer is None:
            network, _, number = self._address.rpartition(".")
            _, self._writer = await asyncio.open_connection(f"{network}.{int(number) + 1}", PORT)
        self._writer.write(key + len(data).to_bytes(8, "little") + data)


class DirectWorkerRelay(WorkerRelay):
    """See the module."""

    arrivals: Arrivals
    _key: bytes | None = None

    async def _on_request(self, request: Request) -> None:
        if request.command == SEND_ON:
            await self._quiet.wait()
            self._key = request.head[-KEY_BYTES:]
            head = request.head[:-KEY_BYTES]
            await self._forward(Request(Command.GET_TENSOR, len(head), head, 0))
        elif request.command == TAKE:
            await self._flush()
            data = await self.arrivals.take(request.head[-KEY_BYTES:])
            head = request.head[:-KEY_BYTES]
            await self._write(request_head(Command.SET_TENSOR, len(head) + len(data)) + head + data)
        else:
            await super()._on_request(request)

    async def _answer(self) -> None:
        while data := await self._server.read():
            self._replies.feed(data)
            parts: list[bytes | memoryview] = []
            while event := self._replies.next_event():
                parts.append(event.data if isinstance(event, Body) else self._on_reply(event))
                if isinstance(event, Reply) and self._key is not None:
                    parts.pop()
                    self._kept, self._size = b"", event.size
            if self._key is not None and parts:
                self._kept += b"".join(parts)
                parts = []
                if len(self._kept) == self._size:
                    key, self._key = self._key, None
                    await self.arrivals.send(key, self._kept)
            outstanding = self._replies.outstanding + (not self._replies.is_between)
            self._counters.heard(outstanding)
            if parts:
                await self._stream.write(b"".join(parts))
            if not outstanding:
                self._quiet.set()

    _kept = b""
    _size = 0


async def use_on_worker(address: str) -> None:
    """From now on exits of this process do so. Workers' addresses follow each other."""
    _learn_commands()
    DirectWorkerRelay.arrivals = Arrivals(address)
    await DirectWorkerRelay.arrivals.listen()
    exit_module.WorkerRelay = DirectWorkerRelay
