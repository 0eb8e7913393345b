"""A shard is begun where the plan has one for this node, kept as long as nothing better lasts, given up in turns, and tried again with patience."""

from __future__ import annotations

from agentmesh.inference.logic.fit import Room, Wanted, fit_model
from agentmesh.inference.logic.shard_keeping import ShardKeeping, ShardMove
from agentmesh.inference.logic.split_limits import BACKOFF_MS, SHARD_LOSS_MS, SHARD_TURN_MS, VOLUNTARY_MS
from agentmesh.inference.logic.split_values import ShardRoom, Shards, Solo, Split, Wait, WaitCode
from tests.fakes.split_world import GB, a_model, node_id

ME, OTHER, THIRD = node_id(1), node_id(2), node_id(3)
NOTHING = Wait(WaitCode.MEMORY, "too little memory")
NOBODY: dict[bytes, str] = {}
SHARD = "8/16 -"


def shards(*nodes: bytes, experts: int = 8) -> Shards:
    return Shards(tuple(ShardRoom(node, experts, 1) for node in nodes), 16, 4096, 1)


def solo(node: bytes) -> Solo:
    model, room = a_model(), Room(None, 100 * GB, 100 * GB)
    return Solo(node, fit_model(model.id, model.facts, Wanted(None, None), [room]))


def split(host: bytes, worker: bytes) -> Split:
    return Split(host, (worker,), (), (), 1, True, 4096, 1, 0)


def keeping_one(*nodes: bytes) -> ShardKeeping:
    """One that runs, and is ready, since 0."""
    keeping = ShardKeeping(ME)
    assert keeping.look(shards(*nodes), 0, NOBODY, is_free=True) is ShardMove.BEGIN
    keeping.ready()
    return keeping


def test_only_a_plan_with_this_node_begins_a_shard_and_only_while_nobody_runs_it_otherwise() -> None:
    keeping = ShardKeeping(ME)
    assert keeping.look(NOTHING, 0, NOBODY, is_free=True) is ShardMove.NOTHING
    assert keeping.look(None, 0, NOBODY, is_free=True) is ShardMove.NOTHING
    assert keeping.look(shards(OTHER, THIRD), 0, NOBODY, is_free=True) is ShardMove.NOTHING
    assert keeping.look(shards(ME, OTHER), 0, NOBODY, is_free=False) is ShardMove.NOTHING
    assert keeping.look(shards(ME, OTHER), 0, NOBODY, is_free=True, is_hosted=True) is ShardMove.NOTHING
    assert keeping.look(shards(ME, OTHER), 0, NOBODY, is_free=True) is ShardMove.BEGIN
    assert keeping.running == shards(ME, OTHER)


