"""Who runs a split, whatever happens to the mesh: after quiet exactly one host where one can be, and few restarts on the way."""

from __future__ import annotations

import random

import msgspec
import pytest

from agentmesh.inference.logic.replan import State
from agentmesh.inference.logic.split_limits import DEBOUNCE_MS
from agentmesh.inference.logic.split_values import NodeFacts, Solo, Split, Wish
from tests.fakes.split_world import GB, a_model, a_node, node_id
from tests.sim.split_mesh import Rules, SplitMesh

MODEL = a_model(layers=10, layer_bytes=GB)  # 10.5 GB and contexts
QUIET_MS = 150_000  # a loss is noticed after 12 s, an engine ends after 15; then twice debounce, claim, backoff


def nodes_of(seed: int, count: int) -> list[NodeFacts]:
    """Nodes of 5 to 9 GB, so that it takes two or three; a client and one that takes no part among them."""
    chance = random.Random(seed)
    ids = range(1, count + 1)
    return [
        a_node(
            number,
            chance.choice((5, 6, 7, 8, 9)),
            rtts={other: 1.0 + (number + other) % 7 for other in ids if other != number},
            client=number == count,
            part=number != count - 1,
        )
        for number in ids
    ]


def assert_converged(mesh: SplitMesh) -> None:
    for part in mesh.parts():
        facts = tuple(msgspec.structs.replace(m.facts, claim=None, seen_term=0) for m in part)
        possible = isinstance(mesh.rules.plan(facts), Solo | Split)
        running = [m for m in part if m.running is not None]
        # What runs may go on with less than the headroom, with which it would not be begun: seed 2210.
        assert int(possible) <= len(running) <= 1, [(m.facts.name, m.replan.state) for m in part]
        for host in running:
            plan = host.running
            assert plan is not None
            assert mesh.rules.broken(plan, facts) is None
            assert host.facts.takes_part
            assert not host.facts.is_client
            assert host.replan.state is State.RUNNING
            for worker in plan.workers if isinstance(plan, Split) else ():
                job = mesh.members[worker].fence.current
                assert job is not None
                assert job.host == host.facts.node


# 220 and on: a host gives way to one that can hold it alone, and did not begin while this one ran.
@pytest.mark.parametrize("seed", [*range(40), 220, 467, 487, 491])
def test_after_quiet_one_host_runs_in_each_part_that_can_have_one(seed: int) -> None:
    chance = random.Random(seed)
    everyone = nodes_of(seed, chance.randint(4, 8))
    mesh = SplitMesh(seed, everyone, Rules(MODEL, Wish(context_tokens=4096)), fail_percent=chance.choice((0, 0, 30)))
    for _ in range(chance.randint(2, 7)):
        mesh.run_for(chance.choice((500, 3_000, 8_000, 20_000, 60_000)))
        _disturb(mesh, everyone, chance)
    mesh.run_for(QUIET_MS)
    if mesh.fail_percent:  # each start may fail; patience then grows
        mesh.fail_percent = 0
        mesh.run_for(10 * QUIET_MS)
    assert_converged(mesh)
    assert mesh.overlaps_ms <= mesh.disturbed_ms + 30_000
    starts = sum(member.starts for member in mesh.members.values())
    mesh.run_for(QUIET_MS)
    assert sum(member.starts for member in mesh.members.values()) == starts


def _disturb(mesh: SplitMesh, everyone: list[NodeFacts], chance: random.Random) -> None:
    there = sorted(mesh.members)
    what = chance.choice(("partition", "heal", "heal", "crash", "join", "change", "kill", "slow"))
    gone = [facts for facts in everyone if facts.node not in mesh.members]
    if what == "partition":
        mesh.partition({node.node: chance.randrange(2) for node in everyone})
    elif what == "heal":
        mesh.partition({node.node: 0 for node in everyone})
    elif what == "crash" and len(there) > 2:
        mesh.crash(chance.choice(there))
    elif what == "join" and gone:
        mesh.join(chance.choice(gone))
    elif what == "change":
        facts = mesh.members[chance.choice(there)].facts
        mesh.change(msgspec.structs.replace(facts, machine_free_bytes=chance.choice((1, 6, 9, 20)) * GB))
    elif what == "kill":
        mesh.kill_engine(chance.choice(there))
    elif what == "slow":
        mesh.max_delay_ms = 8_000


@pytest.mark.parametrize("seed", range(10))
def test_starts_are_bounded_by_what_happened(seed: int) -> None:
    chance = random.Random(seed)
    everyone = nodes_of(seed, 7)
    mesh = SplitMesh(seed, everyone, Rules(MODEL, Wish(context_tokens=4096)))
    mesh.run_for(60_000)
    assert sum(member.starts for member in mesh.members.values()) <= 2
    before = sum(member.starts for member in mesh.members.values())
    for _ in range(6):
        mesh.partition({node.node: chance.randrange(2) for node in everyone})
        mesh.run_for(60_000)
        assert_converged(mesh)
        mesh.partition({node.node: 0 for node in everyone})
        mesh.run_for(60_000)
        assert_converged(mesh)
    starts = sum(member.starts for member in mesh.members.values()) - before
    assert starts <= 3 * 12  # each cut at most one start in each part and one that was too early


def test_records_that_change_all_the_time_neither_start_nor_stop_anything_twice() -> None:
    everyone = nodes_of(3, 6)
    mesh = SplitMesh(3, everyone, Rules(MODEL, Wish(context_tokens=4096)))
    chance = random.Random(3)
    for step in range(300):
        facts = mesh.members[node_id(1 + step % 4)].facts
        less = int(facts.machine_total_bytes * chance.choice((0.97, 1.0)))
        mesh.change(msgspec.structs.replace(facts, machine_free_bytes=less))
        mesh.run_for(DEBOUNCE_MS // 3)
    assert sum(member.starts for member in mesh.members.values()) <= 2
    assert any(member.running for member in mesh.members.values())


def test_twenty_killed_engines_are_twenty_prompt_restarts() -> None:
    mesh = SplitMesh(1, nodes_of(1, 6), Rules(MODEL, Wish(context_tokens=4096)))
    mesh.run_for(30_000)
    for _ in range(20):
        host = next(m for m in mesh.members.values() if m.running is not None)
        mesh.kill_engine(host.facts.node)
        mesh.run_for(10_000)
        assert any(m.running is not None for m in mesh.members.values())
        mesh.run_for(5_000)
