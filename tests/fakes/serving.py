"""A model service whose engines are no processes: what they do is decided by the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from agentmesh.core.paths import Home
from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.engine import Device, Engine
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.process import EngineStatus
from agentmesh.inference.engine_questions import EngineSays
from agentmesh.inference.logic.lifecycle import State
from agentmesh.inference.logic.target import EngineAddress
from agentmesh.inference.memory import Machine
from agentmesh.inference.service import ModelService
from agentmesh.inference.serving_types import LoadRequest, ModelState, ModelStatus
from agentmesh.inference.settings import ServeSettings
from tests.fakes.fake_engine import fake_engine

NODE = b"\x07" * 32
WAIT_S = 60.0


class FakeMachine(Machine):
    """As much memory as the test says."""

    def __init__(self, total_bytes: int = 64_000_000_000) -> None:
        self.total = self.available = total_bytes
        self.held: dict[int, int] = {}
        self.mapped: dict[int, int] = {}

    def total_bytes(self) -> int:
        return self.total

    def available_bytes(self) -> int:
        return self.available

    def held_bytes(self, pid: int) -> int:
        return self.held.get(pid, 0)

    def mapped_bytes(self, pid: int) -> int:
        return self.mapped.get(pid, 0)


class FakeRunning:
    """An engine that becomes ready at once, unless it is told to crash or to hold on."""

    def __init__(self, plan: ServerPlan, on_change: Callable[[EngineStatus], None], pid: int) -> None:
        self.plan = plan
        self.pid = pid
        self.crash = ""
        self.hold = asyncio.Event()
        self.hold.set()
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.address: EngineAddress | None = None
        self.status = EngineStatus(State.STOPPED, None, "", time.time(), 0)
        self._on_change = on_change

    def enter(self, state: State, reason: str = "") -> None:
        running = state not in (State.STOPPED, State.FAILED, State.BACKOFF)
        self.status = EngineStatus(state, self.pid if running else None, reason, time.time(), 0)
        self._on_change(self.status)

    async def start(self) -> None:
        self.address = EngineAddress(socket=f"/nowhere/{self.plan.model_id}.sock")
        self.enter(State.LOADING)

    async def wait_ready(self) -> None:
        await self.hold.wait()
        if self.crash:
            self.enter(State.FAILED, self.crash)
            raise EngineFailed(self.crash)
        self.enter(State.READY)

    async def stop(self, grace_s: float | None = None) -> None:
        del grace_s
        if self.status.state in (State.STOPPED, State.FAILED):
            return
        self.enter(State.STOPPING)
        await self.may_stop.wait()
        self.enter(State.STOPPED)


def path_request(path: Path, **more: object) -> LoadRequest:
    return LoadRequest(str(path), is_path=True, **more)  # pyright: ignore


class World:
    """A service and everything around it."""

    def __init__(self, root: Path, *, devices: Sequence[Device] = (), settings: ServeSettings | None = None) -> None:
        self.home = Home(root)
        self.home.prepare()
        self.machine = FakeMachine()
        self.devices = list(devices)
        self.settings = settings or ServeSettings()
        self.said: list[str] = []
        self.ready: list[str] = []
        self.running: list[FakeRunning] = []
        self.says = EngineSays(0, 0, ())
        self.no_engine: Exception | None = None
        self.prepare: Callable[[FakeRunning], None] = lambda _running: None
        self._changed = asyncio.Event()
        self.service = self.make()

    def make(self) -> ModelService:
        """A fresh service in the same home, as after a restart."""
        service = ModelService(
            self.home,
            NODE,
            self.settings,
            say=self.said.append,
            on_ready=lambda model: self.ready.append(model.id),
            find_engine=self._find_engine,
            make_engine=self._make_engine,
            ask=self._ask,
            devices=self._devices_now,
            machine=self.machine,
            recheck_s=0.01,
        )
        service.on_change(self._tell)
        self.service = service
        return service

    async def _find_engine(self) -> Engine:
        if self.no_engine is not None:
            raise self.no_engine
        return fake_engine(devices=self.devices)

    async def _devices_now(self, _engine: Engine) -> Sequence[Device]:
        return self.devices

    async def _ask(self, _address: EngineAddress) -> EngineSays:
        return self.says

    def _make_engine(self, _engine: Engine, plan: ServerPlan, on_change: Callable[[EngineStatus], None]) -> FakeRunning:
        running = FakeRunning(plan, on_change, pid=1_000_000 + len(self.running))
        self.prepare(running)
        self.running.append(running)
        return running

    def _tell(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the service tells of."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def one(self, name: str) -> ModelStatus | None:
        return next((status for status in self.service.status() if status.id == name), None)

    async def becomes(self, name: str, state: ModelState) -> ModelStatus:
        await self.until(lambda: (found := self.one(name)) is not None and found.state == state)
        found = self.one(name)
        assert found is not None
        return found


@asynccontextmanager
async def a_world(root: Path) -> AsyncIterator[World]:
    """A world whose engines all end with it, however the test held them up."""
    world = World(root)
    yield world
    for running in world.running:
        running.hold.set()
        running.may_stop.set()
    await world.service.stop()
