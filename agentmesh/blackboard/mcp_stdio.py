"""MCP messages over stdin and stdout, for a process whose stdout carries nothing else.

Owns the two descriptors. While it is open, descriptor 1 is stderr and descriptor 0 is empty, so that no stray print and
no child can touch the wire. Reading and writing happen in daemon threads: any kind of descriptor works (pipe, file,
terminal), and neither a client that never reads nor one that never closes can keep the process from ending. That, a
limit on the length of a line, an answer to what is not JSON (JSON-RPC 2.0, section 5.1), and a short grace for requests
still being answered when stdin ends (`printf … | agentmesh blackboard --mcp`) are why the SDK's transport is not used.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import BinaryIO, Final, TypeAlias

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from agentmesh.blackboard.logic import mcp_limits as limits
from agentmesh.core.tasks import TaskSet

_log = logging.getLogger(__name__)
_END: Final = b""
READ_BUFFER_BYTES: Final = 256 * 1024
READ_AHEAD: Final = 4  # lines read before the server took them

Incoming: TypeAlias = MemoryObjectReceiveStream["SessionMessage | Exception"]
Outgoing: TypeAlias = MemoryObjectSendStream[SessionMessage]


@asynccontextmanager
async def stdio_streams() -> AsyncGenerator[tuple[Incoming, Outgoing], None]:
    """The streams that `mcp.server.lowlevel.Server.run` wants, over this process's stdin and stdout."""
    wire_in, wire_out = _claim()
    try:
        async with line_streams(wire_in, wire_out) as streams:
            yield streams
    finally:
        os.dup2(wire_out, 1)


def _claim() -> tuple[int, int]:
    """Private descriptors of the wire; 0 and 1 are diverted."""
    sys.stdout.flush()
    wire_in, wire_out = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return wire_in, wire_out


@asynccontextmanager
async def line_streams(wire_in: int, wire_out: int) -> AsyncGenerator[tuple[Incoming, Outgoing], None]:
    """JSON-RPC messages, one a line, over two descriptors, which stay open."""
    to_server, incoming = anyio.create_memory_object_stream["SessionMessage | Exception"](0)
    outgoing, from_server = anyio.create_memory_object_stream[SessionMessage](0)
    wire = _Wire(wire_in, wire_out)
    tasks = TaskSet("mcp-stdio")
    reader = tasks.spawn(wire.pump_in(to_server), name="in")
    wire.on_broken = reader.cancel
    writer = tasks.spawn(wire.pump_out(from_server), name="out")
    try:
        yield incoming, outgoing
        # The server has closed its end: what it said last is still on its way.
        await asyncio.wait([writer], timeout=limits.FLUSH_GRACE_S)
    finally:
        await tasks.close(limits.FLUSH_GRACE_S)
        for stream in (to_server, incoming, outgoing, from_server):
            stream.close()
        wire.close()


class _Wire:
    """The two threads and the count of requests that have no answer yet."""

    on_broken: Callable[[], object] | None = None  # called once, when nobody reads stdout any more

    def __init__(self, wire_in: int, wire_out: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._unanswered: set[types.RequestId] = set()
        self._all_answered = asyncio.Event()
        self._all_answered.set()
        self._broken = False
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._may_read = threading.Semaphore(READ_AHEAD)  # the client waits, not our memory
        self._to_write: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(wire_in,), name="mcp-stdin", daemon=True).start()
        threading.Thread(target=self._write, args=(wire_out,), name="mcp-stdout", daemon=True).start()

    def close(self) -> None:
        """Let the writing thread end; the reading one ends with stdin or with the process."""
        self._to_write.put(None)

    # ------------------------------------------------------------------ on the loop

    async def pump_in(self, to_server: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        """Lines to messages, until stdin ends; then requests in flight get a moment to be answered."""
        async with to_server:
            while (line := await self._lines.get()) != _END:
                self._may_read.release()
                if not line.strip():
                    continue
                message = await self._parse(line)
                if message is None:
                    continue
                if isinstance(message, types.JSONRPCRequest):
                    self._unanswered.add(message.id)
                    self._all_answered.clear()
                await to_server.send(SessionMessage(message))
            try:
                async with asyncio.timeout(limits.EOF_GRACE_S):
                    await self._all_answered.wait()
            except TimeoutError:
                _log.info("the client closed its end before %d answers", len(self._unanswered))

    async def pump_out(self, from_server: MemoryObjectReceiveStream[SessionMessage]) -> None:
        """Messages to lines, until the server closes or the client is gone."""
        async with from_server:
            async for item in from_server:
                await self._send(item.message)

    async def _parse(self, line: bytes) -> types.JSONRPCMessage | None:
        """The message of a line; what is none is answered here."""
        if len(line) > limits.MAX_LINE_BYTES:
            text = f"The message is longer than {limits.MAX_LINE_BYTES} bytes; send less at once."
            await self._refuse(types.INVALID_REQUEST, text)
            return None
        try:
            return types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValidationError as error:
            is_json = not any(item["type"] == "json_invalid" for item in error.errors(include_input=False))
            code = types.INVALID_REQUEST if is_json else types.PARSE_ERROR
            await self._refuse(code, "This line is not one JSON-RPC 2.0 message; send one on each line.")
            return None

    async def _refuse(self, code: int, text: str) -> None:
        error = types.ErrorData(code=code, message=text)
        await self._send(types.JSONRPCError(jsonrpc="2.0", id=None, error=error))

    async def _send(self, message: types.JSONRPCMessage) -> None:
        data = message.model_dump_json(by_alias=True, exclude_unset=True).encode("utf-8") + b"\n"
        if self._broken:
            return
        written: asyncio.Future[None] = self._loop.create_future()
        self._to_write.put((data, written))
        try:
            await written
        except OSError as error:
            _log.info("the client is gone: %s", error)
            if not self._broken and self.on_broken is not None:
                self.on_broken()
            self._broken = True
            return
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError) and message.id is not None:
            self._unanswered.discard(message.id)
            if not self._unanswered:
                self._all_answered.set()

    # ------------------------------------------------------------------ in the threads

    def _read(self, wire_in: int) -> None:
        with open(wire_in, "rb", buffering=READ_BUFFER_BYTES, closefd=False) as stream:
            line = b"-"
            while line != _END:
                self._may_read.acquire()
                try:
                    line = _read_line(stream)
                except OSError:
                    line = _END
                try:
                    self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
                except RuntimeError:
                    return  # the loop has ended

    def _write(self, wire_out: int) -> None:
        while (item := self._to_write.get()) is not None:
            data, written = item
            error: OSError | None = None
            try:
                while data:
                    data = data[os.write(wire_out, data) :]
            except OSError as failure:
                error = failure
            try:
                self._loop.call_soon_threadsafe(_settle, written, error)
            except RuntimeError:
                return


def _read_line(stream: BinaryIO) -> bytes:
    """One line; of one that is too long only as much as shows that it is, and the rest is skipped."""
    line = stream.readline(limits.MAX_LINE_BYTES + 1)
    if len(line) > limits.MAX_LINE_BYTES and not line.endswith(b"\n"):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(limits.MAX_LINE_BYTES)
    return line


def _settle(written: asyncio.Future[None], error: OSError | None) -> None:
    if written.done():
        return
    if error is None:
        written.set_result(None)
    else:
        written.set_exception(error)
