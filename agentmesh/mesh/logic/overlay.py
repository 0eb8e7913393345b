"""The overlay: HyParView (Leitão, Pereira, Rodrigues 2007) with nodes that cannot be dialled.

Owns which links exist and which of them are active (both ends agree to be neighbours; the broadcast tree runs over these).
Where it differs from the paper: nodes behind NAT never count against a dialable node's active view and are never evicted
at random; small meshes connect fully; lost peers are sought for days, because two halves of a split mesh whose views are
full would otherwise never look for each other; a shuffle's reply walks back, as its origin may not be dialable.
Must not know records, the tree, or who is alive (membership.py).
"""

from __future__ import annotations

from agentmesh.mesh.logic.addressbook import AddressBook
from agentmesh.mesh.logic.chance import Chance
from agentmesh.mesh.logic.events import ClosePeer, DialPeer, Effect, NodeId, SendMessage
from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.limits import (
    ACTIVE_WALK,
    DIAL_BACKOFF_MAX_MS,
    DIAL_TIMEOUT_MS,
    MAX_DIALS,
    NEIGHBOUR_ATTEMPTS,
    NEIGHBOUR_TIMEOUT_MS,
    PASSIVE_WALK,
)
from agentmesh.mesh.logic.messages import (
    Disconnect,
    ForwardJoin,
    Join,
    Neighbour,
    NeighbourReply,
    PeerEntry,
    Shuffle,
    ShuffleReply,
)
from agentmesh.mesh.logic.overlay_link import Link, keeps_new_connection
from agentmesh.mesh.logic.shuffle import Shuffler

__all__ = ["Overlay", "keeps_new_connection"]

_TICK_MS = 1_000
_ROBUST = 3  # with this many neighbours a node is in no hurry to find more
_REFUSAL_WAIT_MS = 5_000
_EVICTED_WAIT_MS = 10_000


