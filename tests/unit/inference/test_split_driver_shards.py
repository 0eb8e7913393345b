"""What drives plans, where they are shards: what a shard answers is finished before it ends, for whatever takes its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic import replan, shard_keeping
from agentmesh.inference.logic.fit import Fit, Need, Room
from agentmesh.inference.logic.split_values import NodeFacts, Outcome, ShardRoom, Shards, Solo, Split
from agentmesh.inference.split.driver import SplitDriver
from tests.fakes.mesh_nodes import eventually
from tests.fakes.split_world import a_node, node_id

ME, OTHER = node_id(2), node_id(3)
SHARDS = Shards((ShardRoom(ME, 12, 1), ShardRoom(OTHER, 12, 1)), 16, 4096, 1)


def solo(node: bytes) -> Solo:
    return Solo(node, Fit(Room(None, 1, 1), Need(1, 0, 0, 1, 1), True, ""))


class World:
    """Two nodes; the test says what is planned, who answers, and when the shard has answered all."""

    def __init__(self) -> None:
        self.outcome: Outcome = SHARDS
        self.serving: dict[bytes, str] = {}
        self.number = 1.0
        self.happened: list[str] = []
        self.drained = asyncio.Event()
        self.driver = SplitDriver(
            ME,
            "c",
            self,
            self,
            publish=lambda _: None,
            run_plan=self._run,
            serving=lambda: self.serving,
            drain=self._drain,
        )

    def nodes(self, content: str) -> tuple[NodeFacts, ...]:
        return (a_node(2, self.number), a_node(3, 8))

    def plan(self, nodes: tuple[NodeFacts, ...]) -> Outcome:
        return self.driver.weigh(self.outcome, is_wish=False)

    def digest(self, plan: Outcome) -> str:
        return type(plan).__name__

    def broken(self, plan: Solo | Split, nodes: tuple[NodeFacts, ...]) -> str | None:
        return None

    def better(self, plan: Solo | Split, outcome: Outcome) -> str | None:
        return None

    async def _run(self, plan: Solo | Split | Shards, term: int, ready: Callable[[], None]) -> str:
        what = type(plan).__name__
        self.happened.append(f"{what} began")
        ready()
        try:
            await asyncio.Event().wait()
        finally:
            self.happened.append(f"{what} ended")
        return ""

    async def _drain(self) -> None:
        self.happened.append("drains")
        await self.drained.wait()

    def now(self, outcome: Outcome, serving: dict[bytes, str]) -> None:
        """This is the plan from now on, and who answers."""
        self.outcome, self.serving = outcome, serving
        self.number += 1
        self.driver.nodes_changed()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEBOUNCE_MS", "CLAIM_WAIT_MS", "BACKOFF_MS", "RESTART_MS"):
        monkeypatch.setattr(replan, name, 0)
    for name in ("VOLUNTARY_MS", "SHARD_LOSS_MS", "SHARD_TURN_MS"):
        monkeypatch.setattr(shard_keeping, name, 1)


@asynccontextmanager
async def a_shard() -> AsyncGenerator[World]:
    world, tasks = World(), TaskSet("test")
    tasks.spawn(world.driver.run(), name="driver")
    try:
        await eventually(lambda: world.driver.is_ready)
        yield world
    finally:
        await tasks.close()
    assert [one for one in world.happened if one.endswith("began")] == [
        one.replace("ended", "began") for one in world.happened if one.endswith("ended")
    ], "each ended, in order"


async def test_a_shard_finishes_its_answers_when_the_whole_model_answers_elsewhere() -> None:
    async with a_shard() as world:
        world.now(solo(OTHER), {OTHER: "12/16 -"})
        await asyncio.sleep(0)
        assert world.happened == ["Shards began"]
        world.now(solo(OTHER), {OTHER: ""})
        await eventually(lambda: "drains" in world.happened)
        assert world.happened == ["Shards began", "drains"]
        world.drained.set()
        await eventually(lambda: "Shards ended" in world.happened)
        assert world.driver.plan is None


async def test_this_node_takes_the_whole_model_when_its_shard_has_answered() -> None:
    async with a_shard() as world:
        world.now(solo(ME), {})
        await eventually(lambda: "drains" in world.happened)
        assert world.happened == ["Shards began", "drains"]
        world.drained.set()
        await eventually(lambda: world.driver.is_ready and "Solo began" in world.happened)
        assert world.happened == ["Shards began", "drains", "Shards ended", "Solo began"]


async def test_a_node_that_stops_waits_for_no_answer() -> None:
    async with a_shard() as world:
        world.now(solo(ME), {})
        await eventually(lambda: "drains" in world.happened)
    assert world.happened[:3] == ["Shards began", "drains", "Shards ended"]
