"""Thirty nodes and everything at once. `AGENTMESH_SOAK_SEEDS=200 pytest tests/sim/test_soak.py` runs more of it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.sim.network import Faults, Simulator
from tests.sim.node import SimNode
from tests.sim.scenario import Case, check, delivered_once, islands, mesh_of, nobody_blamed, post_at_random

SEEDS = int(os.environ.get("AGENTMESH_SOAK_SEEDS", "4"))
FAULTY_MS = 90_000
pytestmark = pytest.mark.timeout(600)  # up to 16 s on two busy cores; a failing case is shrunk for a minute
FAULTS = Faults(loss=0.05, duplicate=0.02, reorder=0.05, latency_ms=(5, 200))


def _soak(case: Case) -> None:
    """A minute and a half of faults, then calm: all that survived anywhere must be everywhere."""
    sim = Simulator(case.seed, faults=case.faults, wire=True)
    nodes = mesh_of(sim, case.nodes, undialable=case.undialable, skew_ms=case.skew_ms, over_ms=10_000)
    post_at_random(sim, nodes, case.posts, FAULTY_MS)
    for _ in range(case.crashes):
        _crash_for_a_while(sim, nodes)
    for _ in range(case.partitions):
        start_ms = sim.rng.randrange(FAULTY_MS // 2)
        sim.after(start_ms, _split, sim, nodes)
        sim.after(start_ms + sim.rng.randrange(FAULTY_MS // 2), sim.heal)
    sim.run_for(FAULTY_MS + 1_000)
    sim.heal()
    sim.faults = replace(case.faults, loss=0.0)
    sim.run_until(lambda: _agree(nodes), 150_000, "all that survived anywhere is everywhere", step_ms=1_000)
    sim.run_until(lambda: islands(nodes) == 1, 60_000, "the overlay is in one piece", step_ms=1_000)
    assert delivered_once(nodes)
    assert nobody_blamed(nodes)


def _crash_for_a_while(sim: Simulator, nodes: list[SimNode]) -> None:
    """One random node is down for some seconds, and may have lost its disk."""
    node = sim.rng.choice(nodes)
    start_ms = sim.rng.randrange(FAULTY_MS // 2)
    lose_store = sim.rng.random() < 0.3
    bootstrap = sim.rng.choice([other for other in nodes if other.dialable])

    def crash() -> None:
        if node.is_up:
            node.crash(lose_store=lose_store)
            sim.after(1_000 + sim.rng.randrange(FAULTY_MS // 2 - 1_000), node.start, bootstrap)

    sim.after(start_ms, crash)


def _split(sim: Simulator, nodes: list[SimNode]) -> None:
    for node in nodes:
        node.group = sim.rng.randrange(2)


def _agree(nodes: list[SimNode]) -> bool:
    first = nodes[0].store.keys()
    return all(node.is_up and node.store.keys() == first for node in nodes)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_happened_all_nodes_agree_in_the_end(seed: int) -> None:
    check(_soak, Case(seed, nodes=30, posts=120, crashes=8, partitions=2, undialable=10, skew_ms=5_000, faults=FAULTS))


def test_a_failing_case_is_shrunk_to_the_smallest_that_still_fails() -> None:
    def run(case: Case) -> None:
        assert case.nodes < 5 or case.crashes < 2, "broken"

    with pytest.raises(
        AssertionError, match=r"minimal failing case: Case\(seed=3, nodes=5, posts=1, crashes=2, partitions=0"
    ):
        check(run, Case(3, nodes=30, posts=100, crashes=9, partitions=3, faults=FAULTS))
