"""Parts of a mixture of experts in the real llama-server, and its own llama-imatrix: `agentmesh moe` end to end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from agentmesh.cli.moe import moe
from agentmesh.core.errors import AgentMeshError, InvalidInput
from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.process import EngineProcess
from agentmesh.inference.models.gguf import read_model
from agentmesh.inference.models.shard import LocalParts, layout_of, read_expert_model, write_shard
from tests.fakes.routed_gguf import write_routed
from tests.fakes.tiny_gguf import LLAMA, QWEN3_MOE, TinyModel, write_tiny

START_S = 60.0  # 0.2 s on a free machine
ANSWER_S = 60.0
MOE = dataclasses.replace(QWEN3_MOE, experts=16, experts_used=4, context=1024)
PROMPTS = ("a", "2 + 2 =", "def main():", "The lighthouse keeper wrote in his log every evening. " * 4)
TOKENS = 32
# ggml's repacked kernels crash on virtual machines that announce AMX without having it (seen under Firecracker, Q8_0 only).
PLAIN = ("--no-repack",)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="am-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def run(*arguments: str) -> str:
    """The command's stdout. Raises what it raises."""
    result = CliRunner().invoke(moe, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


@dataclasses.dataclass(frozen=True)
class Said:
    """An answer: its tokens, and the logarithms of the likeliest five where they are told (not inside of a character)."""

    tokens: list[int]
    likeliest: list[list[tuple[int, float]]]


async def answers(engine: Engine, model: Path, folder: Path) -> list[Said]:
    """What the server says greedily to each prompt."""
    plan = ServerPlan(model, "tiny", 1024, 1, extra=PLAIN)
    process = EngineProcess(engine, plan, folder=folder / "run", log=folder / "logs" / f"{model.parent.name}.log")
    await process.start()
    try:
        await asyncio.wait_for(process.wait_ready(), START_S)
        assert process.address is not None
        assert process.address.socket is not None
        transport = httpx.AsyncHTTPTransport(uds=process.address.socket)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=ANSWER_S) as http:
            return [await _greedy(http, prompt) for prompt in PROMPTS]
    finally:
        await process.stop()


async def _greedy(http: httpx.AsyncClient, prompt: str) -> Said:
    body = {
        "prompt": prompt,
        "n_predict": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
        "n_probs": 5,
    }
    answer = await http.post("/completion", json=body)
    assert answer.status_code == 200, answer.text
    row = answer.json()
    assert len(row["tokens"]) == TOKENS
    told = row["completion_probabilities"]
    assert told
    return Said(row["tokens"], [[(each["id"], each["logprob"]) for each in token["top_logprobs"]] for token in told])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("quantised", [False, True], ids=["F32", "Q8_0"])
async def test_all_experts_give_the_whole_models_tokens_and_half_of_them_run(
    real_engine: Engine, folder: Path, quantised: bool, parts: int
) -> None:
    files = write_tiny(folder / "whole.gguf", dataclasses.replace(MOE, quantised=quantised), parts=parts)
    out = {
        count: Path(
            run_json(
                "split", str(files[0]), "--experts", str(count), "--no-rank", "--output", str(folder / str(count))
            )["parts"][0]["path"]
        )
        for count in (16, 8, 4)
    }
    expected = await answers(real_engine, files[0], folder)
    assert len({token for answer in expected for token in answer.tokens}) > 10, "no test if it says always the same"
    assert await answers(real_engine, out[16], folder) == expected
    for fewer in (8, 4):  # half, and as few as a token uses
        assert await answers(real_engine, out[fewer], folder) != expected
    assert out[8].stat().st_size < 0.6 * sum(file.stat().st_size for file in files)


# Eight: with six ggml multiplies the router in tiles of other sizes, and the last digits differ.
ALLOWED = ((0, 3, 4, 5, 9, 11, 12, 15), (1, 2, 6, 7, 8, 10, 13, 14))
OTHERS = ((0, 3, 4, 5, 9, 11, 12, 14), (1, 2, 6, 7, 8, 10, 13, 14))


