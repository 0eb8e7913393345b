"""A shard is begun where the plan has one for this node, kept while the same nodes share it, and tried again with patience."""

from __future__ import annotations

from agentmesh.inference.logic.shard_keeping import ShardKeeping, ShardMove
from agentmesh.inference.logic.split_limits import BACKOFF_MS, VOLUNTARY_MS
from agentmesh.inference.logic.split_values import ShardRoom, Shards, Wait, WaitCode
from tests.fakes.split_world import node_id

ME, OTHER, THIRD = node_id(1), node_id(2), node_id(3)
NOTHING = Wait(WaitCode.MEMORY, "too little memory")


def shards(*nodes: bytes, experts: int = 8) -> Shards:
    return Shards(tuple(ShardRoom(node, experts, 1) for node in nodes), 16, 4096, 1)


def test_only_a_plan_with_this_node_begins_a_shard_and_only_while_it_hosts_nothing() -> None:
    keeping = ShardKeeping(ME)
    assert keeping.look(NOTHING, 0, is_free=True) is ShardMove.NOTHING
    assert keeping.look(None, 0, is_free=True) is ShardMove.NOTHING
    assert keeping.look(shards(OTHER, THIRD), 0, is_free=True) is ShardMove.NOTHING
    assert keeping.look(shards(ME, OTHER), 0, is_free=False) is ShardMove.NOTHING
    assert keeping.look(shards(ME, OTHER), 0, is_free=True) is ShardMove.BEGIN
    assert keeping.running == shards(ME, OTHER)


def test_memory_alone_never_ends_one() -> None:
    keeping = ShardKeeping(ME)
    keeping.look(shards(ME, OTHER), 0, is_free=True)
    for at in range(0, 10 * VOLUNTARY_MS, VOLUNTARY_MS):
        assert keeping.look(shards(ME, OTHER, experts=5 + at % 7), at, is_free=True) is ShardMove.NOTHING
        assert keeping.next_wake_ms(at) is None


def test_other_nodes_end_one_once_they_have_been_the_others_for_a_while() -> None:
    keeping = ShardKeeping(ME)
    keeping.look(shards(ME, OTHER), 0, is_free=True)
    assert keeping.look(shards(ME, OTHER, THIRD), 1_000, is_free=True) is ShardMove.NOTHING
    assert keeping.next_wake_ms(1_000) == 1_000 + VOLUNTARY_MS
    assert keeping.look(shards(ME, OTHER), 2_000, is_free=True) is ShardMove.NOTHING  # it was not for long
    assert keeping.next_wake_ms(2_000) is None
    assert keeping.look(shards(ME, OTHER, THIRD), 3_000, is_free=True) is ShardMove.NOTHING
    late = 3_000 + VOLUNTARY_MS
    assert keeping.look(shards(ME, OTHER, THIRD), late - 1, is_free=True) is ShardMove.NOTHING
    assert keeping.look(shards(ME, OTHER, THIRD), late, is_free=True) is ShardMove.END
    assert keeping.look(shards(ME, OTHER, THIRD), late + 1, is_free=True) is ShardMove.NOTHING  # once
    keeping.ended(late + 2)
    assert (
        keeping.look(shards(ME, OTHER, THIRD), late + 3, is_free=True) is ShardMove.BEGIN
    )  # asked for: no patience needed


def test_failures_are_waited_for_longer_each_time_until_one_was_ready() -> None:
    keeping, now = ShardKeeping(ME), 0
    waits: list[int] = []
    for _ in range(4):
        assert keeping.look(shards(ME, OTHER), now, is_free=True) is ShardMove.BEGIN
        keeping.ended(now)
        wake = keeping.next_wake_ms(now)
        assert wake is not None
        assert keeping.look(shards(ME, OTHER), wake - 1, is_free=True) is ShardMove.NOTHING
        waits.append(wake - now)
        now = wake
    assert waits == [BACKOFF_MS, 2 * BACKOFF_MS, 4 * BACKOFF_MS, 8 * BACKOFF_MS]
    keeping.look(shards(ME, OTHER), now, is_free=True)
    keeping.ready()
    keeping.ended(now)
    assert keeping.next_wake_ms(now) == now + BACKOFF_MS
