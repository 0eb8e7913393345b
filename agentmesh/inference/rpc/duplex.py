"""The two directions of a relayed connection, as two tasks that end together; and the opening frames of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TypeVar

import msgspec

from agentmesh.core.errors import AgentMeshError, StreamClosed
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.rpc_limits import OVERDUE_CHECK_S, REPLY_OVERDUE_S, RPC_END_WAIT_S, RPC_READ_BYTES
from agentmesh.inference.logic.rpc_stream import FRAME_LENGTH_BYTES, decode_frame, frame_bytes
from agentmesh.inference.rpc.counters import RelayCounters
from agentmesh.inference.rpc.errors import RpcServerGone
from agentmesh.inference.rpc.local_socket import LocalSocket
from agentmesh.mesh.transport import Stream

T = TypeVar("T")


async def run_both(
    requests: Coroutine[object, object, None],
    replies: Coroutine[object, object, None],
    finish: Callable[[], Awaitable[None]],
    counters: RelayCounters,
) -> None:
    """Run both until the requests are over and `finish` has told the far side, or one fails.

    `requests` returns at the near side's end; `replies` returns only after `finish`, at the far side's.

    Raises:
        AgentMeshError: what ended the first of them.
    """
    tasks = TaskSet("rpc relay")
    asking = tasks.spawn(_guarded(requests), name="requests")
    answering = tasks.spawn(_guarded(replies), name="replies")
    try:
        both = {asking, answering}
        while not any(task.done() for task in both):
            await asyncio.wait(both, timeout=OVERDUE_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
            if counters.overdue_s > REPLY_OVERDUE_S:
                raise RpcServerGone(f"The RPC server has neither taken nor given anything for {REPLY_OVERDUE_S:g} s.")
        _raise_first(task for task in (answering, asking) if task.done())
        await finish()
        await asyncio.wait({answering}, timeout=RPC_END_WAIT_S)
    finally:
        counters.heard(0)
        await tasks.close()


async def _guarded(direction: Coroutine[object, object, None]) -> AgentMeshError | None:
    try:
        await direction
    except AgentMeshError as error:
        return error
    return None


def _raise_first(tasks: Iterable[asyncio.Task[AgentMeshError | None]]) -> None:
    for task in tasks:
        if (error := task.result()) is not None:
            raise error


async def run_blind(near: LocalSocket, first: bytes, stream: Stream, counters: RelayCounters) -> bool:
    """Bytes both ways, not looked at: what came from `near` goes to the stream, `first` before it.

    Returns whether the near side ended first.

    Raises:
        StreamClosed: one of them broke.
    """

    async def out() -> None:
        if first:
            counters.blind_bytes += len(first)
            await stream.write(first)
        while data := await near.read():
            counters.blind_bytes += len(data)
            await stream.write(data)
        await stream.end()

    async def back() -> None:
        while data := await stream.read(RPC_READ_BYTES):
            counters.blind_bytes += len(data)
            await near.write(data)
        near.end()

    tasks = TaskSet("blind rpc relay")
    outward, backward = tasks.spawn(_guarded(out()), name="out"), tasks.spawn(_guarded(back()), name="back")
    try:
        await asyncio.wait({outward, backward}, return_when=asyncio.FIRST_COMPLETED)
        near_first = outward.done()
        _raise_first(task for task in (outward, backward) if task.done())
        await asyncio.wait({outward, backward}, timeout=RPC_END_WAIT_S)
        return near_first
    finally:
        await tasks.close()


async def read_frame(stream: Stream, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """One opening frame, read exactly. The caller bounds the wait.

    Raises:
        ProtocolError: it is none. StreamClosed: the stream ended.
    """
    length = frame_bytes(await _read_exactly(stream, FRAME_LENGTH_BYTES))
    return decode_frame(await _read_exactly(stream, length), decoder)


async def _read_exactly(stream: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.read(count - len(data))
        if not more:
            raise StreamClosed("The peer ended an rpc stream while it was opened.")
        data += more
    return data
