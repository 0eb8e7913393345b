"""Who may host a split, who may work for a host, in which order, and why others may not.

Owns eligibility and order; sees one thing of a model, whether a node holds its file. The same set of nodes gives the same answer in
whatever order it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentmesh.inference.logic.split_limits import MAX_RTT_MS
from agentmesh.inference.logic.split_values import Excluded, ExclusionCode, NodeFacts, id_text

RTT_STEPS_MS = (0.5, 1, 2, 5, 10, 20, 40, 60, MAX_RTT_MS, 100, 150, 250, 500, 1000)


@dataclass(frozen=True, slots=True)
class Team:
    """A host and those who may work for it, the preferred first. `unknown`: would be eligible if their round trip were known."""

    host: NodeFacts
    workers: tuple[NodeFacts, ...]
    excluded: tuple[Excluded, ...]
    unknown: tuple[bytes, ...]


def unfit(node: NodeFacts) -> Excluded | None:
    """Why this node can be neither host nor worker of any split; None if it can."""
    if node.is_client:
        return Excluded(node.node, ExclusionCode.CLIENT, f"{node.shown} is a client (--client).")
    if not node.takes_part:
        sentence = f"{node.shown} takes no part: start it with --split to share this model, or with --rpc-peers to lend memory."
        return Excluded(node.node, ExclusionCode.NO_PART, sentence)
    if not node.engine_commit or not node.has_rpc:
        sentence = f"{node.shown} has no engine that can share a model: run 'agentmesh engine install' there."
        return Excluded(node.node, ExclusionCode.NO_RPC, sentence)
    return None


def unfit_host(node: NodeFacts) -> Excluded | None:
    """Why this node can host no split; None if it can. One that lends only is no host, and yet a worker."""
    if (why := unfit(node)) is not None or node.may_host:
        return why
    sentence = f"{node.shown} lends memory only: to make it host, start the model there, too, with --split."
    return Excluded(node.node, ExclusionCode.LENDS_ONLY, sentence)


def by_memory(nodes: Iterable[NodeFacts]) -> list[NodeFacts]:
    """Most free memory first; ties by the smaller id."""
    return sorted(nodes, key=lambda node: (-node.free_bytes, node.node))


def hosts(nodes: Iterable[NodeFacts]) -> list[NodeFacts]:
    """Who may host, in this order."""
    return by_memory(node for node in nodes if unfit_host(node) is None)


def rtt_between(a: NodeFacts, b: NodeFacts) -> float | None:
    """The round trip as both know it: the larger one; None if neither measured it."""
    known = [rtt for rtt in (a.rtt_to(b.node), b.rtt_to(a.node)) if rtt is not None]
    return max(known, default=None)


Trips = Mapping[bytes, Mapping[bytes, float]]


def trips_of(nodes: Iterable[NodeFacts]) -> Trips:
    """Round trips as each node measured them, to be looked up: a plan asks for each pair of a host and a node."""
    return {node.node: dict(reversed(node.rtt_ms)) for node in nodes}


def is_measured(a: bytes, b: bytes, trips: Trips) -> bool:
    """Whether either knows the round trip between them."""
    return b in trips[a] or a in trips[b]


def team_of(host: NodeFacts, nodes: Mapping[bytes, NodeFacts], trips: Trips) -> Team:
    """Who works for this host. `trips`: of these nodes."""
    own = trips[host.node]
    workers: list[tuple[float, NodeFacts]] = []
    excluded: list[Excluded] = []
    unknown: list[bytes] = []
    for node in sorted(nodes.values(), key=lambda one: one.node):
        if node.node == host.node:
            continue
        known = own.get(node.node), trips[node.node].get(host.node)
        rtt = max((one for one in known if one is not None), default=None)
        why = unfit(node) or _why_not(host, node, rtt, MAX_RTT_MS)
        if why is None:
            workers.append((rtt_step_ms(rtt or 0.0), node))
            continue
        excluded.append(why)
        if why.code is ExclusionCode.RTT_UNKNOWN:
            unknown.append(node.node)
    workers.sort(key=lambda pair: (pair[0], -pair[1].free_bytes, pair[1].node))
    return Team(host, tuple(node for _, node in workers), tuple(excluded), tuple(unknown))


def why_not(host: NodeFacts, node: NodeFacts, max_rtt_ms: float = MAX_RTT_MS) -> Excluded | None:
    """Why this eligible node cannot work for this host; None if it can."""
    return _why_not(host, node, rtt_between(host, node), max_rtt_ms)


def _why_not(host: NodeFacts, node: NodeFacts, rtt: float | None, max_rtt_ms: float) -> Excluded | None:
    if (node.engine_commit, node.rpc_version) != (host.engine_commit, host.rpc_version):
        sentence = (
            f"{node.shown} has llama.cpp {_version(node)}, {host.shown} has {_version(host)}. They must be the same: run "
            "'agentmesh engine install' on both."
        )
        return Excluded(node.node, ExclusionCode.OTHER_ENGINE, sentence)
    if not node.lends(host.node):
        # The id, since names can be chosen by anybody.
        sentence = (
            f"{node.shown} does not lend to {host.shown}: start it with --rpc-peers {id_text(host.node)}, or "
            "--rpc-peers all."
        )
        return Excluded(node.node, ExclusionCode.NOT_LENT, sentence)
    if rtt is None:
        sentence = f"The round trip between {host.shown} and {node.shown} is not known yet; it is being measured."
        return Excluded(node.node, ExclusionCode.RTT_UNKNOWN, sentence)
    if rtt > max_rtt_ms:
        sentence = f"{node.shown} is {rtt:.0f} ms away from {host.shown}; at most {max_rtt_ms:.0f} ms are of use."
        return Excluded(node.node, ExclusionCode.TOO_FAR, sentence)
    return None


def _version(node: NodeFacts) -> str:
    return f"{node.engine_commit[:7]} (RPC {'.'.join(map(str, node.rpc_version))})"


def rtt_step_ms(rtt_ms: float) -> float:
    """The step that a round trip is counted as: upwards, so that noise does not change the order of workers."""
    return next((step for step in RTT_STEPS_MS if rtt_ms <= step), rtt_ms)


def steady_rtt_ms(published_ms: float | None, measured_ms: float) -> float:
    """What to publish: the measured round trip's step, unless what was published is still nearly true (a quarter off)."""
    step = rtt_step_ms(measured_ms)
    if published_ms is None:
        return step
    below = max((one for one in RTT_STEPS_MS if one < published_ms), default=0.0)
    return published_ms if below * 0.75 <= measured_ms <= published_ms * 1.25 else step


def steady_free_bytes(published: int | None, measured: int, step: int) -> int:
    """What to publish of free memory: whole steps, rounded down. Stays while it is true to less than two steps."""
    if published is not None and published <= measured < published + 2 * step:
        return published
    return max(measured, 0) // step * step


def holders(nodes: Sequence[NodeFacts], files: Sequence[str]) -> set[bytes]:
    """Who has all of these files. Files of that name with other content do not count: they have another hash."""
    return {node.node for node in nodes if files and set(files) <= set(node.files)}
