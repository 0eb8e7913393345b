"""An RPC server of llama.cpp in Python, for what the real one cannot be told to do; and a client that says what it is told.

The server keeps what is written to its buffers and records every request. It serves one connection at a time, as the real one does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from agentmesh.core.errors import ProtocolError
from agentmesh.inference.logic.rpc_tensor import TENSOR_BYTES, Tensor, build_tensor
from agentmesh.inference.logic.rpc_wire import (
    CAPABILITY_BYTES,
    WITHOUT_REPLY,
    Body,
    Command,
    Request,
    RequestParser,
    build_reply,
    build_request,
)

BASE = 1 << 20
WAIT_S = 60.0  # for what must come
FREE, TOTAL = 900_000_000, 1_000_000_000


@dataclass
class FakeRpcServer:
    """What it answers to HELLO, and how it misbehaves."""

    version: tuple[int, int, int] = (7, 0, 0)
    devices: int = 1
    alignment: int = 64
    hello_bytes: int = 4 + CAPABILITY_BYTES
    silent_on: int | None = None  # this command is never answered
    die_on: int | None = None  # at this command the connection is closed
    stall_on: int | None = None  # from this command on nothing is read
    raw_echo: bool = False  # an unknown protocol: sends back what comes
    seen: list[Request] = field(default_factory=list)
    hellos: list[bytes] = field(default_factory=list)
    memory: dict[int, bytes] = field(default_factory=dict)  # address -> bytes
    connections: int = 0
    open_now: int = 0
    most_open: int = 0
    port: int = 0

    async def start(self) -> FakeRpcServer:
        self._one = asyncio.Lock()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        self._server.close()

    def commands(self) -> list[int]:
        return [request.command for request in self.seen]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            async with self._one:
                await self._talk(reader, writer)
        except (ConnectionError, ProtocolError):
            pass
        finally:
            self.open_now -= 1
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = RequestParser()
        present: Request | None = None
        body = b""
        while data := await reader.read(65536):
            if self.raw_echo and not data.startswith(b"\x0e"):
                writer.write(data)
                continue
            parser.feed(data)
            while event := parser.next_event():
                if isinstance(event, Body):
                    body += event.data
                else:
                    present, body = event, b""
                assert present is not None
                if present.command == self.stall_on:
                    await asyncio.Event().wait()
                if parser.body_left:
                    continue
                if present.command == self.die_on:
                    writer.transport.abort()
                    return
                self.seen.append(present)
                if (reply := self._reply(present, body)) is not None:
                    writer.write(reply)

    def _reply(self, request: Request, body: bytes) -> bytes | None:
        command, head = request.command, request.head
        if command == Command.SET_TENSOR:
            self.memory[Tensor(head).data] = body
        if command == Command.HELLO:
            self.hellos.append(head)
            return build_reply(bytes(self.version).ljust(self.hello_bytes, b"\5"))
        if command in WITHOUT_REPLY or command == self.silent_on:
            return None
        if command == Command.GET_TENSOR:
            size = int.from_bytes(head[-8:], "little")
            return build_reply(self.memory.get(Tensor(head).data, b"").ljust(size, b"\0")[:size])
        return build_reply(
            {
                Command.ALLOC_BUFFER: _numbers(len(self.seen) + 1000, int.from_bytes(head[4:12], "little")),
                Command.GET_ALIGNMENT: _numbers(self.alignment),
                Command.GET_MAX_SIZE: _numbers(2**64 - 1),
                Command.BUFFER_GET_BASE: _numbers(BASE),
                Command.SET_TENSOR_HASH: b"\0",
                Command.COPY_TENSOR: b"\1",
                Command.GET_DEVICE_MEMORY: _numbers(FREE, TOTAL),
                Command.GET_ALLOC_SIZE: _numbers(4096),
                Command.DEVICE_COUNT: self.devices.to_bytes(4, "little"),
            }[Command(command)]
        )


def _numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


class FakeClient:
    """llama-server's side of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> FakeClient:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def tell(self, command: int, payload: bytes = b"") -> None:
        self.writer.write(build_request(command, payload))
        await self.writer.drain()

    async def ask(self, command: int, payload: bytes = b"") -> bytes:
        await self.tell(command, payload)
        size = int.from_bytes(await asyncio.wait_for(self.reader.readexactly(8), WAIT_S), "little")
        return await asyncio.wait_for(self.reader.readexactly(size), WAIT_S)

    async def hello(self) -> bytes:
        return await self.ask(Command.HELLO, b"\xaa" * CAPABILITY_BYTES)

    async def alloc(self, size: int) -> tuple[int, int]:
        """(pointer, size) of the buffer; zeros: refused."""
        reply = await self.ask(Command.ALLOC_BUFFER, bytes(4) + size.to_bytes(8, "little"))
        return int.from_bytes(reply[:8], "little"), int.from_bytes(reply[8:], "little")

    async def set_tensor(self, tensor: bytes, data: bytes, offset: int = 0) -> None:
        await self.tell(Command.SET_TENSOR, tensor + b"\0" + offset.to_bytes(8, "little") + data)

    async def set_hash(self, tensor: bytes, fnv: int, offset: int = 0) -> int:
        return (await self.ask(Command.SET_TENSOR_HASH, tensor + _numbers(offset, fnv)))[0]

    async def get_tensor(self, tensor: bytes, size: int) -> bytes:
        return await self.ask(Command.GET_TENSOR, tensor + _numbers(0, size))

    async def at_end(self) -> bool:
        """Whether the other side closes, within the time for what must come."""
        try:
            return await asyncio.wait_for(self.reader.read(1), WAIT_S) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()


def activation(size: int, *, data: int = BASE) -> bytes:
    """A tensor that is in no file."""
    tensor = build_tensor("l_out-3", 24, (size,), data=data)
    assert len(tensor) == TENSOR_BYTES
    return tensor
