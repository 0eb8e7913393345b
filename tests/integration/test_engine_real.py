"""The engines themselves, on a tiny model: started, asked at every endpoint that we relay, and ended."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from agentmesh.inference.engine.arguments import ServerPlan, server_arguments
from agentmesh.inference.engine.engine import ORIGIN_EMBEDDED, Engine, FoundEngine
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.probe import probe
from agentmesh.inference.engine.process import EngineProcess
from agentmesh.inference.logic.lifecycle import State
from agentmesh.inference.logic.target import EngineAddress
from tests.fakes.fake_engine import fake_engine
from tests.fakes.tiny_gguf import write_tiny

START_S = 60.0  # 0.2 s on a free machine
ANSWER_S = 60.0
ASK = [{"role": "user", "content": "hi"}]
ENDPOINTS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 4}, "choices"),
    ("/chat/completions", {"messages": ASK, "max_tokens": 4}, "choices"),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 4}, "choices"),
    ("/v1/embeddings", {"input": ["hi", "a longer text"]}, "data"),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 4}, "output"),
    ("/v1/messages", {"messages": ASK, "max_tokens": 4}, "content"),
    ("/v1/messages/count_tokens", {"messages": ASK}, "input_tokens"),
    ("/tokenize", {"content": "hi"}, "tokens"),
]
STREAMS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 4}, "data: [DONE]"),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 4}, "data: [DONE]"),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 4}, "event: response.completed"),
    ("/v1/messages", {"messages": ASK, "max_tokens": 4}, "event: message_stop"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="am-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny(path)
    return path


@pytest.fixture(params=["real", "embedded"])
async def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "real":
        return request.getfixturevalue("real_engine")
    pytest.importorskip("xllamacpp")
    command = (sys.executable, "-m", "agentmesh.inference.engine.embedded")
    return await probe(FoundEngine(command, ORIGIN_EMBEDDED, "cpu"))


@pytest.fixture(params=["socket", "port"])
async def running(
    request: pytest.FixtureRequest, engine: Engine, model: Path, folder: Path
) -> AsyncIterator[EngineProcess]:
    process = make(engine, model, folder, unix_sockets=request.param == "socket")
    await process.start()
    await asyncio.wait_for(process.wait_ready(), START_S)
    yield process
    await process.stop()


def make(engine: Engine, model: Path, folder: Path, *, unix_sockets: bool = True) -> EngineProcess:
    assert engine.unix_sockets
    plan = ServerPlan(model, "tiny", 1024, 2, embeddings=True)
    where = dataclasses.replace(engine, unix_sockets=unix_sockets)
    return EngineProcess(where, plan, folder=folder / "run", log=folder / "logs" / "tiny.log")


def client(address: EngineAddress) -> httpx.AsyncClient:
    key = {"Authorization": f"Bearer {address.api_key}"} if address.api_key else {}
    if address.socket is not None:
        transport = httpx.AsyncHTTPTransport(uds=address.socket)
        return httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=ANSWER_S)
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{address.port}", headers=key, timeout=ANSWER_S)


async def test_every_endpoint_that_is_relayed_answers(running: EngineProcess) -> None:
    assert running.address is not None
    async with client(running.address) as http:
        for path, body, field in ENDPOINTS:
            answer = await http.post(path, json={"model": "tiny", **body})
            assert answer.status_code == 200, f"{path}: {answer.text}"
            assert answer.json()[field], f"{path}: {answer.text}"
        models = (await http.get("/v1/models")).json()
        assert [entry["id"] for entry in models["data"]] == ["tiny"]
        props = (await http.get("/props")).json()
        assert props["total_slots"] == 2
        assert props["default_generation_settings"]["n_ctx"] == 512
        assert len((await http.get("/slots")).json()) == 2
        assert "llamacpp:" in (await http.get("/metrics")).text
        assert (await http.get("/")).status_code != 200  # no web page


async def test_every_stream_comes_to_its_end(running: EngineProcess) -> None:
    assert running.address is not None
    for path, body, last in STREAMS:
        # One connection each: llama-server closes it after a stream, without saying so before.
        async with client(running.address) as http:
            answer = await http.post(path, json={"model": "tiny", "stream": True, "temperature": 0, **body})
            assert answer.headers["content-type"].startswith("text/event-stream"), f"{path}: {answer.text}"
            events = [event for event in answer.text.split("\n\n") if event]
            assert len(events) > 2, f"{path}: {answer.text}"
            assert events[-1].startswith(last), f"{path}: {answer.text}"


def shape(value: Any) -> Any:
    """The keys of an answer, without what only real models have to say."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in sorted(value.items()) if key not in ("timings", "completed_at")}
    return [shape(inner) for inner in value[:1]] if isinstance(value, list) else None


