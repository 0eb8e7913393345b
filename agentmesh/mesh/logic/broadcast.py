"""The broadcast tree: Plumtree (Leitão, Pereira, Rodrigues 2007) over the overlay's active view.

Owns which neighbours get payloads (eager) and which only ids (lazy), the ids announced but not yet here, and what is
announced to whom when. It never sees a record: the caller says which ids were new and asks where to send. Ids that came
by reconciliation are announced too, but fetched without touching the tree (`IHave.hop` 0). Must not know records or links.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from agentmesh.mesh.logic.events import Effect, NodeId, SendMessage, SendRecords
from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.limits import (
    ANNOUNCE_BURST,
    ANNOUNCE_OWN_AGAIN_MS,
    ANNOUNCE_PER_SECOND,
    ANNOUNCERS,
    DELIVERED_IDS,
    GRAFT_ATTEMPTS,
    MISSING_IDS,
)
from agentmesh.mesh.logic.messages import Graft, IHave, Prune, WantRecords
from agentmesh.mesh.logic.packing import join_ids, split_ids

_FETCHED = 0  # the hop of ids that did not come along the tree
_MAX_HOP = 1_000


@dataclass(slots=True)
class _Missing:
    """An id announced whose payload is not here. `due_ms` names its newest entry in the heap."""

    due_ms: int
    announcers: dict[NodeId, int] = field(default_factory=dict[NodeId, int])  # -> hop
    attempts: int = 0


class Broadcast:
    """`has(id)`: here, waiting to be judged, or refused lately: nothing to be asked for."""

    def __init__(self, config: GossipConfig, has: Callable[[bytes], bool]) -> None:
        self._config = config
        self._has = has
        self.eager: dict[NodeId, None] = {}
        self.lazy: dict[NodeId, None] = {}
        self._queues: dict[tuple[NodeId, int], list[bytes]] = {}
        self._flush_ms: int | None = None
        self._again: deque[tuple[int, tuple[bytes, ...]]] = deque(maxlen=ANNOUNCE_BURST)
        self._missing: dict[bytes, _Missing] = {}
        self._due: list[tuple[int, bytes]] = []
        self._delivered: dict[bytes, tuple[NodeId, int]] = {}  # id -> who brought it first, and its hop
        self._tokens = ANNOUNCE_BURST
        self._tokens_ms = 0
        self.deadline_ms: int | None = None
        self.grafts = 0
        self.prunes = 0

    # ------------------------------------------------------------------ neighbours

    def neighbour_up(self, peer: NodeId) -> None:
        """New links start eager; the first duplicate prunes them (paper, 3.2)."""
        self.lazy.pop(peer, None)
        self.eager[peer] = None

    def neighbour_down(self, peer: NodeId) -> None:
        self.eager.pop(peer, None)
        self.lazy.pop(peer, None)
        for key in [key for key in self._queues if key[0] == peer]:
            del self._queues[key]

    # ------------------------------------------------------------------ what arrived

    def is_repeat(self, record_id: bytes, peer: NodeId) -> bool:
        """Whether `peer` itself brought this record before: the network's repeat, not the tree's."""
        delivered = self._delivered.get(record_id)
        return delivered is not None and delivered[0] == peer

    def delivered(self, record_id: bytes, peer: NodeId, hop: int) -> None:
        """A payload that we lacked came along the tree."""
        while len(self._delivered) >= DELIVERED_IDS:
            del self._delivered[next(iter(self._delivered))]
        self._delivered[record_id] = (peer, hop)
        self._missing.pop(record_id, None)
        if peer in self.lazy:
            self._make_eager(peer)

    def settled(self, record_id: bytes) -> None:
        """No longer missing: it came another way, or was judged."""
        self._missing.pop(record_id, None)

    def duplicate(self, peer: NodeId, out: list[Effect]) -> None:
        """Nothing that the peer pushed was new: this link makes a cycle."""
        if peer in self.eager:
            del self.eager[peer]
            self.lazy[peer] = None
        self.prunes += 1
        out.append(SendMessage(peer, Prune()))

    def on_prune(self, peer: NodeId) -> None:
        if peer in self.eager:
            del self.eager[peer]
            self.lazy[peer] = None

    def on_graft(self, peer: NodeId, ids: Iterable[bytes], out: list[Effect]) -> None:
        """`ids`: those asked for that are here."""
        if peer in self.lazy:
            self._make_eager(peer)
        by_hop: dict[int, list[bytes]] = {}
        for record_id in ids:
            delivered = self._delivered.get(record_id)
            by_hop.setdefault(1 + (delivered[1] if delivered else 0), []).append(record_id)
        out.extend(SendRecords(peer, tuple(group), hop) for hop, group in by_hop.items())

    def on_ihave(self, peer: NodeId, message: IHave, now_ms: int) -> None:
        hop = min(max(message.hop, _FETCHED), _MAX_HOP)
        # What travels along the tree is about to come by itself; what was fetched only comes if asked for.
        wait_ms = self._config.graft_timeout_ms if hop else self._config.ihave_every_ms
        for record_id in split_ids(message.ids):
            missing = self._missing.get(record_id)
            if missing is None:
                if self._has(record_id):
                    continue
                if len(self._missing) >= MISSING_IDS:
                    return
                missing = self._missing[record_id] = _Missing(now_ms + wait_ms)
                heapq.heappush(self._due, (missing.due_ms, record_id))
                self._set_deadline()
            if len(missing.announcers) < ANNOUNCERS:
                missing.announcers.setdefault(peer, hop)

    # ------------------------------------------------------------------ what goes out

    def push_targets(self, source: NodeId | None) -> list[NodeId]:
        """Neighbours that get a new record's payload."""
        return [peer for peer in self.eager if peer != source]

    def announce_new(self, ids: Sequence[bytes], hop: int, source: NodeId | None, now_ms: int) -> None:
        """Ids of records just pushed, to the lazy neighbours."""
        for peer in self.lazy:
            if peer != source:
                self._queue(peer, hop, ids, now_ms)

    def announce_own(self, ids: Sequence[bytes], now_ms: int) -> None:
        """A record of our own is announced once more, to all neighbours: until one of them has it nobody else can repair it."""
        self._again.append((now_ms + ANNOUNCE_OWN_AGAIN_MS, tuple(ids)))
        self._set_deadline()

    def announce_fetched(self, ids: Sequence[bytes], source: NodeId | None, now_ms: int) -> bool:
        """Ids of records that did not come along the tree, to all neighbours; False if there were too many for that.

        After a heal thousands come at once. Announcing them all on every link would cost more than the records; the caller
        then reconciles with its neighbours, which costs what really differs.
        """
        refill = (now_ms - self._tokens_ms) * ANNOUNCE_PER_SECOND // 1000
        if refill > 0:
            self._tokens = min(ANNOUNCE_BURST, self._tokens + refill)
            self._tokens_ms = now_ms
        if len(ids) > self._tokens:
            return False
        self._tokens -= len(ids)
        for peer in (*self.eager, *self.lazy):
            if peer != source:
                self._queue(peer, _FETCHED, ids, now_ms)
        return True

    # ------------------------------------------------------------------ time

    def tick(self, now_ms: int, out: list[Effect]) -> None:
        """Send gathered announcements; ask for what was announced and did not come."""
        if self.deadline_ms is None or now_ms < self.deadline_ms:
            return
        while self._again and self._again[0][0] <= now_ms:
            _, ids = self._again.popleft()
            for peer in (*self.eager, *self.lazy):
                self._queue(peer, 1, ids, now_ms)
        if self._flush_ms is not None and self._flush_ms <= now_ms:
            self._flush(out)
        asks: dict[tuple[NodeId, bool], list[bytes]] = {}
        while self._due and self._due[0][0] <= now_ms:
            due_ms, record_id = heapq.heappop(self._due)
            missing = self._missing.get(record_id)
            if missing is not None and missing.due_ms == due_ms:
                self._ask(record_id, missing, now_ms, asks)
        for (peer, grafting), ids in asks.items():
            if grafting:
                self.grafts += 1
                self._make_eager(peer)
            message = Graft if grafting else WantRecords
            out.extend(SendMessage(peer, message(piece)) for piece in join_ids(ids))
        self._set_deadline()

    # ------------------------------------------------------------------ parts

    def _ask(
        self, record_id: bytes, missing: _Missing, now_ms: int, asks: dict[tuple[NodeId, bool], list[bytes]]
    ) -> None:
        """Ask the next announcer that is still a neighbour; give up after all, reconciliation repairs it."""
        usable = [peer for peer in missing.announcers if peer in self.eager or peer in self.lazy]
        if not usable or missing.attempts >= GRAFT_ATTEMPTS or self._has(record_id):
            del self._missing[record_id]
            return
        peer = usable[missing.attempts % len(usable)]
        missing.attempts += 1
        hop = missing.announcers[peer]
        # A fetch may queue behind a batch; a graft is answered at once.
        missing.due_ms = now_ms + (self._config.graft_retry_ms if hop else 4 * self._config.graft_retry_ms)
        heapq.heappush(self._due, (missing.due_ms, record_id))
        asks.setdefault((peer, hop > _FETCHED), []).append(record_id)

    def _make_eager(self, peer: NodeId) -> None:
        if self.lazy.pop(peer, self) is None:
            self.eager[peer] = None

    def _queue(self, peer: NodeId, hop: int, ids: Sequence[bytes], now_ms: int) -> None:
        queue = self._queues.get((peer, hop))
        if queue is None:
            self._queues[peer, hop] = list(ids)
        else:
            queue.extend(ids)
        if self._flush_ms is None:
            self._flush_ms = now_ms + self._config.ihave_every_ms
            self._set_deadline()

    def _flush(self, out: list[Effect]) -> None:
        for (peer, hop), ids in self._queues.items():
            out.extend(SendMessage(peer, IHave(piece, hop)) for piece in join_ids(ids))
        self._queues.clear()
        self._flush_ms = None

    def _set_deadline(self) -> None:
        deadline_ms = self._flush_ms
        if self._due and (deadline_ms is None or self._due[0][0] < deadline_ms):
            deadline_ms = self._due[0][0]
        if self._again and (deadline_ms is None or self._again[0][0] < deadline_ms):
            deadline_ms = self._again[0][0]
        self.deadline_ms = deadline_ms
