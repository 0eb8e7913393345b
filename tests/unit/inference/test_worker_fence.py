"""A worker serves one host of a model at a time, and never an older one after a newer."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.split_limits import MAX_TERM
from agentmesh.inference.logic.worker_fence import (
    Admit,
    EndServer,
    Job,
    JobAsked,
    JobLeft,
    Refuse,
    ServerEnded,
    WorkerFence,
)

OLD, NEW, NEWEST = Job(1, b"b"), Job(2, b"a"), Job(3, b"c")


def fence_with(job: Job) -> WorkerFence:
    fence = WorkerFence()
    assert fence.handle(JobAsked(job)) == [Admit(job)]
    return fence


def test_a_newer_host_is_admitted_when_nothing_of_the_older_is_left() -> None:
    fence = fence_with(OLD)
    assert fence.handle(JobAsked(NEW)) == [EndServer(OLD)]
    assert fence.handle(ServerEnded(OLD)) == [Admit(NEW)]


def test_an_older_host_is_refused_even_when_the_worker_is_free_again() -> None:
    fence = fence_with(NEW)
    fence.handle(JobLeft(NEW))
    fence.handle(ServerEnded(NEW))
    [refused] = fence.handle(JobAsked(OLD))
    assert isinstance(refused, Refuse)
    assert "term 2" in refused.sentence


def test_of_equal_terms_the_smaller_id_goes_before() -> None:
    fence = fence_with(Job(2, b"b"))
    assert fence.handle(JobAsked(Job(2, b"a"))) == [EndServer(Job(2, b"b"))]
    [refused] = fence.handle(JobAsked(Job(2, b"c")))
    assert isinstance(refused, Refuse)


def test_of_hosts_that_wait_the_newest_is_admitted_and_the_other_told() -> None:
    fence = fence_with(OLD)
    fence.handle(JobAsked(NEW))
    [refused] = fence.handle(JobAsked(NEWEST))
    assert isinstance(refused, Refuse)
    assert refused.job == NEW
    assert fence.handle(ServerEnded(OLD)) == [Admit(NEWEST)]


def test_a_host_that_waits_and_leaves_is_not_admitted() -> None:
    fence = fence_with(OLD)
    fence.handle(JobAsked(NEW))
    assert fence.handle(JobLeft(NEW)) == []
    assert fence.handle(ServerEnded(OLD)) == []
    assert fence.current is None


def test_the_same_job_is_not_admitted_twice() -> None:
    fence = fence_with(NEW)
    [refused] = fence.handle(JobAsked(NEW))
    assert isinstance(refused, Refuse)


def test_a_server_is_ended_once() -> None:
    fence = fence_with(OLD)
    assert fence.handle(JobLeft(OLD)) == [EndServer(OLD)]
    assert fence.handle(JobLeft(OLD)) == []
    assert fence.handle(ServerEnded(NEW)) == []
    assert fence.handle(ServerEnded(OLD)) == []


@pytest.mark.parametrize("term", [0, -1, MAX_TERM + 1])
def test_a_term_that_no_host_can_have_is_refused(term: int) -> None:
    [refused] = WorkerFence().handle(JobAsked(Job(term, b"a")))
    assert isinstance(refused, Refuse)


def test_a_host_that_is_older_than_the_one_that_waits_is_refused() -> None:
    fence = fence_with(OLD)
    fence.handle(JobAsked(NEWEST))
    [refused] = fence.handle(JobAsked(NEW))
    assert isinstance(refused, Refuse)
    assert fence.handle(ServerEnded(OLD)) == [Admit(NEWEST)]
