"""One connection of llama-server on the host: what is answered here, what becomes a reference, what is deflated, what flows.

Owns the connection's two parsers and what is held back. Two tasks: requests write to the stream, replies to llama-server; an answer
given here waits until no reply is outstanding.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from agentmesh.core.errors import StreamClosed
from agentmesh.inference.logic.rpc_deflate import DeflateChoice, Deflater
from agentmesh.inference.logic.rpc_limits import (
    HELD_BACK_BYTES,
    REFERENCE_MIN_BYTES,
    RPC_READ_BYTES,
    SMALL_TENSOR_BYTES,
)
from agentmesh.inference.logic.rpc_stream import Device, Opened, RelayCommand
from agentmesh.inference.logic.rpc_tensor import TENSOR_BYTES, Tensor
from agentmesh.inference.logic.rpc_wire import (
    Body,
    Command,
    Reply,
    ReplyParser,
    Request,
    RequestParser,
    build_reply,
    build_request,
    hello_reply,
    reply_size,
    request_head,
)
from agentmesh.inference.rpc.counters import RelayCounters
from agentmesh.inference.rpc.duplex import run_both
from agentmesh.inference.rpc.errors import ClientMalformed, WorkerLost
from agentmesh.inference.rpc.local_socket import LocalSocket
from agentmesh.inference.rpc.weights import Place, WeightFiles, WeightHashes, read_exactly
from agentmesh.mesh.transport import Stream

# They change nothing that anybody sees before something is computed or read.
_MAY_WAIT = frozenset({Command.SET_TENSOR, Command.INIT_TENSOR, Command.BUFFER_CLEAR, Command.MEMSET_TENSOR})


@dataclass(frozen=True, slots=True)
class HostSide:
    """What the connections of one gateway share. `weights` is None where worker and host do not have the same files."""

    weights: WeightFiles | None
    hashes: WeightHashes
    counters: RelayCounters
    compress: bool


def answer_from(facts: Opened, request: Request) -> bytes | None:
    """The reply that needs nobody, or None. Raises: ClientMalformed: there is no such device."""
    command = request.command
    if command == Command.HELLO:
        return hello_reply(facts.rpc_version)
    if command == Command.DEVICE_COUNT:
        return build_reply(len(facts.devices).to_bytes(4, "little"))
    if command not in (Command.GET_ALIGNMENT, Command.GET_MAX_SIZE):
        return None
    device = _device(facts, request)
    return build_reply(
        (device.alignment if command == Command.GET_ALIGNMENT else device.max_size).to_bytes(8, "little")
    )


def memory_from(facts: Opened, request: Request) -> bytes | None:
    """The reply to GET_DEVICE_MEMORY, which is true while nothing is allocated; None to any other request. Raises: ClientMalformed."""
    if request.command != Command.GET_DEVICE_MEMORY:
        return None
    device = _device(facts, request)
    return build_reply(device.free.to_bytes(8, "little") + device.total.to_bytes(8, "little"))


def _device(facts: Opened, request: Request) -> Device:
    number = int.from_bytes(request.head, "little")
    if number >= len(facts.devices):
        raise ClientMalformed(f"llama-server asked for device {number} of {len(facts.devices)}.")
    return facts.devices[number]


class HostRelay:
    """See the module. `run` once."""

    def __init__(
        self, side: HostSide, facts: Opened, client: LocalSocket, stream: Stream, parser: RequestParser
    ) -> None:
        self._side = side
        self._facts = facts
        self._client = client
        self._stream = stream
        self._requests = parser
        self._replies = ReplyParser()
        self._quiet = asyncio.Event()  # no reply is outstanding
        self._quiet.set()
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._deflate = DeflateChoice(enabled=side.compress)
        self._told: tuple[bytes, int] | None = None  # the tensor whose FNV was told last, and that
        self._ended = False

    async def run(self, first: Request | None) -> None:
        """Relay from `first` on until llama-server closes.

        Raises:
            AgentMeshError: the worker or llama-server broke off, or said what the protocol does not have.
        """
        await run_both(self._ask(first), self._answer(), self._finish, self._side.counters)

    # ------------------------------------------------------------------ requests

    async def _ask(self, first: Request | None) -> None:
        if first is not None:
            await self._on_request(first)
        while True:
            event = self._requests.next_event()
            if isinstance(event, Request):
                await self._on_request(event)
                continue
            data = await self._client.read()
            if not data:
                break
            self._requests.feed(data)
        if not self._requests.is_between:
            raise StreamClosed("llama-server ended in the middle of a request.")

    async def _on_request(self, request: Request) -> None:
        count = self._side.counters.of(request.command)
        count.requests += 1
        count.in_bytes += len(request_head(0, 0)) + request.size
        reply = answer_from(self._facts, request)
        if reply is not None:
            await self._answer_here(request, reply)
        elif request.command == Command.SET_TENSOR:
            await self._on_tensor(request)
        elif request.command == Command.SET_TENSOR_HASH:
            await self._on_hash(request)
        else:
            await self._forward(request)

    async def _on_hash(self, request: Request) -> None:
        tensor = Tensor(request.head)
        offset, fnv = _integer(request.head, TENSOR_BYTES), _integer(request.head, TENSOR_BYTES + 8)
        place = self._find(tensor, offset, tensor.size_bytes)
        if place is None or self._side.weights is None:
            await self._forward(request)
            return
        is_known = self._side.hashes.fits(place, fnv)
        if is_known:
            self._side.weights.check(place)
            await self._refer(place, request.head[:TENSOR_BYTES] + bytes(9))
        else:
            self._told = request.head[:TENSOR_BYTES], fnv
        await self._answer_here(request, build_reply(b"\1" if is_known else b"\0"))

    async def _on_tensor(self, request: Request) -> None:
        tensor = Tensor(request.head)
        told, self._told = self._told, None
        place = self._find(tensor, _integer(request.head, TENSOR_BYTES + 1), request.body_bytes)
        if place is None or self._side.weights is None or request.body_bytes < REFERENCE_MIN_BYTES:
            await self._forward(request)
            return
        first = self._requests.take_body()
        same, differing = await self._client.match(place, request.body_bytes, first)
        self._requests.skip_body(same + len(differing) - len(first))
        self._side.weights.check(place)
        if same < request.body_bytes:
            await self._forward_unlike(request, place, same, differing)
            return
        if told is not None and told[0] == request.head[:TENSOR_BYTES]:
            self._side.hashes.learn(place, told[1])
        await self._refer(place, request.head)

    def _find(self, tensor: Tensor, offset: int, size: int | None) -> Place | None:
        """The tensor of the file that these bytes would be the whole of."""
        weights = self._side.weights
        if weights is None or offset or size is None or size != tensor.size_bytes:
            return None
        return weights.find(tensor.name, tensor.type_number, size)

    async def _refer(self, place: Place, head: bytes) -> None:
        self._side.counters.referenced_bytes += place.size
        self._side.counters.of(RelayCommand.FILE_TENSOR).requests += 1
        await self._send(RelayCommand.FILE_TENSOR, build_request(RelayCommand.FILE_TENSOR, head))

    async def _forward_unlike(self, request: Request, place: Place, same: int, differing: bytes) -> None:
        """A tensor of the file with other bytes: what was equal so far is read from the file again."""
        await self._send(request.command, request_head(request.command, request.size) + request.head)
        for start in range(0, same, RPC_READ_BYTES):
            count = min(RPC_READ_BYTES, same - start)
            await self._send(request.command, await asyncio.to_thread(read_exactly, place, start, count))
        for start in range(0, len(differing), RPC_READ_BYTES):
            await self._send(request.command, differing[start : start + RPC_READ_BYTES])
        async for piece in self._body():
            await self._send(request.command, bytes(piece))

    async def _forward(self, request: Request) -> None:
        command = request.command
        size = reply_size(request)
        if size is not None:
            self._replies.expect(command, size)
            self._quiet.clear()
            self._side.counters.of(command).round_trips += 1
            self._side.counters.asked()
        start = b"".join([bytes(piece) async for piece in self._body(SMALL_TENSOR_BYTES)])
        name = Tensor(request.head).name if command == Command.SET_TENSOR else None
        deflater: Deflater | None = None
        if self._deflate.may(command, request.size, name) and self._deflate.is_worth(name, start):
            deflater = Deflater(command, request.size)
            pieces = [deflater.announcement, *deflater.pieces(request.head), *deflater.pieces(start)]
        else:
            pieces = [request_head(command, request.size), request.head, start]
        waits = command in _MAY_WAIT and not self._requests.body_left
        await self._send(command, b"".join(pieces), may_wait=waits)
        async for body in self._body():
            if deflater is None:
                await self._send(command, bytes(body))
                continue
            for piece in deflater.pieces(body):
                await self._send(command, piece)
                await asyncio.sleep(0)  # deflating takes time; others have a turn

    async def _body(self, at_least: int | None = None) -> AsyncIterator[memoryview]:
        """The present request's body, as it comes; with `at_least` only until so much of it has come."""
        got = 0
        while self._requests.body_left and (at_least is None or got < at_least):
            event = self._requests.next_event()
            if isinstance(event, Body):
                got += len(event.data)
                yield event.data
                continue
            data = await self._client.read()
            if not data:
                raise StreamClosed("llama-server ended in the middle of a request.")
            self._requests.feed(data)

    async def _send(self, command: int, data: bytes, *, may_wait: bool = False) -> None:
        self._side.counters.of(command).out_bytes += len(data)
        self._held.append(data)
        self._held_bytes += len(data)
        if not may_wait or self._held_bytes > HELD_BACK_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        if self._held:
            data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held.clear()
            self._held_bytes = 0
            with self._side.counters.writing():
                await self._stream.write(data)

    async def _answer_here(self, request: Request, reply: bytes) -> None:
        self._side.counters.of(request.command).answered_here += 1
        await self._quiet.wait()
        await self._client.write(reply)

    async def _finish(self) -> None:
        self._ended = True
        await self._flush()
        await self._stream.end()

    # ------------------------------------------------------------------ replies

    async def _answer(self) -> None:
        while data := await self._stream.read(RPC_READ_BYTES):
            self._replies.feed(data)
            while event := self._replies.next_event():
                if isinstance(event, Reply):
                    count = self._side.counters.of(event.command)
                    count.reply_bytes += 8 + event.size
            outstanding = self._replies.outstanding + (not self._replies.is_between)
            self._side.counters.heard(outstanding)
            await self._client.write(data)
            if not outstanding:
                self._quiet.set()
        if not self._ended:
            raise WorkerLost("The worker ended the connection.")


def _integer(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")
