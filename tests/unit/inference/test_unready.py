"""What is said of models that were asked for on a node and do not answer there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.inference.fetching import Located
from agentmesh.inference.model_run import ModelRun
from agentmesh.inference.serving_types import LoadRequest, ModelState, Progress, Unready
from agentmesh.inference.settings import ServeSettings
from agentmesh.inference.unready import find_unready
from tests.fakes.serving import World, a_world, path_request
from tests.fakes.tiny_gguf import write_tiny


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path / "home") as made:
        yield made


def run_of(request: LoadRequest, state: ModelState, reason: str = "", located: Located | None = None) -> ModelRun:
    """As the service makes one; its parts are not asked for anything here."""
    run = ModelRun(request, None, lambda _run: None)  # pyright: ignore[reportArgumentType]
    run.located = located
    run.set_state(state, reason)
    return run


def located(name: str, *aliases: str) -> Located:
    return Located(name, None, None, None, aliases, None)


async def test_a_model_of_the_command_line_that_failed_says_why_without_places(tmp_path: Path) -> None:
    folder = tmp_path / "my models"
    folder.mkdir()
    file = write_tiny(folder / "tiny.gguf")[0]
    file.write_bytes(file.read_bytes()[:-9])
    async with a_world(tmp_path / "home") as made:
        made.settings = replace(made.settings, ggufs=(str(file),))
        service = made.make()
        await service.start()
        status = await made.becomes("tiny", ModelState.FAILED)
        assert status.reason.startswith(f"{file} is cut short")
        found = find_unready(service.runs, "TINY")
        assert found is not None
        assert (found.id, found.state, found.again) == ("tiny", ModelState.FAILED, "")
        assert found.reason == status.reason.replace(f"{folder}/", "")
        assert find_unready(service.runs, "tin") is None


async def test_a_file_that_is_not_there_is_found_by_the_name_that_it_would_have(tmp_path: Path) -> None:
    async with a_world(tmp_path / "home") as made:
        made.settings = ServeSettings(ggufs=(str(tmp_path / "gone.gguf"),))
        service = made.make()
        await service.start()
        await made.until(lambda: service.status()[0].state == ModelState.FAILED)
        assert find_unready(service.runs, "gone") == Unready("gone", ModelState.FAILED, "gone.gguf does not exist.")


async def test_a_model_that_is_ready_or_was_unloaded_is_not_unready(world: World, tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.gguf")[0]
    world.prepare = lambda running: running.hold.clear()
    await world.service.load(path_request(file))
    await world.until(lambda: bool(world.running))
    found = find_unready(world.service.runs, "tiny")
    assert found is not None
    assert found.state == ModelState.LOADING
    assert find_unready(world.service.runs, "auto") == found
    world.running[0].hold.set()
    await world.becomes("tiny", ModelState.READY)
    assert find_unready(world.service.runs, "tiny") is None
    assert find_unready(world.service.runs, "auto") is None
    await world.service.unload("tiny")
    assert find_unready(world.service.runs, "tiny") is None


@pytest.mark.parametrize("name", ["7b", "org/repo", "ORG/REPO", "The-7B-Q4"])
def test_every_name_of_it_finds_it(name: str) -> None:
    run = run_of(LoadRequest("7b"), ModelState.WAITING, "It needs 5 GB.", located("The-7B-Q4", "7b", "org/repo"))
    assert find_unready([run], name) == Unready("The-7B-Q4", ModelState.WAITING, "It needs 5 GB.", "7b")


def test_before_it_is_known_what_the_user_wrote_and_what_the_catalog_calls_it_find_it() -> None:
    run = run_of(LoadRequest("qwen2.5-0.5b"), ModelState.FAILED, "The hub could not be reached.")
    for name in ("qwen2.5-0.5b", "Qwen2.5-0.5B", "qwen2.5-0.5b-instruct-q4_k_m"):
        assert find_unready([run], name) == Unready(
            "qwen2.5-0.5b", ModelState.FAILED, "The hub could not be reached.", "qwen2.5-0.5b"
        )
    run = run_of(LoadRequest("org/repo/file.gguf"), ModelState.RESOLVING)
    assert find_unready([run], "file") == Unready("org/repo/file.gguf", ModelState.RESOLVING, "", "org/repo/file.gguf")


def test_one_that_goes_on_is_meant_before_one_that_failed_and_one_that_is_ready_before_both() -> None:
    failed = run_of(LoadRequest("7b"), ModelState.FAILED, "No.", located("a", "7b"))
    loading = run_of(LoadRequest("7b"), ModelState.LOADING, "", located("b", "7b"))
    ready = run_of(LoadRequest("7b"), ModelState.READY, "", located("c", "7b"))
    found = find_unready([failed, loading], "7b")
    assert found is not None
    assert found.id == "b"
    assert find_unready([failed, loading, ready], "7b") is None
    found = find_unready([failed, ready], "auto")
    assert found is not None
    assert found.id == "a"
    assert find_unready([run_of(LoadRequest("7b"), ModelState.STOPPING)], "7b") is None


def test_a_download_says_how_far_it_is() -> None:
    run = run_of(LoadRequest("7b"), ModelState.DOWNLOADING, "", located("a", "7b"))
    run.progress = Progress(2_000_000_000, 5_000_000_000)
    found = find_unready([run], "a")
    assert found is not None
    assert found.reason == "40 % of 5.0 GB are here."
    run.progress = Progress(0, 0)
    found = find_unready([run], "a")
    assert found is not None
    assert found.reason == ""
