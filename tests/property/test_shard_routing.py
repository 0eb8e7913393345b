"""Conversations on shards: they stay while their shard lives, move only when it is lost, and are spread."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agentmesh.inference.logic.expert_sessions import node_of_session, order_of_session
from agentmesh.inference.logic.route import Key, Place, choose, most_in_flight
from agentmesh.inference.logic.target import Target
from tests.fakes.routing import at, model, peer

SHARD = model(shard="64/128 -", slots=2)
NODES = st.sets(st.integers(1, 60), min_size=1, max_size=12)


def host(targets: list[Target], session: bytes, out: set[bytes] | None = None, places: dict[Key, Place] | None = None):
    return choose(targets, places or {}, now_s=100.0, out=out or (), session=session).target


@given(NODES, st.binary(min_size=1, max_size=16), st.data())
def test_a_session_stays_whoever_else_comes_goes_or_is_busy(
    nodes: set[int], session: bytes, data: st.DataObject
) -> None:
    targets = [at(number, SHARD) for number in nodes]
    mine = host(targets, session)
    assert mine is not None
    assert host(data.draw(st.permutations(targets)), session) == mine, "from whichever node it is asked"
    others = st.sets(st.sampled_from(sorted(nodes))).map(lambda gone: {peer(number) for number in gone} - {mine.node})
    assert host(targets, session, data.draw(others)) == mine, "the loss of others moves nothing"
    busy = {at(number).key: Place(data.draw(st.integers(0, 2))) for number in nodes}
    assert host(targets, session, places=busy) == mine, "nor does load, while it has room"


@given(NODES.filter(lambda nodes: len(nodes) > 1), st.binary(min_size=1, max_size=16))
def test_a_session_of_a_lost_or_full_shard_goes_to_the_next_of_its_order(nodes: set[int], session: bytes) -> None:
    targets = [at(number, SHARD) for number in nodes]
    order = [bytes.fromhex(name) for name in order_of_session(session, (target.node.hex() for target in targets))]
    first = host(targets, session)
    assert first is not None and first.node == order[0]
    for lost in range(1, len(order)):
        second = host(targets, session, set(order[:lost]))
        assert second is not None and second.node == order[lost]
    full = {first.key: Place(most_in_flight(SHARD))}
    tried = choose(targets, {}, now_s=100.0, avoid={first.key}, session=session).target
    for found in (host(targets, session, places=full), tried):
        assert found is not None and found.node == order[1]


@given(st.binary(max_size=16), st.sets(st.text(max_size=4), min_size=1, max_size=8))
def test_the_order_begins_with_the_sessions_node_and_has_each_once(session: bytes, nodes: set[str]) -> None:
    order = order_of_session(session, nodes)
    assert sorted(order) == sorted(nodes)
    assert order[0] == node_of_session(session, nodes)


def test_sessions_are_spread_and_those_of_a_lost_shard_too() -> None:
    targets = [at(number, SHARD) for number in (1, 2, 3)]
    sessions = [b"%d" % number for number in range(1500)]
    before = {session: host(targets, session) for session in sessions}
    after = {session: host(targets, session, {peer(2)}) for session in sessions}
    assert all(400 < count < 600 for count in Counter(before.values()).values())
    moved = {session for session in sessions if before[session] != after[session]}
    assert moved == {session for session in sessions if before[session] == targets[1]}
    assert all(170 < count < 330 for count in Counter(after[session] for session in moved).values())
