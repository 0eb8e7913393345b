"""The gossip machine: overlay, failure detector, broadcast tree, reconciliation and acceptance of records, as one.

Owns the order in which an event passes through the parts, and what follows in one from a change in another. Driven by
`handle` (see events.py); the parts share its effect list. Must not know sockets, clocks, threads, or what payloads mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentmesh.mesh.logic.allowance import Allowance
from agentmesh.mesh.logic.broadcast import Broadcast
from agentmesh.mesh.logic.chance import Chance
from agentmesh.mesh.logic.events import (
    ClosePeer,
    DialFailed,
    DropRecords,
    Effect,
    Event,
    LinkUsed,
    MessageReceived,
    NodeId,
    PeerConnected,
    PeerLost,
    PeersLearned,
    PeerState,
    ReconcileStepped,
    RecordCreated,
    SendMessage,
    SendRecords,
    StoreRecords,
    TimePassed,
)
from agentmesh.mesh.logic.exchange import Exchange
from agentmesh.mesh.logic.gossip_config import FLOOD, FORGED, OUT, GossipConfig
from agentmesh.mesh.logic.gossip_stats import GossipStats
from agentmesh.mesh.logic.inbox import Inbox, Outcome
from agentmesh.mesh.logic.limits import MAX_BLAME, PRESENCE_RECORDS
from agentmesh.mesh.logic.membership import Membership
from agentmesh.mesh.logic.messages import (
    Disconnect,
    ForwardJoin,
    Goodbye,
    Gossip,
    Graft,
    IHave,
    Join,
    Neighbour,
    NeighbourReply,
    PeerEntry,
    Ping,
    Pong,
    ProbeRequest,
    ProbeResult,
    Prune,
    Reconcile,
    RecordBatch,
    Refutation,
    Shuffle,
    ShuffleReply,
    Suspicion,
    WantRecords,
)
from agentmesh.mesh.logic.overlay import Overlay
from agentmesh.mesh.logic.packing import batches, split_ids
from agentmesh.mesh.logic.record import Record, Verify
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.logic.snapshot import Snapshot
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.logic.trust import Trust


class GossipMachine:
    """One node's gossip. `index` and `trust` are the node's own and changed by nobody else."""

    def __init__(
        self,
        entry: PeerEntry,
        index: RecordIndex,
        trust: Trust,
        verify: Verify,
        *,
        rng: Chance,
        config: GossipConfig | None = None,
    ) -> None:
        config = config or GossipConfig()
        self.self_id: NodeId = entry.node
        self.stats = GossipStats()
        self._config = config
        self._index = index
        self._trust = trust
        self._now_ms = 0
        self._inbox = Inbox(trust.mesh, index, trust, verify)
        self._overlay = Overlay(entry, config, rng)
        self._membership = Membership(entry.node, config, rng, self._overlay.active.__contains__)
        self._broadcast = Broadcast(config, lambda id_: self._inbox.has(id_, self._now_ms))
        self._exchange = Exchange(entry.node, config, rng)
        self._allowances: dict[NodeId, Allowance] = {}
        self._expire_ms = 0
        self._on_event_type = self._event_handlers()
        self._on_message_type = self._message_handlers()

    # ------------------------------------------------------------------ the driver's side

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Take in one event; returns what to do about it, in order."""
        self._now_ms = now_ms
        out: list[Effect] = []
        self._on_event_type[type(event)](event, now_ms, out)
        if self._overlay.changes:
            self._follow_overlay(out)
        return out

    def next_deadline_ms(self) -> int | None:
        """When to call with TimePassed at the latest; None before the first peer is known."""
        parts = (self._membership, self._overlay, self._broadcast, self._exchange, self._inbox.pool)
        deadlines = [part.deadline_ms for part in parts if part.deadline_ms is not None]
        if self._expire_ms:
            deadlines.append(self._expire_ms)
        return min(deadlines, default=None)

    def snapshot(self, now_ms: int) -> Snapshot:
        """What a StepReconcile effect is computed on: the lasting records, and ids not to ask for."""
        return self._inbox.snapshot(now_ms)

    def set_entry(self, entry: PeerEntry) -> None:
        """How others may reach this node: it learnt of a new address, or whether it can be dialled."""
        self._overlay.entry = entry

    def farewell(self, reason: str) -> list[Effect]:
        """Goodbyes to all peers, before the driver closes their connections."""
        return [SendMessage(peer, Goodbye(reason)) for peer in self._overlay.linked()]

    # ------------------------------------------------------------------ questions

    def active_peers(self) -> tuple[NodeId, ...]:
        return tuple(self._overlay.active)

    def peer_states(self) -> Mapping[NodeId, PeerState]:
        """Connected peers, and those lately lost."""
        return self._membership.states()

    def known_peers(self) -> tuple[PeerEntry, ...]:
        """Dialable peers worth keeping in the known-peers file, newest last."""
        return self._overlay.book.known()

    def clock_offset_ms(self) -> int:
        """How far the peers' clocks are ahead of ours, by their median."""
        return self._membership.clock_offset_ms()

    def waiting_records(self) -> int:
        """Records that are "not yet"."""
        return len(self._inbox.pool)

    def is_banned(self, peer: NodeId, now_ms: int) -> bool:
        """Whether a connection of this peer would be closed at once."""
        return self._overlay.book.is_banned(peer, now_ms)

    # ------------------------------------------------------------------ links

    def _on_connected(self, event: PeerConnected, now_ms: int, out: list[Effect]) -> None:
        peer = event.peer
        if peer == self.self_id or self._overlay.book.is_banned(peer, now_ms):
            out.append(ClosePeer(peer, FORGED))
            return
        if self._trust.standing(peer, now_ms) is Standing.OUT:
            out.append(ClosePeer(peer, OUT))
            return
        first = not self._overlay.active
        self._allowances[peer] = Allowance(now_ms)
        self._membership.connected(peer, now_ms, out)
        self._overlay.connected(PeerEntry(peer, event.addresses, event.dialable), event.outbound, now_ms, out)
        self._exchange.connected(peer, event.outbound, now_ms, out)
        if first:
            self._tell_own_presence(peer, out)

    def _tell_own_presence(self, peer: NodeId, out: list[Effect]) -> None:
        """What we said of ourselves while alone was heard by nobody."""
        own = [id_ for id_ in self._index.passing() if (e := self._index.entry(id_)) and e.author == self.self_id]
        if own:
            out.append(SendRecords(peer, tuple(own)))

    def _on_lost(self, event: PeerLost, now_ms: int, out: list[Effect]) -> None:
        """The end of a neighbour's link is a reason to suspect it; of any other link it is not."""
        self._forget(event.peer, event.peer not in self._overlay.active, now_ms, out)

    def _forget(self, peer: NodeId, clean: bool, now_ms: int, out: list[Effect]) -> None:
        self._allowances.pop(peer, None)
        self._membership.lost(peer, clean, now_ms, out)
        self._overlay.lost(peer, clean, now_ms, out)
        self._exchange.lost(peer, out)

    def _close(self, peer: NodeId, reason: str, now_ms: int, out: list[Effect]) -> None:
        if self._overlay.is_linked(peer):
            out.append(ClosePeer(peer, reason))
            self._forget(peer, True, now_ms, out)

    def _follow_overlay(self, out: list[Effect]) -> None:
        changes, self._overlay.changes = self._overlay.changes, []
        for node, is_up in changes:
            if is_up:
                self._broadcast.neighbour_up(node)
            else:
                self._broadcast.neighbour_down(node)

    # ------------------------------------------------------------------ records

    def _on_created(self, event: RecordCreated, now_ms: int, out: list[Effect]) -> None:
        outcome = self._inbox.own(event.record, self.self_id, now_ms)
        own, outcome.fresh = outcome.fresh, []
        if not (own or outcome.repeats or event.record.id in self._inbox.pool):
            outcome.dropped.setdefault(event.record.id, "it does not count: over quota, or replaced by a newer one")
        self._push(own, None, 1, now_ms, out)
        if own:
            self._broadcast.announce_own([record.id for record in own], now_ms)
        self._act_on(outcome, None, now_ms, out)

    def _on_gossip(self, peer: NodeId, message: Gossip, now_ms: int, out: list[Effect]) -> None:
        hop = min(max(message.hop, 1), 1_000)
        outcome = self._inbox.receive(message.records, peer, now_ms)
        stats = self.stats
        stats.payloads += len(message.records)
        stats.duplicates += len(outcome.repeats)
        if outcome.fresh:
            stats.first_payloads += len(outcome.fresh)
            stats.hops += hop * len(outcome.fresh)
            stats.last_hop = max(stats.last_hop, hop)
            out.append(StoreRecords(tuple(outcome.fresh)))
            for record in outcome.fresh:
                self._broadcast.delivered(record.id, peer, hop)
            self._push(outcome.fresh, peer, hop + 1, now_ms, out)
        elif outcome.repeats and not any(self._broadcast.is_repeat(id_, peer) for id_ in outcome.repeats):
            self._broadcast.duplicate(peer, out)
        if peer not in self._overlay.active:
            self._overlay.on_stray(peer, now_ms, out)
        stats.accepted += len(outcome.fresh)
        outcome.fresh = []
        self._act_on(outcome, peer, now_ms, out)

    def _on_batch(self, peer: NodeId, message: RecordBatch, now_ms: int, out: list[Effect]) -> None:
        self.stats.batched += len(message.records)
        self._exchange.batch_came(peer, now_ms)
        self._act_on(self._inbox.receive(message.records, peer, now_ms), peer, now_ms, out)

    def _push(self, records: Sequence[Record], source: NodeId | None, hop: int, now_ms: int, out: list[Effect]) -> None:
        """New records along the tree: payloads to eager neighbours, ids to the others."""
        if not records:
            return
        targets = self._broadcast.push_targets(source)
        for piece in batches([record.signed for record in records]):
            message = Gossip(piece, hop)
            out.extend(SendMessage(target, message) for target in targets)
        self._broadcast.announce_new([record.id for record in records], hop, source, now_ms)

    def _act_on(self, outcome: Outcome, peer: NodeId | None, now_ms: int, out: list[Effect]) -> None:
        """Everything that follows from judged records except the tree's part. `peer` brought the fresh ones."""
        found = (*outcome.fresh, *outcome.revived)
        if found:
            self.stats.accepted += len(found)
            out.append(StoreRecords(found))
            for record in found:
                self._broadcast.settled(record.id)
            source = None if outcome.revived else peer
            if not self._broadcast.announce_fetched([record.id for record in found], source, now_ms):
                self._exchange.spread(list(self._overlay.active), source, now_ms)
        self._drop(outcome.dropped, out)
        if peer is not None and outcome.unplaced:
            self._exchange.want_soon(peer, now_ms)
        self.stats.refused += outcome.refused
        for author in outcome.out:
            self._close(author, OUT, now_ms, out)
        for source, count in outcome.blame.items():
            self._blame(source, count, now_ms, out)

    def _drop(self, dropped: Mapping[bytes, str], out: list[Effect]) -> None:
        by_reason: dict[str, list[bytes]] = {}
        for id_, reason in dropped.items():
            by_reason.setdefault(reason, []).append(id_)
        out.extend(DropRecords(tuple(ids), reason) for reason, ids in by_reason.items())

    def _blame(self, peer: NodeId, records: int, now_ms: int, out: list[Effect]) -> None:
        self.stats.blamed += records
        if self._inbox.add_blame(peer, records, now_ms) >= MAX_BLAME:
            self._close(peer, FORGED, now_ms, out)
            self._overlay.book.ban(peer, now_ms)

    # ------------------------------------------------------------------ messages

    def _on_message(self, event: MessageReceived, now_ms: int, out: list[Effect]) -> None:
        peer = event.peer
        allowance = self._allowances.get(peer)
        if allowance is None:
            return
        if not allowance.message(now_ms):
            self._close(peer, FLOOD, now_ms, out)
            self._overlay.book.ban(peer, now_ms)
            return
        self._membership.heard(peer, now_ms, out)
        self._on_message_type[type(event.message)](peer, event.message, now_ms, out)

    def _on_ping(self, peer: NodeId, message: Ping, now_ms: int, out: list[Effect]) -> None:
        self._membership.on_ping(peer, message, now_ms, out)
        self._overlay.on_claim(peer, message.neighbour, now_ms, out)

    def _on_pong(self, peer: NodeId, message: Pong, now_ms: int, out: list[Effect]) -> None:
        self._membership.on_pong(peer, message, now_ms, out)
        self._overlay.on_claim(peer, message.neighbour, now_ms, out)

    def _on_ihave(self, peer: NodeId, message: IHave, now_ms: int, out: list[Effect]) -> None:
        if peer in self._overlay.active:
            self._broadcast.on_ihave(peer, message, now_ms)
        else:
            self._overlay.on_stray(peer, now_ms, out)

    def _on_graft(self, peer: NodeId, message: Graft, now_ms: int, out: list[Effect]) -> None:
        self._broadcast.on_graft(peer, self._granted(peer, message.ids, now_ms), out)
        if peer not in self._overlay.active:
            self._overlay.on_stray(peer, now_ms, out)

    def _on_prune(self, peer: NodeId, message: Prune, now_ms: int, out: list[Effect]) -> None:
        self._broadcast.on_prune(peer)

    def _on_want(self, peer: NodeId, message: WantRecords, now_ms: int, out: list[Effect]) -> None:
        if message.ids:
            ids = self._granted(peer, message.ids, now_ms)
        elif self._exchange.may_have_presence(peer, now_ms):
            ids = list(self._index.passing()[:PRESENCE_RECORDS])
        else:
            ids = []
        if ids:
            out.append(SendRecords(peer, tuple(ids)))

    def _granted(self, peer: NodeId, ids: bytes, now_ms: int) -> list[bytes]:
        """Which of the records that a peer asks for it is given: those here, as far as its allowance goes."""
        return self._allowances[peer].grant([id_ for id_ in split_ids(ids) if id_ in self._index], now_ms)

    def _on_goodbye(self, peer: NodeId, message: Goodbye, now_ms: int, out: list[Effect]) -> None:
        self._close(peer, "it said goodbye", now_ms, out)

    # ------------------------------------------------------------------ time

    def _on_time(self, event: TimePassed, now_ms: int, out: list[Effect]) -> None:
        for peer in self._membership.tick(now_ms, out):
            self._forget(peer, False, now_ms, out)
        for peer in self._overlay.tick(now_ms, out):
            self._forget(peer, True, now_ms, out)
        if self._overlay.changes:
            self._follow_overlay(out)
        self._broadcast.tick(now_ms, out)
        self._exchange.tick(now_ms, out)
        pool_ms = self._inbox.pool.deadline_ms
        if pool_ms is not None and pool_ms <= now_ms:
            self._act_on(self._inbox.tick(now_ms), None, now_ms, out)
        if self._expire_ms <= now_ms:
            self._expire_ms = now_ms + self._config.expire_every_ms
            self._act_on(self._inbox.expire(now_ms), None, now_ms, out)

    # ------------------------------------------------------------------ who handles what

    def _event_handlers(self) -> dict[type, Callable[[Any, int, list[Effect]], None]]:
        return {
            PeerConnected: self._on_connected,
            PeerLost: self._on_lost,
            DialFailed: lambda event, now_ms, out: self._overlay.dial_failed(event.peer, now_ms, out),
            PeersLearned: lambda event, now_ms, out: self._overlay.learned(event.entries, now_ms, out),
            MessageReceived: self._on_message,
            RecordCreated: self._on_created,
            ReconcileStepped: self._exchange.stepped,
            LinkUsed: lambda event, now_ms, _: self._overlay.link_used(event.peer, event.streams, now_ms),
            TimePassed: self._on_time,
        }

    def _message_handlers(self) -> dict[type, Callable[[NodeId, Any, int, list[Effect]], None]]:
        membership, overlay = self._membership, self._overlay
        return {
            Ping: self._on_ping,
            Pong: self._on_pong,
            ProbeRequest: membership.on_probe_request,
            ProbeResult: membership.on_probe_result,
            Suspicion: membership.on_suspicion,
            Refutation: membership.on_refutation,
            Join: overlay.on_join,
            ForwardJoin: overlay.on_forward_join,
            Neighbour: overlay.on_neighbour,
            NeighbourReply: overlay.on_neighbour_reply,
            Disconnect: overlay.on_disconnect,
            Shuffle: overlay.on_shuffle,
            ShuffleReply: overlay.on_shuffle_reply,
            Gossip: self._on_gossip,
            IHave: self._on_ihave,
            Graft: self._on_graft,
            Prune: self._on_prune,
            Reconcile: self._exchange.on_reconcile,
            RecordBatch: self._on_batch,
            WantRecords: self._on_want,
            Goodbye: self._on_goodbye,
        }
