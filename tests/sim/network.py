"""A whole mesh in virtual time: one event queue, one seeded generator, links that lose, repeat, reorder and split.

Runs the real machine, index, trust and reconciliation of every node (node.py); only bytes and clocks are simulated. Two
runs with one seed are the same to the byte: `trace` hashes everything that was delivered and when.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec

from agentmesh.mesh.logic.events import DialFailed, MessageReceived, PeerConnected, PeerLost
from agentmesh.mesh.logic.frames import MessageReader, encode_message
from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.overlay import keeps_new_connection
from agentmesh.mesh.logic.standing import Standing
from tests.sim.keys import START_MS, Mint
from tests.sim.node import SimNode

DIAL_TIMEOUT_MS = 3_000
FRAME_PREFIX_BYTES = 4


@dataclass(frozen=True)
class Faults:
    """What links do to each message. QUIC streams are kinder; a machine that survives this survives them."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    latency_ms: tuple[int, int] = (5, 60)


@dataclass(eq=False)
class Conn:
    """One connection. `last_ms`: when the newest message arrives at (acceptor, dialler), which keeps order."""

    dialler: SimNode
    acceptor: SimNode
    since_ms: int
    is_open: bool = True
    last_ms: list[int] = field(default_factory=lambda: [0, 0])

    def other(self, node: SimNode) -> SimNode:
        return self.acceptor if node is self.dialler else self.dialler


