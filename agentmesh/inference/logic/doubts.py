"""Nodes that this node's plans do without for a while, where they can: who let it down, or is to host and does not. Pure.

A record can promise what its author does not do, and a plan made of the same records is the same again. So each node remembers for itself:
a worker of its own runs that refused or was lost twice, and a host that nobody sees begin. The first concerns this node's own choice of workers,
the second all see alike, each for itself; claims decide who runs (logic/replan.py). A plan that needs a doubted node is made with it all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from agentmesh.core.units import HOUR_MS, MINUTE_MS, SECOND_MS
from agentmesh.inference.logic.engine_end import without_log
from agentmesh.inference.logic.split_limits import (
    DOUBT_MS,
    HOST_DOUBT_MS,
    MAX_DOUBT_MS,
    MAX_DOUBTED,
    MAX_HOST_DOUBT_MS,
    TOLERATED_FAILURES,
)
from agentmesh.inference.logic.split_values import NodeFacts

MAX_WHY_CHARS: Final = 200  # of the sentence with which a run ended
_SILENT: Final = "it was to host the model, and did not begin."


@dataclass(slots=True)
class _Doubt:
    times: int
    last_ms: int
    until_ms: int
    why: str = ""  # the last time


@dataclass(frozen=True, slots=True)
class Doubted:
    """A node that plans do without now. `as_host`: that it hosts, else that it works; `why`: how the last run that it ended did."""

    node: bytes
    as_host: bool
    times: int
    left_ms: int
    why: str = ""


@dataclass(slots=True)
class Doubts:
    """See the module."""

    _workers: dict[bytes, _Doubt] = field(default_factory=dict[bytes, _Doubt])
    _hosts: dict[bytes, _Doubt] = field(default_factory=dict[bytes, _Doubt])

    def worker_failed(self, node: bytes, now_ms: int, why: str = "") -> None:
        """A run of this node ended by it: it refused, or was lost."""
        _add(self._workers, node, now_ms, TOLERATED_FAILURES, DOUBT_MS, MAX_DOUBT_MS)
        self._workers[node].why = without_log(why)[:MAX_WHY_CHARS]

    def host_is_silent(self, node: bytes, now_ms: int) -> None:
        """By the plan it is host, and it has not claimed the model in all the time that it had."""
        _add(self._hosts, node, now_ms, 0, HOST_DOUBT_MS, MAX_HOST_DOUBT_MS)

    def now(self, now_ms: int) -> tuple[Doubted, ...]:
        """Who is doubted at this moment: workers, then hosts, in the order in which they last let this node down."""
        return tuple(
            Doubted(node, doubts is self._hosts, doubt.times, doubt.until_ms - now_ms, doubt.why)
            for doubts in (self._workers, self._hosts)
            for node, doubt in doubts.items()
            if doubt.until_ms > now_ms
        )

    def believed(self, nodes: tuple[NodeFacts, ...], now_ms: int, *, workers: bool) -> tuple[NodeFacts, ...]:
        """The nodes, with what is doubted left out: of workers what they lend, else of hosts that they host."""
        doubts = self._workers if workers else self._hosts
        doubted = {node for node, doubt in doubts.items() if doubt.until_ms > now_ms}
        if not doubted:
            return nodes
        return tuple(_without(node, workers=workers) if node.node in doubted else node for node in nodes)


def doubt_text(doubted: Doubted, name: str) -> str:
    """Who is passed over and why, without the time that is left, which changes while the sentence stands."""
    if doubted.as_host:
        return f"{name} is passed over as host where another can do: {_SILENT}"
    return f"{name} is passed over as a worker where another can do: {_ended(doubted)}."


def doubt_line(doubted: Doubted, name: str) -> str:
    """The same with the time that is left, and how the last run ended."""
    left = _left_text(doubted.left_ms)
    if doubted.as_host:
        return f"{name} is passed over as host where another can do, for {left} more: {_SILENT}"
    last = f", the last with: {doubted.why}" if doubted.why else "."
    return f"{name} is passed over as a worker where another can do, for {left} more: {_ended(doubted)}{last}"


def with_doubts(said: str, doubts: Iterable[str]) -> str:
    """A reason, and behind its words whom the plan does without, but before a log that it ends with."""
    head = without_log(said)
    return " ".join((head, *doubts)) + said[len(head) :]


def _ended(doubted: Doubted) -> str:
    return f"it ended {doubted.times} runs of this node"


def _left_text(left_ms: int) -> str:
    """Rounded up."""
    if left_ms <= 2 * MINUTE_MS:
        return f"{-(-left_ms // SECOND_MS)} s"
    return f"{-(-left_ms // MINUTE_MS)} min" if left_ms <= 2 * HOUR_MS else f"{-(-left_ms // HOUR_MS)} h"


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