@pytest.mark.parametrize("architecture", ["minimax-m2", "gpt-oss"])
async def test_a_part_says_what_the_whole_model_says_when_its_router_chooses_the_parts_experts_only(
    real_engine: Engine, folder: Path, architecture: str
) -> None:
    path = write_routed(folder / "whole.gguf", architecture, ALLOWED)
    expected = await answers(real_engine, path, folder)
    assert len({token for answer in expected for token in answer.tokens}) > 10, "no test if it says always the same"
    assert same(await answers(real_engine, part_of(path, ALLOWED, folder / "part"), folder), expected)
    assert not same(await answers(real_engine, part_of(path, OTHERS, folder / "other"), folder), expected)


async def test_shared_experts_and_models_of_other_architectures_are_kept_whole(
    real_engine: Engine, folder: Path
) -> None:
    mixtral = dataclasses.replace(MOE, architecture="llama")
    for path in (
        write_routed(folder / "qwen2moe.gguf", "qwen2moe", ALLOWED),
        *write_tiny(folder / "mixtral.gguf", mixtral),
    ):
        all_of_it = part_of(path, (tuple(range(16)),) * 2, folder / "part")
        assert await answers(real_engine, all_of_it, folder) == await answers(real_engine, path, folder)
        assert await answers(real_engine, part_of(path, ALLOWED, folder / "less"), folder)


def same(one: list[Said], other: list[Said]) -> bool:
    """The same tokens for the same reasons, but for the last digits."""
    logs = [[log for said in each for token in said.likeliest for _, log in token] for each in (one, other)]
    tokens = [[said.tokens for said in each] for each in (one, other)]
    return tokens[0] == tokens[1] and logs[0] == pytest.approx(logs[1], abs=1e-3)


def part_of(path: Path, kept: tuple[tuple[int, ...], ...], out: Path) -> Path:
    model = read_expert_model(path)
    with LocalParts.open(model.files) as parts:
        layout = layout_of(model.headers, model.experts, parts, kept, "test")
        return write_shard(layout, parts, out / path.name).path


async def test_two_nodes_parts_run_side_by_side(real_engine: Engine, folder: Path) -> None:
    (path,) = write_tiny(folder / "whole.gguf", MOE)
    parts = run_json("split", str(path), "--nodes", "2", "--no-rank")["parts"]
    assert [part["experts"] for part in parts] == [12, 12]
    first, second = (Path(part["path"]) for part in parts)
    assert first.name == second.name == "whole.gguf", "both serve the model under its own id"
    one, other = await asyncio.gather(
        answers(real_engine, first, folder / "one"), answers(real_engine, second, folder / "other")
    )
    assert one != other


@pytest.mark.parametrize("quantised", [False, True], ids=["F32", "Q8_0"])
def test_a_calibration_ranks_and_is_remembered(real_engine: Engine, folder: Path, quantised: bool) -> None:
    (path,) = write_tiny(folder / "whole.gguf", dataclasses.replace(MOE, quantised=quantised))
    before = run_json("plan", str(path))
    assert (before["ranked_by"], before["nodes"][0]["routing_share"]) == ("unranked", None)
    assert real_engine.imatrix is not None
    ranked = run_json("rank", str(path), "--bin-dir", str(real_engine.imatrix.parent))
    assert (ranked["ranked_by"], ranked["unranked_layers"]) == ("calibration", [])
    for layer in ranked["layers"]:
        assert sorted(layer["experts"]) == list(range(16))
        used = [layer["counts"][expert] for expert in layer["experts"]]
        assert used == sorted(used, reverse=True)
        assert sum(used) % 4 == 0, "4 choices a token"
        assert sum(used) >= 4 * 512 * 5
    after = run_json("plan", str(path), "--min-experts", "4", "--nodes", "4")
    assert after["ranked_by"] == "calibration"
    shares = [row["routing_share"] for row in after["nodes"]]
    assert all(share > row["experts"] / 16 for share, row in zip(shares, after["nodes"], strict=True)), (
        "better than chance"
    )
    chosen = {tuple(order[:4]) for order in (sorted(layer["experts"][:4]) for layer in ranked["layers"])}
    assert len(chosen) == 2, "each layer has its own"


# ------------------------------------------------------------------ the words, without an engine


@pytest.fixture
def model(folder: Path) -> Path:
    return write_tiny(folder / "whole.gguf", MOE)[0]