def event_shapes(stream: str) -> list[tuple[str, Any]]:
    """Of each event its name and keys; tokens count once."""
    found: list[tuple[str, Any]] = []
    for event in stream.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in event.splitlines() if ": " in line)
        data = fields.get("data", "[DONE]")
        one = (fields.get("event", ""), None if data == "[DONE]" else shape(json.loads(data)))
        if event and one not in found:
            found.append(one)
    return found


async def test_the_fake_engine_answers_in_the_real_ones_form(real_engine: Engine, model: Path, folder: Path) -> None:
    answers: list[list[Any]] = []
    for each in (real_engine, fake_engine()):
        process = make(each, model, folder)
        await process.start()
        await asyncio.wait_for(process.wait_ready(), START_S)
        assert process.address is not None
        given: list[Any] = []
        for path, body, _ in STREAMS:
            for extra in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
                async with client(process.address) as http:
                    answer = await http.post(path, json={"model": "tiny", "temperature": 0, **body, **extra})
                    given.append((path, event_shapes(answer.text) if extra else shape(answer.json())))
        answers.append(given)
        await process.stop()
    for real, fake in zip(*answers, strict=True):
        assert fake == real


async def test_texts_longer_than_a_batch_are_embedded_too(running: EngineProcess) -> None:
    assert running.address is not None
    async with client(running.address) as http:
        answer = await http.post("/v1/embeddings", json={"model": "tiny", "input": "x" * 500})
        assert answer.status_code == 200, answer.text


async def test_a_port_is_closed_to_whoever_has_no_key(engine: Engine, model: Path, folder: Path) -> None:
    process = make(engine, model, folder, unix_sockets=False)
    await process.start()
    await asyncio.wait_for(process.wait_ready(), START_S)
    assert process.address is not None
    try:
        assert process.address.api_key is not None
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.address.port}", timeout=ANSWER_S) as http:
            assert (await http.post("/v1/completions", json={"prompt": "hi"})).status_code == 401
        assert process.address.api_key not in (folder / "logs" / "tiny.log").read_text()
    finally:
        await process.stop()


async def test_it_ends_promptly_and_leaves_nothing(engine: Engine, model: Path, folder: Path) -> None:
    process = make(engine, model, folder)
    await process.start()
    await asyncio.wait_for(process.wait_ready(), START_S)
    pid = process.status.pid
    assert pid is not None
    await asyncio.wait_for(process.stop(60), 40)  # before the grace is over: by SIGTERM, not killed
    assert process.status.state is State.STOPPED
    assert not psutil.pid_exists(pid)
    assert list((folder / "run").iterdir()) == []


async def test_a_file_that_is_no_model_is_said_to_be_none(engine: Engine, folder: Path) -> None:
    (folder / "bad.gguf").write_bytes(b"PK\x03\x04 not a model")
    process = make(engine, folder / "bad.gguf", folder)
    await process.start()
    with pytest.raises(EngineFailed, match="missing, damaged, or no GGUF file"):
        await asyncio.wait_for(process.wait_ready(), START_S)


async def test_the_engine_knows_all_options_of_its_command_line(engine: Engine, model: Path) -> None:
    plan = ServerPlan(model, "tiny", 1024, 2, embeddings=True, projector=model)
    words = server_arguments(engine, plan, EngineAddress(socket="/e.sock"))
    assert {word for word in words if word.startswith("--")} <= engine.flags
    expected = {"--fit", "--no-ui", "--jinja", "--metrics", "--slots", "--offline", "--threads-http", "--embeddings"}
    assert expected <= set(words), json.dumps(words)
