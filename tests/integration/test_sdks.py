"""The real OpenAI and Anthropic SDKs against the API server, with fake engines behind it: every endpoint, whole and streamed, and the errors they raise."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anthropic
import openai
import pytest

from agentmesh.core.errors import Unreachable
from agentmesh.inference.engine.health import is_healthy
from agentmesh.inference.logic.route_limits import MAX_WAITING_PER_MODEL
from agentmesh.inference.logic.target import EngineAddress, ServedModel, Target
from agentmesh.inference.proxy.answers import LocalAnswers
from agentmesh.inference.proxy.directory import Directory
from agentmesh.inference.proxy.dispatch import Dispatcher
from agentmesh.inference.proxy.lease import HeldLease
from agentmesh.inference.proxy.metrics import Metrics
from agentmesh.inference.proxy.ports import Outcome, Wanted
from agentmesh.inference.proxy.server import ApiServer
from agentmesh.inference.proxy.settings import ApiSettings
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.routing import ME, model

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
CREATED_S = 1_700_000_000
ALPHA = model("Alpha-7B-Q4", aliases=("alpha",), slots=2, parameters=7, can=("chat", "completion", "tools"))
BETA = model("Beta-1B", parameters=1)
EMBED = model("org/embed", can=("embedding",))
ASK = [{"role": "user", "content": "Hello?"}]


async def _no_peer(node: bytes, kind: StreamKind) -> Stream:
    raise Unreachable


class World:
    """A server with engines, and both SDKs pointed at it."""

    def __init__(self, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        self.folder = folder
        self.metrics = Metrics()
        self.directory = Directory(ME, dict, loop.time)
        self.dispatcher = Dispatcher(self.directory, self.metrics, loop.time, loop.call_later)
        self.port = 0
        self._targets: list[Target] = []

    async def start(self, stack: AsyncExitStack) -> None:
        own = LocalAnswers(self.dispatcher.models, self.metrics.render, created_s=CREATED_S)
        settings = ApiSettings(spill_folder=self.folder, connect_s=WAIT_S)
        server = ApiServer(self.dispatcher, own, settings, _no_peer, self.metrics)
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        await server.listen(sock)
        stack.push_async_callback(server.close)
        self.openai = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="any", max_retries=0, timeout=WAIT_S
        )
        self.anthropic = anthropic.AsyncAnthropic(
            base_url=f"http://127.0.0.1:{self.port}", api_key="any", max_retries=0, timeout=WAIT_S
        )
        stack.push_async_callback(self.openai.close)
        stack.push_async_callback(self.anthropic.close)

    async def serve(self, stack: AsyncExitStack, engines: dict[ServedModel, tuple[str, ...]]) -> None:
        """Engines of this node with these options, which start together."""
        paths = [self.folder / f"{number}.sock" for number in range(len(engines))]
        for path, options in zip(paths, engines.values(), strict=True):
            engine = await asyncio.create_subprocess_exec(
                *(sys.executable, ROOT / "tests/fakes/fake_engine.py", "--model", "m.gguf", "--host", path, *options),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            stack.push_async_callback(_end, engine)
        async with asyncio.timeout(WAIT_S):
            while not all([await is_healthy(EngineAddress(socket=str(path))) for path in paths]):
                await asyncio.sleep(0.02)
        self._targets = [
            Target(ME, served, EngineAddress(socket=str(path))) for served, path in zip(engines, paths, strict=True)
        ]
        self.directory.set_own(self._targets)

    def known(self, served: ServedModel) -> None:
        """A model that is still being loaded."""
        self._targets.append(Target(ME, served))
        self.directory.set_own(self._targets)

    def fill(self, name: str) -> list[HeldLease]:
        """Take all places."""
        leases = list[HeldLease]()
        while (lease := self.dispatcher.try_acquire(Wanted(name, "/v1/chat/completions"))) is not None:
            leases.append(lease)
        return leases


async def _end(engine: asyncio.subprocess.Process) -> None:
    if engine.returncode is None:
        engine.kill()
    await engine.wait()


@asynccontextmanager
async def world_in(folder: Path) -> AsyncIterator[tuple[World, AsyncExitStack]]:
    async with AsyncExitStack() as stack:
        world = World(folder)
        await world.start(stack)
        yield world, stack


@pytest.fixture
async def world(short_folder: Path) -> AsyncIterator[World]:
    async with world_in(short_folder) as (world, stack):
        alpha, beta = ("--word", "alpha", "--tokens", "3"), ("--word", "beta", "--tokens", "3")
        await world.serve(stack, {ALPHA: alpha, BETA: beta, EMBED: ("--embeddings",)})
        yield world


@pytest.fixture
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Unix socket's path has at most some 100 characters."""
    return tmp_path_factory.mktemp("s")


