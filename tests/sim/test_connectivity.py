"""The overlay holds together: NAT, small meshes, stuck peers, clean departures; and runs repeat to the byte."""

from __future__ import annotations

import pytest

from agentmesh.mesh.logic.events import PeerState
from tests.sim.network import Faults, Simulator
from tests.sim.scenario import Case, check, delivered_once, has_all, islands, mesh_of, nobody_blamed, post_at_random


def _one_hub(case: Case) -> None:
    sim = Simulator(case.seed, faults=case.faults)
    nodes = mesh_of(sim, case.nodes, undialable=case.nodes - 1)
    sim.run_until(lambda: islands(nodes) == 1, 10_000, "all are connected through the only dialable node")
    posts = post_at_random(sim, nodes, case.posts, 20_000)
    sim.run_for(20_000)
    sim.run_until(
        has_all(nodes, [post.id for post in posts]), 90_000 if case.faults.loss else 5_000, "all posts everywhere"
    )
    for _ in range(60):
        sim.run_for(1_000)
        assert islands(nodes) == 1, f"seed {case.seed}: the mesh fell apart"
        assert len(nodes[0].machine.active_peers()) == case.nodes - 1, "an undialable neighbour was evicted"
    assert delivered_once(nodes)
    assert nobody_blamed(nodes)


@pytest.mark.parametrize("seed", range(4))
def test_one_dialable_node_keeps_fifteen_behind_nat_connected(seed: int) -> None:
    check(_one_hub, Case(seed, nodes=16, posts=16))


def test_one_dialable_node_is_enough_on_bad_links_too() -> None:
    check(_one_hub, Case(9, nodes=16, posts=16, faults=Faults(loss=0.1, duplicate=0.05, reorder=0.1)))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_below_eight_nodes_every_pair_connects_by_exactly_one_connection(count: int) -> None:
    sim = Simulator(count)
    nodes = mesh_of(sim, count)
    full = [count - 1] * count
    sim.run_until(lambda: [len(n.machine.active_peers()) for n in nodes] == full, 30_000, "every pair is connected")
    sim.run_for(60_000)
    assert [len(node.conns) for node in nodes] == full
    for node in nodes:
        for peer, conn in node.conns.items():
            assert conn.is_open
            assert sim.by_id[peer].conns[node.id] is conn, "both ends kept the same one of two connections"


def test_two_nodes_that_dial_each_other_at_once_end_with_one_connection() -> None:
    for seed in range(20):
        sim = Simulator(seed)
        one, two = sim.add(), sim.add()
        one.start(two)
        sim.dial(one, two.id)
        two.start(one)
        sim.run_for(5_000)
        assert one.conns[two.id] is two.conns[one.id], f"seed {seed}"
        assert one.conns[two.id].is_open
        assert one.machine.active_peers() == (two.id,), f"seed {seed}"


def test_a_node_that_knows_nobody_alive_keeps_trying_until_somebody_is() -> None:
    sim = Simulator(3)
    hub, node = sim.add(), sim.add()
    node.start(hub)
    sim.run_for(600_000)
    hub.start()
    sim.run_until(
        lambda: len(hub.machine.active_peers()) == 1, 15_000, "the lonely node came back to its bootstrap peer"
    )


def test_a_stuck_peer_stalls_nobody_and_is_closed() -> None:
    sim = Simulator(5)
    nodes = mesh_of(sim, 12)
    sim.run_for(10_000)
    stuck, others = nodes[3], nodes[:3] + nodes[4:]
    stuck.is_stuck = True
    posts = [node.post("while one of us hangs") for node in others]
    sim.run_until(has_all(others, [post.id for post in posts]), 5_000, "the others have every post")
    sim.run_for(25_000)
    assert all(stuck.id not in node.conns for node in others)
    assert {node.states[stuck.id] for node in others if stuck.id in node.states} <= {PeerState.DEAD}
    stuck.unstick()
    sim.run_until(has_all([stuck], [post.id for post in posts]), 60_000, "a dead node may come back")


def test_a_slow_peer_slows_nobody_else() -> None:
    sim = Simulator(6)
    nodes = mesh_of(sim, 12)
    nodes[5].slow_ms = 1_500
    sim.run_for(20_000)
    posts = [node.post("quick") for node in nodes if node.number != 5]
    others = [node for node in nodes if node.number != 5]
    sim.run_until(has_all(others, [post.id for post in posts]), 4_000, "the quick ones have every post")
    sim.run_until(has_all(nodes, [post.id for post in posts]), 30_000, "the slow one too")


def test_one_that_hears_nobody_condemns_nobody() -> None:
    sim = Simulator(7)
    nodes = mesh_of(sim, 10)
    sim.run_for(10_000)
    sim.partition(nodes[1:], nodes[:1])
    sim.run_for(60_000)
    assert PeerState.DEAD not in nodes[0].states.values()
    assert all(PeerState.DEAD not in {s for p, s in n.states.items() if p != nodes[0].id} for n in nodes[1:])


def test_who_leaves_cleanly_is_not_suspected() -> None:
    sim = Simulator(8)
    nodes = mesh_of(sim, 10)
    sim.run_for(10_000)
    nodes[4].leave()
    sim.run_for(60_000)
    assert all(node.states.get(nodes[4].id, PeerState.ALIVE) is PeerState.ALIVE for node in nodes[:4] + nodes[5:])
    assert islands(nodes) == 1


def _traced(seed: int) -> str:
    faults = Faults(loss=0.1, duplicate=0.05, reorder=0.1)
    sim = Simulator(seed, faults=faults, traced=True, wire=True)
    nodes = mesh_of(sim, 12, undialable=3, skew_ms=2_000)
    post_at_random(sim, nodes, 30, 20_000)
    sim.run_for(15_000)
    nodes[2].crash()
    sim.after(5_000, nodes[2].start, nodes[0])
    sim.run_for(30_000)
    return sim.trace()


def test_one_seed_gives_one_run_to_the_byte() -> None:
    assert _traced(1) == _traced(1)
    assert _traced(1) != _traced(2)
