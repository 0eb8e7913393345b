"""The management API's routes for models: what is asked of the service, and how its refusals are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from agentmesh.console.http import _add_errors
from agentmesh.inference.http import runtime_router
from agentmesh.inference.serving_types import ModelState
from tests.fakes.serving import World
from tests.fakes.tiny_gguf import write_tiny

MODELS = "/api/runtime/models"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "home")
    yield made
    await made.service.stop()


@pytest.fixture
async def api(world: World) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    _add_errors(app)
    app.include_router(runtime_router(world.service))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as client:
        yield client


async def test_a_model_is_loaded_listed_and_unloaded(world: World, api: httpx.AsyncClient, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")[0]
    body = {"model": str(path), "is_path": True, "ctx_size": 256, "slots": 2, "max_vram": 10**9, "device": "none"}
    answer = await api.post(MODELS, json=body)
    assert answer.status_code == 200
    assert {key: answer.json()[key] for key in ("id", "context_tokens", "slots", "role")} == {
        "id": "tiny",
        "context_tokens": 256,
        "slots": 2,
        "role": "solo",
    }
    await world.becomes("tiny", ModelState.READY)
    (row,) = (await api.get(MODELS)).json()["models"]
    assert (row["state"], row["need_bytes"] > 0, row["progress"], len(row["nodes"])) == ("ready", True, None, 1)
    (process,) = (await api.get("/api/runtime/processes")).json()["processes"]
    assert (process["model"], process["state"], process["pid"]) == ("tiny", "ready", row["pid"])
    whole = (await api.get("/api/runtime")).json()
    assert (whole["engine"]["flavour"], whole["models"]) == ("cpu", [row])
    gone = await api.delete(f"{MODELS}/tiny")
    assert gone.json() == {"id": "tiny", "message": "tiny is unloaded; its memory is free."}
    assert (await api.get(MODELS)).json() == {"models": []}


async def test_what_does_not_fit_is_a_conflict_with_the_arithmetic(
    world: World, api: httpx.AsyncClient, tmp_path: Path
) -> None:
    world.machine.available = 1
    path = write_tiny(tmp_path / "tiny.gguf")[0]
    answer = await api.post(MODELS, json={"model": str(path)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "does_not_fit")
    assert "are free of" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"model": ""}, 400),
        ({"model": "x" * 3000}, 400),
        ({"model": "7b", "ctx_size": 0}, 400),
        ({"model": "7b", "slots": 1000}, 400),
        ({"model": "7b", "what": 1}, 400),
        ({"model": "no such model at all"}, 404),
        ({"model": "/no/such/file.gguf"}, 422),
        ({"model": "a//b"}, 400),
    ],
)
async def test_bad_requests_are_refused_in_one_sentence(
    api: httpx.AsyncClient, body: dict[str, object], status: int
) -> None:
    answer = await api.post(MODELS, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


async def test_an_unknown_model_cannot_be_unloaded(api: httpx.AsyncClient) -> None:
    for path in ("nothing", "org/repo/file.gguf"):
        answer = await api.delete(f"{MODELS}/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_served")


async def test_forget_drops_what_was_loaded(world: World, api: httpx.AsyncClient, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")[0]
    await api.post(MODELS, json={"model": str(path)})
    done = await api.delete(f"{MODELS}/tiny", params={"forget": "1"})
    assert done.json()["message"] == "tiny is unloaded and forgotten."
    assert b"tiny" not in (world.home.root / "models.json").read_bytes()
