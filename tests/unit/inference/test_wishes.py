"""One wish out of several nodes' wishes for the same model."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.split_values import Way, Wish
from agentmesh.inference.logic.wishes import agreed_wish
from agentmesh.mesh.identity import encode_id
from tests.fakes.split_world import node_id


def test_of_different_wishes_the_smaller_id_decides_each_flag() -> None:
    wishes = {node_id(2): Wish(min_peers=3), node_id(1): Wish(context_tokens=8192), node_id(3): Wish(min_peers=4)}
    wish, sentences = agreed_wish(wishes)
    assert wish == Wish(context_tokens=8192, min_peers=3)
    assert len(sentences) == 1
    assert "--min-peers" in sentences[0]


@pytest.mark.parametrize(
    ("one", "other", "flag"),
    [
        (Wish(way=Way.LAYERS), Wish(way=Way.EXPERTS), "--split"),
        (Wish(slots=1), Wish(slots=2), "--slots"),
        (Wish(host=node_id(1)), Wish(host=node_id(2)), "--host-node"),
        (Wish(context_tokens=1), Wish(context_tokens=2), "--ctx-size"),
    ],
)
def test_nodes_that_differ_are_told_the_flag_and_whose_word_counts(one: Wish, other: Wish, flag: str) -> None:
    _, (sentence,) = agreed_wish({node_id(1): one, node_id(2): other})
    assert sentence == f"Nodes differ about {flag}; what {encode_id(node_id(1))[:8]} says counts."
