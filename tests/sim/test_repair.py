"""What was missed is repaired: partitions, crashes, late joiners."""

from __future__ import annotations

import pytest

from tests.sim.keys import Mint
from tests.sim.network import Faults, Simulator
from tests.sim.scenario import Case, check, delivered_once, has_all, islands, mesh_of, nobody_blamed, post_at_random

pytestmark = pytest.mark.timeout(600)  # up to 30 s on two busy cores


def _two_halves(case: Case, mint: Mint | None = None) -> None:
    sim = Simulator(case.seed, mint=mint, faults=case.faults)
    nodes = mesh_of(sim, case.nodes)
    sim.run_for(10_000)
    half = case.nodes // 2
    sim.partition(nodes[:half], nodes[half:])
    posts = post_at_random(sim, nodes[:half], case.posts, 60_000)
    more = post_at_random(sim, nodes[half:], case.posts, 60_000)
    sim.run_for(60_000)
    sim.run_until(has_all(nodes[:half], [p.id for p in posts]), 60_000, "one half has its own posts")
    sim.run_until(has_all(nodes[half:], [p.id for p in more]), 60_000, "the other half has its own posts")
    batched = sum(node.machine.stats.batched for node in nodes)
    sim.heal()
    took_ms = sim.run_until(
        has_all(nodes, [p.id for p in (*posts, *more)]), 60_000, "all posts everywhere after the heal"
    )
    sim.run_for(30_000)
    assert islands(nodes) == 1, "the halves grew together again"
    assert delivered_once(nodes)
    assert nobody_blamed(nodes)
    copies = (sum(node.machine.stats.batched for node in nodes) - batched) / (case.nodes * case.posts)
    print(
        f"\nheal: {2 * case.posts} posts over {case.nodes} nodes in {took_ms} ms, {copies:.2f} copies of each missed post"
    )
    if case.posts >= 100:
        assert copies < 2.0, "after a heal each missed record comes about once"


@pytest.mark.parametrize("seed", range(3))
def test_two_halves_that_posted_five_hundred_each_agree_after_the_heal(seed: int) -> None:
    check(_two_halves, Case(seed, nodes=20, posts=500))


def test_the_halves_agree_on_bad_links_too() -> None:
    check(_two_halves, Case(4, nodes=12, posts=60, faults=Faults(loss=0.1, duplicate=0.05, reorder=0.1)))


def test_the_halves_agree_with_real_signatures() -> None:
    _two_halves(Case(5, nodes=8, posts=40), Mint(real=True))


def _restarts(case: Case, *, lose_store: bool) -> None:
    sim = Simulator(case.seed, faults=case.faults)
    nodes = mesh_of(sim, case.nodes, undialable=case.undialable)
    sim.run_for(5_000)
    before = [node.post("before") for node in nodes]
    sim.run_until(has_all(nodes, [p.id for p in before]), 10_000, "the first posts are everywhere")
    crashed = sim.rng.sample(nodes[1:], case.crashes)
    for node in crashed:
        node.crash(lose_store=lose_store)
    alive = [node for node in nodes if node.is_up]
    during = post_at_random(sim, alive, case.posts, 20_000)
    sim.run_for(30_000)
    for node in crashed:
        node.start(nodes[0])
    missed = [*before, *during]
    sim.run_until(has_all(nodes, [p.id for p in missed]), 30_000, "who restarted has everything within 30 s")
    again = [node.post("again") for node in crashed]
    sim.run_until(has_all(nodes, [p.id for p in again]), 10_000, "and is heard")
    for node, post in zip(crashed, again, strict=True):
        own = [record for record in node.store.values() if record.kind == "post" and record.author == node.id]
        assert post.timestamp_ms == max(record.timestamp_ms for record in own), "own timestamps went backwards"
    assert delivered_once(nodes)


@pytest.mark.parametrize("lose_store", [False, True], ids=["with its store", "without its store"])
def test_a_crashed_node_has_everything_within_thirty_seconds(lose_store: bool) -> None:
    for seed in range(5):
        check(
            lambda case: _restarts(case, lose_store=lose_store), Case(seed, nodes=12, posts=60, crashes=4, undialable=3)
        )


def test_when_all_nodes_restart_at_once_nothing_is_lost() -> None:
    sim = Simulator(1)
    nodes = mesh_of(sim, 8)
    posts = [node.post("kept") for node in nodes]
    sim.run_for(2_000)
    for node in nodes:
        node.crash()
    sim.run_for(5_000)
    for node in nodes:
        sim.after(sim.rng.randrange(5_000), node.start, nodes[0])
    sim.run_for(5_000)
    sim.run_until(has_all(nodes, [p.id for p in posts]), 30_000, "all posts are everywhere again")


def test_a_late_joiner_gets_the_whole_window_about_once() -> None:
    sim = Simulator(2)
    nodes = mesh_of(sim, 10)
    posts = post_at_random(sim, nodes, 1_000, 100_000)
    sim.run_for(110_000)
    sent = sum(node.sent_bytes for node in nodes)
    late = sim.add()
    late.start(nodes[4])
    took_ms = sim.run_until(has_all([late], [p.id for p in posts]), 30_000, "the late joiner has every post")
    sim.run_for(10_000)
    window_bytes = sum(p.size_bytes for p in posts)
    sent = sum(node.sent_bytes for node in nodes) - sent
    print(f"\nlate joiner: {len(posts)} posts in {took_ms} ms for {sent / window_bytes:.2f} times their bytes")
    assert sent < 2 * window_bytes
    assert delivered_once([*nodes, late])


def test_presence_from_before_it_came_reaches_a_late_joiner() -> None:
    sim = Simulator(3)
    nodes = mesh_of(sim, 6)
    sim.run_for(5_000)
    for node in nodes:
        node.create(sim.mint.record(node.key, "node", b"serving", node.local_ms(), 60_000 * 30))
    sim.run_for(3_000)
    late = sim.add()
    late.start(nodes[2])
    sim.run_until(lambda: len(late.index.passing()) == len(nodes), 10_000, "the joiner was told all presence")
