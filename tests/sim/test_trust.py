"""Revocation, clocks and quotas over a whole mesh, whoever was away when."""

from __future__ import annotations

import pytest

from agentmesh.core.units import MINUTE_MS
from agentmesh.mesh.logic.record import Record
from tests.sim.keys import START_MS
from tests.sim.network import Simulator
from tests.sim.node import SimNode
from tests.sim.scenario import Case, check, delivered_once, has_all, mesh_of, nobody_blamed, post_at_random


def _away(sim: Simulator, node: SimNode, hub: SimNode, *, within_ms: int) -> None:
    """The node is down for some random while."""
    start_ms = sim.rng.randrange(within_ms)
    sim.after(start_ms, node.crash)
    sim.after(start_ms + 1_000 + sim.rng.randrange(within_ms), node.start, hub)


def _posts_of(node: SimNode, author: SimNode) -> list[Record]:
    return [r for r in node.store.values() if r.kind == "post" and r.author == author.id]


def _revocation(case: Case) -> None:
    sim = Simulator(case.seed, faults=case.faults)
    nodes = mesh_of(sim, case.nodes)
    outcast, others = nodes[-1], nodes[:-1]
    sim.run_for(5_000)
    for node in sim.rng.sample(nodes[1:], min(case.crashes, len(nodes) - 1)):
        _away(sim, node, nodes[0], within_ms=30_000)
    post_at_random(sim, [outcast], case.posts, 60_000)
    kept = post_at_random(sim, others, case.posts, 60_000)
    sim.run_for(10_000 + sim.rng.randrange(20_000))
    revocation = sim.mint.revocation(outcast.number, sim.now_ms)
    nodes[0].create(revocation)
    sim.run_for(60_000)
    sim.run_until(has_all(others, [revocation.id]), 60_000, "the revocation is everywhere")
    sim.run_until(has_all(others, [post.id for post in kept]), 60_000, "everybody else's posts are everywhere")
    sim.run_for(30_000)
    for node in others:
        assert _posts_of(node, outcast) == [], f"node {node.number} still has posts of the outcast"
        assert outcast.id not in node.conns, f"node {node.number} is still connected to the outcast"
    assert nobody_blamed(others)


@pytest.mark.parametrize("seed", range(6))
def test_a_revoked_members_posts_are_gone_everywhere_whoever_was_away(seed: int) -> None:
    check(_revocation, Case(seed, nodes=10, posts=20, crashes=5))


@pytest.mark.parametrize("minutes", [10, -10], ids=["ahead", "behind"])
def test_clocks_ten_minutes_off_do_not_matter(minutes: int) -> None:
    sim = Simulator(minutes)
    nodes = mesh_of(sim, 6)
    wrong = [sim.add(skew_ms=minutes * MINUTE_MS) for _ in range(4)]
    for node in wrong:
        node.start(nodes[0])
    sim.run_for(5_000)
    posts = post_at_random(sim, [*nodes, *wrong], 40, 20_000)
    sim.run_for(20_000)
    sim.run_until(
        has_all([*nodes, *wrong], [p.id for p in posts]), 5_000, "all posts everywhere, whatever the clocks say"
    )
    late = sim.add(skew_ms=minutes * MINUTE_MS)
    late.start(nodes[0])
    sim.run_until(has_all([late], [p.id for p in posts]), 30_000, "a late joiner with a wrong clock has them too")
    assert delivered_once([*nodes, *wrong])
    assert nobody_blamed([*nodes, *wrong])


def test_a_post_from_twenty_minutes_ahead_is_not_yet_and_accepted_when_its_time_comes() -> None:
    sim = Simulator(4)
    nodes = mesh_of(sim, 8)
    fast = sim.add()
    fast.start(nodes[0])
    sim.run_for(10_000)
    fast.skew_ms = 20 * MINUTE_MS
    sim.run_for(5_000)
    early = fast.post("from the future")
    usual = nodes[1].post("from now")
    sim.run_until(has_all([*nodes, fast], [usual.id]), 10_000, "the post from now is everywhere")
    assert round(fast.machine.clock_offset_ms() / MINUTE_MS) == -20, "it could tell its user"
    sim.run_for(4 * MINUTE_MS)
    assert all(early.id not in node.store for node in nodes)
    sim.run_until(has_all(nodes, [early.id]), 2 * MINUTE_MS, "the early post is everywhere once it is acceptable")
    assert sim.now_ms - START_MS < 7 * MINUTE_MS
    assert delivered_once(nodes)
    assert nobody_blamed(nodes)


def _over_quota(case: Case) -> None:
    sim = Simulator(case.seed)
    nodes = mesh_of(sim, case.nodes)
    sim.run_for(10_000)
    half = case.nodes // 2
    author = nodes[-1]
    start_ms = sim.now_ms - sim.now_ms % MINUTE_MS + MINUTE_MS
    sim.run_for(start_ms - sim.now_ms)
    flood = [sim.mint.post(author.number, f"{n}", start_ms + n) for n in range(case.posts)]
    sim.rng.shuffle(flood)
    sim.partition(nodes[:half], nodes[half:])
    for number, record in enumerate(flood):
        # The author's key is used on both sides of a split mesh: each side sees a part, in another order.
        sim.after(sim.rng.randrange(20_000), (nodes[0], author)[number % 2].create, record)
    sim.run_for(30_000)
    sim.heal()
    counted = {record.id for record in sorted(flood, key=lambda r: (r.timestamp_ms, r.id))[:120]}

    def agreed() -> bool:
        return all({r.id for r in _posts_of(node, author)} == counted for node in nodes)

    sim.run_until(agreed, 60_000, "every node keeps the same 120 posts of that minute")


@pytest.mark.parametrize("seed", range(2))
def test_an_author_over_quota_is_cut_to_the_same_posts_everywhere(seed: int) -> None:
    check(_over_quota, Case(seed, nodes=8, posts=300))
