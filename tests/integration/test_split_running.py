"""One plan run on a node with leases, gateways and RPC servers in memory and an engine of the test's: whatever ends it, nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentmesh.core.paths import Home
from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.engine import Device, Engine
from agentmesh.inference.engine_questions import EngineSays
from agentmesh.inference.fetching import Fetcher
from agentmesh.inference.logic.lifecycle import State
from agentmesh.inference.logic.split_offer import content_of
from agentmesh.inference.logic.split_values import Split
from agentmesh.inference.logic.target import EngineAddress
from agentmesh.inference.memory import MemoryBook
from agentmesh.inference.model_run import ModelRun, RunParts
from agentmesh.inference.rpc.weights import WeightHashes
from agentmesh.inference.serving_types import DoesNotFit, LoadRequest, SplitFlags, SpreadView
from agentmesh.inference.split import running
from agentmesh.inference.split.host import CLOSE_S, HostParts, SplitHost
from agentmesh.inference.split.running import Held, PlanRunner
from agentmesh.inference.split.shards import ShardMaker
from agentmesh.node import runtime
from tests.fakes.mesh_nodes import eventually
from tests.fakes.serving import FakeMachine, FakeRunning
from tests.integration.test_split_host import ANNA, ENGINE, HOST, WAIT_S, World, a_plan, open_files, worlds

CAP = 1_000_000


class Runs:
    """A node's memory, the engines that were started there, and what its record says of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.open_before = open_files(world.root)
        self.memory = MemoryBook(self._devices, FakeMachine(), CAP)
        self.engines: list[FakeRunning] = []
        self.held: dict[str, Held] = {}
        self.newest: dict[str, int] = {}

    async def runner(self, name: str = "m") -> PlanRunner:
        world = self.world
        request = LoadRequest(str(world.model), is_path=True, split=SplitFlags())
        find = self._engine
        parts = RunParts(Fetcher(None), self.memory, find, self._make, self._ask, lambda _: None)
        run = ModelRun(request, parts, lambda _: None)
        await run.locate()
        await run.admit()
        view = run.spread = SpreadView()
        digest = bytes.fromhex((await world.identities.identify(world.model)).sha256)
        host = HostParts(
            world.workers.open_stream, lambda _: "anna", lambda _: True, world.identities, WeightHashes(None)
        )
        return PlanRunner(
            run,
            view,
            content_of([digest]),
            me=HOST,
            parts=host,
            memory=self.memory,
            shards=ShardMaker.of_home(Home(world.root)),
            hold=lambda held: self.held.__setitem__(name, held),
            make_way=self.made_way,
            rpc_version=lambda: (7, 0, 0),
            min_experts=lambda: 0,
        )

    def made_way(self, content: str, term: int) -> None:
        self.newest[content] = term

    @property
    def running(self) -> list[FakeRunning]:
        return [one for one in self.engines if one.status.state not in (State.STOPPED, State.FAILED)]

    async def free(self) -> int:
        return (await self.memory.left(ENGINE, None)).machine.free_bytes

    async def nothing_is_left(self) -> None:
        assert self.running == []
        await eventually(lambda: all(worker.open_now == 0 for worker in self.world.made.values()), WAIT_S)
        assert await self.free() == CAP
        assert set(self.held.values()) <= {()}
        assert open_files(self.world.root) == self.open_before

    async def _devices(self, _engine: Engine) -> list[Device]:
        return []

    async def _engine(self) -> Engine:
        return ENGINE

    async def _ask(self, _address: EngineAddress) -> EngineSays:
        return EngineSays(0, 0, ())

    def _make(self, _engine: Engine, plan: ServerPlan, on_change: object) -> FakeRunning:
        made = FakeRunning(plan, on_change, pid=1_000_000 + len(self.engines))  # pyright: ignore
        self.engines.append(made)
        return made


@asynccontextmanager
async def runs(root: Path) -> AsyncGenerator[Runs]:
    async with worlds(root) as world:
        yield Runs(world)


