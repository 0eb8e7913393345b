"""Sessions on nodes: sticky, spread, and moved only when their node is gone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agentmesh.inference.logic.expert_sessions import node_of_session

NODES = st.sets(st.text(max_size=4), min_size=1, max_size=8)


@given(st.binary(max_size=20), NODES, st.text(max_size=4))
def test_a_session_stays_unless_its_node_leaves_and_moves_only_to_one_that_comes(
    session: bytes, nodes: set[str], other: str
) -> None:
    chosen = node_of_session(session, nodes)
    assert chosen in nodes
    assert node_of_session(session, sorted(nodes, reverse=True)) == chosen, "in whatever order they are known"
    assert node_of_session(session, nodes | {other}) in (chosen, other)
    if other != chosen:
        assert node_of_session(session, nodes - {other}) == chosen


def test_without_a_node_there_is_none() -> None:
    assert node_of_session(b"session", ()) is None


def test_sessions_are_spread_evenly() -> None:
    spread = Counter(node_of_session(b"%d" % number, ("a", "b", "c")) for number in range(3000))
    assert all(900 < count < 1100 for count in spread.values())
    moved = Counter(
        node_of_session(b"%d" % number, ("b", "c"))
        for number in range(3000)
        if node_of_session(b"%d" % number, ("a", "b", "c")) == "a"
    )
    assert all(400 < count < 600 for count in moved.values()), "those of a lost node, too"