def test_a_plan_is_shown_with_what_each_node_holds(model: Path) -> None:
    lines = run("plan", str(model), "--nodes", "3").splitlines()
    assert lines[0].startswith(
        "whole  qwen3moe, 16 experts in 2 layers, 4 used for a token; 3.4 MB, 232 kB of it shared"
    )
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "node 1 11 of 16 experts, 3 its own, 2.4 MB",
        "node 2 11 of 16 experts, 3 its own, 2.4 MB",
        "node 3 10 of 16 experts, 2 its own, 2.2 MB",
    ]


def test_a_plan_is_the_same_in_json_and_writes_nothing(model: Path, folder: Path) -> None:
    plan = run_json("plan", str(model), "--max-gb", "0.0021")
    assert (plan["core_experts"], plan["left_out"]) == (8, 6)
    assert [(row["node"], row["experts"], row["own_experts"]) for row in plan["nodes"]] == [
        ("node 1", 9, 1),
        ("node 2", 9, 1),
    ]
    assert all(row["weight_bytes"] <= 2_100_000 for row in plan["nodes"])
    assert sorted(path.name for path in folder.iterdir()) == ["whole.gguf"]


def test_a_part_in_the_home_is_written_once(model: Path) -> None:
    first = run_json("split", str(model), "--nodes", "2", "--node", "2", "--no-rank")["parts"]
    assert [part["node"] for part in first] == ["node 2"]
    written = Path(first[0]["path"])
    stamp = written.stat().st_mtime_ns
    assert run_json("split", str(model), "--nodes", "2", "--node", "2", "--no-rank")["parts"] == first
    assert written.stat().st_mtime_ns == stamp
    assert read_model(written).facts.expert_count == 12


def test_without_an_engine_it_says_that_nothing_was_measured(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("AGENTMESH_ENGINE_CACHE", str(folder / "no-engines"))
    result = CliRunner().invoke(moe, ["rank", str(model)], standalone_mode=False)
    assert isinstance(result.exception, InvalidInput)
    assert "--imatrix FILE" in str(result.exception)
    assert "no engine with llama-imatrix is here" in result.stderr
    result = CliRunner().invoke(moe, ["split", str(model)], standalone_mode=False)
    assert result.exit_code == 0
    assert "the experts are unranked" in result.stderr


BAD = [
    (("plan", "{llama}"), "llama.gguf cannot be split by experts: it is no mixture of experts."),
    (("split", "{model}", "--experts", "3"), "uses 4 of 16 experts for a token; choose from 4 to 16"),
    (("split", "{model}", "--experts", "17"), "choose from 4 to 16"),
    (("plan", "{model}", "--min-experts", "17"), "choose from 4 to 16"),
    (("split", "{model}", "--node", "3"), "There is no node 3 of 2"),
    (("split", "{model}", "--experts", "8", "--node", "1"), "leave out --nodes, --node"),
    (("split", "{model}", "--experts", "8", "--nodes", "2"), "leave out --nodes"),
    (("plan", "{model}", "--max-gb", "0.001"), "node 1 has room for 3 of 16 experts a layer; 8 are needed"),
    (("plan", "{model}", "--max-gb", "much"), "'much' is no size"),
    (("plan", "{model}", "--imatrix", "{model}"), "no importance matrix"),
    (("plan", "{folder}/none.gguf"), "does not exist"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[said for _, said in BAD])
def test_what_cannot_be_is_refused_in_one_sentence_and_nothing_is_written(
    model: Path, folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    write_tiny(folder / "llama.gguf", LLAMA)
    before = sorted(path.name for path in folder.iterdir())
    places = {"model": str(model), "folder": str(folder), "llama": str(folder / "llama.gguf")}
    with pytest.raises(AgentMeshError) as caught:
        run(*(argument.format(**places) for argument in arguments))
    assert said in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_an_unknown_architecture_is_refused_before_anything_is_written(folder: Path) -> None:
    (path,) = write_tiny(folder / "new.gguf", TinyModel(architecture="novelmoe", experts=8, experts_used=2))
    with pytest.raises(AgentMeshError, match="how 'novelmoe' holds its experts is not known here"):
        run("split", str(path), "--experts", "4", "--no-rank", "--output", str(folder / "out"))
    assert not (folder / "out").exists()


def test_usage_errors_have_their_own_exit_code() -> None:
    assert InvalidInput.exit_code == 2
    assert CliRunner().invoke(moe, ["plan"]).exit_code == 2
    assert CliRunner().invoke(moe, ["plan", "x", "--nodes", "0"]).exit_code == 2
