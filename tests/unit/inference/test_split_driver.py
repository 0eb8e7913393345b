"""What drives a model's plans: a run that fails, that is stopped before it began, that takes long to end; events that come in floods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic import replan
from agentmesh.inference.logic.fit import Fit, Need, Room
from agentmesh.inference.logic.replan import State
from agentmesh.inference.logic.split_values import Claim, NodeFacts, Outcome, Shards, Solo, Split
from agentmesh.inference.split import driver as driver_module
from agentmesh.inference.split.driver import UNEXPECTED, SplitDriver
from agentmesh.inference.split.host_lease import WorkerTermSeen
from tests.fakes.mesh_nodes import eventually
from tests.fakes.split_world import a_node, node_id

ME = node_id(2)
PLAN = Solo(ME, Fit(Room(None, 1, 1), Need(1, 0, 0, 1, 1), True, ""))


class World:
    """A mesh that sees this node alone, a planner that wants it to host, and runs of which the test decides the end."""

    def __init__(self) -> None:
        self.node = a_node(2, 8)
        self.claims: list[Claim | None] = []
        self.terms: list[int] = []
        self.going: set[int] = set()
        self.most_at_once = 0
        self.failure: BaseException | None = None
        self.why_broken: str | None = None
        self.why_better: str | None = None
        self.drained = 0
        self.may_drain = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.on_claim: Callable[[], None] = lambda: None
        self.on_reported: Callable[[], None] = lambda: None
        self.driver = SplitDriver(
            ME, "c", self, self, publish=self._publish, run_plan=self._run, drain=self._drain, reported=self._reported
        )

    # ---- Sees, Planner

    def nodes(self, content: str) -> tuple[NodeFacts, ...]:
        return (self.node,)

    def plan(self, nodes: tuple[NodeFacts, ...]) -> Outcome:
        return PLAN

    def digest(self, plan: Outcome) -> str:
        return "d"

    def broken(self, plan: Solo | Split, nodes: tuple[NodeFacts, ...]) -> str | None:
        return self.why_broken

    def better(self, plan: Solo | Split, outcome: Outcome) -> str | None:
        return self.why_better

    # ---- what runs

    async def _drain(self) -> None:
        self.drained += 1
        await self.may_drain.wait()

    def _reported(self) -> None:
        self.on_reported()

    def _publish(self, claim: Claim | None) -> None:
        self.claims.append(claim)
        self.on_claim()

    async def _run(self, plan: Solo | Split | Shards, term: int, ready: Callable[[], None]) -> str:
        self.terms.append(term)
        self.going.add(term)
        self.most_at_once = max(self.most_at_once, len(self.going))
        try:
            if self.failure is not None:
                raise self.failure
            ready()
            await asyncio.Event().wait()
            return ""
        finally:
            await self._end(term)

    async def _end(self, term: int) -> None:
        """As a runner ends what it started: to its end, whatever is cancelled."""
        while not self.may_end.is_set():
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                continue
        self.going.discard(term)

    def change(self) -> None:
        """Something of the nodes that counts for plans."""
        self.node = a_node(2, self.node.machine_free_bytes / 1e9 + 1)
        self.driver.nodes_changed()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEBOUNCE_MS", "CLAIM_WAIT_MS", "BACKOFF_MS", "RESTART_MS"):
        monkeypatch.setattr(replan, name, 0)


@asynccontextmanager
async def driven(world: World) -> AsyncGenerator[asyncio.Task[None]]:
    tasks = TaskSet("test")
    task = tasks.spawn(world.driver.run(), name="driver")
    try:
        yield task
    finally:
        world.may_end.set()
        await tasks.close()
    assert world.most_at_once <= 1
    assert world.going == set()
    assert world.claims[-1] is None


async def test_for_a_better_plan_what_is_being_answered_is_finished_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replan, "VOLUNTARY_MS", 0)
    world = World()
    async with driven(world):
        await eventually(lambda: world.driver.is_ready)
        world.why_better = "One node can hold it alone now."
        world.change()
        await eventually(lambda: world.drained == 1)
        assert world.going == {world.terms[0]}  # it still answers
        world.why_better = None
        world.may_drain.set()
        await eventually(lambda: len(world.terms) == 2)
    assert world.drained == 1


async def test_a_plan_that_became_impossible_ends_before_the_next_begins() -> None:
    world = World()
    async with driven(world):
        await eventually(lambda: world.driver.is_ready)
        world.may_end.clear()
        world.why_broken = "Its worker is gone."
        world.change()
        await eventually(lambda: world.driver.state is State.STOPPING)
        assert world.claims[-1] is not None  # it says that it runs until nothing is left
        assert world.claims[-1].running
        world.why_broken = None
        world.may_end.set()
        await eventually(lambda: len(world.terms) == 2 and world.driver.is_ready)
        assert world.terms[1] > world.terms[0]


async def test_what_is_cancelled_before_its_first_step_has_ended_all_the_same() -> None:
    world = World()

    def broken_at_once() -> None:
        claim = world.claims[-1]
        world.why_broken = None if claim is None else "Its worker is gone."
        if claim is not None and claim.running and len(world.claims) < 10:
            world.change()

    world.on_claim = broken_at_once
    async with driven(world):
        await eventually(lambda: len(world.claims) > 8)
        world.why_broken, world.on_claim = None, lambda: None
        world.change()
        await eventually(lambda: world.driver.is_ready)


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (ValueError("nobody thought of it"), UNEXPECTED),
        (AgentMeshError("No port."), "No port."),
        (WorkerTermSeen("It has a newer host.", 41), "It has a newer host."),
    ],
)
async def test_a_start_that_fails_is_tried_again_and_says_why(failure: Exception, sentence: str) -> None:
    world = World()
    world.failure = failure
    async with driven(world):
        await eventually(lambda: len(world.terms) > 3)
        assert world.driver.failure == sentence
        if isinstance(failure, WorkerTermSeen):
            assert world.terms[1] == 42  # above what the worker has served
        world.failure = None
        await eventually(lambda: world.driver.is_ready)
        assert world.driver.failure == ""


async def test_it_is_over_when_nothing_of_it_is_left_however_often_it_is_cancelled() -> None:
    """Unloaded, and then the node stops."""
    world = World()
    async with driven(world) as task:
        await eventually(lambda: world.driver.is_ready)
        world.may_end.clear()
        for _ in range(3):
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        assert not task.done()
        assert world.going
        world.may_end.set()
        await asyncio.wait([task], timeout=60)
        assert task.cancelled()


async def test_a_flood_of_wishes_and_records_hides_no_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(driver_module, "MAX_EVENTS", 8)
    world = World()
    async with driven(world):
        await eventually(lambda: world.driver.is_ready)
        for _ in range(5_000):
            world.driver.wish_changed()
            world.change()
        world.why_broken = "Its worker is gone."
        await eventually(lambda: world.terms[1:] != [])
        world.why_broken = None
        await eventually(lambda: world.driver.is_ready)
    assert "was lost" not in caplog.text


async def test_a_run_goes_on_although_it_cannot_be_shown() -> None:
    world = World()

    def fail() -> None:
        raise KeyError(b"a node that is not seen")

    world.on_reported = fail
    async with driven(world) as task:
        await eventually(lambda: world.driver.is_ready)
        assert world.going and not task.done()
