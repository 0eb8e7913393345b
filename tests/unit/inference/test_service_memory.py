"""The models of a node: what fits, waiting for memory, devices, and what a restart brings back."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.engine.engine import Device
from agentmesh.inference.fetching import Fetcher, Located
from agentmesh.inference.logic.lifecycle import State
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.serving_types import DoesNotFit, LoadRequest, ModelState, NotServed, ServesNothing
from agentmesh.inference.settings import ServeSettings
from tests.fakes.serving import World, a_world, path_request
from tests.fakes.tiny_gguf import write_tiny

READY, FAILED, WAITING = ModelState.READY, ModelState.FAILED, ModelState.WAITING


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path / "home") as made:
        yield made


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")[0]


# ------------------------------------------------------------------ memory


async def test_what_does_not_fit_is_refused_with_the_arithmetic(world: World, tiny: Path) -> None:
    world.machine.total = world.machine.available = 10_000_000
    with pytest.raises(DoesNotFit, match=r"tiny needs 7\d MB: weights 0\.4 MB \+ context .* 10 MB are free of 10 MB"):
        await world.service.load(path_request(tiny))
    assert (world.service.status(), world.running) == ([], [])


async def test_the_users_cap_counts_all_models_together(tmp_path: Path) -> None:
    world = World(tmp_path / "home", settings=ServeSettings(max_vram_bytes=100_000_000))
    for name in ("a", "b"):
        write_tiny(tmp_path / f"{name}.gguf")
    await world.service.load(path_request(tmp_path / "a.gguf"))
    with pytest.raises(DoesNotFit, match="are free of 100 MB"):
        await world.service.load(path_request(tmp_path / "b.gguf"))
    await world.service.unload("a")
    await world.service.load(path_request(tmp_path / "b.gguf"))
    await world.service.stop()


async def test_a_model_of_the_command_line_waits_until_memory_is_free(tmp_path: Path) -> None:
    paths = [str(write_tiny(tmp_path / f"{name}.gguf")[0]) for name in ("a", "b")]
    world = World(tmp_path / "home", settings=ServeSettings(max_vram_bytes=100_000_000, ggufs=tuple(paths)))
    await world.service.start()
    await world.until(lambda: {s.state for s in world.service.status()} == {READY, WAITING})
    first = next(s.id for s in world.service.status() if s.state == READY)
    second = {"a": "b", "b": "a"}[first]
    waiting = world.one(second)
    assert waiting is not None
    assert "are free of 100 MB" in waiting.reason
    assert any("It is loaded as soon as there is room" in line for line in world.said)
    assert [offer.ready for offer in world.service.offers()].count(False) == 1
    await world.service.unload(first)
    await world.becomes(second, READY)
    await world.service.stop()


async def test_memory_that_another_program_frees_is_noticed(tmp_path: Path, tiny: Path) -> None:
    world = World(tmp_path / "home", settings=ServeSettings(ggufs=(str(tiny),)))
    world.machine.available = 1_000_000
    await world.service.start()
    await world.becomes("tiny", WAITING)
    world.machine.available = 1_000_000_000
    await world.becomes("tiny", READY)
    await world.service.stop()


async def test_what_an_engine_holds_already_is_not_subtracted_twice(world: World, tiny: Path) -> None:
    await world.service.load(path_request(tiny))
    await world.becomes("tiny", READY)
    need = world.service.status()[0].need_bytes
    free = world.service.memory.machine_free_bytes()
    world.machine.held[world.running[0].pid] = need
    world.machine.available -= need
    assert world.service.memory.machine_free_bytes() == free


async def test_the_prompts_that_an_engine_keeps_make_its_weights_no_free_memory(world: World, tiny: Path) -> None:
    """Weights are pages of a file: the system calls them free while the engine works with them."""
    await world.service.load(path_request(tiny))
    await world.becomes("tiny", READY)
    pid, weights, kept = world.running[0].pid, 400_000, 5_000_000_000
    world.machine.held[pid], world.machine.mapped[pid] = kept, weights
    world.machine.available -= kept
    assert world.service.memory.machine_free_bytes() == world.machine.available - weights


DEVICES = (
    Device("CUDA0", "small", 8_000_000_000, 4_000_000_000),
    Device("CUDA1", "large", 24_000_000_000, 20_000_000_000),
)


async def test_the_device_with_most_free_memory_is_taken(tmp_path: Path, tiny: Path) -> None:
    world = World(tmp_path / "home", devices=DEVICES)
    await world.service.load(path_request(tiny))
    status = await world.becomes("tiny", READY)
    assert (status.device, world.running[0].plan.device) == ("CUDA1", "CUDA1")
    await world.service.stop()


async def test_the_cpu_takes_what_no_device_holds(tmp_path: Path, tiny: Path) -> None:
    world = World(tmp_path / "home", devices=[Device("CUDA0", "full", 8_000_000_000, 1_000_000)])
    await world.service.load(path_request(tiny))
    status = await world.becomes("tiny", READY)
    assert (status.device, world.running[0].plan.device) == (None, "none")
    await world.service.stop()


async def test_a_named_device_is_kept_to(tmp_path: Path, tiny: Path) -> None:
    world = World(tmp_path / "home", devices=DEVICES)
    for name, device in (("cuda0", "CUDA0"), ("CUDA0,CUDA1", "CUDA0,CUDA1"), ("cpu", "none")):
        await world.service.load(path_request(tiny, device=name))
        await world.becomes("tiny", READY)
        assert world.running[-1].plan.device == device
        await world.service.unload("tiny")
    with pytest.raises(InvalidInput, match=r"no device 'ROCm9'.*CUDA0 \(small, 4\.0 GB free\)"):
        await world.service.load(path_request(tiny, device="ROCm9"))
    await world.service.stop()


async def test_a_device_is_not_promised_twice_while_a_model_loads(tmp_path: Path) -> None:
    world = World(tmp_path / "home", devices=[Device("CUDA0", "one", 1_000_000_000, 1_000_000_000)])
    world.machine.total = world.machine.available = 0
    world.prepare = lambda running: running.hold.clear()
    for name in ("a", "b"):
        write_tiny(tmp_path / f"{name}.gguf")
    await world.service.load(path_request(tmp_path / "a.gguf"))
    with pytest.raises(DoesNotFit):
        await world.service.load(path_request(tmp_path / "b.gguf"))
    world.running[0].hold.set()
    await world.becomes("a", READY)  # what it took shows in what is free now, in this test nothing
    await world.service.load(path_request(tmp_path / "b.gguf"))
    await world.service.stop()


async def test_a_crashed_engines_memory_is_kept_for_its_restart(tmp_path: Path) -> None:
    """While it is away, the device looks free."""
    world = World(tmp_path / "home", devices=[Device("CUDA0", "one", 1_000_000_000, 1_000_000_000)])
    world.machine.total = world.machine.available = 0
    for name in ("a", "b"):
        write_tiny(tmp_path / f"{name}.gguf")
    await world.service.load(path_request(tmp_path / "a.gguf"))
    await world.becomes("a", READY)
    world.running[0].enter(State.BACKOFF, "It crashed.")
    with pytest.raises(DoesNotFit):
        await world.service.load(path_request(tmp_path / "b.gguf"))
    world.running[0].enter(State.READY)
    await world.service.load(path_request(tmp_path / "b.gguf"))  # what a took shows in what is free: here, nothing
    await world.service.stop()


# ------------------------------------------------------------------ restarts


async def test_a_loaded_model_is_served_again_after_a_restart_and_a_dropped_one_is_not(
    world: World, tiny: Path
) -> None:
    await world.service.load(path_request(tiny, context_tokens=256))
    await world.becomes("tiny", READY)
    await world.service.stop()
    await world.make().start()
    assert (await world.becomes("tiny", READY)).context_tokens == 256
    await world.service.drop("tiny")
    await world.service.stop()
    await world.make().start()
    assert world.service.status() == []


async def test_an_unloaded_model_comes_back_with_the_next_start_until_it_is_dropped(world: World, tiny: Path) -> None:
    await world.service.load(path_request(tiny))
    await world.service.unload("tiny")
    assert await world.service.drop("tiny") == "tiny"
    with pytest.raises(NotServed):
        await world.service.drop("tiny")
    await world.make().start()
    assert world.service.status() == []


async def test_a_remembered_model_that_is_gone_is_shown_as_failed_and_the_others_run(
    world: World, tiny: Path, tmp_path: Path
) -> None:
    other = write_tiny(tmp_path / "other.gguf")[0]
    for path in (tiny, other):
        await world.service.load(path_request(path))
    await world.service.stop()
    tiny.unlink()
    await world.make().start()
    await world.becomes("other", READY)
    status = await world.becomes(str(tiny), FAILED)
    assert "does not exist" in status.reason


async def test_what_the_command_line_names_goes_before_what_is_remembered(world: World, tiny: Path) -> None:
    await world.service.load(path_request(tiny))
    await world.service.stop()
    world.settings = ServeSettings(models=(str(tiny),), context_tokens=128)
    await world.make().start()
    assert (await world.becomes("tiny", READY)).context_tokens == 128
    await world.until(lambda: len(world.service.status()) == 1)


async def test_a_node_that_nobody_asked_for_models_loads_none_and_keeps_the_list(
    world: World, tiny: Path, tmp_path: Path
) -> None:
    await world.service.load(path_request(tiny))
    await world.service.stop()
    world.settings = ServeSettings(again=False)
    await world.make().start()
    assert world.service.status() == []
    await world.service.load(path_request(write_tiny(tmp_path / "other.gguf")[0]))
    await world.service.stop()
    world.settings = ServeSettings()
    await world.make().start()
    await world.becomes("other", READY)
    await world.becomes("tiny", READY)


async def test_what_the_command_line_names_goes_before_a_remembered_one_that_is_found_first(
    world: World, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.service.load(path_request(tiny, context_tokens=256))
    await world.service.stop()
    (tmp_path / "there").mkdir()
    named, found, locate = str(tmp_path / "there" / ".." / "tiny.gguf"), threading.Event(), Fetcher.locate

    def named_last(self: Fetcher, request: LoadRequest, stop: threading.Event) -> Located:
        assert request.model != named or found.wait(60)
        return locate(self, request, stop)

    monkeypatch.setattr(Fetcher, "locate", named_last)
    world.settings = ServeSettings(ggufs=(named,), context_tokens=128)
    await world.make().start()
    assert (await world.becomes("tiny", READY)).context_tokens == 256
    found.set()
    await world.until(lambda: [s.context_tokens for s in world.service.status() if s.state == READY] == [128])
    assert len(world.service.status()) == 1
    assert "tiny" in (world.home.root / "models.json").read_text()


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 1, "models": [{"id": 3}]}', b"\xff" * 100])
async def test_a_damaged_list_of_models_is_put_aside(world: World, content: bytes, tiny: Path) -> None:
    (world.home.root / "models.json").write_bytes(content)
    await world.service.start()
    assert world.service.status() == []
    assert (world.home.root / "models.json.damaged").read_bytes() == content
    await world.service.load(path_request(tiny))
    assert b"tiny" in (world.home.root / "models.json").read_bytes()


async def test_a_refused_load_is_not_remembered(world: World, tmp_path: Path) -> None:
    with pytest.raises(ModelFileUnusable):
        await world.service.load(path_request(tmp_path / "gone.gguf"))
    assert not (world.home.root / "models.json").exists()


async def test_stopping_ends_every_engine(world: World, tmp_path: Path) -> None:
    for name in ("a", "b"):
        await world.service.load(path_request(write_tiny(tmp_path / f"{name}.gguf")[0]))
    await world.becomes("a", READY)
    await world.service.stop()
    assert {running.status.state for running in world.running} <= {State.STOPPED}
    with pytest.raises(ServesNothing):
        await world.service.load(path_request(tmp_path / "a.gguf"))
