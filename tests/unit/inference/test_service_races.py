"""Loads and unloads in any order, engines that crash: at the end as many engines run as models are told of, and no memory is lost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from agentmesh.core.errors import AgentMeshError
from agentmesh.inference.logic.lifecycle import State
from agentmesh.inference.serving_types import ModelState
from agentmesh.inference.settings import ServeSettings
from tests.fakes.serving import FakeRunning, World, path_request
from tests.fakes.tiny_gguf import write_tiny

RUNNING = (State.LOADING, State.READY, State.STOPPING)
UNSETTLED = (ModelState.RESOLVING, ModelState.LOADING, ModelState.STOPPING)


async def a_while(rng: random.Random) -> None:
    for _ in range(rng.randrange(400)):
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(8))
async def test_engines_and_promises_match_what_is_told(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    world = World(tmp_path / "home", settings=ServeSettings(max_vram_bytes=200_000_000))
    free = world.service.memory.machine_free_bytes()
    files = [write_tiny(tmp_path / f"{name}.gguf")[0] for name in "abc"]
    world.prepare = lambda running: setattr(running, "crash", "no" if rng.random() < 0.3 else "")

    async def somebody() -> None:
        await a_while(rng)
        file, what = rng.choice(files), rng.random()
        try:
            if what < 0.5:
                await world.service.load(path_request(file))
            elif what < 0.9:
                await world.service.unload(file.stem)
            else:
                await world.service.drop(file.stem)
        except AgentMeshError:
            pass

    async with asyncio.timeout(100):
        await asyncio.gather(*(somebody() for _ in range(60)))
    await world.until(lambda: not [s for s in world.service.status() if s.state in UNSETTLED])
    told = world.service.status()
    assert len({status.id for status in told}) == len(told)
    ready = [status.id for status in told if status.state == ModelState.READY]
    assert sorted(ready) == sorted(running.plan.model_id for running in alive(world))
    await world.service.stop()
    assert alive(world) == []
    assert world.service.memory.machine_free_bytes() == free


def alive(world: World) -> list[FakeRunning]:
    return [running for running in world.running if running.status.state in RUNNING]
