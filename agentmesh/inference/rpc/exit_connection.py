"""One connection to an RPC server on the worker: greeted, capped, fed from the worker's own files.

Owns the connection's parsers and what is allocated on it. Two tasks: requests write to the RPC server, replies to the stream; an answer
given here waits until no reply is outstanding.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agentmesh.core.errors import ProtocolError
from agentmesh.inference.logic.rpc_deflate import Inflater
from agentmesh.inference.logic.rpc_limits import (
    MAX_RPC_DEVICES,
    RPC_GREETING_S,
    RPC_READ_BYTES,
    SMALL_TENSOR_BYTES,
)
from agentmesh.inference.logic.rpc_memory import Allocations
from agentmesh.inference.logic.rpc_stream import STREAM_SHAPES, Device, RelayCommand, deflated_inner
from agentmesh.inference.logic.rpc_tensor import Tensor
from agentmesh.inference.logic.rpc_wire import (
    REPLY_BYTES,
    SET_TENSOR_HEAD_BYTES,
    Body,
    Command,
    Reply,
    ReplyParser,
    Request,
    RequestParser,
    build_reply,
    build_request,
    hello_request,
    is_known,
    reply_size,
    request_head,
)
from agentmesh.inference.rpc.counters import RelayCounters
from agentmesh.inference.rpc.duplex import run_both
from agentmesh.inference.rpc.errors import RpcServerGone
from agentmesh.inference.rpc.local_socket import LocalSocket
from agentmesh.inference.rpc.weights import WeightFiles
from agentmesh.mesh.transport import Stream


@dataclass(frozen=True, slots=True)
class Greeting:
    """What an RPC server said of itself."""

    version: tuple[int, int, int]
    devices: tuple[Device, ...]


async def greet(server: LocalSocket) -> Greeting | tuple[int, int, int]:
    """Say HELLO and ask for the devices; only the version (0.0.0: none was told) if it is not one that we read.

    Raises:
        RpcServerGone: it does not answer: it may be serving somebody else.
    """
    try:
        reply = await _ask(server, Command.HELLO, hello_request())
    except (ProtocolError, _Ended):  # other versions close, or answer in another size
        return 0, 0, 0
    version = reply[0], reply[1], reply[2]
    if not is_known(version):
        return version
    try:
        count = int.from_bytes(await _ask(server, Command.DEVICE_COUNT, build_request(Command.DEVICE_COUNT)), "little")
        if not 0 < count <= MAX_RPC_DEVICES:
            raise RpcServerGone(f"The RPC server says that it has {count} devices.")
        return Greeting(version, tuple([await _device(server, number) for number in range(count)]))
    except (ProtocolError, _Ended) as error:
        raise RpcServerGone(f"The RPC server did not say what it is: {error}") from error


class _Ended(Exception):
    """The RPC server closed the connection."""


async def _device(server: LocalSocket, number: int) -> Device:
    payload = number.to_bytes(4, "little")
    alignment = await _ask(server, Command.GET_ALIGNMENT, build_request(Command.GET_ALIGNMENT, payload))
    max_size = await _ask(server, Command.GET_MAX_SIZE, build_request(Command.GET_MAX_SIZE, payload))
    memory = await _ask(server, Command.GET_DEVICE_MEMORY, build_request(Command.GET_DEVICE_MEMORY, payload))
    return Device(*(int.from_bytes(each, "little") for each in (alignment, max_size, memory[:8], memory[8:])))


async def _ask(server: LocalSocket, command: Command, request: bytes) -> bytes:
    parser = ReplyParser()
    parser.expect(command, REPLY_BYTES[command])
    try:
        async with asyncio.timeout(RPC_GREETING_S):
            await server.write(request)
            while not isinstance(event := parser.next_event(), Reply):
                data = await server.read()
                if not data:
                    raise _Ended("it closed the connection")
                parser.feed(data)
    except TimeoutError:
        raise RpcServerGone(
            f"The RPC server did not answer within {RPC_GREETING_S:g} s; it may be serving another host."
        ) from None
    return event.head


class WorkerRelay:
    """See the module. `run` once. `weights` is None where host and worker do not have the same files."""

    def __init__(
        self,
        stream: Stream,
        server: LocalSocket,
        weights: WeightFiles | None,
        limit_bytes: int | None,
        counters: RelayCounters,
    ) -> None:
        self._stream = stream
        self._server = server
        self._weights = weights
        self._counters = counters
        self._memory = Allocations(limit_bytes)
        self._requests = RequestParser(STREAM_SHAPES)
        self._replies = ReplyParser()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._out = bytearray()
        self._inflater: Inflater | None = None
        self._ended = False

    async def run(self) -> None:
        """Relay until the host ends the stream. Raises: AgentMeshError: what else ended it."""
        await run_both(self._ask(), self._answer(), self._finish, self._counters)

    # ------------------------------------------------------------------ requests

    async def _ask(self) -> None:
        while data := await self._stream.read(RPC_READ_BYTES):
            self._requests.feed(data)
            while event := self._requests.next_event():
                if isinstance(event, Body):
                    await self._write(event.data)
                else:
                    await self._on_request(event)
            await self._flush()
        if not self._requests.is_between or self._inflater is not None:
            raise ProtocolError("The host ended the stream in the middle of a request.")

    async def _on_request(self, request: Request) -> None:
        command = request.command
        count = self._counters.of(command)
        count.requests += 1
        count.in_bytes += len(request_head(0, 0)) + request.size
        if (self._inflater is not None) != (command == RelayCommand.DEFLATED_PIECE):
            raise ProtocolError("Pieces of a deflated RPC request are not where they belong.")
        if command == RelayCommand.DEFLATED_PIECE:
            await self._on_piece(request)
        elif command == RelayCommand.DEFLATED:
            await self._on_deflated(request)
        elif command == RelayCommand.FILE_TENSOR:
            await self._on_file_tensor(request)
        elif command == Command.ALLOC_BUFFER and not self._memory.ask(_integer(request.head, 4)):
            await self._answer_here(request, build_reply(bytes(REPLY_BYTES[Command.ALLOC_BUFFER])))
        else:
            await self._forward(request)

    async def _forward(self, request: Request) -> None:
        command = request.command
        size = reply_size(request)
        if command == Command.SET_TENSOR:
            self._memory.check(request.body_bytes)
        elif command == Command.FREE_BUFFER:
            self._memory.freed(_integer(request.head, 0))
        if size is not None:
            if command == Command.GET_TENSOR:
                self._memory.check(size)
            self._replies.expect(command, size)
            self._quiet.clear()
            self._counters.of(command).round_trips += 1
            self._counters.asked()
        await self._write(request_head(command, request.size) + request.head)

    async def _on_file_tensor(self, request: Request) -> None:
        """Raises: ProtocolError: there is no such tensor. ModelFileUnusable: its file changed."""
        tensor = Tensor(request.head)
        offset = _integer(request.head, SET_TENSOR_HEAD_BYTES - 8)
        place = None
        if self._weights is not None and not offset:
            place = self._weights.find(tensor.name, tensor.type_number, tensor.size_bytes or 0)
        if place is None or self._weights is None:
            raise ProtocolError(f"The host refers to the tensor '{tensor.name}', which is not in the common files.")
        self._memory.check(place.size)
        self._weights.check(place)
        self._counters.referenced_bytes += place.size
        await self._write(request_head(Command.SET_TENSOR, SET_TENSOR_HEAD_BYTES + place.size) + request.head)
        await self._flush()
        with self._counters.writing():
            await self._server.send_file(place)
        self._weights.check(place)

    async def _on_deflated(self, request: Request) -> None:
        command, size = deflated_inner(request)
        if command == Command.SET_TENSOR:
            self._memory.check(size - SET_TENSOR_HEAD_BYTES)
        self._inflater = Inflater(size)
        await self._write(request_head(command, size))

    async def _on_piece(self, request: Request) -> None:
        assert self._inflater is not None  # noqa: S101 - its caller has looked
        for block in self._inflater.feed(request.head):
            await self._write(block)
        if not self._inflater.left:
            self._inflater = None

    async def _write(self, data: bytes | memoryview) -> None:
        """Small things together, in one write; large ones as they are."""
        if len(data) <= SMALL_TENSOR_BYTES:
            self._out += data
            if len(self._out) <= RPC_READ_BYTES:
                return
            data = b""
        await self._flush()
        if data:
            with self._counters.writing():
                await self._server.write(data)

    async def _flush(self) -> None:
        if self._out:
            data, self._out = self._out, bytearray()
            with self._counters.writing():
                await self._server.write(memoryview(data))

    async def _answer_here(self, request: Request, reply: bytes) -> None:
        self._counters.of(request.command).answered_here += 1
        await self._flush()
        await self._quiet.wait()
        await self._stream.write(reply)

    async def _finish(self) -> None:
        self._ended = True
        self._server.end()

    # ------------------------------------------------------------------ replies

    async def _answer(self) -> None:
        while data := await self._server.read():
            self._replies.feed(data)
            parts: list[bytes | memoryview] = []
            while event := self._replies.next_event():
                parts.append(event.data if isinstance(event, Body) else self._on_reply(event))
            outstanding = self._replies.outstanding + (not self._replies.is_between)
            self._counters.heard(outstanding)
            if parts:
                await self._stream.write(b"".join(parts))
            if not outstanding:
                self._quiet.set()
        if not self._ended:
            raise RpcServerGone("The RPC server closed the connection.")

    def _on_reply(self, reply: Reply) -> bytes:
        """Its bytes for the host."""
        self._counters.of(reply.command).reply_bytes += 8 + reply.size
        head = reply.head
        if reply.command == Command.ALLOC_BUFFER:
            self._memory.answered(_integer(head, 0), _integer(head, 8))
        elif reply.command == Command.GET_DEVICE_MEMORY:
            free, total = self._memory.told(_integer(head, 0), _integer(head, 8))
            head = free.to_bytes(8, "little") + total.to_bytes(8, "little")
        return reply.size.to_bytes(8, "little") + head


def _integer(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")