class Overlay:
    """`changes` collects (node, up?) of the active view for the broadcast tree; its reader empties it."""

    def __init__(self, entry: PeerEntry, config: GossipConfig, rng: Chance) -> None:
        self.entry = entry
        self.book = AddressBook(entry.node, config, rng)
        self.active: dict[NodeId, PeerEntry] = {}
        self.changes: list[tuple[NodeId, bool]] = []
        self.deadline_ms: int | None = None
        self._config = config
        self._rng = rng
        self._links: dict[NodeId, Link] = {}
        self._dialling: dict[NodeId, tuple[int, bool]] = {}  # node -> (deadline, for its own sake: it was lost)
        self._dialable_active = 0
        self._seek_ms = 0
        self._seek_wait_ms = _REFUSAL_WAIT_MS
        self._reach_ms = 0
        self._shuffler = Shuffler(entry.node, self.active, self._is_small, book=self.book, config=config, rng=rng)

    # ------------------------------------------------------------------ questions

    def is_linked(self, node: NodeId) -> bool:
        return node in self._links

    def linked(self) -> list[NodeId]:
        return list(self._links)

    def capacity(self) -> int:
        """How many dialable neighbours to have: all of a small mesh, ACTIVE_VIEW of a larger one."""
        return self._config.full_mesh_below - 1 if self._is_small() else self._config.active_view

    def _is_small(self) -> bool:
        seen = len(self._links) + 1
        return (
            seen < self._config.full_mesh_below and seen + self.book.living(self._links) < self._config.full_mesh_below
        )

    # ------------------------------------------------------------------ links

    def learned(self, entries: tuple[PeerEntry, ...], now_ms: int, out: list[Effect]) -> None:
        self.book.learn(entries)
        self._start(now_ms)
        self._seek_ms = 0
        self._seek(now_ms, out)

    def connected(self, entry: PeerEntry, outbound: bool, now_ms: int, out: list[Effect]) -> None:
        """A link is up, perhaps replacing an older one to the same peer, whose state is then void."""
        self._start(now_ms)
        self._stay_awake(now_ms)
        if entry.node in self._links:
            self._drop_link(entry.node)
        wanted = self._dialling.pop(entry.node, None)
        self.book.met(entry)
        link = self._links[entry.node] = Link(entry, outbound, now_ms)
        if outbound and (wanted is not None or self._missing() > 0):
            sought = wanted is not None and wanted[1]
            self._ask(entry.node, link, sought or self._dialable_active < 2, now_ms, out)

    def lost(self, node: NodeId, clean: bool, now_ms: int, out: list[Effect]) -> None:
        """A link ended; `clean` if the peer said goodbye or the link was no neighbour's."""
        if node not in self._links:
            return
        self._drop_link(node)
        if clean:
            self.book.refused(node, _EVICTED_WAIT_MS, now_ms)
        else:
            self.book.lost(node, now_ms)
            self._seek_ms = 0
        self._seek(now_ms, out)

    def dial_failed(self, node: NodeId, now_ms: int, out: list[Effect]) -> None:
        if self._dialling.pop(node, None) is None or node in self._links:
            return
        self.book.failed(node, now_ms)
        self._seek(now_ms, out)

    # ------------------------------------------------------------------ messages

    def on_join(self, peer: NodeId, message: Join, now_ms: int, out: list[Effect]) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        entry = self._refresh(link, message.entry)
        news = not link.active
        accepted = self._accept(peer, link, True, now_ms)
        out.append(SendMessage(peer, NeighbourReply(accepted)))
        if not news:
            return
        out.append(SendMessage(peer, ShuffleReply(self._shuffler.sample(peer), peer)))
        if accepted:
            self._evict_surplus(peer, now_ms, out)
        if entry.dialable and entry.addresses:
            walk = ForwardJoin(entry, ACTIVE_WALK)
            out.extend(
                SendMessage(node, walk) for node, other in self.active.items() if node != peer and other.dialable
            )

    def on_forward_join(self, peer: NodeId, message: ForwardJoin, now_ms: int, out: list[Effect]) -> None:
        node = message.entry.node
        if node == self.entry.node or len(node) != len(self.entry.node):
            return
        ttl = min(message.ttl, ACTIVE_WALK)
        others = [other for other, entry in self.active.items() if entry.dialable and other not in (peer, node)]
        if ttl > 0 and others:
            if ttl == PASSIVE_WALK:
                self.book.add_passive(message.entry)
            out.append(SendMessage(others[self._rng.randrange(len(others))], ForwardJoin(message.entry, ttl - 1)))
        elif node not in self._links:
            self.book.add_passive(message.entry)
            # The walk's end becomes a neighbour even of a full view (paper, 4.2): that is what mixes newcomers in.
            self._dial(node, False, now_ms, out)

    def on_neighbour(self, peer: NodeId, message: Neighbour, now_ms: int, out: list[Effect]) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        self._refresh(link, message.entry)
        accepted = self._accept(peer, link, message.high_priority, now_ms)
        out.append(SendMessage(peer, NeighbourReply(accepted)))
        if accepted:
            self._evict_surplus(peer, now_ms, out)
        else:
            self.book.add_passive(link.entry)

    def on_neighbour_reply(self, peer: NodeId, message: NeighbourReply, now_ms: int, out: list[Effect]) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        if message.accepted:
            self._activate(peer, link, now_ms)
            self._evict_surplus(peer, now_ms, out)
        elif not link.active:
            self._refused(peer, link, now_ms, out)

    def on_disconnect(self, peer: NodeId, message: Disconnect, now_ms: int, out: list[Effect]) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        if link.active:
            self._deactivate(peer, link, now_ms)
            self.book.refused(peer, _EVICTED_WAIT_MS, now_ms)
        if message.alive:
            self.book.add_passive(link.entry)
        self._seek(now_ms, out)

    def on_stray(self, peer: NodeId, now_ms: int, out: list[Effect]) -> None:
        """A tree message from somebody who is not our neighbour: a reply or a Disconnect got lost. Say it again."""
        link = self._links.get(peer)
        if link is None or link.active or link.asked_ms or now_ms - link.told_ms < NEIGHBOUR_TIMEOUT_MS:
            return
        link.told_ms = now_ms
        out.append(SendMessage(peer, Disconnect(True)))

    def on_claim(self, peer: NodeId, neighbour: bool | None, now_ms: int, out: list[Effect]) -> None:
        """A peer says whether we are its neighbour. Where the two views differ, the link is nobody's."""
        link = self._links.get(peer)
        if link is None or neighbour is None or neighbour == link.active:
            return
        if neighbour:
            self.on_stray(peer, now_ms, out)
        elif now_ms - link.changed_ms >= NEIGHBOUR_TIMEOUT_MS:
            self._deactivate(peer, link, now_ms)
            self._seek(now_ms, out)

    def link_used(self, peer: NodeId, streams: int, now_ms: int) -> None:
        """Streams began or ended on a link, which stays while it carries any, and its time of grace after them."""
        link = self._links.get(peer)
        if link is not None:
            link.streams = max(0, link.streams + streams)  # those of an earlier connection may end late
            if not link.active:
                link.changed_ms = now_ms

    def on_shuffle(self, peer: NodeId, message: Shuffle, now_ms: int, out: list[Effect]) -> None:
        if self._shuffler.on_shuffle(peer, message, out):
            self._shuffler.integrate((message.origin, *message.entries))
            self._seek(now_ms, out)

    def on_shuffle_reply(self, peer: NodeId, message: ShuffleReply, now_ms: int, out: list[Effect]) -> None:
        if self._shuffler.on_reply(message, self._links, out):
            self._shuffler.integrate(message.entries)
            self._seek(now_ms, out)

    # ------------------------------------------------------------------ time

    def tick(self, now_ms: int, out: list[Effect]) -> tuple[NodeId, ...]:
        """Repair what is missing. Returns the peers whose idle link was closed (their ClosePeer is in `out`)."""
        if self.deadline_ms is None or now_ms < self.deadline_ms:
            return ()
        for node in [node for node, (deadline_ms, _) in self._dialling.items() if deadline_ms <= now_ms]:
            self.dial_failed(node, now_ms, out)
        closed: list[NodeId] = []
        for node, link in list(self._links.items()):
            if link.asked_ms and link.asked_ms <= now_ms:
                self._ask_again(node, link, now_ms, out)
            elif (
                not link.active
                and not link.asked_ms
                and not link.streams
                and now_ms - link.changed_ms >= self._config.linger_ms
            ):
                closed.append(node)
        for node in closed:
            self._drop_link(node)
            out.append(ClosePeer(node, "not a neighbour any more"))
        self._seek(now_ms, out)
        if self._reach_ms <= now_ms:
            self._reach(now_ms, out)
        if self._shuffler.due_ms <= now_ms and self.active:
            self._shuffler.shuffle(self.entry, now_ms, out)
        calm = not self._dialling and len(self.active) == len(self._links) and self._missing() <= 0
        self.deadline_ms = min(self._reach_ms, self._shuffler.due_ms) if calm else now_ms + _TICK_MS
        return tuple(closed)

    def _stay_awake(self, now_ms: int) -> None:
        """There is something to watch or to repair: tick soon."""
        if self.deadline_ms is not None:
            self.deadline_ms = min(self.deadline_ms, now_ms + _TICK_MS)

    # ------------------------------------------------------------------ seeking neighbours

    def _start(self, now_ms: int) -> None:
        if self.deadline_ms is None:
            self.deadline_ms = now_ms + 1 + self._rng.randrange(_TICK_MS)
            self._reach_ms = now_ms + self._rng.randrange(self._config.reach_every_ms)
            self._shuffler.start(now_ms)

    def _missing(self) -> int:
        asked = sum(1 for link in self._links.values() if link.asked_ms and link.entry.dialable)
        return self.capacity() - self._dialable_active - asked - len(self._dialling)

    def _seek(self, now_ms: int, out: list[Effect]) -> None:
        self._stay_awake(now_ms)
        if self._seek_ms > now_ms:
            return
        missing = self._missing()
        if missing <= 0:
            return
        for node in self.book.candidates(not self.active, now_ms):
            if missing <= 0:
                return
            link = self._links.get(node)
            if link is None:
                missing -= self._dial(node, False, now_ms, out)
            elif not link.active and not link.asked_ms:
                self._ask(node, link, self._dialable_active < 2, now_ms, out)
                missing -= 1

    def _reach(self, now_ms: int, out: list[Effect]) -> None:
        """Look for one lost peer: when it answers, a partition has healed."""
        every_ms = self._config.reach_every_ms
        self._reach_ms = now_ms + every_ms // 2 + self._rng.randrange(every_ms)
        lost = [node for node in self.book.lost_candidates(now_ms) if node not in self._links]
        if lost:
            self._dial(lost[self._rng.randrange(len(lost))], True, now_ms, out)

    def _dial(self, node: NodeId, sought: bool, now_ms: int, out: list[Effect]) -> int:
        """1 if it is being dialled now."""
        entry = self.book.entry(node)
        if entry is None or not entry.dialable or not entry.addresses:
            return 0
        if node in self._dialling or node in self._links or len(self._dialling) >= MAX_DIALS:
            return 0
        self._stay_awake(now_ms)
        self._dialling[node] = (now_ms + DIAL_TIMEOUT_MS, sought)
        out.append(DialPeer(node, entry.addresses))
        return 1

    def _ask(self, node: NodeId, link: Link, high_priority: bool, now_ms: int, out: list[Effect]) -> None:
        link.asked_ms = now_ms + NEIGHBOUR_TIMEOUT_MS
        link.attempts += 1
        link.high_priority = high_priority
        greeting = Neighbour(self.entry, high_priority) if self.active else Join(self.entry)
        out.append(SendMessage(node, greeting))

    def _ask_again(self, node: NodeId, link: Link, now_ms: int, out: list[Effect]) -> None:
        if link.attempts < NEIGHBOUR_ATTEMPTS:
            self._ask(node, link, link.high_priority, now_ms, out)
        else:
            self._refused(node, link, now_ms, out)

    def _refused(self, node: NodeId, link: Link, now_ms: int, out: list[Effect]) -> None:
        link.asked_ms = link.attempts = 0
        link.changed_ms = now_ms
        self.book.refused(node, _REFUSAL_WAIT_MS if self.active else NEIGHBOUR_TIMEOUT_MS, now_ms)
        if self._dialable_active >= _ROBUST:
            # In a mesh whose views are full somebody is always one short: no reason to dial it from end to end.
            self._seek_ms = now_ms + self._seek_wait_ms
            self._seek_wait_ms = min(DIAL_BACKOFF_MAX_MS, 2 * self._seek_wait_ms)
        self._seek(now_ms, out)

    # ------------------------------------------------------------------ the active view

    def _accept(self, node: NodeId, link: Link, high_priority: bool, now_ms: int) -> bool:
        if link.active:
            return True
        if link.entry.dialable:
            accepted = high_priority or self._dialable_active < self.capacity()
        else:
            # Also when asked urgently: beyond this a hub serves nobody well, and other dialable nodes have room.
            accepted = len(self.active) - self._dialable_active < self._config.undialable_neighbours
        if accepted:
            self._activate(node, link, now_ms)
        return accepted

    def _activate(self, node: NodeId, link: Link, now_ms: int) -> None:
        link.asked_ms = link.attempts = 0
        if link.active:
            return
        link.active = True
        link.changed_ms = now_ms
        self.active[node] = link.entry
        self._dialable_active += link.entry.dialable
        self.book.remove_passive(node)
        self.changes.append((node, True))
        self._stay_awake(now_ms)
        self._seek_wait_ms = _REFUSAL_WAIT_MS
        self._shuffler.hasten(now_ms)

    def _deactivate(self, node: NodeId, link: Link, now_ms: int) -> None:
        link.active = False
        link.changed_ms = now_ms
        self._stay_awake(now_ms)
        del self.active[node]
        self._dialable_active -= link.entry.dialable
        self.changes.append((node, False))

    def _evict_surplus(self, newcomer: NodeId, now_ms: int, out: list[Effect]) -> None:
        """Random dialable neighbours make room; undialable ones have fewer places to go and take none."""
        while self._dialable_active > self.capacity():
            others = [node for node, entry in self.active.items() if entry.dialable and node != newcomer]
            if not others:
                return
            node = others[self._rng.randrange(len(others))]
            link = self._links[node]
            self._deactivate(node, link, now_ms)
            out.append(SendMessage(node, Disconnect(True)))
            self.book.add_passive(link.entry)
            self.book.refused(node, _EVICTED_WAIT_MS, now_ms)

    def _drop_link(self, node: NodeId) -> None:
        link = self._links[node]
        if link.active:
            self._deactivate(node, link, link.changed_ms)
        del self._links[node]

    def _refresh(self, link: Link, entry: PeerEntry) -> PeerEntry:
        """What a peer says of itself, for those who would dial it. Whether it is dialable is settled at connection."""
        if entry.node == link.entry.node and entry.addresses and link.entry.dialable:
            link.entry = PeerEntry(entry.node, entry.addresses, True)
            self.book.met(link.entry)
            if link.active:
                self.active[entry.node] = link.entry
        return link.entry
