"""The nodes that the overlay could dial: HyParView's passive view, and the peers once met or named by the user.

Owns entries, dial backoff, who is lost and who is banned. Must not know links, messages, or why somebody is dialled.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from agentmesh.core.units import HOUR_MS
from agentmesh.mesh.logic.chance import Chance
from agentmesh.mesh.logic.events import NodeId
from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.limits import (
    BAN_MS,
    DIAL_BACKOFF_MAX_MS,
    DIAL_BACKOFF_MIN_MS,
    ISOLATED_BACKOFF_MAX_MS,
    KNOWN_PEERS,
    MAX_BOOTSTRAP_ADDRESSES,
)
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.record import KEY_BYTES

_MAX_ADDRESS_CHARS = 260  # a DNS name (253) and a port
_GHOST_FAILURES = 3  # dials that failed in a row before a node leaves the passive view
_LOST_MS = 48 * HOUR_MS  # a lost peer is sought this long: what it missed has expired by then


@dataclass(slots=True)
class Known:
    """One node we might dial. `keep`: met or named, so it outlives the passive view."""

    entry: PeerEntry
    keep: bool = False
    bootstrap: bool = False
    failures: int = 0
    retry_ms: int = 0
    lost_ms: int = 0  # when we lost it against our will; 0: not lost


class AddressBook:
    """Bounded by PASSIVE_VIEW and KNOWN_PEERS."""

    def __init__(self, self_id: NodeId, config: GossipConfig, rng: Chance) -> None:
        self._self_id = self_id
        self._passive_view = config.passive_view
        self._rng = rng
        self._known: dict[NodeId, Known] = {}
        self._passive: dict[NodeId, None] = {}
        self._banned: dict[NodeId, int] = {}

    # ------------------------------------------------------------------ what is known

    def learn(self, entries: Iterable[PeerEntry]) -> None:
        """Peers from a token, the known-peers file or discovery: never forgotten."""
        for entry in entries:
            clean = _sanitised(entry)
            if clean is None or clean.node == self._self_id:
                continue
            known = self._remember(clean)
            known.keep = known.bootstrap = True
            known.retry_ms = 0
            self.add_passive(clean)

    def met(self, entry: PeerEntry) -> None:
        """A connection proved this entry. The newest met is forgotten last."""
        clean = _sanitised(entry) or PeerEntry(entry.node, (), False)
        known = self._remember(clean)
        # A link that came in tells no address that we could dial: keep what we have.
        if clean.addresses or not known.entry.addresses:
            known.entry = clean
        known.keep = True
        known.failures = known.retry_ms = known.lost_ms = 0
        self._known[entry.node] = self._known.pop(entry.node)

    def add_passive(self, entry: PeerEntry) -> None:
        """HyParView's passive view; dialable nodes displace others, a known ghost stays out."""
        clean = _sanitised(entry)
        if clean is None or clean.node == self._self_id or clean.node in self._banned:
            return
        if clean.dialable and not clean.addresses:
            return  # nobody could dial it, whatever it says
        node = clean.node
        known = self._known.get(node)
        if known is not None:
            if clean.addresses and (known.failures or not known.entry.addresses):
                known.entry = clean  # it may have moved
            if node in self._passive or known.failures >= _GHOST_FAILURES:
                return
        if len(self._passive) >= self._passive_view and not self._make_room(clean.dialable):
            return
        self._remember(clean)
        self._passive[node] = None

    def remove_passive(self, node: NodeId) -> None:
        if node in self._passive:
            del self._passive[node]
            known = self._known.get(node)
            if known is not None and not known.keep:
                del self._known[node]

    # ------------------------------------------------------------------ what became of it

    def failed(self, node: NodeId, now_ms: int) -> None:
        """A dial failed: try later, and no longer count it among the living."""
        known = self._known.get(node)
        if known is None:
            return
        known.failures += 1
        known.retry_ms = now_ms + _backoff_ms(known.failures, DIAL_BACKOFF_MAX_MS)
        if known.keep and not known.lost_ms:
            known.lost_ms = now_ms
        if known.failures >= _GHOST_FAILURES:
            self.remove_passive(node)

    def refused(self, node: NodeId, wait_ms: int, now_ms: int) -> None:
        """It lives, but does not want to be our neighbour now."""
        known = self._known.get(node)
        if known is not None:
            known.retry_ms = max(known.retry_ms, now_ms + wait_ms)

    def lost(self, node: NodeId, now_ms: int) -> None:
        """Its link broke. Look for it until it is met again: it may be on the far side of a partition."""
        known = self._known.get(node)
        if known is not None:
            known.lost_ms = now_ms
            known.retry_ms = now_ms + DIAL_BACKOFF_MIN_MS

    def ban(self, node: NodeId, now_ms: int) -> None:
        self.remove_passive(node)
        self._known.pop(node, None)
        self._banned.pop(node, None)
        while len(self._banned) >= KNOWN_PEERS:
            del self._banned[next(iter(self._banned))]
        self._banned[node] = now_ms + BAN_MS

    def is_banned(self, node: NodeId, now_ms: int) -> bool:
        until_ms = self._banned.get(node)
        if until_ms is not None and until_ms <= now_ms:
            del self._banned[node]
            return False
        return until_ms is not None

    # ------------------------------------------------------------------ questions

    def entry(self, node: NodeId) -> PeerEntry | None:
        known = self._known.get(node)
        return None if known is None else known.entry

    def living(self, besides: Container[NodeId]) -> int:
        """Passive nodes that nothing speaks against, besides the linked ones: the mesh as far as it is seen from here."""
        return sum(1 for node in self._passive if not self._known[node].failures and node not in besides)

    def passive(self) -> tuple[PeerEntry, ...]:
        return tuple(self._known[node].entry for node in self._passive)

    def known(self) -> tuple[PeerEntry, ...]:
        """What the driver keeps in the known-peers file: the dialable ones that were met or named, newest last."""
        return tuple(known.entry for known in self._known.values() if known.keep and known.entry.addresses)

    def candidates(self, isolated: bool, now_ms: int) -> list[NodeId]:
        """Whom to dial for a neighbour now, in random order: the passive view, and when it has nobody, everybody."""
        ready = [node for node in self._passive if self._is_ready(self._known[node], isolated, now_ms)]
        if not ready:
            ready = [n for n, known in self._known.items() if known.keep and self._is_ready(known, isolated, now_ms)]
        return self._rng.sample(ready, len(ready))

    def lost_candidates(self, now_ms: int) -> list[NodeId]:
        """Lost peers that may be tried again now."""
        found: list[NodeId] = []
        for node, known in self._known.items():
            if not known.lost_ms:
                continue
            if now_ms - known.lost_ms > _LOST_MS and not known.bootstrap:
                known.lost_ms = 0
            elif self._is_ready(known, False, now_ms):
                found.append(node)
        return found

    # ------------------------------------------------------------------ parts

    def _is_ready(self, known: Known, isolated: bool, now_ms: int) -> bool:
        early_ms = 0
        if isolated and known.failures:
            # Backoff that grew while there were others to talk to does not bind a node that is alone.
            waiting_ms = _backoff_ms(known.failures, DIAL_BACKOFF_MAX_MS)
            early_ms = waiting_ms - _backoff_ms(known.failures, ISOLATED_BACKOFF_MAX_MS)
        return known.entry.dialable and bool(known.entry.addresses) and known.retry_ms - early_ms <= now_ms

    def _remember(self, entry: PeerEntry) -> Known:
        known = self._known.get(entry.node)
        if known is None:
            self._trim_known(KNOWN_PEERS - 1)
            known = self._known[entry.node] = Known(entry)
        return known

    def _trim_known(self, count: int) -> None:
        while len(self._known) > count:
            victim = next((n for n, k in self._known.items() if not k.bootstrap and n not in self._passive), None)
            if victim is None:  # a thousand bootstrap entries: the oldest goes
                victim = next(iter(self._known))
                self._passive.pop(victim, None)
            del self._known[victim]

    def _make_room(self, dialable: bool) -> bool:
        others = [node for node in self._passive if not self._known[node].entry.dialable]
        if not others:
            if not dialable:
                return False
            others = list(self._passive)
        self.remove_passive(others[self._rng.randrange(len(others))])
        return True


def _backoff_ms(failures: int, ceiling_ms: int) -> int:
    return min(ceiling_ms, DIAL_BACKOFF_MIN_MS * 2 ** min(failures, 16))


def _sanitised(entry: PeerEntry) -> PeerEntry | None:
    """An entry from a peer, held to its limits; None if it names nobody."""
    if len(entry.node) != KEY_BYTES:
        return None
    addresses = entry.addresses
    if len(addresses) > MAX_BOOTSTRAP_ADDRESSES or any(len(a) > _MAX_ADDRESS_CHARS for a in addresses):
        addresses = tuple(a for a in addresses[:MAX_BOOTSTRAP_ADDRESSES] if len(a) <= _MAX_ADDRESS_CHARS)
    if addresses is entry.addresses:
        return entry
    return PeerEntry(entry.node, addresses, entry.dialable)
