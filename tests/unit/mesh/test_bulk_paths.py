"""Which way bulk goes, and how many connections wait for it."""

from __future__ import annotations

import random

from agentmesh.mesh.logic.bulk_limits import (
    BULK_BLOCKED_MS,
    BULK_GONE_MS,
    BULK_IDLE_MS,
    BULK_PEERS,
    BULK_RETRY_MAX_MS,
    BULK_RETRY_MS,
    POOL_DEMAND_MS,
    POOL_DIALS,
    POOL_MAX,
    POOL_MIN,
)
from agentmesh.mesh.logic.bulk_paths import BulkPaths, BulkTarget

PEER = bytes(32)
HERE = BulkTarget(("192.0.2.1:1",), 1)


def opened(times: int = 1, *, works: bool = True, now_ms: int = 0) -> BulkPaths:
    paths = BulkPaths()
    assert paths.may_try(PEER, HERE, now_ms)
    if works:
        paths.succeeded(PEER, HERE)
    for _ in range(times):
        paths.opened(PEER, now_ms)
    return paths


def test_a_path_never_tried_is_tried_and_counts_as_working_only_after_it_did() -> None:
    paths = BulkPaths()
    assert paths.may_try(PEER, HERE, 0)
    assert not paths.works(PEER)
    paths.succeeded(PEER, HERE)
    assert paths.works(PEER)


def test_a_path_that_never_worked_is_left_alone_for_minutes_and_longer_each_time() -> None:
    paths, now_ms, pauses = BulkPaths(), 0, []
    for _ in range(6):
        assert paths.may_try(PEER, HERE, now_ms)
        paths.failed(PEER, HERE, now_ms)
        began_ms = now_ms
        while not paths.may_try(PEER, HERE, now_ms):
            now_ms += 1_000
        pauses.append(now_ms - began_ms)
    assert pauses[:2] == [BULK_BLOCKED_MS, 2 * BULK_BLOCKED_MS]
    assert pauses[-1] == BULK_RETRY_MAX_MS


def test_a_path_that_worked_is_tried_again_soon() -> None:
    paths = opened()
    paths.failed(PEER, HERE, 0)
    assert not paths.works(PEER)
    assert not paths.may_try(PEER, HERE, BULK_RETRY_MS - 1)
    assert paths.may_try(PEER, HERE, BULK_RETRY_MS)


def test_failures_of_one_burst_count_once() -> None:
    paths = opened()
    for _ in range(POOL_DIALS):
        paths.failed(PEER, HERE, 0)
    assert paths.may_try(PEER, HERE, BULK_RETRY_MS)


def test_new_addresses_or_a_new_connection_are_a_reason_to_try_again() -> None:
    for changed in (BulkTarget(("192.0.2.2:1",), 1), BulkTarget(HERE.addresses, 2)):
        paths = BulkPaths()
        paths.failed(PEER, HERE, 0)
        assert not paths.may_try(PEER, HERE, 1)
        assert paths.may_try(PEER, changed, 1)


def test_a_trial_of_the_old_address_that_fails_late_does_not_blame_the_new_one() -> None:
    paths, new = BulkPaths(), BulkTarget(("192.0.2.2:1",), 2)
    assert paths.may_try(PEER, HERE, 0)
    assert paths.may_try(PEER, new, 1)
    paths.failed(PEER, HERE, 2)
    assert paths.may_try(PEER, new, 3)


def test_two_connections_are_ready_to_a_peer_in_use_and_eight_at_most() -> None:
    assert opened(0).keep_ready(PEER, 0) == 0
    assert opened(1).keep_ready(PEER, 0) == POOL_MIN
    assert opened(5).keep_ready(PEER, 0) == 5
    assert opened(500).keep_ready(PEER, 0) == POOL_MAX
    assert opened(500).keep_ready(PEER, POOL_DEMAND_MS) == POOL_MIN
    assert opened(500).keep_ready(PEER, BULK_IDLE_MS) == 0


def test_dials_fill_what_is_missing_but_no_more_at_once_than_a_peer_admits() -> None:
    paths = opened(1)
    assert paths.dials_due(PEER, 0, idle=0, dialling=0, waiting=1) == 3
    assert paths.dials_due(PEER, 0, idle=2, dialling=0, waiting=0) == 0
    assert paths.dials_due(PEER, 0, idle=0, dialling=0, waiting=100) == POOL_DIALS
    assert paths.dials_due(PEER, 0, idle=0, dialling=POOL_DIALS, waiting=100) == 0


def test_an_unknown_path_is_tried_by_one_dial_and_a_failed_one_by_none() -> None:
    paths = opened(1, works=False)
    assert paths.dials_due(PEER, 0, idle=0, dialling=0, waiting=9) == 1
    assert paths.dials_due(PEER, 0, idle=0, dialling=1, waiting=9) == 0
    paths.failed(PEER, HERE, 0)
    assert paths.dials_due(PEER, 0, idle=0, dialling=0, waiting=9) == 0


def test_the_least_lately_used_peer_is_forgotten_first() -> None:
    paths = BulkPaths()
    for number in range(BULK_PEERS + 5):
        paths.succeeded(number.to_bytes(32, "big"), HERE)
        paths.may_try(bytes(32), HERE, 0)
    assert len(paths) == BULK_PEERS
    assert paths.works(bytes(32))
    assert not paths.works((1).to_bytes(32, "big"))


def test_no_history_makes_more_dials_than_allowed_or_keeps_more_than_the_pool() -> None:
    rng = random.Random(5)
    paths, now_ms, target = BulkPaths(), 0, HERE
    for _ in range(3_000):
        now_ms += rng.choice((0, 1, 500, 5_000))
        match rng.randrange(5):
            case 0:
                paths.opened(PEER, now_ms)
            case 1:
                paths.failed(PEER, target, now_ms)
            case 2:
                paths.succeeded(PEER, target)
            case 3:
                target = BulkTarget((f"192.0.2.{rng.randrange(9)}:1",), now_ms)
            case _:
                paths.may_try(PEER, target, now_ms)
        dialling = rng.randrange(POOL_DIALS + 1)
        due = paths.dials_due(PEER, now_ms, idle=rng.randrange(9), dialling=dialling, waiting=rng.randrange(300))
        assert 0 <= due <= POOL_DIALS - dialling
        assert 0 <= paths.keep_ready(PEER, now_ms) <= POOL_MAX


def test_a_port_that_refuses_counts_as_closed_for_a_moment() -> None:
    paths = opened()
    paths.port_closed(PEER, HERE, 1_000)
    paths.failed(PEER, HERE, 1_000)
    assert paths.is_closed(PEER, 1_000 + BULK_GONE_MS - 1)
    assert not paths.is_closed(PEER, 1_000 + BULK_GONE_MS)


def test_a_port_of_a_node_that_was_admitted_anew_is_not_closed() -> None:
    paths = opened()
    paths.port_closed(PEER, HERE, 0)
    paths.failed(PEER, HERE, 0)
    assert paths.may_try(PEER, BulkTarget(HERE.addresses, HERE.seen_ms + 1), 1)
    assert not paths.is_closed(PEER, 1)
