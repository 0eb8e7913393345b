"""The models of a node: loading, unloading, waiting for memory, remembering; with engines that the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.engine.errors import EngineMissing
from agentmesh.inference.engine_questions import EngineSays
from agentmesh.inference.logic.lifecycle import State
from agentmesh.inference.models.errors import ModelFileUnusable, UnknownModel
from agentmesh.inference.service import log_name
from agentmesh.inference.serving_types import (
    AlreadyServed,
    LoadRequest,
    ModelState,
    NotServed,
    ServesNothing,
)
from agentmesh.inference.settings import ServeSettings
from tests.fakes.serving import NODE, FakeRunning, World, a_world, path_request
from tests.fakes.tiny_gguf import LLAMA, write_tiny

READY, FAILED, WAITING, LOADING = ModelState.READY, ModelState.FAILED, ModelState.WAITING, ModelState.LOADING


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path / "home") as made:
        yield made


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")[0]


async def test_a_loaded_model_is_ready_told_and_routed_to(world: World, tiny: Path) -> None:
    admitted = await world.service.load(path_request(tiny))
    assert admitted.memory.startswith("tiny needs ")
    assert admitted.state == LOADING
    status = await world.becomes("tiny", READY)
    assert (status.context_tokens, status.slots, status.flavour, status.device) == (512, 4, "cpu", None)
    assert status.need_bytes < status.have_bytes
    assert (world.ready, world.said) == (["tiny"], [])
    (target,) = world.service.targets()
    assert (target.node, target.engine, target.model.ready) == (NODE, world.running[0].address, True)
    assert target.model == world.service.offers()[0]
    assert (target.model.capabilities, target.model.parameters) == (("chat", "completion", "embedding"), 107_200)


async def test_the_engine_is_told_the_whole_context_of_all_slots(world: World, tiny: Path) -> None:
    await world.service.load(path_request(tiny, context_tokens=1024, slots=3))
    await world.becomes("tiny", READY)
    plan = world.running[0].plan
    assert (plan.model, plan.model_id, plan.context_tokens, plan.slots) == (tiny, "tiny", 3072, 3)


async def test_what_the_engine_really_gives_is_told(world: World, tiny: Path) -> None:
    world.says = EngineSays(256, 2, ("tiny",))
    await world.service.load(path_request(tiny))
    await world.becomes("tiny", READY)
    assert (world.service.offers()[0].context_tokens, world.service.offers()[0].slots) == (256, 2)
    assert world.said == ["tiny: the engine gives 256 tokens of context a request, no more."]


async def test_several_models_are_served_and_one_is_unloaded_hot(world: World, tmp_path: Path) -> None:
    for name in ("a", "b"):
        await world.service.load(path_request(write_tiny(tmp_path / f"{name}.gguf")[0]))
    await world.becomes("a", READY)
    await world.becomes("b", READY)
    assert await world.service.unload("A") == "a"
    assert [status.id for status in world.service.status()] == ["b"]
    assert [running.status.state for running in world.running] == [State.STOPPED, State.READY]


async def test_unload_returns_only_when_the_engine_is_gone_and_frees_its_memory_then(world: World, tiny: Path) -> None:
    await world.service.load(path_request(tiny))
    await world.becomes("tiny", READY)
    world.running[0].may_stop.clear()
    before = world.service.memory.machine_free_bytes()
    ending = asyncio.ensure_future(world.service.unload("tiny"))
    await world.becomes("tiny", ModelState.STOPPING)
    assert not ending.done()
    assert world.service.memory.machine_free_bytes() == before
    assert world.service.offers() == ()
    world.running[0].may_stop.set()
    await ending
    assert world.service.memory.machine_free_bytes() > before


async def test_two_files_with_one_stem_are_not_served_at_once(world: World, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write_tiny(tmp_path / "other" / "tiny.gguf")[0]
    await world.service.load(path_request(tiny))
    with pytest.raises(AlreadyServed, match=r"'tiny' is served here already.*first run: agentmesh unload tiny"):
        await world.service.load(path_request(other))
    assert len(world.service.status()) == 1


async def test_of_two_loads_at_once_one_wins(world: World, tiny: Path) -> None:
    results = await asyncio.gather(*(world.service.load(path_request(tiny)) for _ in range(3)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["AlreadyServed", "AlreadyServed", "ModelStatus"]
    await world.becomes("tiny", READY)
    assert len(world.running) == 1


# ------------------------------------------------------------------ bad input


async def test_a_missing_file_is_named(world: World, tmp_path: Path) -> None:
    with pytest.raises(ModelFileUnusable, match=r"gone\.gguf does not exist"):
        await world.service.load(path_request(tmp_path / "gone.gguf"))
    assert world.service.status() == []


@pytest.mark.parametrize(("damage", "said"), [(lambda data: data[:-9], "cut short"), (lambda _: b"no", "GGUF")])
async def test_a_damaged_file_is_refused_before_any_engine_runs(world: World, tiny: Path, damage, said) -> None:
    tiny.write_bytes(damage(tiny.read_bytes()))
    with pytest.raises(ModelFileUnusable, match=said):
        await world.service.load(path_request(tiny))
    assert world.running == []


async def test_a_set_with_a_missing_part_is_refused(world: World, tmp_path: Path) -> None:
    files = write_tiny(tmp_path / "set.gguf", parts=3)
    files[1].unlink()
    with pytest.raises(ModelFileUnusable, match=r"missing: set-00002-of-00003\.gguf"):
        await world.service.load(path_request(files[0]))


async def test_a_part_of_another_set_is_refused(world: World, tmp_path: Path) -> None:
    files = write_tiny(tmp_path / "set.gguf", parts=3)
    other = write_tiny(tmp_path / "other.gguf", replace(LLAMA, layers=3), parts=3)
    files[1].write_bytes(other[2].read_bytes())
    with pytest.raises(ModelFileUnusable, match="is not part 2 of 3"):
        await world.service.load(path_request(files[0]))


async def test_any_part_of_a_set_means_the_whole_set(world: World, tmp_path: Path) -> None:
    files = write_tiny(tmp_path / "set.gguf", parts=3)
    await world.service.load(path_request(files[2]))
    await world.becomes("set", READY)
    assert world.running[0].plan.model == files[0]


async def test_a_folder_and_a_projector_are_no_models(world: World, tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(ModelFileUnusable, match="is a folder"):
        await world.service.load(path_request(tmp_path))
    projector = tiny.rename(tmp_path / "mmproj-x-f16.gguf")
    with pytest.raises(ModelFileUnusable, match="is the projector of a model"):
        await world.service.load(path_request(projector))


async def test_an_unknown_name_is_refused_with_the_nearest(world: World) -> None:
    with pytest.raises(UnknownModel, match="Did you mean"):
        await world.service.load(LoadRequest("qwen"))
    with pytest.raises(InvalidInput):
        await world.service.load(LoadRequest("a//b c"))
    assert world.service.status() == []


async def test_without_an_engine_load_says_how_to_get_one(world: World, tiny: Path) -> None:
    world.no_engine = EngineMissing("There is none. Build one with `agentmesh engine install`.")
    with pytest.raises(EngineMissing, match="engine install"):
        await world.service.load(path_request(tiny))
    assert (world.service.status(), await world.service.engine()) == ([], None)


async def test_a_crash_at_start_is_told_with_the_engines_last_lines(world: World, tiny: Path) -> None:
    def crash(running: FakeRunning) -> None:
        running.crash = "The engine ended.\nllama_model_load: error loading model"

    world.prepare = crash
    await world.service.load(path_request(tiny))
    status = await world.becomes("tiny", FAILED)
    assert "error loading model" in status.reason
    assert (world.service.targets(), world.service.offers()) == ([], ())
    assert "could not be served" in world.said[0]


async def test_a_failed_model_gives_way_to_a_new_load(world: World, tiny: Path) -> None:
    world.prepare = lambda running: setattr(running, "crash", "no")
    await world.service.load(path_request(tiny))
    await world.becomes("tiny", FAILED)
    world.prepare = lambda running: None
    await world.service.load(path_request(tiny))
    await world.becomes("tiny", READY)
    assert len(world.service.status()) == 1


async def test_an_engine_that_crashes_later_is_not_ready_until_it_is_back(world: World, tiny: Path) -> None:
    await world.service.load(path_request(tiny))
    await world.becomes("tiny", READY)
    world.running[0].enter(State.BACKOFF, "it crashed; started again in 1 s")
    status = await world.becomes("tiny", LOADING)
    assert "crashed" in status.reason
    assert not world.service.targets()[0].model.ready
    world.running[0].enter(State.READY)
    await world.becomes("tiny", READY)
    assert world.ready == ["tiny", "tiny"]


async def test_an_engine_that_is_given_up_frees_its_memory(world: World, tiny: Path) -> None:
    free = world.service.memory.machine_free_bytes()
    await world.service.load(path_request(tiny))
    await world.becomes("tiny", READY)
    assert world.service.memory.machine_free_bytes() < free
    world.running[0].enter(State.FAILED, "crashed five times in a row")
    status = await world.becomes("tiny", FAILED)
    assert status.reason == "crashed five times in a row"
    assert world.service.memory.machine_free_bytes() == free


async def test_an_unexpected_failure_is_shown_and_holds_no_memory(world: World, tiny: Path) -> None:
    free = world.service.memory.machine_free_bytes()

    def break_down(_running: FakeRunning) -> None:
        raise ZeroDivisionError

    world.prepare = break_down
    await world.service.load(path_request(tiny))
    status = await world.becomes("tiny", FAILED)
    assert "log says more" in status.reason
    assert world.service.memory.machine_free_bytes() == free


async def test_a_path_that_the_system_does_not_take_is_refused_with_its_reason(world: World, tmp_path: Path) -> None:
    for name in ("x" * 300 + ".gguf", "~nobody-of-this-name/x.gguf"):
        with pytest.raises(ModelFileUnusable, match="cannot be looked at"):
            await world.service.load(LoadRequest(str(tmp_path / name) if name[0] == "x" else name, is_path=True))
    assert world.service.status() == []


async def test_unloading_what_is_not_served_lists_what_is(world: World, tiny: Path) -> None:
    with pytest.raises(NotServed, match="It serves: nothing"):
        await world.service.unload("7b")
    await world.service.load(path_request(tiny))
    with pytest.raises(NotServed, match="It serves: tiny"):
        await world.service.unload("7b")


async def test_a_model_is_unloaded_while_its_engine_loads(world: World, tiny: Path) -> None:
    world.prepare = lambda running: running.hold.clear()
    await world.service.load(path_request(tiny))
    await world.becomes("tiny", LOADING)
    await world.until(lambda: bool(world.running))
    await world.service.unload("tiny")
    assert world.service.status() == []
    assert world.running[0].status.state == State.STOPPED


async def test_a_client_loads_nothing(tmp_path: Path, tiny: Path) -> None:
    world = World(tmp_path / "home", settings=ServeSettings(no_engine=True, models=("x",)))
    await world.service.start()
    with pytest.raises(ServesNothing, match="agentmesh --model"):
        await world.service.load(path_request(tiny))
    assert world.service.status() == []


def test_log_files_have_plain_names() -> None:
    assert log_name("Qwen2.5-7B") == "Qwen2.5-7B"
    assert log_name("a b/../c\u00e9").startswith("c_-")
    assert log_name("pass wd:1").startswith("pass_wd_1-")
    assert log_name("...").startswith("model-")
    names = ("pass wd:1", "pass_wd_1", "pass wd 1", "m" * 150, "m" * 151)
    assert len({log_name(name) for name in names}) == len(names)
