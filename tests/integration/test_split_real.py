"""Plans against the real llama.cpp: layers lie where the plan says, within the bytes that it says, and drafts are really used."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import msgspec
import pytest

from agentmesh.inference.engine.draft_arguments import draft_arguments
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.logic.model_parts import model_parts
from agentmesh.inference.logic.plan import make_plan
from agentmesh.inference.logic.split_values import NodeFacts, PlanModel, Split, Wish
from agentmesh.inference.logic.vocabulary import difference, vocabulary_print
from agentmesh.inference.models.gguf import read_header, read_model
from tests.fakes.rpc_world import held_port
from tests.fakes.split_world import a_node, near
from tests.fakes.tiny_gguf import LLAMA, write_tiny

WAIT_S = 180.0
pytestmark = pytest.mark.timeout(600)  # some seconds each alone
MIB = 1024 * 1024
OUTPUT_ON_CPU = r"^(output|token_embd)\.weight$=CPU"


@contextmanager
def rpc_server(engine: Engine, folder: Path) -> Iterator[int]:
    """A worker's RPC server; its port. It is never connected to before llama-server does: it serves one at a time."""
    assert engine.rpc_server is not None
    held = held_port()
    port: int = held.getsockname()[1]
    log = folder / f"rpc-{port}.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            ["stdbuf", "-oL", engine.rpc_server, "-H", "127.0.0.1", "-p", str(port)], stdout=out, stderr=out
        )
    try:
        wait_for(log, "transport", server)
        yield port
    finally:
        server.kill()
        server.wait()
        held.close()


@contextmanager
def llama_server(engine: Engine, folder: Path, words: Sequence[str]) -> Iterator[tuple[httpx.Client, Path]]:
    log, listening = folder / f"server-{len(list(folder.iterdir()))}.log", folder / "e.sock"
    with log.open("wb") as out:
        command = [*engine.command, *words, "--host", str(listening), "-fit", "off", "-lv", "5"]
        server = subprocess.Popen(command, stdout=out, stderr=out, env={"GGML_NO_BACKTRACE": "1"})
    try:
        wait_for(log, "listening on", server)
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(listening)), base_url="http://engine", timeout=WAIT_S
        ) as http:
            yield http, log
    finally:
        server.kill()
        server.wait()
        listening.unlink(missing_ok=True)


def wait_for(log: Path, text: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_S
    while text not in (said := log.read_text(errors="replace")):
        assert server.poll() is None, said[-3000:]
        assert time.monotonic() < deadline, said[-3000:]
        time.sleep(0.05)


def completion(http: httpx.Client, **more: object) -> dict[str, object]:
    answer = http.post("/completion", json={"prompt": "hello", "n_predict": 24, "temperature": 0, **more})
    assert answer.status_code == 200
    return json.loads(answer.content)


def plan_for(path: Path, nodes: list[NodeFacts], wish: Wish) -> tuple[Split, PlanModel]:
    model = PlanModel("m", read_model(path).facts, model_parts([read_header(path)]))
    outcome = make_plan(model, wish, nodes)
    assert isinstance(outcome, Split), outcome
    return outcome, model


@pytest.mark.parametrize("workers", [1, 2])
def test_layers_lie_where_the_plan_says_and_take_no_more_than_it_says(
    real_engine: Engine, tmp_path: Path, workers: int
) -> None:
    path = write_tiny(tmp_path / "m.gguf", replace(LLAMA, layers=11, embedding=512, heads=8, feed_forward=1408))[0]
    whole = read_model(path).facts.weight_bytes
    buffers = 90_000_000
    free_gb = (whole * (0.62 if workers == 1 else 0.5) + buffers) / 1e9
    nodes = [a_node(n, free_gb * (1.1 if n == 1 else 1), rtts=near(*range(2, 10))) for n in range(1, workers + 2)]
    wish = Wish(context_tokens=512, min_peers=workers)
    split, model = plan_for(path, nodes, wish)
    with ExitStack() as stack:
        ports = [stack.enter_context(rpc_server(real_engine, tmp_path)) for _ in split.workers]
        words = ["-m", str(path), "-c", "512", "-np", "1", "-sm", "layer", "--load-mode", "none"]
        words += ["--rpc", ",".join(f"127.0.0.1:{port}" for port in ports)]
        words += ["--device", ",".join(f"RPC{number}" for number in range(workers))]
        words += ["-ts", ",".join(map(str, split.tensor_split)), "-ngl", str(split.gpu_layers), "-ot", OUTPUT_ON_CPU]
        http, log = stack.enter_context(llama_server(real_engine, tmp_path, words))
        shared = completion(http)["content"]
        text = log.read_text(errors="replace")
    with llama_server(real_engine, tmp_path, ["-m", str(path), "-c", "512", "-np", "1", "-ngl", "0"]) as (http, _):
        assert completion(http)["content"] == shared
    placed = dict(re.findall(r"layer +(\d+) assigned to device (\w+)", text))
    for share in split.shares:
        device = "CPU" if share.place.is_host else f"RPC{split.workers.index(share.place.node)}"
        assert {placed[str(layer)] for layer in range(share.first, share.first + share.layers)} <= {device}
    for port, share in zip(ports, split.shares[1:], strict=True):
        taken = taken_bytes(text, port)
        assert taken <= share.need_bytes <= taken + buffers
        assert share.layers > 0
    assert model.parts.output_bytes > 0


def taken_bytes(text: str, port: int) -> float:
    """Weights, contexts and buffers that llama-server logs for a worker."""
    found = re.findall(rf"RPC0\[127\.0\.0\.1:{port}\] +(?:model|KV|compute) buffer size = +([0-9.]+) MiB", text)
    assert len(found) == 3, text[-4000:]
    return sum(float(one) for one in found) * MIB


@pytest.mark.parametrize("named", [True, False])
def test_a_draft_is_used_only_if_its_kind_is_named(real_engine: Engine, tmp_path: Path, named: bool) -> None:
    path = write_tiny(tmp_path / "m.gguf")[0]
    words = draft_arguments(real_engine, path, 8)
    if not named:
        at = words.index("--spec-type")
        del words[at : at + 2]
    with llama_server(real_engine, tmp_path, ["-m", str(path), "-c", "256", "-np", "1", *words]) as (http, _):
        timings = msgspec.convert(completion(http)["timings"], dict[str, float])
    assert (timings.get("draft_n", 0) > 0) is named


def test_a_draft_with_another_vocabulary_is_refused_by_us_as_the_engine_does_without_a_word_to_anybody(
    real_engine: Engine, tmp_path: Path
) -> None:
    path = write_tiny(tmp_path / "m.gguf")[0]
    other = tmp_path / "other.gguf"
    data = path.read_bytes()
    for old, new in (
        (b"<0x41>", b"<0x4?>"),
        (b"<0x42>", b"<0x41>"),
        (b"<0x4?>", b"<0x42>"),
    ):  # two tokens change places
        assert data.count(old) == 1
        data = data.replace(old, new)
    other.write_bytes(data)
    why = difference(vocabulary_print(read_header(path)), vocabulary_print(read_header(other)))
    assert why == "their vocabularies have different tokens"
    words = ["-m", str(path), "-c", "256", "-np", "1", *draft_arguments(real_engine, other, 8)]
    with llama_server(real_engine, tmp_path, words) as (http, log):
        timings = msgspec.convert(completion(http)["timings"], dict[str, float])
    assert "draft_n" not in timings
    assert "vocabs are not compatible" in log.read_text(errors="replace")
