"""One mesh, some posts, and what their broadcast cost. Used by the thousand-node test and by benchmarks/broadcast.py."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.sim.flooding import FloodResult, flood
from tests.sim.network import Faults, Simulator
from tests.sim.scenario import COARSE, has_all, islands

POST_BYTES = 300


@dataclass(frozen=True)
class Figures:
    """Per node where it says so."""

    nodes: int
    loss: float
    posts: int
    idle_bytes_per_s: float
    copies: float
    fetched: float
    bytes_per_post: float
    mean_hops: float
    last_hop: int
    everywhere_ms: int
    events: int
    flood: FloodResult


def measure(nodes: int, *, loss: float, posts: int, seed: int, settle_ms: int = 30_000) -> Figures:
    """Found a mesh, let it settle, post at random, wait until every post is everywhere.

    Raises:
        AssertionError: it never was.
    """
    sim = Simulator(seed, config=COARSE, shared_trust=True, faults=Faults(loss=loss))
    members = [sim.add() for _ in range(nodes)]
    members[0].start()
    for node in members[1:]:
        sim.after(sim.rng.randrange(15_000), node.start, *sim.rng.sample(members[:10], 2))
    sim.run_for(15_000 + settle_ms)
    sim.run_until(lambda: islands(members) == 1, 60_000, "the overlay is in one piece", step_ms=5_000)
    warm = max(10, posts // 2)  # the tree is built by the first posts
    _post(sim, warm)
    sim.run_for(warm * 200 + 5_000)
    quiet = _totals(sim)
    sim.run_for(10_000)
    before = _totals(sim)
    idle = (before[0] - quiet[0]) / nodes / 10
    start_ms = sim.now_ms
    records = _post(sim, posts)
    sim.run_for(posts * 200 + 10)
    sim.run_until(has_all(members, records), 180_000, "every post is everywhere")
    after = _totals(sim)
    took_s = (sim.now_ms - start_ms) / 1000
    firsts = max(1, after[3] - before[3])
    return Figures(
        nodes=nodes,
        loss=loss,
        posts=posts,
        idle_bytes_per_s=idle,
        copies=(after[1] - before[1] + after[2] - before[2]) / nodes / posts,
        fetched=(after[2] - before[2]) / nodes / posts,
        bytes_per_post=max(0.0, (after[0] - before[0]) / nodes - idle * took_s) / posts,
        mean_hops=(after[4] - before[4]) / firsts,
        last_hop=max(node.machine.stats.last_hop for node in members),
        everywhere_ms=sim.now_ms - start_ms - posts * 200,
        events=sim.events,
        flood=flood(nodes, loss=loss, rng=Random(seed)),
    )


def _post(sim: Simulator, count: int) -> list[bytes]:
    """Schedule posts by random nodes, five a second; the list of their ids fills as they are made."""
    ids: list[bytes] = []

    def post(number: int) -> None:
        ids.append(sim.rng.choice(sim.nodes).post(f"{number} ".ljust(POST_BYTES, "x")).id)

    for number in range(count):
        sim.after(number * 200 + 1, post, number)
    return ids


def _totals(sim: Simulator) -> tuple[int, int, int, int, int]:
    stats = [node.machine.stats for node in sim.nodes]
    return (
        sum(node.sent_bytes for node in sim.nodes),
        sum(s.payloads for s in stats),
        sum(s.batched for s in stats),
        sum(s.first_payloads for s in stats),
        sum(s.hops for s in stats),
    )
