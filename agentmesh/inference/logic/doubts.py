"""Nodes that this node's plans do without for a while, where they can: who let it down, or is to host and does not. Pure.

A record can promise what its author does not do, and a plan made of the same records is the same again. So each node remembers for itself:
a worker of its own runs that refused or was lost twice, and a host that nobody sees begin. The first concerns this node's own choice of workers,
the second all see alike, each for itself; claims decide who runs (logic/replan.py). A plan that needs a doubted node is made with it all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from agentmesh.inference.logic.split_limits import (
    DOUBT_MS,
    HOST_DOUBT_MS,
    MAX_DOUBT_MS,
    MAX_DOUBTED,
    MAX_HOST_DOUBT_MS,
    TOLERATED_FAILURES,
)
from agentmesh.inference.logic.split_values import NodeFacts


@dataclass(slots=True)
class _Doubt:
    times: int
    last_ms: int
    until_ms: int


@dataclass(slots=True)
class Doubts:
    """See the module."""

    _workers: dict[bytes, _Doubt] = field(default_factory=dict[bytes, _Doubt])
    _hosts: dict[bytes, _Doubt] = field(default_factory=dict[bytes, _Doubt])

    def worker_failed(self, node: bytes, now_ms: int) -> None:
        """A run of this node ended by it: it refused, or was lost."""
        _add(self._workers, node, now_ms, TOLERATED_FAILURES, DOUBT_MS, MAX_DOUBT_MS)

    def host_is_silent(self, node: bytes, now_ms: int) -> None:
        """By the plan it is host, and it has not claimed the model in all the time that it had."""
        _add(self._hosts, node, now_ms, 0, HOST_DOUBT_MS, MAX_HOST_DOUBT_MS)

    def believed(self, nodes: tuple[NodeFacts, ...], now_ms: int, *, workers: bool) -> tuple[NodeFacts, ...]:
        """The nodes, with what is doubted left out: of workers what they lend, else of hosts that they host."""
        doubts = self._workers if workers else self._hosts
        doubted = {node for node, doubt in doubts.items() if doubt.until_ms > now_ms}
        if not doubted:
            return nodes
        return tuple(_without(node, workers=workers) if node.node in doubted else node for node in nodes)


def _add(doubts: dict[bytes, _Doubt], node: bytes, now_ms: int, tolerated: int, first_ms: int, most_ms: int) -> None:
    doubt = doubts.pop(node, None)
    if doubt is None or now_ms - doubt.last_ms > 2 * most_ms:
        doubt = _Doubt(0, now_ms, 0)
    doubt.times += 1
    doubt.last_ms = now_ms
    if (beyond := doubt.times - tolerated) > 0:
        doubt.until_ms = now_ms + min(first_ms << min(beyond - 1, 16), most_ms)
    doubts[node] = doubt  # the latest last
    while len(doubts) > MAX_DOUBTED:
        del doubts[next(iter(doubts))]


def _without(node: NodeFacts, *, workers: bool) -> NodeFacts:
    if workers:
        return msgspec.structs.replace(node, lends_to=(), lends_to_all=False)
    return msgspec.structs.replace(node, may_host=False, files=())
