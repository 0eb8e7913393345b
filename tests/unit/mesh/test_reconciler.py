"""Reconciliation steps in threads, against peers that ask for too many and sessions that end meanwhile."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agentmesh.core.clock import SystemClock
from agentmesh.mesh import reconciler as module
from agentmesh.mesh.logic import reconcile
from agentmesh.mesh.logic.snapshot import Snapshot
from agentmesh.mesh.reconciler import MAX_OPENINGS, Reconciler

CLOCK = SystemClock()
EMPTY = Snapshot([], [])
PEER, OTHER = b"p" * 32, b"o" * 32


def opening() -> bytes:
    step = reconcile.begin(EMPTY, b"s" * 16, CLOCK.now_ms())
    assert step.reply is not None
    return step.reply


async def test_a_peer_that_opens_session_after_session_is_told_that_we_are_busy() -> None:
    reconciler = Reconciler(lambda now_ms: EMPTY, CLOCK)
    body = opening()
    answers = [await reconciler.step(PEER, number, body) for number in range(MAX_OPENINGS + 5)]
    assert [answer.reply for answer in answers[-5:]] == [b""] * 5
    assert all(answer.done for answer in answers[-5:])
    assert all(answer.reply for answer in answers[:MAX_OPENINGS])
    assert (await reconciler.step(OTHER, 1, body)).reply


async def test_steps_of_sessions_that_are_over_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    release, computed = threading.Event(), 0

    def slow(*args: object) -> reconcile.Step:
        nonlocal computed
        computed += 1
        assert release.wait(60)
        return reconcile.Step(b"x", state=None)

    monkeypatch.setattr(module, "_compute", slow)
    reconciler = Reconciler(lambda now_ms: EMPTY, CLOCK)
    running = [asyncio.create_task(reconciler.step(PEER, number, b"?")) for number in range(5)]
    await asyncio.sleep(0)
    for number in range(1, 5):
        reconciler.end(PEER, number)
    await asyncio.sleep(0)
    release.set()
    answers = await asyncio.wait_for(asyncio.gather(*running), 60)
    assert computed == 1
    assert [answer.done for answer in answers] == [False, True, True, True, True]


async def test_a_session_that_ends_while_its_step_is_computed_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started, release = threading.Event(), threading.Event()
    compute = module._compute

    def slow(*args: object) -> reconcile.Step:
        started.set()
        assert release.wait(60)
        return compute(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_compute", slow)
    reconciler = Reconciler(lambda now_ms: EMPTY, CLOCK)
    running = asyncio.create_task(reconciler.step(PEER, 1, None))
    assert await asyncio.to_thread(started.wait, 60)
    reconciler.end(PEER, 1)
    release.set()
    await asyncio.wait_for(running, 60)
    assert reconciler.sessions == 0


async def test_a_body_of_a_session_that_there_is_not_takes_no_snapshot_after_the_allowance() -> None:
    taken = 0

    def snapshot(now_ms: int) -> Snapshot:
        nonlocal taken
        taken += 1
        return EMPTY

    reconciler = Reconciler(snapshot, CLOCK)
    for number in range(100):
        assert (await reconciler.step(PEER, number, b"junk")).done
    assert taken <= MAX_OPENINGS