TEXT = "alpha0 alpha1 alpha2"

# ---------------------------------------------------------------------- OpenAI


async def test_openai_chat(world: World) -> None:
    whole = await world.openai.chat.completions.create(model="Alpha-7B-Q4", messages=ASK)  # type: ignore[arg-type]
    assert (whole.choices[0].message.content or "").strip() == TEXT
    assert whole.usage is not None and whole.usage.completion_tokens == 3
    stream = await world.openai.chat.completions.create(model="alpha", messages=ASK, stream=True)  # type: ignore[arg-type]
    parts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(parts).strip() == TEXT


async def test_each_model_answers_for_itself(world: World) -> None:
    for name, word in (("Alpha-7B-Q4", "alpha"), ("beta-1b", "beta"), ("auto", "alpha")):
        for _ in range(3):
            answer = await world.openai.chat.completions.create(model=name, messages=ASK)  # type: ignore[arg-type]
            assert (answer.choices[0].message.content or "").startswith(f"{word}0")


async def test_openai_completions(world: World) -> None:
    whole = await world.openai.completions.create(model="alpha", prompt="Once")
    assert whole.choices[0].text.strip() == TEXT
    stream = await world.openai.completions.create(model="alpha", prompt="Once", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream if chunk.choices]).strip() == TEXT


async def test_openai_embeddings(world: World) -> None:
    for name in ("org/embed", "auto"):
        answer = await world.openai.embeddings.create(model=name, input=["one", "two"], encoding_format="float")
        assert len(answer.data) == 2
        assert all(isinstance(number, float) for number in answer.data[1].embedding)


async def test_openai_responses(world: World) -> None:
    whole = await world.openai.responses.create(model="alpha", input="Hello?")
    assert whole.output_text.strip() == TEXT
    stream = await world.openai.responses.create(model="alpha", input="Hello?", stream=True)
    events = [event async for event in stream]
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts).strip() == TEXT
    assert events[-1].type == "response.completed"


async def test_openai_models(world: World) -> None:
    listed = [entry.id async for entry in world.openai.models.list()]
    assert listed == ["Alpha-7B-Q4", "Beta-1B", "org/embed"]
    assert (await world.openai.models.retrieve("org/embed")).owned_by == "agentmesh"
    with pytest.raises(openai.NotFoundError, match="There is: Alpha-7B-Q4"):
        await world.openai.models.retrieve("gpt-4")


# ---------------------------------------------------------------------- Anthropic


async def test_anthropic_messages(world: World) -> None:
    whole = await world.anthropic.messages.create(model="alpha", max_tokens=9, messages=ASK)  # type: ignore[arg-type]
    assert whole.content[0].type == "text" and whole.content[0].text.strip() == TEXT
    assert whole.stop_reason == "end_turn"
    async with world.anthropic.messages.stream(model="alpha", max_tokens=9, messages=ASK) as stream:  # type: ignore[arg-type]
        assert "".join([text async for text in stream.text_stream]).strip() == TEXT
        assert (await stream.get_final_message()).usage.output_tokens == 3


async def test_anthropic_counts_tokens(world: World) -> None:
    counted = await world.anthropic.messages.count_tokens(model="alpha", messages=ASK)  # type: ignore[arg-type]
    assert counted.input_tokens > 0


async def test_anthropic_models(world: World) -> None:
    listed = [entry async for entry in world.anthropic.models.list(limit=2)]
    assert [entry.id for entry in listed] == ["Alpha-7B-Q4", "Beta-1B", "org/embed"]
    assert {entry.created_at.year for entry in listed} == {2023}
    assert (await world.anthropic.models.retrieve("org/embed")).display_name == "org/embed"
    with pytest.raises(anthropic.NotFoundError, match="There is: Alpha-7B-Q4"):
        await world.anthropic.models.retrieve("claude")


# ---------------------------------------------------------------------- errors


