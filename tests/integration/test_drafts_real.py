"""Drafts with the real llama.cpp: they draft, change no answer, take what was said, stay on the host, and are counted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from threading import Event

import httpx
import pytest

from agentmesh.inference.acceptance import acceptance
from agentmesh.inference.draft import DraftChoice, Drafter, draft_words
from agentmesh.inference.engine.arguments import ServerPlan, server_arguments
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.fetching import Fetcher
from agentmesh.inference.logic.drafting import DraftFlags
from agentmesh.inference.logic.fit import PROCESS_BYTES, DraftModel, draft_bytes
from agentmesh.inference.logic.spec_metrics import Acceptance
from agentmesh.inference.logic.target import EngineAddress
from agentmesh.inference.models.gguf import read_model
from tests.fakes.talking_gguf import ANSWER, write_talking
from tests.fakes.tiny_gguf import LLAMA, write_tiny
from tests.integration.test_split_real import MIB, OUTPUT_ON_CPU, llama_server, rpc_server

CONTEXT = 512
TARGET = replace(LLAMA, layers=4, seed=5)
TOKENS = 48


async def chosen(engine: Engine, target: Path, draft: Path, *, most: int = 8) -> DraftChoice:
    drafter = Drafter(Fetcher())
    flags = DraftFlags(draft=str(draft), draft_max=most)
    try:
        return await drafter.find(flags, "m", None, target, engine=engine, is_split=False, stop=Event())
    finally:
        await drafter.close()


def usual_words(engine: Engine, target: Path, extra: tuple[str, ...], *, embeddings: bool = False) -> list[str]:
    """What a node starts an engine with."""
    plan = ServerPlan(
        target, "m", 2 * CONTEXT, 2, embeddings=embeddings, extra=("--cache-ram", "64", "-t", "1", *extra)
    )
    return server_arguments(engine, plan, EngineAddress(socket="/nowhere/e.sock"))


def complete(http: httpx.Client, prompt: str = "hello") -> tuple[list[int], dict[str, float]]:
    """The answer's tokens (noise is no text that JSON could carry) and llama-server's figures."""
    asked = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "return_tokens": True}
    answer = http.post("/completion", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["tokens"], answer.json()["timings"]


async def test_chats_are_drafted(real_engine: Engine, tmp_path: Path) -> None:
    target, draft = (write_talking(tmp_path / name) for name in ("m.gguf", "d.gguf"))
    words = draft_words(real_engine, await chosen(real_engine, target, draft))
    with llama_server(real_engine, tmp_path, usual_words(real_engine, target, words)) as (http, _):
        answer = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hello"}]}).json()
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert answer["timings"]["draft_n_accepted"] > 10


@pytest.mark.parametrize("is_good", [True, False], ids=["good", "useless"])
async def test_a_draft_is_used_counted_and_changes_no_answer(
    real_engine: Engine, tmp_path: Path, is_good: bool
) -> None:
    """A good draft: a copy, so that all its tensors are named as the target's and its tokens right until the text ends. A useless one:
    other noise."""
    target = write_tiny(tmp_path / "m.gguf", TARGET)[0]
    draft = write_tiny(tmp_path / "d.gguf", TARGET if is_good else replace(LLAMA, layers=1, seed=9))[0]
    texts = ["hello", "what is a mesh?"]
    with llama_server(real_engine, tmp_path, usual_words(real_engine, target, ())) as (http, _):
        alone = [complete(http, text)[0] for text in texts]
    words = draft_words(real_engine, await chosen(real_engine, target, draft))
    with llama_server(real_engine, tmp_path, usual_words(real_engine, target, words)) as (http, _):
        address = EngineAddress(socket=str(tmp_path / "e.sock"))
        assert await acceptance(address) == Acceptance(0, 0)
        answers = [complete(http, text) for text in texts]
        counted = await acceptance(address)
    assert [text for text, _ in answers] == alone
    drafted, accepted = (int(sum(t[key] for _, t in answers)) for key in ("draft_n", "draft_n_accepted"))
    assert counted == Acceptance(drafted, accepted)
    assert drafted > TOKENS
    assert accepted > 0.8 * drafted if is_good else accepted < drafted // 2


@pytest.mark.parametrize(("embeddings", "status"), [(False, 200), (True, 500)])
async def test_why_a_model_with_a_draft_embeds_no_texts(
    real_engine: Engine, tmp_path: Path, embeddings: bool, status: int
) -> None:
    """Beside embeddings llama-server has room for one output of a sequence, and a request that any client may make fails."""
    target, draft = (write_tiny(tmp_path / name, TARGET)[0] for name in ("m.gguf", "d.gguf"))
    words = draft_words(real_engine, await chosen(real_engine, target, draft))
    words = tuple(usual_words(real_engine, target, words, embeddings=embeddings))
    with llama_server(real_engine, tmp_path, words) as (http, _):
        asked = {"prompt": "hello", "n_predict": 20, "temperature": 0, "backend_sampling": True}
        assert http.post("/completion", json=asked).status_code == status
        assert complete(http)[1]["draft_n"] > 0


async def test_a_draft_stays_on_the_host_of_a_split(real_engine: Engine, tmp_path: Path) -> None:
    target, draft = (write_tiny(tmp_path / name, TARGET)[0] for name in ("m.gguf", "d.gguf"))
    with llama_server(real_engine, tmp_path, usual_words(real_engine, target, ())) as (http, _):
        alone = complete(http)[0]
    words = draft_words(real_engine, await chosen(real_engine, target, draft))
    with rpc_server(real_engine, tmp_path) as port:
        split = ("--rpc", f"127.0.0.1:{port}", "--device", "RPC0", "-ngl", "3", "-ts", "3", "-ot", OUTPUT_ON_CPU)
        with llama_server(real_engine, tmp_path, usual_words(real_engine, target, (*split, *words))) as (http, log):
            text, timings = complete(http)
            said = log.read_text(errors="replace")
    assert text == alone
    assert timings["draft_n_accepted"] > 0
    before, _, after = said.partition("loading draft model")
    of_worker = re.compile(rf"RPC0\[127\.0\.0\.1:{port}\] +(?:model|KV|compute) buffer size")
    assert len(of_worker.findall(before)) == 3  # the target's
    assert not of_worker.findall(after)


@pytest.mark.parametrize(("context", "slots", "most"), [(4096, 1, 8), (4096, 3, 64)])
def test_a_draft_takes_what_was_said(real_engine: Engine, tmp_path: Path, context: int, slots: int, most: int) -> None:
    target = write_tiny(tmp_path / "m.gguf", replace(TARGET, context=context))[0]
    shape = replace(TARGET, embedding=512, heads=8, kv_heads=4, feed_forward=1408, context=context)
    draft = write_tiny(tmp_path / "d.gguf", shape)[0]
    model = DraftModel(read_model(draft).facts, most)
    words = draft_words(real_engine, DraftChoice(path=draft, max_tokens=most))
    plan = ServerPlan(target, "m", context * slots, slots, extra=("-t", "1", *words))
    arguments = server_arguments(real_engine, plan, EngineAddress(socket="/nowhere/e.sock"))
    with llama_server(real_engine, tmp_path, arguments) as (http, log):
        complete(http)
        said = log.read_text(errors="replace").partition("loading draft model")[2]
    sizes = dict(re.findall(r"CPU(?:_Mapped)? +(model|KV|output|compute) buffer size = +([0-9.]+) MiB", said))
    assert len(sizes) == 4, said[-3000:]
    assert model.facts.kv_bytes(context) * slots / MIB == pytest.approx(float(sizes["KV"]), rel=0.001)
    vocabulary = read_model(target).facts.vocabulary.size
    rows = slots * most * vocabulary * 4
    estimated = (draft_bytes(model, vocabulary, context, slots) - PROCESS_BYTES - rows) / MIB
    measured = sum(map(float, sizes.values()))
    assert 0.98 * measured <= estimated <= 1.2 * measured


async def test_an_engine_that_is_gone_has_no_counts(tmp_path: Path) -> None:
    assert await acceptance(EngineAddress(socket=str(tmp_path / "gone.sock"))) is None