def test_neither_memory_nor_who_joins_nor_a_plan_without_an_answer_ends_one() -> None:
    keeping = keeping_one(ME, OTHER)
    outcomes = [shards(ME, OTHER, experts=5), shards(ME, OTHER, THIRD), shards(OTHER, THIRD), NOTHING, None]
    for number in range(100):
        now = number * VOLUNTARY_MS
        assert keeping.look(outcomes[number // 20], now, NOBODY, is_free=True) is ShardMove.NOTHING
        assert keeping.next_wake_ms(now) is None


def test_who_is_gone_for_long_ends_one_node_after_the_other() -> None:
    keeping = keeping_one(ME, OTHER, THIRD)
    left, others = shards(ME, OTHER), {OTHER: SHARD}
    assert keeping.look(left, 1_000, others, is_free=True) is ShardMove.NOTHING
    assert (
        keeping.look(shards(ME, OTHER, THIRD), 2_000, others, is_free=True) is ShardMove.NOTHING
    )  # it was not for long
    assert keeping.next_wake_ms(2_000) is None
    assert keeping.look(left, 3_000, others, is_free=True) is ShardMove.NOTHING
    due = 3_000 + SHARD_LOSS_MS
    assert keeping.next_wake_ms(3_000) == due
    assert keeping.look(left, due - 1, others, is_free=True) is ShardMove.NOTHING
    assert keeping.look(left, due, NOBODY, is_free=True) is ShardMove.NOTHING  # the other one changes its own now
    assert keeping.next_wake_ms(due) is None  # it will be heard of
    assert keeping.look(left, due + 1, others, is_free=True) is ShardMove.END
    assert keeping.look(left, due + 2, others, is_free=True) is ShardMove.NOTHING  # once
    keeping.ended(due + 3)
    assert keeping.look(left, due + 4, others, is_free=True) is ShardMove.BEGIN  # asked for: no patience needed


def test_the_second_in_order_waits_for_its_turn() -> None:
    keeping = ShardKeeping(OTHER)
    keeping.look(shards(ME, OTHER, THIRD), 0, NOBODY, is_free=True)
    keeping.ready()
    for now, move in (
        (0, ShardMove.NOTHING),
        (SHARD_LOSS_MS, ShardMove.NOTHING),
        (SHARD_LOSS_MS + SHARD_TURN_MS, ShardMove.END),
    ):
        assert keeping.look(shards(ME, OTHER), now, {ME: SHARD}, is_free=True) is move


def test_the_whole_model_elsewhere_ends_one_when_it_has_answered_for_a_while() -> None:
    keeping = keeping_one(ME, OTHER)
    assert keeping.look(solo(THIRD), 0, {OTHER: SHARD}, is_free=True) is ShardMove.NOTHING
    long = 100 * VOLUNTARY_MS  # it may take hours to load
    assert keeping.look(solo(THIRD), long, {OTHER: SHARD}, is_free=True) is ShardMove.NOTHING
    there = {OTHER: SHARD, THIRD: ""}
    assert keeping.look(solo(THIRD), long, there, is_free=True) is ShardMove.NOTHING
    assert keeping.next_wake_ms(long) == long + VOLUNTARY_MS
    assert keeping.look(solo(THIRD), long + 1, {OTHER: SHARD}, is_free=True) is ShardMove.NOTHING  # it went again
    assert keeping.look(solo(THIRD), long + 2, there, is_free=True) is ShardMove.NOTHING
    assert keeping.look(solo(THIRD), long + 2 + VOLUNTARY_MS, there, is_free=True) is ShardMove.END


def test_this_node_takes_the_whole_model_only_when_it_could_for_a_while() -> None:
    keeping = keeping_one(ME, OTHER)
    assert keeping.weigh(solo(ME), 0, NOBODY, is_wish=False) == shards(ME, OTHER)
    assert keeping.weigh(NOTHING, 1, NOBODY, is_wish=False) == NOTHING
    assert keeping.next_wake_ms(1) is None
    assert keeping.weigh(solo(ME), 2, NOBODY, is_wish=False) == shards(ME, OTHER)
    due = 2 + VOLUNTARY_MS
    assert keeping.next_wake_ms(2) == due
    assert keeping.look(shards(ME, OTHER), due - 1, NOBODY, is_free=True) is ShardMove.NOTHING
    assert keeping.look(shards(ME, OTHER), due, NOBODY, is_free=True) is ShardMove.REPLAN
    assert keeping.look(shards(ME, OTHER), due + 1, NOBODY, is_free=True) is ShardMove.NOTHING  # once
    assert keeping.next_wake_ms(due + 1) is None
    assert keeping.weigh(solo(ME), due + 3_000, NOBODY, is_wish=False) == solo(ME)
    assert (
        keeping.look(solo(ME), due + 3_000, NOBODY, is_free=False) is ShardMove.NOTHING
    )  # whoever starts it ends this one
    keeping.gives_way()
    keeping.ended(due + 3_001)
    assert keeping.next_wake_ms(due + 3_001) is None


def test_one_that_does_not_answer_yet_gives_way_at_once() -> None:
    keeping = ShardKeeping(ME)
    keeping.look(shards(ME, OTHER), 0, NOBODY, is_free=True)
    assert keeping.weigh(solo(ME), 0, NOBODY, is_wish=False) == solo(ME)


def test_layers_take_the_place_of_shards_only_if_the_user_says_so() -> None:
    keeping = keeping_one(ME, OTHER)
    assert keeping.weigh(split(ME, OTHER), 0, NOBODY, is_wish=False) == shards(ME, OTHER)
    assert keeping.weigh(split(OTHER, ME), 0, NOBODY, is_wish=False) == shards(ME, OTHER)
    assert keeping.weigh(split(OTHER, ME), 0, NOBODY, is_wish=True) == split(OTHER, ME)
    assert keeping.look(split(OTHER, ME), 0, NOBODY, is_free=True) is ShardMove.NOTHING
    assert keeping.look(split(OTHER, ME), VOLUNTARY_MS, NOBODY, is_free=True) is ShardMove.END
    fresh = ShardKeeping(ME)
    assert isinstance(fresh.weigh(split(ME, OTHER), 0, {THIRD: SHARD}, is_wish=False), Wait)
    assert fresh.weigh(split(ME, OTHER), 0, {THIRD: ""}, is_wish=False) == split(ME, OTHER)


def test_failures_are_waited_for_longer_each_time_until_one_was_ready() -> None:
    keeping, now = ShardKeeping(ME), 0
    waits: list[int] = []
    for _ in range(4):
        assert keeping.look(shards(ME, OTHER), now, NOBODY, is_free=True) is ShardMove.BEGIN
        keeping.ended(now)
        wake = keeping.next_wake_ms(now)
        assert wake is not None
        assert keeping.look(shards(ME, OTHER), wake - 1, NOBODY, is_free=True) is ShardMove.NOTHING
        waits.append(wake - now)
        now = wake
    assert waits == [BACKOFF_MS, 2 * BACKOFF_MS, 4 * BACKOFF_MS, 8 * BACKOFF_MS]
    keeping.look(shards(ME, OTHER), now, NOBODY, is_free=True)
    keeping.ready()
    keeping.ended(now)
    assert keeping.next_wake_ms(now) == now + BACKOFF_MS
