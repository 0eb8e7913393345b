"""Who offers which model, and which model a name means.

Owns the table from nodes to what they offer and its indexes. Names: the exact id, then the same id in other letter case,
then aliases in any case; never a part of a name or a similar one, or the wrong model would answer silently. For the same
reason hosts whose file differs (by SHA-256) from this node's, else from that of most hosts, are left out of an id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

from agentmesh.inference.logic.route_limits import MAX_SAME_NAME, MAX_SERVING_NODES, MAX_TARGETS
from agentmesh.inference.logic.target import ServedModel, Target


def same_name(name: str, models: Iterable[ServedModel]) -> str | None:
    """The id of the model that `name` means, by the rules above; the first one if an alias is of several."""
    low = name.lower()
    folded = called = None
    for model in models:
        if model.id == name:
            return name
        if folded is None and model.id.lower() == low:
            folded = model.id
        if called is None and any(alias.lower() == low for alias in model.aliases):
            called = model.id
    return folded or called


class Roster:
    """See the module. `me` is this node: its targets come first, and it gives peers an order of its own."""

    def __init__(self, me: bytes) -> None:
        self._me = me
        self._by_node: dict[bytes, tuple[Target, ...]] = {}
        self._by_id: dict[str, dict[bytes, Target]] = {}
        self._ids_by_name: dict[str, dict[str, int]] = {}  # lower-case id -> ids, with how many targets have it
        self._ids_by_alias: dict[str, dict[str, int]] = {}
        self._hosts: dict[str, tuple[Target, ...]] = {}  # what targets() answered since the last change
        self._ranks: dict[bytes, bytes] = {}
        self._peer_targets = 0
        self._sharded: dict[str, int] = {}  # models of which some hosts have a part only, with how many

    # ------------------------------------------------------------------ questions

    def targets(self, model_id: str) -> tuple[Target, ...]:
        """All hosts of one model: this node, then peers in an order that differs from node to node, so that nodes which
        know nothing of each other's load do not all pick the same peer."""
        hosts = self._hosts.get(model_id)
        if hosts is None:
            if model_id not in self._by_id:
                return ()
            hosts = self._hosts[model_id] = self._same_file(list(self._by_id[model_id].values()))
        return hosts

    def resolve(self, name: str) -> tuple[str, ...]:
        """The ids that `name` means, best first; several only if they share an alias.

        What it means here, if that is ready, goes first: else any member could take over a name by calling a model so.
        """
        hosts = self._by_id.get(name)
        if hosts is not None and self._me in hosts:
            return (name,)
        ids = self._mesh_ids(name)
        mine = same_name(name, (target.model for target in self.offered_by(self._me) if target.model.ready))
        return ids if mine is None or mine in ids else (mine, *ids)

    def _mesh_ids(self, name: str) -> tuple[str, ...]:
        if name in self._by_id:
            return (name,)
        low = name.lower()
        ids = self._ids_by_name.get(low) or self._ids_by_alias.get(low)
        if not ids:
            return ()
        return tuple(sorted(ids, key=self._merit)[:MAX_SAME_NAME]) if len(ids) > 1 else tuple(ids)

    def models(self) -> list[tuple[ServedModel, tuple[bytes, ...]]]:
        """Every model once, as its best host describes it, with the hosts that are ready (if none is: all); ready ones
        first, then by id."""
        out = [(self.describe(id_), self._listed(id_)) for id_ in self._by_id]
        return sorted(out, key=lambda entry: (not entry[0].ready, entry[0].id))

    def _listed(self, model_id: str) -> tuple[bytes, ...]:
        targets = self.targets(model_id)
        return tuple(t.node for t in targets if t.model.ready) or tuple(t.node for t in targets)

    def sharded(self) -> Collection[str]:
        """The ids of which some hosts have a part of the experts only. The same object always, which follows the changes."""
        return self._sharded

    def describe(self, model_id: str) -> ServedModel:
        """What the best host says of it: a ready one, the whole model before parts, this node's, then the longest context."""
        hosts = self.targets(model_id)
        return min(
            hosts,
            key=lambda t: (not t.model.ready, bool(t.model.shard), t.node != self._me, -t.model.context_tokens),
        ).model

    def get(self, node: bytes, model_id: str) -> Target | None:
        """What `node` offers by this id."""
        return self._by_id.get(model_id, {}).get(node)

    def offered_by(self, node: bytes) -> tuple[Target, ...]:
        """All that `node` offers."""
        return self._by_node.get(node, ())

    # ------------------------------------------------------------------ changes

    def put(self, node: bytes, targets: Sequence[Target]) -> bool:
        """What `node` offers now, in place of what it offered. False, and it offers nothing, if there is no room."""
        self.remove(node)
        kept = tuple({target.model.id: target for target in targets}.values())
        if not kept:
            return True
        if node != self._me:
            if len(self._by_node) >= MAX_SERVING_NODES or self._peer_targets + len(kept) > MAX_TARGETS:
                return False
            self._peer_targets += len(kept)
        self._by_node[node] = kept
        self._ranks[node] = b"" if node == self._me else hashlib.sha256(self._me + node).digest()[:8]
        for target in kept:
            self._add(target)
        return True

    def remove(self, node: bytes) -> None:
        """It offers nothing any more."""
        targets = self._by_node.pop(node, ())
        self._ranks.pop(node, None)
        if node != self._me:
            self._peer_targets -= len(targets)
        for target in targets:
            self._take_out(target)

    def _add(self, target: Target) -> None:
        model = target.model
        self._by_id.setdefault(model.id, {})[target.node] = target
        self._hosts.pop(model.id, None)
        _count(self._ids_by_name, model.id.lower(), model.id, 1)
        for alias in {alias.lower() for alias in model.aliases}:
            _count(self._ids_by_alias, alias, model.id, 1)
        if model.shard:
            self._sharded[model.id] = self._sharded.get(model.id, 0) + 1

    def _take_out(self, target: Target) -> None:
        model = target.model
        del self._by_id[model.id][target.node]
        if not self._by_id[model.id]:
            del self._by_id[model.id]
        self._hosts.pop(model.id, None)
        _count(self._ids_by_name, model.id.lower(), model.id, -1)
        for alias in {alias.lower() for alias in model.aliases}:
            _count(self._ids_by_alias, alias, model.id, -1)
        if model.shard:
            self._sharded[model.id] -= 1
            if not self._sharded[model.id]:
                del self._sharded[model.id]

    # ------------------------------------------------------------------ order

    def _same_file(self, hosts: list[Target]) -> tuple[Target, ...]:
        hosts.sort(key=lambda target: self._ranks[target.node])
        ready = {target.model.sha256: 0 for target in hosts if target.model.sha256}
        if len(ready) < 2:
            return tuple(hosts)
        counts = dict(ready)
        for target in hosts:
            if target.model.sha256:
                ready[target.model.sha256] += target.model.ready
                counts[target.model.sha256] += 1
        own = next((t.model.sha256 for t in hosts if t.node == self._me), "")
        meant = own or min(counts, key=lambda sha256: (-ready[sha256], -counts[sha256], sha256))
        return tuple(target for target in hosts if target.model.sha256 in {"", meant})

    def _merit(self, model_id: str) -> tuple[bool, bool, int, int, str]:
        model = self.describe(model_id)
        return (not model.ready, self.get(self._me, model_id) is None, -model.parameters, -model.size_bytes, model_id)


def _count(index: dict[str, dict[str, int]], name: str, model_id: str, change: int) -> None:
    ids = index.setdefault(name, {})
    ids[model_id] = ids.get(model_id, 0) + change
    if not ids[model_id]:
        del ids[model_id]
        if not ids:
            del index[name]