class Simulator:
    """The clock, the links and the nodes. `wire`: messages are really encoded and decoded on the way."""

    def __init__(
        self,
        seed: int,
        *,
        mint: Mint | None = None,
        faults: Faults | None = None,
        config: GossipConfig | None = None,
        wire: bool = False,
        traced: bool = False,
        shared_trust: bool = False,
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.mint = mint or Mint(seed)
        self.faults = faults or Faults()
        self.config = config or GossipConfig()
        self.shared_trust = shared_trust
        self.now_ms = START_MS
        self.nodes: list[SimNode] = []
        self.by_id: dict[bytes, SimNode] = {}
        self.events = 0
        self.lost_messages = 0
        self.bytes_of: defaultdict[type, int] = defaultdict(int)
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._reader = MessageReader() if wire else None
        self._hash = hashlib.blake2b() if traced else None
        self._encoder = msgspec.msgpack.Encoder()
        self._sized: tuple[object, int] = (None, 0)

    # ------------------------------------------------------------------ time

    def at(self, time_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        self._order += 1
        heapq.heappush(self._queue, (time_ms, self._order, action, arguments))

    def after(self, delay_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now_ms + delay_ms, action, *arguments)

    def run_for(self, duration_ms: int) -> None:
        end_ms = self.now_ms + duration_ms
        queue = self._queue
        while queue and queue[0][0] <= end_ms:
            self.now_ms, _, action, arguments = heapq.heappop(queue)
            self.events += 1
            action(*arguments)
        self.now_ms = end_ms

    def run_until(self, holds: Callable[[], bool], timeout_ms: int, what: str, step_ms: int = 250) -> int:
        """Run until it holds; how long that took. Raises: AssertionError: it never did."""
        start_ms = self.now_ms
        while not holds():
            if self.now_ms - start_ms >= timeout_ms:
                raise AssertionError(f"seed {self.seed}: after {timeout_ms / 1000:.0f} s still not so: {what}")
            self.run_for(step_ms)
        return self.now_ms - start_ms

    def trace(self) -> str:
        assert self._hash is not None
        return self._hash.hexdigest()

    def latency_ms(self) -> int:
        low, high = self.faults.latency_ms
        return low + int(self.rng.random() * (high - low))

    # ------------------------------------------------------------------ nodes

    def add(self, *, dialable: bool = True, skew_ms: int = 0, inviter: int = 0) -> SimNode:
        """A new member, not started yet."""
        node = SimNode(self, len(self.nodes), dialable=dialable, skew_ms=skew_ms, inviter=inviter)
        self.nodes.append(node)
        self.by_id[node.id] = node
        return node

    def can_talk(self, one: SimNode, other: SimNode) -> bool:
        return one.is_up and other.is_up and one.group == other.group

    def partition(self, *groups: list[SimNode]) -> None:
        for number, group in enumerate(groups):
            for node in group:
                node.group = number

    def heal(self) -> None:
        for node in self.nodes:
            node.group = 0

    # ------------------------------------------------------------------ links

    def dial(self, node: SimNode, peer: bytes) -> None:
        target = self.by_id.get(peer)
        if target is None or not target.dialable or target.is_stuck or not self.can_talk(node, target):
            self.after(DIAL_TIMEOUT_MS, self._dial_failed, node, node.life, peer)
        else:
            self.after(self.latency_ms() * 3, self._accept, node, node.life, target)

    def _dial_failed(self, node: SimNode, life: int, peer: bytes) -> None:
        if node.is_up and node.life == life:
            node.feed(DialFailed(peer))

    def _accept(self, node: SimNode, life: int, target: SimNode) -> None:
        refused = not self.can_talk(node, target) or node.life != life or target.is_stuck
        if refused or target.trust.standing(node.id, target.local_ms()) is Standing.OUT:
            self._dial_failed(node, life, target.id)
            return
        conn = Conn(node, target, self.now_ms)
        if not self._takes(target, node, conn, outbound=False):
            self.after(self.latency_ms(), self._dial_failed, node, life, target.id)
            return
        target.feed(PeerConnected(node.id, node.entry.addresses, node.dialable, False))
        delay_ms = self.latency_ms()
        conn.last_ms[1] = self.now_ms + delay_ms
        self.after(delay_ms, self._established, conn, life)

    def _established(self, conn: Conn, life: int) -> None:
        node, target = conn.dialler, conn.acceptor
        if not node.is_up or node.life != life:
            return
        if not conn.is_open or not self._takes(node, target, conn, outbound=True):
            self.close(node, conn)
            node.feed(DialFailed(target.id))
            return
        node.feed(PeerConnected(target.id, target.entry.addresses, target.dialable, True))

    def _takes(self, node: SimNode, peer: SimNode, conn: Conn, *, outbound: bool) -> bool:
        """The driver's rule for a second connection to the same peer."""
        existing = node.conns.get(peer.id)
        if existing is not None and existing is not conn:
            if not keeps_new_connection(
                node.id,
                peer.id,
                existing_outbound=existing.dialler is node,
                existing_age_ms=self.now_ms - existing.since_ms,
                new_outbound=outbound,
            ):
                return False
            self.close(node, existing)
        node.conns[peer.id] = conn
        return True

    def close(self, node: SimNode, conn: Conn) -> None:
        """`node` ends a connection: the other side is told, if word reaches it."""
        other = conn.other(node)
        if node.conns.get(other.id) is conn:
            del node.conns[other.id]
        if conn.is_open:
            conn.is_open = False
            self.after(self.latency_ms(), self._closed, other, other.life, node, conn)

    def _closed(self, node: SimNode, life: int, other: SimNode, conn: Conn) -> None:
        if node.is_up and node.life == life and node.group == other.group and node.conns.get(other.id) is conn:
            del node.conns[other.id]
            node.feed(PeerLost(other.id, "closed by peer"))

    # ------------------------------------------------------------------ messages

    def send(self, node: SimNode, peer: bytes, message: Any) -> None:
        conn = node.conns.get(peer)
        if conn is None:
            return
        node.sent_messages += 1
        size_bytes = self._size(message)
        node.sent_bytes += size_bytes
        self.bytes_of[type(message)] += size_bytes
        faults = self.faults
        random = self.rng.random
        if faults.loss and random() < faults.loss:
            self.lost_messages += 1
            return
        target = conn.acceptor if node is conn.dialler else conn.dialler
        low, high = faults.latency_ms
        time_ms = self.now_ms + node.slow_ms + target.slow_ms + low + int(random() * (high - low))
        direction = 0 if target is conn.acceptor else 1
        if not faults.reorder or random() >= faults.reorder:
            time_ms = conn.last_ms[direction] = max(time_ms, conn.last_ms[direction])
        self._order += 1
        heapq.heappush(self._queue, (time_ms, self._order, self._deliver, (conn, target, node, message)))
        if faults.duplicate and random() < faults.duplicate:
            self.at(time_ms + self.latency_ms(), self._deliver, conn, target, node, message)

    def _deliver(self, conn: Conn, target: SimNode, source: SimNode, message: Any) -> None:
        if not conn.is_open or target.conns.get(source.id) is not conn:
            return
        if not self.can_talk(source, target) or target.is_stuck:
            return
        if self._reader is not None:
            message = self._reader.read(encode_message(message)[FRAME_PREFIX_BYTES:])
            if message is None:
                return
        if self._hash is not None:
            self._hash.update(b"%d %d %d " % (self.now_ms, source.number, target.number))
            self._hash.update(self._encoder.encode(message))
        target.feed(MessageReceived(source.id, message))

    def _size(self, message: Any) -> int:
        if self._sized[0] is not message:
            self._sized = (message, len(self._encoder.encode(message)) + FRAME_PREFIX_BYTES)
        return self._sized[1]