def big_plan(host_memory_bytes: int) -> Split:
    plan = a_plan(ANNA)
    return Split(
        plan.host, plan.workers, plan.shares, plan.tensor_split, plan.gpu_layers, True, 512, 1, host_memory_bytes
    )


async def test_an_end_that_is_cancelled_twice_leaves_no_engine_no_lease_and_no_promise(tmp_path: Path) -> None:
    """A worker is lost; while its engine ends, the plan is called impossible, and then the user unloads the model."""
    async with runs(tmp_path) as here:
        runner, ready = await here.runner(), asyncio.Event()
        task = asyncio.ensure_future(runner.run(a_plan(ANNA), 7, ready.set))
        await ready.wait()
        assert await here.free() < CAP
        [engine] = here.engines
        engine.may_stop.clear()
        here.world.made[ANNA].streams[0].abort()
        await eventually(lambda: engine.status.state is State.STOPPING, WAIT_S)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not task.done()  # whoever waits for it may start the next one when this is over
        engine.may_stop.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await here.nothing_is_left()


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    async with runs(tmp_path) as here:
        runner = await here.runner()
        task = asyncio.ensure_future(runner.run(a_plan(ANNA), 7, lambda: None))
        await eventually(lambda: bool(here.world.made[ANNA].asks), WAIT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await here.nothing_is_left()


@pytest.mark.parametrize(("hurried", "within_s"), [(True, running.HURRIED_S), (False, CLOSE_S)])
async def test_a_node_that_stops_waits_for_its_workers_ends_for_a_moment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: bool, within_s: float
) -> None:
    assert running.HOST_GRACE_S + running.HURRIED_S <= runtime.PART_TIMEOUT_S  # or the node would cut them off
    allowed: list[float] = []
    close = SplitHost.close

    async def noted(host: SplitHost, seconds: float = 0.0) -> None:
        allowed.append(seconds)
        await close(host, seconds)

    monkeypatch.setattr(SplitHost, "close", noted)
    async with runs(tmp_path) as here:
        runner, ready = await here.runner(), asyncio.Event()
        task = asyncio.ensure_future(runner.run(a_plan(ANNA), 7, ready.set))
        await ready.wait()
        runner._run.hurried = hurried  # pyright: ignore[reportPrivateUsage]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert allowed == [within_s]
        await here.nothing_is_left()


async def test_two_models_that_were_planned_at_once_do_not_take_the_same_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "MEMORY_S", 0.2)
    monkeypatch.setattr(running, "LOOK_S", 0.1)
    async with runs(tmp_path) as here:
        first, second, ready = await here.runner("a"), await here.runner("b"), asyncio.Event()
        task = asyncio.ensure_future(first.run(big_plan(600_000), 7, ready.set))
        await ready.wait()
        with pytest.raises(DoesNotFit, match=r"The host's part needs .* of this machine's memory are free"):
            await second.run(big_plan(600_000), 8, lambda: None)
        assert here.held["b"] == ()
        assert len(here.running) == 1
        assert await here.free() == CAP - 601_000
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await here.nothing_is_left()


async def test_memory_that_is_given_back_soon_is_waited_for(tmp_path: Path) -> None:
    """What this node computed for the host before is given back when that host's end is noticed."""
    async with runs(tmp_path) as here:
        here.memory.promise_bytes("of the host before", None, CAP)
        runner, ready = await here.runner(), asyncio.Event()
        task = asyncio.ensure_future(runner.run(a_plan(ANNA), 7, ready.set))
        run = runner._run  # pyright: ignore[reportPrivateUsage]
        await eventually(lambda: "The host's part needs" in run.reason, WAIT_S)
        assert not ready.is_set()
        assert list(here.newest.values()) == [7]  # what is computed here for it was told to end
        here.memory.release("of the host before")
        async with asyncio.timeout(WAIT_S):
            await ready.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await here.nothing_is_left()
