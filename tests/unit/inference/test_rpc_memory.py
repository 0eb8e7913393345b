"""What a host may allocate on a worker."""

from __future__ import annotations

import pytest

from agentmesh.core.errors import ProtocolError
from agentmesh.inference.logic.rpc_limits import MAX_BUFFERS
from agentmesh.inference.logic.rpc_memory import Allocations


def test_buffers_count_from_the_moment_they_are_asked_for() -> None:
    memory = Allocations(100)
    assert memory.ask(60)
    assert not memory.ask(41)
    memory.answered(7, 64)  # the RPC server rounds up
    assert memory.held_bytes == 64
    assert not memory.ask(37)
    assert memory.ask(36)


def test_what_was_freed_or_not_given_may_be_asked_for_again() -> None:
    memory = Allocations(100)
    memory.ask(100)
    memory.answered(0, 0)
    assert memory.ask(100)
    memory.answered(7, 100)
    memory.freed(8)
    assert not memory.ask(1)
    memory.freed(7)
    assert memory.ask(100)


def test_answers_belong_to_the_oldest_request() -> None:
    memory = Allocations(None)
    memory.ask(10)
    memory.ask(20)
    memory.answered(1, 10)
    assert memory.held_bytes == 30
    memory.answered(2, 20)
    memory.freed(1)
    assert memory.held_bytes == 20


def test_a_tensor_must_lie_in_what_was_allocated() -> None:
    memory = Allocations(None)
    memory.ask(10)
    memory.check(10)
    with pytest.raises(ProtocolError):
        memory.check(11)


def test_the_host_is_told_no_more_than_the_limit_leaves() -> None:
    memory = Allocations(100)
    memory.ask(30)
    assert memory.told(1_000, 2_000) == (70, 100)
    assert memory.told(50, 80) == (50, 80)
    assert Allocations(None).told(1_000, 2_000) == (1_000, 2_000)
    assert Allocations(0).told(1_000, 2_000) == (0, 0)


def test_buffers_without_end_are_refused() -> None:
    memory = Allocations(None)
    for pointer in range(1, MAX_BUFFERS + 1):
        memory.ask(0)
        memory.answered(pointer, 0)
    with pytest.raises(ProtocolError):
        memory.ask(0)
