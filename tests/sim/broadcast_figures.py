"""One mesh, some posts, and what their broadcast cost. Used by the thousand-node test and by benchmarks/broadcast.py."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from agentmesh.mesh.logic.messages import Gossip, Graft, IHave, Prune, RecordBatch, WantRecords
from tests.sim.flooding import FloodResult, flood
from tests.sim.network import Faults, Simulator
from tests.sim.scenario import COARSE, has_all, islands

POST_BYTES = 300
POST_EVERY_MS = 200


@dataclass(frozen=True)
class Figures:
    """Of one run; `bytes_per_post` a node sent for one post: payloads, ids, grafts, prunes. Times from the last post on."""

    nodes: int
    loss: float
    posts: int
    idle_bytes_per_s: float
    copies: float
    bytes_per_post: float
    mean_hops: float
    last_hop: int
    nearly_ms: int  # 99 % of all deliveries
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
    quiet_bytes = sum(sim.bytes_of.values())
    sim.run_for(10_000)
    idle = (sum(sim.bytes_of.values()) - quiet_bytes) / nodes / 10
    warm = max(5, posts // 2)  # the tree is built by the first posts
    _post(sim, warm)
    sim.run_for(warm * POST_EVERY_MS + 5_000)
    before, tree_before = _totals(sim), _tree_bytes(sim)
    records = _post(sim, posts)
    sim.run_for(posts * POST_EVERY_MS + 10)
    nearly_ms = sim.run_until(lambda: _deliveries(sim, records) >= 0.99 * nodes * posts, 60_000, "nearly everywhere")
    everywhere_ms = nearly_ms + sim.run_until(has_all(members, records), 180_000, "every post is everywhere")
    payloads, firsts, hops = (after - b for after, b in zip(_totals(sim), before, strict=True))
    return Figures(
        nodes=nodes,
        loss=loss,
        posts=posts,
        idle_bytes_per_s=idle,
        copies=payloads / nodes / posts,
        bytes_per_post=(_tree_bytes(sim) - tree_before) / nodes / posts,
        mean_hops=hops / max(1, firsts),
        last_hop=max(node.machine.stats.last_hop for node in members),
        nearly_ms=nearly_ms,
        everywhere_ms=everywhere_ms,
        events=sim.events,
        flood=flood(nodes, loss=loss, rng=Random(seed)),
    )


def _post(sim: Simulator, count: int) -> list[bytes]:
    """Schedule posts by random nodes, five a second; the list of their ids fills as they are made."""
    ids: list[bytes] = []

    def post(number: int) -> None:
        ids.append(sim.rng.choice(sim.nodes).post(f"{number} ".ljust(POST_BYTES, "x")).id)

    for number in range(count):
        sim.after(number * POST_EVERY_MS + 1, post, number)
    return ids


def _deliveries(sim: Simulator, ids: list[bytes]) -> int:
    return sum(1 for node in sim.nodes for id_ in ids if id_ in node.store)


def _tree_bytes(sim: Simulator) -> int:
    return sum(sim.bytes_of[kind] for kind in (Gossip, IHave, Graft, Prune, RecordBatch, WantRecords))


def _totals(sim: Simulator) -> tuple[int, int, int]:
    """Payloads and fetched records, payloads that were new, and the hops that these took."""
    stats = [node.machine.stats for node in sim.nodes]
    return sum(s.payloads + s.batched for s in stats), sum(s.first_payloads for s in stats), sum(s.hops for s in stats)