async def test_an_unknown_model_raises_not_found_in_both(world: World) -> None:
    with pytest.raises(openai.NotFoundError, match="There is: Alpha-7B-Q4") as caught:
        await world.openai.chat.completions.create(model="gpt-4", messages=ASK)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(anthropic.NotFoundError, match="There is: Alpha-7B-Q4") as other:
        await world.anthropic.messages.create(model="claude", max_tokens=9, messages=ASK)  # type: ignore[arg-type]
    assert isinstance(other.value.body, dict) and other.value.body["error"]["type"] == "not_found_error"


async def test_a_model_that_is_loading_raises_a_server_error_with_retry_after(world: World) -> None:
    world.known(model("slow", ready=False))
    with pytest.raises(openai.InternalServerError, match="being loaded") as caught:
        await world.openai.chat.completions.create(model="slow", messages=ASK)  # type: ignore[arg-type]
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) >= 1
    with pytest.raises(anthropic.APIStatusError, match="being loaded") as other:
        await world.anthropic.messages.create(model="slow", max_tokens=9, messages=ASK)  # type: ignore[arg-type]
    assert other.value.status_code == 503


async def test_a_full_queue_raises_a_rate_limit_error_with_retry_after(world: World) -> None:
    leases = world.fill("alpha")
    waiting = [
        asyncio.ensure_future(world.dispatcher.acquire(Wanted("alpha", "/v1/chat/completions")))
        for _ in range(MAX_WAITING_PER_MODEL)
    ]
    await asyncio.sleep(0)
    with pytest.raises(openai.RateLimitError) as caught:
        await world.openai.chat.completions.create(model="alpha", messages=ASK)  # type: ignore[arg-type]
    assert int(caught.value.response.headers["retry-after"]) >= 1
    with pytest.raises(anthropic.RateLimitError):
        await world.anthropic.messages.create(model="alpha", max_tokens=9, messages=ASK)  # type: ignore[arg-type]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for lease in leases:
        lease.release(Outcome.CANCELLED)
    await world.openai.chat.completions.create(model="alpha", messages=ASK)  # type: ignore[arg-type]


async def test_a_request_that_waits_is_answered_when_there_is_room(world: World) -> None:
    leases = world.fill("alpha")
    asked = asyncio.ensure_future(
        world.openai.chat.completions.create(model="alpha", messages=ASK)  # type: ignore[arg-type]
    )
    async with asyncio.timeout(WAIT_S):
        while not world.dispatcher.queue_lengths():
            await asyncio.sleep(0.01)
    leases[0].release(Outcome.ANSWERED)
    assert ((await asked).choices[0].message.content or "").strip() == TEXT


async def test_a_stream_that_breaks_off_raises_in_both(short_folder: Path) -> None:
    async with world_in(short_folder) as (world, stack):
        await world.serve(stack, {ALPHA: ("--drop-after-tokens", "2", "--tokens", "6")})
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in await world.openai.chat.completions.create(
                model="alpha",
                messages=ASK,  # type: ignore[arg-type]
                stream=True,
            ):
                pass
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in await world.openai.responses.create(model="alpha", input="Hello?", stream=True):
                pass
        with pytest.raises(anthropic.APIStatusError, match="broke off"):
            async with world.anthropic.messages.stream(model="alpha", max_tokens=9, messages=ASK) as answer:  # type: ignore[arg-type]
                async for _ in answer.text_stream:
                    pass


async def test_an_engine_that_fails_is_reported_as_it_said(short_folder: Path) -> None:
    async with world_in(short_folder) as (world, stack):
        await world.serve(stack, {ALPHA: ("--status", "500")})
        with pytest.raises(openai.InternalServerError):
            await world.openai.chat.completions.create(model="alpha", messages=ASK)  # type: ignore[arg-type]


async def test_metrics_show_what_the_sdks_did(world: World) -> None:
    await world.openai.chat.completions.create(model="alpha", messages=ASK)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        await world.openai.chat.completions.create(model="gpt-4", messages=ASK)  # type: ignore[arg-type]
    text = world.metrics.render().decode()
    assert 'agentmesh_requests_total{model="Alpha-7B-Q4",route="local",status="2xx"} 1.0' in text
    assert 'agentmesh_refused_total{code="model_not_found"} 1.0' in text
    assert "gpt-4" not in text
    assert json.dumps(ASK) not in text
