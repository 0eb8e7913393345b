"""The host's side of the RPC relay: a loopback port that llama-server takes for a worker's RPC server. docs/rpc-relay.md.

Owns the port, who has the worker's place (one connection at a time, as the RPC server serves one), and what the worker said of itself. One
gateway for each worker of a job. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from agentmesh.core.errors import AgentMeshError, StreamClosed
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.rpc_limits import (
    FACTS_FRESH_S,
    MAX_GATEWAY_CONNECTIONS,
    OPENED_WAIT_S,
    RPC_PLACE_WAIT_S,
    RPC_STREAM_OPEN_S,
)
from agentmesh.inference.logic.rpc_stream import STREAM_FORMAT, Open, Opened, OpenStatus, frame_of, opened_decoder
from agentmesh.inference.logic.rpc_wire import Request, RequestParser
from agentmesh.inference.rpc.counters import RelayCounters
from agentmesh.inference.rpc.duplex import read_frame, run_blind
from agentmesh.inference.rpc.errors import WorkerBusy, WorkerLost, WorkerRefused
from agentmesh.inference.rpc.gateway_connection import HostRelay, HostSide, answer_from, memory_from
from agentmesh.inference.rpc.local_socket import LocalSocket, is_own_user
from agentmesh.inference.rpc.weights import WeightFiles, WeightHashes
from agentmesh.mesh.transport import Stream

_ACCEPT_PAUSE_S: Final = 0.1

_log = logging.getLogger(__name__)


class RpcGateway:
    """See the module. `listen` once, `close` once. `weights` and `hashes` belong to the caller and may serve several gateways.

    Args:
        open_stream: a fresh `rpc` stream to the worker, its header sent. Raises: Unreachable, StreamClosed.
        job: what the worker calls the RPC server that is meant.
        worker: its name, for messages.
        weights: the files that llama-server reads; None: every weight travels.
        compress: whether graphs and masks are deflated: the worker is on another machine.
        on_lost: called with a sentence when a connection ended otherwise than by llama-server closing it.
    """

    def __init__(
        self,
        open_stream: Callable[[], Awaitable[Stream]],
        *,
        job: str,
        worker: str,
        weights: WeightFiles | None,
        hashes: WeightHashes,
        compress: bool = True,
        on_lost: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = RelayCounters(clock)
        self._open_stream = open_stream
        self._job = job
        self._worker = worker
        self._weights = weights
        self._hashes = hashes
        self._compress = compress
        self._on_lost = on_lost
        self._clock = clock
        self._facts: Opened | None = None
        self._facts_s = 0.0  # when they were told
        self._place = asyncio.Lock()
        self._tasks = TaskSet("rpc gateway")
        self._listener: socket.socket | None = None
        self._closed = False

    @property
    def facts(self) -> Opened | None:
        """What the worker said of itself; None before the first connection."""
        return self._facts

    async def ask_worker(self) -> Opened:
        """Its version and devices, asked for now if they are not known: the device order needs their number.

        Raises:
            WorkerRefused, WorkerBusy, WorkerLost: it does not take part, not now, or is gone.
        """
        if self._facts is None:
            async with self._worker_place():
                stream, facts = await self._open()
                with contextlib.suppress(AgentMeshError, TimeoutError):
                    await stream.end()
                    async with asyncio.timeout(RPC_STREAM_OPEN_S):
                        await stream.read(1)
                stream.abort()
                return facts
        return self._facts

    async def listen(self) -> int:
        """Take an ephemeral port of 127.0.0.1 and say which."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=MAX_GATEWAY_CONNECTIONS)
        listener.setblocking(False)
        self._listener = listener
        self._tasks.spawn(self._accept(listener), name="accept")
        return listener.getsockname()[1]

    async def close(self) -> None:
        """End every connection and give the port back."""
        self._closed = True
        await self._tasks.close()
        if self._listener is not None:
            self._listener.close()
        await self._hashes.save()

    # ------------------------------------------------------------------ connections

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:  # no descriptor is free, or the client has gone
                _log.warning("a connection to the worker %s could not be taken: %s", self._worker, error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            # One task is this one.
            if len(self._tasks) > MAX_GATEWAY_CONNECTIONS or not await asyncio.to_thread(is_own_user, sock):
                _log.warning("a connection to the worker %s was refused: too many, or not of this user", self._worker)
                sock.close()
                continue
            self._tasks.spawn(self._serve(LocalSocket(sock)), name="connection")

    async def _serve(self, client: LocalSocket) -> None:
        try:
            await self._relay(client)
        except AgentMeshError as error:
            self._lost(error.message)
        finally:
            client.close()
            await self._hashes.save()

    def _lost(self, reason: str) -> None:
        if not self._closed:
            _log.info("the connection to the worker %s ended: %s", self._worker, reason)
            self._on_lost(reason)

    async def _relay(self, client: LocalSocket) -> None:
        data = await client.read()
        if not data:
            return
        parser = RequestParser()
        first: Request | None = None
        if self._facts is not None and self._facts.status is OpenStatus.READY:
            parser.feed(data)
            first = await self._greet(client, parser, self._facts)
            if first is None:
                return
        async with self._worker_place():
            stream, facts = await self._open()
            try:
                if facts.status is OpenStatus.BLIND:
                    if not await run_blind(client, data, stream, self.counters):
                        raise WorkerLost(f"The worker {self._worker} ended the connection.")
                else:
                    if first is None:
                        parser.feed(data)
                    await HostRelay(self._side(facts), facts, client, stream, parser).run(first)
            finally:
                stream.abort()  # does nothing to one that is over

    async def _greet(self, client: LocalSocket, parser: RequestParser, facts: Opened) -> Request | None:
        """Answer what needs no stream; the first request that does, or None at the end."""
        while True:
            event = parser.next_event()
            if isinstance(event, Request):
                reply = answer_from(facts, event) or self._memory(facts, event)
                if reply is None:
                    return event
                count = self.counters.of(event.command)
                count.requests += 1
                count.answered_here += 1
                count.in_bytes += 9 + event.size
                await client.write(reply)
                continue
            data = await client.read()
            if not data:
                return None
            parser.feed(data)

    def _memory(self, facts: Opened, request: Request) -> bytes | None:
        """llama-server asks this on most of the connections that it opens first, each of which would be a stream."""
        if self._place.locked() or self._clock() - self._facts_s > FACTS_FRESH_S:
            return None
        return memory_from(facts, request)

    def _side(self, facts: Opened) -> HostSide:
        return HostSide(self._weights if facts.same_files else None, self._hashes, self.counters, self._compress)

    # ------------------------------------------------------------------ the worker

    @asynccontextmanager
    async def _worker_place(self) -> AsyncGenerator[None]:
        """Raises: WorkerBusy: another connection does not end."""
        try:
            async with asyncio.timeout(RPC_PLACE_WAIT_S):
                await self._place.acquire()
        except TimeoutError:
            raise WorkerBusy(f"Another connection to the worker {self._worker} is open.") from None
        try:
            yield
        finally:
            self._place.release()

    async def _open(self) -> tuple[Stream, Opened]:
        """Raises: WorkerRefused, WorkerBusy, WorkerLost."""
        try:
            async with asyncio.timeout(RPC_STREAM_OPEN_S):
                stream = await self._open_stream()
        except TimeoutError:
            raise WorkerLost(f"The worker {self._worker} did not answer within {RPC_STREAM_OPEN_S:g} s.") from None
        self.counters.streams += 1
        try:
            await stream.write(frame_of(Open(self._job, self._weights.digests if self._weights else ())))
            async with asyncio.timeout(OPENED_WAIT_S):
                opened = await read_frame(stream, opened_decoder)
            self._check(opened)
        except TimeoutError:
            stream.abort()
            raise WorkerLost(f"The worker {self._worker} did not answer within {OPENED_WAIT_S:g} s.") from None
        except BaseException:
            stream.abort()
            raise
        return stream, opened

    def _check(self, opened: Opened) -> None:
        """Raises: WorkerRefused, WorkerBusy, WorkerLost; StreamClosed: it is not the worker that it was."""
        if opened.status is OpenStatus.BUSY:
            raise WorkerBusy(f"The worker {self._worker} is busy: {opened.reason}")
        if opened.format != STREAM_FORMAT or opened.status is OpenStatus.REFUSED:
            reason = opened.reason or "it runs another version of agentmesh."
            raise WorkerRefused(f"The worker {self._worker} refused: {reason}")
        if opened.status is OpenStatus.FAILED:
            raise WorkerLost(f"The worker {self._worker} failed: {opened.reason}")
        known, self._facts = self._facts, opened
        self._facts_s = self._clock()
        if known is None:
            self._tell(opened)
        elif _lasting(known) != _lasting(opened):
            raise StreamClosed(f"The worker {self._worker} is not what it was: its RPC server or files were replaced.")

    def _tell(self, opened: Opened) -> None:
        if opened.status is OpenStatus.BLIND:
            version = ".".join(map(str, opened.rpc_version)) if any(opened.rpc_version) else "an unknown version"
            _log.warning(
                "the RPC server of %s speaks %s of the protocol: relayed without looking at it, so every weight travels",
                self._worker,
                version,
            )
        elif not opened.same_files:
            _log.warning("the worker %s does not have the same model files: every weight travels", self._worker)


def _lasting(facts: Opened) -> tuple[object, ...]:
    """What does not change while an RPC server lives."""
    sizes = tuple((device.alignment, device.max_size) for device in facts.devices)
    return facts.status, facts.rpc_version, sizes, facts.same_files
