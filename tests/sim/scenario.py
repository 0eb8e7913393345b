"""What scenarios share: building a mesh, asking whether all is well, and shrinking a failure to its smallest case."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.record import Record
from tests.sim.network import Faults, Simulator
from tests.sim.node import SimNode

SHRINK_S = 60.0
COARSE = GossipConfig(probe_every_ms=5_000, suspect_after_ms=11_000, dead_after_ms=60_000)
"""For a thousand nodes: failure detection is not what is looked at there."""


@dataclass(frozen=True)
class Case:
    """One run's size and faults: what a failure is shrunk in."""

    seed: int
    nodes: int = 20
    posts: int = 20
    crashes: int = 0
    partitions: int = 0
    undialable: int = 0
    skew_ms: int = 0
    faults: Faults = field(default_factory=Faults)


def check(run: Callable[[Case], None], case: Case) -> None:
    """Run a case. When it fails, find the smallest case that still does and say it, with its seed."""
    try:
        run(case)
    except AssertionError as error:
        smallest, failure = _shrink(run, case, error)
        raise AssertionError(f"{failure}\nminimal failing case: {smallest}\nfirst seen with: {case}") from error


def _shrink(run: Callable[[Case], None], case: Case, error: AssertionError) -> tuple[Case, AssertionError]:
    end_s = monotonic() + SHRINK_S
    shrunk = True
    while shrunk:
        shrunk = False
        for smaller in _smaller(case):
            if monotonic() > end_s:
                return case, error
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    run(smaller)
            except AssertionError as failure:
                case, error, shrunk = smaller, failure, True
                break
    return case, error


def _smaller(case: Case) -> Iterator[Case]:
    """Cases one step simpler, boldest first."""
    for nodes in dict.fromkeys((case.nodes // 2, case.nodes - 1)):
        if nodes >= 2:
            yield replace(case, nodes=nodes, undialable=min(case.undialable, nodes // 2))
    for name in ("posts", "crashes", "partitions", "undialable", "skew_ms"):
        value = getattr(case, name)
        for less in dict.fromkeys((0, value // 2, value - 1)):
            if 0 <= less < value and (less or name != "posts"):
                yield replace(case, **{name: less})
    for name in ("loss", "duplicate", "reorder"):
        if getattr(case.faults, name):
            yield replace(case, faults=replace(case.faults, **{name: 0.0}))


def mesh_of(
    sim: Simulator, count: int, *, undialable: int = 0, skew_ms: int = 0, over_ms: int = 3_000
) -> list[SimNode]:
    """`count` nodes, the last `undialable` of them behind NAT, that join through the first within `over_ms`."""
    skew = sim.rng.randrange
    nodes = [
        sim.add(dialable=n < count - undialable, skew_ms=skew(2 * skew_ms + 1) - skew_ms if n else 0)
        for n in range(count)
    ]
    nodes[0].start()
    for node in nodes[1:]:
        sim.after(sim.rng.randrange(over_ms), node.start, nodes[0])
    sim.run_for(over_ms)
    return nodes


def has_all(nodes: Iterable[SimNode], ids: Iterable[bytes]) -> Callable[[], bool]:
    """Whether every one of these nodes has every one of these records."""
    wanted = frozenset(ids)
    waiting = list(nodes)

    def holds() -> bool:
        while waiting and wanted <= waiting[-1].store.keys():
            waiting.pop()
        return not waiting

    return holds


def post_at_random(sim: Simulator, nodes: Sequence[SimNode], count: int, within_ms: int) -> list[Record]:
    """Schedule posts; the list fills as they are made. A node that is down posts nothing."""
    posts: list[Record] = []

    def post(node: SimNode, number: int) -> None:
        if node.is_up:
            posts.append(node.post(f"post {number} of node {node.number}"))

    for number in range(count):
        sim.after(sim.rng.randrange(within_ms), post, sim.rng.choice(nodes), number)
    return posts


def islands(nodes: Sequence[SimNode]) -> int:
    """Connected components of the overlay, counting links that both ends hold active."""
    left = {node.id: node for node in nodes if node.is_up}
    count = 0
    while left:
        count += 1
        stack = [left.popitem()[1]]
        while stack:
            node = stack.pop()
            for peer in node.machine.active_peers():
                other = left.get(peer)
                if other is not None and node.id in other.machine.active_peers():
                    stack.append(left.pop(peer))
    return count


def delivered_once(nodes: Iterable[SimNode]) -> bool:
    return all(count == 1 for node in nodes for count in node.deliveries.values())


def nobody_blamed(nodes: Iterable[SimNode]) -> bool:
    return all(node.machine.stats.blamed == 0 for node in nodes if node.is_up)
