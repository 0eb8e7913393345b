"""Whose fault it is that a split ended, from the lease to the next plan: another worker is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import msgspec
import pytest

from agentmesh.core.tasks import TaskSet
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.logic import replan
from agentmesh.inference.logic.job_wire import JobSaid, JobState
from agentmesh.inference.logic.keeping import better, broken
from agentmesh.inference.logic.lifecycle import State
from agentmesh.inference.logic.plan import make_plan, plan_digest
from agentmesh.inference.logic.split_values import NodeFacts, Outcome, Shards, Solo, Split, Wish
from agentmesh.inference.rpc.errors import WorkerRefused
from agentmesh.inference.split.driver import SplitDriver
from tests.fakes.mesh_nodes import eventually
from tests.fakes.serving import FakeRunning
from tests.fakes.split_world import a_model, a_node, node_id
from tests.integration.test_split_host import ANNA, BERT, World, a_plan, worlds
from tests.integration.test_split_running import runs

ME, BAD, GOOD = node_id(1), node_id(2), node_id(3)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with worlds(tmp_path) as made:
        yield made


async def test_the_worker_that_refuses_is_to_blame(world: World) -> None:
    world.made[BERT].instead = JobSaid(JobState.REFUSED, "no.")
    host = world.host()
    await world.refused(host, WorkerRefused, "no")
    assert host.blamed == BERT


async def test_the_worker_that_is_lost_first_is_to_blame(world: World) -> None:
    host = world.host()
    await host.open()
    assert host.blamed == b""
    world.made[ANNA].streams[-1].abort()
    await eventually(lambda: len(world.lost) == 1)
    await host.close()
    assert host.blamed == ANNA


async def test_a_run_that_is_given_back_blames_nobody(world: World) -> None:
    host = world.host()
    await host.open()
    await host.close()
    assert host.blamed == b""


async def test_a_run_says_who_is_to_blame_for_its_end(tmp_path: Path) -> None:
    async with runs(tmp_path) as here:
        runner = await here.runner()
        here.world.made[ANNA].instead = JobSaid(JobState.REFUSED, "no.")
        with pytest.raises(WorkerRefused):
            await runner.run(a_plan(ANNA), 7, lambda: None)
        assert runner.blamed == ANNA


async def test_when_the_engine_does_not_start_the_workers_are_suspected_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker answers can end it, and nobody sees which one's it was."""

    async def wait_ready(running: FakeRunning) -> None:
        running.enter(State.FAILED, "It crashed.")
        raise EngineFailed("It crashed.")

    monkeypatch.setattr(FakeRunning, "wait_ready", wait_ready)
    async with runs(tmp_path) as here:
        runner = await here.runner()
        blamed: list[bytes] = []
        for term in (7, 8):
            with pytest.raises(EngineFailed):
                await runner.run(a_plan(ANNA, BERT), term, lambda: None)
            blamed.append(runner.blamed)
        assert sorted(blamed) == sorted((ANNA, BERT))


class Mesh:
    """This node with most memory and two that lend; the nearer one always refuses."""

    def __init__(self) -> None:
        mine = a_node(1, 18, rtts={2: 1.0, 3: 5.0}, files=("aa",))
        lenders = [msgspec.structs.replace(a_node(number, 17), may_host=False) for number in (2, 3)]
        self.seen = (mine, *lenders)
        self.asked: list[tuple[bytes, ...]] = []
        self.blamed = b""
        self.driver = SplitDriver(
            ME, "c", self, self, publish=lambda _: None, run_plan=self._run, blamed=lambda: self.blamed
        )

    def nodes(self, content: str) -> tuple[NodeFacts, ...]:
        return self.seen

    def plan(self, nodes: tuple[NodeFacts, ...]) -> Outcome:
        return make_plan(a_model(), Wish(), nodes)

    def digest(self, plan: Outcome) -> str:
        return plan_digest(plan)

    def broken(self, plan: Solo | Split, nodes: tuple[NodeFacts, ...]) -> str | None:
        return broken(plan, nodes)

    def better(self, plan: Solo | Split, outcome: Outcome) -> str | None:
        return better(plan, outcome, Wish())

    async def _run(self, plan: Solo | Split | Shards, term: int, ready: Callable[[], None]) -> str:
        assert isinstance(plan, Split)
        self.asked.append(plan.workers)
        self.blamed = BAD if BAD in plan.workers else b""
        if self.blamed:
            raise WorkerRefused("It does not take part.")
        ready()
        await asyncio.Event().wait()
        return ""


async def test_after_two_refusals_another_worker_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEBOUNCE_MS", "CLAIM_WAIT_MS", "BACKOFF_MS", "RESTART_MS"):
        monkeypatch.setattr(replan, name, 0)
    mesh = Mesh()
    tasks = TaskSet("test")
    tasks.spawn(mesh.driver.run(), name="driver")
    await eventually(lambda: mesh.driver.is_ready)
    assert mesh.asked == [(BAD,), (BAD,), (GOOD,)]
    assert [(one.node, one.times, one.why) for one in mesh.driver.doubted()] == [(BAD, 2, "It does not take part.")]
    assert mesh.driver.passed_over() == mesh.driver.doubted()
    await tasks.close()
