"""Real nodes, real engines, real SDKs: every node lists and answers for every model that any node serves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from agentmesh.inference.engine.engine import Engine
from tests.fakes.node_process import NodeHome, Nodes, wait_for
from tests.fakes.talking_gguf import write_talking
from tests.fakes.tiny_gguf import LLAMA, write_tiny

READY_S = 90.0
MODELS = ("alpha", "beta")
ASK: list[Any] = [{"role": "user", "content": "Say something."}]

pytestmark = pytest.mark.timeout(400)  # three nodes, and an engine on each of two


@pytest.fixture(scope="module")
def mesh(real_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeHome]]:
    """Two nodes that serve a model each, and one with none."""
    folder = tmp_path_factory.mktemp("models")
    files = [folder / f"{name}.gguf" for name in MODELS]
    for file in files:
        write_talking(file, answer=answer_of(file.stem), context=8_192)
    noise = tiny(folder / "noise.gguf")
    engine = ("--bin-dir", str(Path(real_engine.command[0]).parent), "--ctx-size", "4096")
    with Nodes() as nodes:
        first = nodes.start("--name", "a", "--gguf", str(files[0]), "--gguf", str(noise), *engine)
        second = nodes.start("--name", "b", "--gguf", str(files[1]), *engine, "--join", first.invite)
        third = nodes.start("--name", "c", "--join", first.invite)
        for home in (first, second, third):
            wait_for(lambda home=home: listed(home) >= {*MODELS, "noise"}, READY_S, f"both models at {home.root.name}")
        yield [first, second, third]


def tiny(path: Path, seed: int = 1) -> Path:
    """A quantised model of random weights that says bytes. Wide enough for every kernel that an engine may have."""
    shape = replace(LLAMA, context=8_192, seed=seed, quantised=True, embedding=256, feed_forward=512)
    return write_tiny(path, shape)[0]


def answer_of(model: str) -> str:
    return f"This is {model}, and I say one sentence."


def listed(home: NodeHome) -> set[str]:
    """The models that a node says are ready."""
    answer = httpx.get(f"http://127.0.0.1:{home.api_port}/v1/models", timeout=30).json()
    return {model["id"] for model in answer["data"] if model["ready"]}


def open_ai(home: NodeHome) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{home.api_port}/v1", api_key="mesh", max_retries=0, timeout=120)


def anthropic_of(home: NodeHome) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{home.api_port}", api_key="mesh", max_retries=0, timeout=120)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("node", range(3))
def test_every_node_answers_for_every_model_on_all_endpoints(mesh: list[NodeHome], node: int, model: str) -> None:
    client = open_ai(mesh[node])
    chat = client.chat.completions.create(model=model, messages=ASK, max_tokens=80)
    assert chat.model == model
    assert chat.choices[0].message.content == answer_of(model)
    text = client.completions.create(model=model, prompt="Once", max_tokens=80)
    assert text.choices[0].text
    vector = client.embeddings.create(model=model, input="some words").data[0].embedding
    assert len(vector) >= 8
    response = client.responses.create(model=model, input="Say something.", max_output_tokens=80)
    assert response.output_text == answer_of(model)
    claude = anthropic_of(mesh[node])
    message = claude.messages.create(model=model, messages=ASK, max_tokens=80)
    assert message.content[0].text == answer_of(model)
    assert claude.messages.count_tokens(model=model, messages=ASK).input_tokens > 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("node", range(3))
def test_every_node_streams_every_model(mesh: list[NodeHome], node: int, model: str) -> None:
    client = open_ai(mesh[node])
    chunks = list(client.chat.completions.create(model=model, messages=ASK, max_tokens=80, stream=True))
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == answer_of(model)
    assert len(said) > 5, "it came in pieces"
    assert list(client.completions.create(model=model, prompt="Once", max_tokens=80, stream=True))
    events = [
        event.type for event in client.responses.create(model=model, input="Hi", max_output_tokens=80, stream=True)
    ]
    assert events[0] == "response.created"
    assert events[-1] in ("response.completed", "response.incomplete")
    with anthropic_of(mesh[node]).messages.stream(model=model, messages=ASK, max_tokens=80) as stream:
        assert "".join(stream.text_stream) == answer_of(model)


def test_an_unknown_model_is_404_with_the_list(mesh: list[NodeHome]) -> None:
    with pytest.raises(openai.NotFoundError, match="alpha") as missing:
        open_ai(mesh[2]).chat.completions.create(model="gamma", messages=ASK)
    assert "beta" in str(missing.value)
    with pytest.raises(anthropic.NotFoundError, match="alpha"):
        anthropic_of(mesh[2]).messages.create(model="gamma", messages=ASK, max_tokens=80)


def test_status_shows_every_model_with_its_nodes(mesh: list[NodeHome]) -> None:
    ids = [home.json("status")["node_id"] for home in mesh]
    for home in mesh:
        models = {model["id"]: model for model in home.json("status")["models"]}
        assert {name: models[name]["nodes"] for name in MODELS} == {"alpha": [ids[0]], "beta": [ids[1]]}
        assert {models[name]["state"] for name in MODELS} == {"ready"}
        assert {models[name]["role"] for name in MODELS} == {"solo"}


def test_a_client_that_leaves_frees_the_slot_across_the_mesh(mesh: list[NodeHome]) -> None:
    client = open_ai(mesh[2])
    for _ in range(12):  # more than there are slots
        stream = client.chat.completions.create(model="noise", messages=ASK, max_tokens=3_000, stream=True)
        next(iter(stream))
        stream.close()
    began = time.monotonic()
    assert client.chat.completions.create(model="noise", messages=ASK, max_tokens=2).choices
    assert time.monotonic() - began < 20
