"""What shards are called, and what there is to say of those that run side by side."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.shard_name import ShardName, is_shard_name, parse_shard_name, ranking_warning


def test_a_name_is_read_as_it_was_written() -> None:
    for name in (ShardName(64, 128, "1f09a3c2"), ShardName(8, 8, "-"), ShardName(1024, 1024, "00000000")):
        assert is_shard_name(str(name))
        assert parse_shard_name(str(name)) == name
    assert ShardName(64, 128, "-").kept_of == "64 of 128"


@pytest.mark.parametrize(
    "text", ["", "64/128", "0/8 -", "9/8 -", "64/128 1F09A3C2", "64/128 1f09", "64/128 -\n", "\u0664/8 -"]
)
def test_other_names_are_no_shards_of_ours(text: str) -> None:
    assert parse_shard_name(text) is None


def test_nodes_that_ranked_differently_or_not_at_all_are_told_of() -> None:
    one, other, none = "8/16 1f09a3c2", "8/16 2f09a3c2", "8/16 -"
    assert ranking_warning([]) == ranking_warning(["", one, one, "later form"]) == ""
    assert "different counts" in ranking_warning([one, other])
    assert "different counts" in ranking_warning([one, none])
    assert "unranked" in ranking_warning([none, none])
