"""Models served by real processes: the fake engine where something goes wrong, a real one where it must go right."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from agentmesh.core.paths import Home
from agentmesh.inference import fetching
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineFailed, EngineMissing
from agentmesh.inference.engine.health import ask_engine
from agentmesh.inference.engine.process import EngineProcess
from agentmesh.inference.logic.lifecycle import LifecycleLimits
from agentmesh.inference.models import download
from agentmesh.inference.models.errors import HubUnavailable, NoSpace
from agentmesh.inference.models.hub import READ_TIMEOUT_S
from agentmesh.inference.service import ModelService
from agentmesh.inference.serving_types import DoesNotFit, LoadRequest, ModelState, ModelStatus
from agentmesh.inference.settings import ServeSettings
from tests.fakes.engine_programs import asleep
from tests.fakes.fake_engine import fake_engine, write_fake_engine
from tests.fakes.hub_server import Fault, HubServer
from tests.fakes.serving import FakeMachine
from tests.fakes.tiny_gguf import write_tiny

WAIT_S = 90.0
LIMITS = LifecycleLimits(backoff_ms=50, backoff_max_ms=100, restarts=2, grace_ms=3_000)
REPO = "maker/Tiny-GGUF"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets, unlike pytest's."""
    path = Path(tempfile.mkdtemp(prefix="am-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def tiny(folder: Path) -> Path:
    return write_tiny(folder / "tiny.gguf")[0]


@asynccontextmanager
async def serving(
    folder: Path,
    engine: Callable[[], Awaitable[Engine]] | None,
    settings: ServeSettings | None = None,
    limits: LifecycleLimits = LIMITS,
) -> AsyncIterator[ModelService]:
    """A service in `folder`; `engine` None: found as a node finds it."""
    home = Home(folder / "home")
    home.prepare()

    def make(engine: Engine, plan, on_change) -> EngineProcess:
        log = home.logs / f"{plan.model_id}.log"
        return EngineProcess(engine, plan, folder=home.run / "e", log=log, limits=limits, on_change=on_change)

    service = ModelService(
        home,
        b"\x07" * 32,
        settings or ServeSettings(),
        find_engine=engine,
        make_engine=make,
        machine=FakeMachine(),
        recheck_s=0.05,
    )
    try:
        yield service
    finally:
        await service.stop()


def fake(*options: str) -> Callable[[], Awaitable[Engine]]:
    async def find() -> Engine:
        return fake_engine(*options)

    return find


async def becomes(service: ModelService, name: str, *states: ModelState) -> ModelStatus:
    changed = asyncio.Event()
    service.on_change(changed.set)
    async with asyncio.timeout(WAIT_S):
        while True:
            changed.clear()
            found = next((status for status in service.status() if status.id == name), None)
            if found is not None and found.state in states:
                return found
            await changed.wait()


async def ask(service: ModelService, name: str, path: str) -> dict[str, object]:
    target = next(target for target in service.targets() if target.model.id == name)
    assert target.engine is not None
    answer = await ask_engine(target.engine, path, timeout_s=WAIT_S)
    assert answer is not None
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def path_request(path: Path) -> LoadRequest:
    return LoadRequest(str(path), is_path=True)


async def test_models_come_and_go_as_processes(folder: Path) -> None:
    async with serving(folder, fake()) as service:
        for name in ("a", "b"):
            await service.load(path_request(write_tiny(folder / f"{name}.gguf")[0]))
        pids = {}
        for name in ("a", "b"):
            pids[name] = (await becomes(service, name, ModelState.READY)).pid
        assert len(set(pids.values())) == 2
        assert (await ask(service, "a", "/props"))["model_alias"] == "a"
        assert (await ask(service, "b", "/props"))["model_alias"] == "b"
        await service.unload("a")
        assert not psutil.pid_exists(pids["a"])
        assert psutil.pid_exists(pids["b"])
    assert not psutil.pid_exists(pids["b"])


async def test_an_engine_that_crashes_at_its_start_fails_with_its_last_lines(folder: Path, tiny: Path) -> None:
    async with serving(folder, fake("--crash-at-start")) as service:
        await service.load(path_request(tiny))
        status = await becomes(service, "tiny", ModelState.FAILED)
        assert "is not a model" in status.reason
        assert "failed to load model" in status.reason


async def test_an_engine_that_never_answers_is_given_up(folder: Path, tiny: Path) -> None:
    async def find() -> Engine:
        return dataclasses.replace(fake_engine(), command=(str(asleep(folder)),))  # which does nothing at all

    async with serving(folder, find, limits=dataclasses.replace(LIMITS, stall_ms=500)) as service:
        await service.load(path_request(tiny))
        status = await becomes(service, "tiny", ModelState.FAILED)
        assert status.reason
        assert status.pid is None


async def test_an_engine_that_crashes_later_is_started_again(folder: Path, tiny: Path) -> None:
    async with serving(folder, fake()) as service:
        await service.load(path_request(tiny))
        first = await becomes(service, "tiny", ModelState.READY)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGUSR1)
        await becomes(service, "tiny", ModelState.LOADING)
        second = await becomes(service, "tiny", ModelState.READY)
        assert first.pid != second.pid


async def test_the_engine_of_a_named_folder_is_used_and_its_absence_told(folder: Path, tiny: Path) -> None:
    settings = ServeSettings(bin_dir=folder / "bin")
    async with serving(folder, None, settings) as service:
        with pytest.raises(EngineMissing, match="llama-server"):
            await service.load(path_request(tiny))
        (folder / "bin").mkdir()
        broken = folder / "bin" / "llama-server"
        broken.write_text("#!/bin/sh\nexit 7\n")
        broken.chmod(0o755)
        with pytest.raises(EngineFailed):
            await service.load(path_request(tiny))
        write_fake_engine(folder / "bin")
        await service.load(path_request(tiny))
        await becomes(service, "tiny", ModelState.READY)


# ------------------------------------------------------------------ from the hub


@pytest.fixture
def hub(folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    files = {"Tiny-Q8_0.gguf": tiny.read_bytes(), "mmproj-Tiny-f16.gguf": tiny.read_bytes()}
    with HubServer({REPO: files}) as server:
        monkeypatch.setenv("HF_HOME", str(folder / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        yield server


async def test_a_model_is_downloaded_then_served_with_its_projector(folder: Path, hub: HubServer) -> None:
    async with serving(folder, fake()) as service:
        admitted = await service.load(LoadRequest(f"{REPO}:q8_0"))
        assert admitted.id == "Tiny-Q8_0"
        status = await becomes(service, "Tiny-Q8_0", ModelState.READY)
        assert status.aliases == (f"{REPO}:q8_0", REPO)
        assert "vision" in status.capabilities
        await service.unload(REPO)
        asked = len(hub.requests)
        await service.load(LoadRequest(REPO))
        await becomes(service, "Tiny-Q8_0", ModelState.READY)
        assert len(hub.requests) == asked  # what is here is not asked for again


async def test_a_download_shows_its_progress_and_is_ended_by_unload(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PROGRESS_EVERY_BYTES", 1)
    hub.file_faults.append(Fault(stall_after=200_000))
    async with serving(folder, fake()) as service:
        await service.load(LoadRequest(REPO))
        async with asyncio.timeout(WAIT_S):
            while not ((status := service.status()[0]).progress and status.progress.done_bytes):
                await asyncio.sleep(0.01)
        assert status.state == ModelState.DOWNLOADING
        assert 0 < status.progress.done_bytes < status.progress.total_bytes
        async with asyncio.timeout(READ_TIMEOUT_S / 2):  # the hub's silence lasts longer, and a read of it
            await service.unload("Tiny-Q8_0")
        assert service.status() == []
        assert list((folder / "hf").rglob("*.incomplete"))


async def test_a_hub_that_is_down_refuses_a_load_and_fails_a_model_of_the_command_line(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_pause", lambda _seconds, _stop: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    async with serving(folder, fake(), ServeSettings(models=(REPO,))) as service:
        with pytest.raises(HubUnavailable, match="could not be reached"):
            await service.load(LoadRequest("other/Model-GGUF"))
        await service.start()
        status = await becomes(service, REPO, ModelState.FAILED)
        assert "could not be reached" in status.reason


async def test_a_full_disk_is_told_before_the_first_byte(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(what, cache, free_bytes) -> None:
        raise NoSpace(f"{what.id} needs more.")

    monkeypatch.setattr(download, "check_space", full)
    async with serving(folder, fake()) as service:
        await service.load(LoadRequest(REPO))
        status = await becomes(service, "Tiny-Q8_0", ModelState.FAILED)
        assert status.reason == "Tiny-Q8_0 needs more."
        assert hub.body_requests() == []


async def test_weights_that_cannot_fit_are_not_downloaded(folder: Path, hub: HubServer) -> None:
    async with serving(folder, fake(), ServeSettings(max_vram_bytes=100_000)) as service:
        with pytest.raises(DoesNotFit, match=r"for its weights alone.*Nothing was downloaded"):
            await service.load(LoadRequest(REPO))
        assert hub.body_requests() == []


# ------------------------------------------------------------------ the real engine


async def test_the_real_engine_serves_two_models_and_goes_on_with_one(folder: Path, real_engine: Engine) -> None:
    async def find() -> Engine:
        return real_engine

    async with serving(folder, find) as service:
        for name in ("one", "two"):
            await service.load(path_request(write_tiny(folder / f"{name}.gguf")[0]))
        for name in ("one", "two"):
            status = await becomes(service, name, ModelState.READY)
            assert (status.context_tokens, status.slots) == (512, 4)
            props = await ask(service, name, "/props")
            assert props["total_slots"] == 4
            assert props["default_generation_settings"]["n_ctx"] == 512
            models = await ask(service, name, "/v1/models")
            assert [model["id"] for model in models["data"]] == [name]
        await service.unload("one")
        assert [offer.id for offer in service.offers()] == ["two"]
        assert (await ask(service, "two", "/health")) == {"status": "ok"}
