"""Round trips to the nodes that this one may share models with.

    trips = RoundTrips(mesh.peers, mesh.open_stream)
    trips.follow(nodes_of_use, changed); trips.start(); trips.nearest(); await trips.stop()

Owns what was measured, in steps that hold, and one task. Of a connected peer the connection tells; to others a `job` stream is opened
and a word sent that is answered at once. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

import msgspec

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.election import steady_rtt_ms
from agentmesh.inference.logic.job_wire import JobPing, JobPong
from agentmesh.inference.logic.split_limits import MAX_PUBLISHED_RTTS, MAX_RTT_MS
from agentmesh.inference.split.parts import OpenStream
from agentmesh.mesh.streams import FrameStream, StreamKind

_log = logging.getLogger(__name__)

EVERY_S: Final = 30.0
JITTER: Final = 0.2  # so that the nodes of a mesh do not all measure at once
FAR_LOOK_S: Final = 3.0  # at connected peers that are too far away: free, and a busy machine's handshake is slow
SOON_S: Final = 0.5  # after a node of use appeared: several come together
PINGS: Final = 3  # the smallest counts: the others waited for something
PING_TIMEOUT_S: Final = 5.0  # of all three; far more than any round trip that is of use
AGAIN_S: Final = 15.0  # nobody is pinged sooner again, however often others come and go
AT_ONCE: Final = 4
LOST_AFTER: Final = 3  # rounds in which it did not answer; a host that is only busy must not lose its claim
MAX_PINGED: Final = 32  # nodes in one round; the longest not measured first
MAX_PONG_BYTES: Final = 64

_pong_decoder = msgspec.msgpack.Decoder(JobPong)


class Peer(Protocol):
    """A connected peer, or one lately lost; mesh/views.py: PeerView."""

    @property
    def node(self) -> bytes: ...

    @property
    def rtt_ms(self) -> float | None: ...


class RoundTrips:
    """See the module. `now_s`: the event loop's time."""

    def __init__(
        self,
        peers: Callable[[], Sequence[Peer]],
        open_stream: OpenStream,
        *,
        now_s: Callable[[], float] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._peers = peers
        self._open_stream = open_stream
        self._now_s = now_s or (lambda: asyncio.get_running_loop().time())
        self._jitter = jitter
        self._tasks = TaskSet("round trips")
        self._wanted: Callable[[], Collection[bytes]] = tuple
        self._changed: Callable[[], None] = lambda: None
        self._known: dict[bytes, float] = {}  # as published
        self._last: dict[bytes, float] = {}  # as measured
        self._measured_s: dict[bytes, float] = {}  # of those of use: when it was tried last
        self._silent: dict[bytes, int] = {}  # rounds in a row without an answer
        self._woken = asyncio.Event()

    def follow(self, wanted: Callable[[], Collection[bytes]], changed: Callable[[], None]) -> None:
        """Measure the nodes that `wanted` tells, and call `changed` after each change of what `nearest` tells. Before `start`."""
        self._wanted, self._changed = wanted, changed

    def start(self) -> None:
        """Begin."""
        self._tasks.spawn(self._run(), name="measure")

    async def stop(self) -> None:
        """End."""
        await self._tasks.close()

    def look(self) -> None:
        """Other nodes may be of use now: new ones are measured soon."""
        if any(node not in self._measured_s for node in self._wanted()):
            self._woken.set()

    def nearest(self) -> tuple[tuple[bytes, float], ...]:
        """(node, round trip in ms, as steps), the nearest first."""
        ordered = sorted(self._known.items(), key=lambda pair: (pair[1], pair[0]))
        return tuple(ordered[:MAX_PUBLISHED_RTTS])

    def is_lost(self, node: bytes) -> bool:
        """Whether it cannot be reached. Its record may live on for minutes, and failure detection watches connected peers only."""
        return self._silent.get(node, 0) >= LOST_AFTER

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self.measure()
            except Exception:  # noqa: BLE001 - the root of a task; round trips would never be known again
                _log.exception("measuring round trips failed")
            await self._until_next()

    async def _until_next(self) -> None:
        """Until the next round is due, or a node appeared."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + EVERY_S * (1 - JITTER + 2 * JITTER * self._jitter())
        while (left_s := due_s - loop.time()) > 0:
            try:
                async with asyncio.timeout(
                    min(left_s, FAR_LOOK_S) if any(map(self._is_far, self._wanted())) else left_s
                ):
                    await self._woken.wait()
            except TimeoutError:
                try:
                    self._look_at_far()
                except Exception:  # noqa: BLE001 - as in `_run`
                    _log.exception("looking at round trips failed")
            else:
                await asyncio.sleep(SOON_S)
                return

    def _is_far(self, node: bytes) -> bool:
        """Whether its round trip, or that nobody knows it, keeps it out of plans."""
        return self._known.get(node, math.inf) > MAX_RTT_MS

    def _look_at_far(self) -> None:
        """At those that are connected: what their connections say now."""
        direct = {peer.node: peer.rtt_ms for peer in self._peers() if peer.rtt_ms is not None}
        far = [node for node in self._wanted() if node in direct and self._is_far(node)]
        changed = [node for node in far if self.is_lost(node) | self._learn(node, direct[node])]
        if changed:
            self._changed()

    async def measure(self) -> None:
        """One round."""
        wanted = set(self._wanted())
        for node in [node for node in self._measured_s if node not in wanted]:
            del self._measured_s[node]
            self._silent.pop(node, None)
        gone = [node for node in self._known if node not in wanted]
        for node in gone:
            del self._known[node], self._last[node]
        changed = bool(gone)
        direct = {peer.node: peer.rtt_ms for peer in self._peers() if peer.rtt_ms is not None}
        for node in sorted(wanted):
            if (rtt_ms := direct.get(node)) is not None:
                changed |= self.is_lost(node)
                changed |= self._learn(node, rtt_ms)
        if changed:
            self._changed()
        tried_s = {node: self._measured_s.get(node, float("-inf")) for node in wanted - direct.keys()}
        due = [node for node, at_s in tried_s.items() if self._now_s() - at_s >= AGAIN_S]
        others = sorted(due, key=lambda node: (tried_s[node], node))
        limit = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._measure_far(node, limit) for node in others[:MAX_PINGED]))

    async def _measure_far(self, node: bytes, limit: asyncio.Semaphore) -> None:
        async with limit:
            rtt_ms = await self._ping(node)
        was_lost = self.is_lost(node)
        if rtt_ms is None:
            self._measured_s[node] = self._now_s()
            self._silent[node] = self._silent.get(node, 0) + 1
        changed = rtt_ms is not None and self._learn(node, rtt_ms)
        if changed or self.is_lost(node) != was_lost:
            self._changed()

    def _learn(self, node: bytes, rtt_ms: float) -> bool:
        """Whether it is another step than before."""
        self._measured_s[node] = self._now_s()
        self._silent.pop(node, None)
        before = self._known.get(node)
        # The smaller of two: what is longer once waited for a busy machine, and would end a split that runs.
        self._last[node], least = rtt_ms, min(rtt_ms, self._last.get(node, rtt_ms))
        self._known[node] = steady_rtt_ms(before, max(least, 0.0))
        return self._known[node] != before

    async def _ping(self, node: bytes) -> float | None:
        """The smallest of some, in ms; None: it did not answer."""
        best: float | None = None
        with contextlib.suppress(AgentMeshError, TimeoutError):
            async with asyncio.timeout(PING_TIMEOUT_S):
                for _ in range(PINGS):
                    rtt_ms = await self._ping_once(node)
                    if rtt_ms is not None:
                        best = rtt_ms if best is None else min(best, rtt_ms)
        return best

    async def _ping_once(self, node: bytes) -> float | None:
        stream = FrameStream(await self._open_stream(node, StreamKind.JOB), limit=MAX_PONG_BYTES)
        try:
            began_s = self._now_s()  # the stream is open: nobody waits for a handshake any more
            await stream.write_struct(JobPing())
            pong = await stream.read_struct(_pong_decoder)
            return None if pong is None else (self._now_s() - began_s) * 1000
        finally:
            stream.abort()
