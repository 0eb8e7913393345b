"""Who offers which model, followed as the mesh tells it: this node's engines and the peers' `node` records.

Owns the roster and which record of a peer counts (the newest). State: see docs/routing.md. Owner: the event loop. Chooses
nothing; whoever does is told of every change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from agentmesh.inference.logic.presence import decode_offer
from agentmesh.inference.logic.roster import Roster
from agentmesh.inference.logic.target import ServedModel, Target
from agentmesh.mesh.logic.events import PeerState
from agentmesh.mesh.logic.record import Record

_log = logging.getLogger(__name__)

NODE_KIND: Final = "node"
# Asking the mesh builds a dict of all peers; a request later by so much does not matter beside failure detection's seconds.
STATES_AGE_S: Final = 0.1

PeerStates = Callable[[], Mapping[bytes, PeerState]]


@dataclass(frozen=True, slots=True)
class _Heard:
    """The record of a node that counts."""

    id: bytes
    timestamp_ms: int


class Directory:
    """See the module. `me` is this node's public key; `now_s` any monotonic clock."""

    def __init__(self, me: bytes, peer_states: PeerStates, now_s: Callable[[], float]) -> None:
        self.me = me
        self._roster = Roster(me)
        self._peer_states = peer_states
        self._now_s = now_s
        self._heard: dict[bytes, _Heard] = {}  # one for each member that publishes: bounded by the mesh's own index
        self._authors: dict[bytes, bytes] = {}  # record id -> author
        self._watchers: list[Callable[[], None]] = []
        self._out: frozenset[bytes] = frozenset()
        self._out_since_s = float("-inf")
        self._was_full = False

    def on_change(self, watcher: Callable[[], None]) -> None:
        """Call this after every change of who offers what. It must not raise."""
        self._watchers.append(watcher)

    # ------------------------------------------------------------------ what is told

    def set_own(self, targets: Sequence[Target]) -> None:
        """This node's engines, ready or not, in place of those told before."""
        self._roster.put(self.me, [target if target.engine is not None else _not_ready(target) for target in targets])
        self._changed()

    async def on_records(self, records: Sequence[Record]) -> None:
        """Records were stored; those of kind `node` matter."""
        changes = [self._hear(record) for record in records if record.kind == NODE_KIND]
        if any(changes):
            self._changed()

    async def on_dropped(self, ids: Sequence[bytes], reason: str) -> None:
        """Records expired, were replaced, or their authors are out: what they offered is gone."""
        gone = [self._forget(id_) for id_ in ids if id_ in self._authors]
        if gone:
            _log.debug("%d nodes offer nothing any more: %s", len(gone), reason)
            self._changed()

    def on_peer_state(self, node: bytes, state: PeerState) -> None:
        """A peer came or went: who waits may go on at once."""
        self._out_since_s = float("-inf")
        self._changed()

    # ------------------------------------------------------------------ questions

    def out(self) -> frozenset[bytes]:
        """Peers that are suspect or dead; at most STATES_AGE_S old."""
        now_s = self._now_s()
        if now_s - self._out_since_s > STATES_AGE_S:
            states = self._peer_states()
            self._out = frozenset(node for node, state in states.items() if state is not PeerState.ALIVE)
            self._out_since_s = now_s
        return self._out

    def resolve(self, name: str) -> tuple[str, ...]:
        """The ids that a name means, best first; none if nobody offers it."""
        return self._roster.resolve(name)

    def targets(self, model_id: str) -> tuple[Target, ...]:
        """All hosts of one model, this node first."""
        return self._roster.targets(model_id)

    def reachable(self, model_id: str) -> list[Target]:
        """All hosts of one model that are neither suspect nor dead, this node first."""
        return [target for target in self._roster.targets(model_id) if target.node not in self.out()]

    def sharded(self) -> Collection[str]:
        """The models of which some hosts have a part of the experts only."""
        return self._roster.sharded()

    def target(self, key: tuple[bytes, str]) -> Target | None:
        """The host by this key, while it offers the model."""
        return self._roster.get(*key)

    def models(self) -> Sequence[tuple[ServedModel, Sequence[bytes]]]:
        """Every model once, with the nodes that offer it; ready ones first, then by id.

        One whose hosts cannot be reached stays listed until their word expires, but is not ready.
        """
        models, out = self._roster.models(), self.out()
        if not out:
            return models
        seen = [_reachable(model, nodes, out) for model, nodes in models]
        return sorted(seen, key=lambda entry: not entry[0].ready)  # by id they are already

    # ------------------------------------------------------------------ records

    def _hear(self, record: Record) -> bool:
        """Whether anything changed."""
        if record.author == self.me:
            return False
        heard = self._heard.get(record.author)
        if heard is not None and (record.timestamp_ms, record.id) <= (heard.timestamp_ms, heard.id):
            return False
        if heard is not None:
            del self._authors[heard.id]
        self._heard[record.author] = _Heard(record.id, record.timestamp_ms)
        self._authors[record.id] = record.author
        offer = decode_offer(record.payload)
        if offer is None:
            _log.warning("What node %s offers cannot be read; it is taken to offer nothing.", record.author.hex()[:12])
        models = offer.models if offer is not None else ()
        targets = tuple(Target(record.author, model) for model in models)
        if targets == self._roster.offered_by(record.author):
            return False  # the usual renewal
        kept = self._roster.put(record.author, targets)
        if not kept and not self._was_full:
            _log.warning("So many nodes offer models that more are not taken up until some end.")
        self._was_full = not kept
        return True

    def _forget(self, record_id: bytes) -> bytes:
        author = self._authors.pop(record_id)
        del self._heard[author]
        self._roster.remove(author)
        return author

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()


def _reachable(
    model: ServedModel, nodes: Sequence[bytes], out: frozenset[bytes]
) -> tuple[ServedModel, Sequence[bytes]]:
    here = [node for node in nodes if node not in out]
    return (model, here) if here else (msgspec.structs.replace(model, ready=False), nodes)


def _not_ready(target: Target) -> Target:
    """Without an address it cannot be asked, whatever else is said of it."""
    return Target(target.node, msgspec.structs.replace(target.model, ready=False))
