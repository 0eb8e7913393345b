"""A node with a shard is lost for good: the drivers of those that are left, with the real planner, in virtual time and with the real minutes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.keeping import better, broken
from agentmesh.inference.logic.moe import plan_outcome, unranked
from agentmesh.inference.logic.plan import make_plan, plan_digest
from agentmesh.inference.logic.split_limits import SHARD_LOSS_MS, SHARD_TURN_MS
from agentmesh.inference.logic.split_values import NodeFacts, Outcome, Shards, Solo, Split, Wish
from agentmesh.inference.split.driver import SplitDriver
from tests.fakes.split_world import a_model, a_node, node_id
from tests.fakes.virtual_time import in_virtual_time

EXPERTS = 16
MOE = a_model(experts=EXPERTS)
WISH = Wish(context_tokens=4096)
ROOM_GB = 19  # for 12 of the 16 experts of a layer, not for all
DRAIN_S = 7.0
WRITE_S = 40.0  # and load
LOSS_S, TURN_S = SHARD_LOSS_MS / 1000, SHARD_TURN_MS / 1000
SETTLED_S = 60.0


class Node:
    """One that follows the plans; it is also its driver's planner and records. What a shard does is written down, not done."""

    def __init__(self, mesh: Mesh, number: int) -> None:
        self.mesh = mesh
        self.id = node_id(number)
        self.facts = a_node(number, ROOM_GB)
        self.answers: Shards | None = None
        self.driver = SplitDriver(
            self.id,
            MOE.files[0],
            self,
            self,
            publish=lambda _: None,
            run_plan=self._run,
            serving=lambda: {one.id: "part" for one in mesh.there.values() if one is not self and one.answers},
            drain=self._drain,
        )

    def nodes(self, content: str) -> tuple[NodeFacts, ...]:
        return tuple(one.facts for one in self.mesh.there.values())

    def plan(self, nodes: tuple[NodeFacts, ...]) -> Outcome:
        return self.driver.weigh(make_plan(MOE, WISH, nodes), is_wish=False)

    def digest(self, plan: Outcome) -> str:
        return plan_digest(plan)

    def broken(self, plan: Solo | Split, nodes: tuple[NodeFacts, ...]) -> str | None:
        return broken(plan, nodes)

    def better(self, plan: Solo | Split, outcome: Outcome) -> str | None:
        return better(plan, outcome, WISH)

    async def _run(self, plan: Solo | Split | Shards, term: int, ready: Callable[[], None]) -> str:
        assert isinstance(plan, Shards)
        await asyncio.sleep(WRITE_S)
        ready()
        self._answer(plan)
        try:
            await asyncio.Event().wait()
        finally:
            self._answer(None)
        return ""

    async def _drain(self) -> None:
        self._answer(None)
        await asyncio.sleep(DRAIN_S)

    def _answer(self, plan: Shards | None) -> None:
        if self.answers != plan:
            self.answers = plan
            self.mesh.happened(self)


class Mesh:
    """Nodes, by number, and what happened: (when, which node, whether it answers since)."""

    def __init__(self, count: int) -> None:
        self.there = {number: Node(self, number) for number in range(1, count + 1)}
        self.log: list[tuple[float, int, bool]] = []
        self.fewest = 0  # that answered at once, since it was set

    def happened(self, node: Node) -> None:
        number = int.from_bytes(node.id, "big")
        self.log.append((asyncio.get_running_loop().time(), number, node.answers is not None))
        self.fewest = min(self.fewest, sum(one.answers is not None for one in self.there.values()))
        self.changed()

    def changed(self) -> None:
        for node in self.there.values():
            node.driver.nodes_changed()

    def lose(self, number: int) -> Node:
        node = self.there.pop(number)
        self.changed()
        return node

    def experts(self) -> set[int]:
        """Those that some node answers with."""
        ranking, used = unranked((0,), EXPERTS), MOE.facts.expert_used_count
        held: set[int] = set()
        for node in self.there.values():
            if node.answers is not None:
                parts = plan_outcome(node.answers, node.id, ranking, used).shards
                held |= {*next(part.ranks for part in parts if part.name == node.id.hex())}
        return held


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def lost_for_good() -> None:
    mesh, tasks = Mesh(3), TaskSet("test")
    for node in mesh.there.values():
        tasks.spawn(node.driver.run(), name="driver")
    await asyncio.sleep(SETTLED_S)
    assert sorted(number for _, number, answers in mesh.log if answers) == [1, 2, 3]
    assert mesh.experts() == {*range(EXPERTS)}
    mesh.log.clear()
    mesh.fewest = 3

    third = mesh.lose(3)  # for as long as a machine takes that starts anew
    await asyncio.sleep(LOSS_S - 10)
    mesh.there[3] = third
    mesh.changed()
    await asyncio.sleep(2 * LOSS_S)
    assert mesh.log == []

    mesh.lose(3)
    lost_s = now_s()
    assert len(mesh.experts()) < EXPERTS
    await asyncio.sleep(LOSS_S - 1)
    assert mesh.log == []
    await asyncio.sleep(SETTLED_S + 3 * (DRAIN_S + WRITE_S) + TURN_S)
    assert [(number, answers) for _, number, answers in mesh.log] == [(1, False), (1, True), (2, False), (2, True)]
    ends = [when_s - lost_s for when_s, _, answers in mesh.log if not answers]
    assert LOSS_S <= ends[0] < LOSS_S + 5  # the debounce
    assert ends[1] >= ends[0] + DRAIN_S + WRITE_S, "one after the other"
    assert mesh.fewest == 1, "somebody always answers"
    assert mesh.experts() == {*range(EXPERTS)}

    mesh.log.clear()
    mesh.there[3] = third
    mesh.changed()
    await asyncio.sleep(2 * LOSS_S)
    assert mesh.log == [], "it is back with the part that it had, and nobody writes anything"
    await tasks.close()


def test_a_shard_that_is_lost_for_five_minutes_is_made_good_by_the_others_in_turns() -> None:
    in_virtual_time(lost_for_good())
