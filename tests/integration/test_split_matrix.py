"""Splits over two and three nodes say what one machine says, token for token, whatever the weights' type and the prompt's length."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agentmesh.inference.engine.engine import Engine
from tests.fakes.rpc_split import OUTPUT_ON_HOST, PLAIN, Said, Split, say, splits
from tests.fakes.split_models import EIGHT_BITS, FOUR_BITS, HALF, SplitModel, prompt_tokens, write_split_model

MODELS = {model.kind: model for model in (HALF, EIGHT_BITS, FOUR_BITS)}
PROMPT_LENGTHS = (1, 100, 3_000)
CONTEXT = ("--ctx-size", "3200")
# Of six layers the host keeps two; the others go to the workers. Both options count the output as a layer of the last worker.
PLACED = ("-ngl", "5", *OUTPUT_ON_HOST)
SHARES = {1: "1", 2: "2,3"}
TELLING = ("-lv", "5")  # where things are placed is only printed then
DEVICES = {1: ["CPU", "CPU", "RPC0", "RPC0", "RPC0", "RPC0"], 2: ["CPU", "CPU", "RPC0", "RPC0", "RPC1", "RPC1"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("models")
    made = {kind: write_split_model(folder / f"{kind}.gguf", model) for kind, model in MODELS.items()}
    yield made
    for file in made.values():
        file.unlink()


@pytest.fixture
async def split(real_engine: Engine, tmp_path: Path) -> AsyncIterator[Split]:
    async with splits(real_engine, tmp_path, workers=2) as made:
        yield made


def prompts(model: SplitModel) -> list[list[int]]:
    return [prompt_tokens(model, length) for length in PROMPT_LENGTHS]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", MODELS)
async def test_two_and_three_nodes_say_what_one_says(split: Split, files: dict[str, Path], kind: str) -> None:
    file, asked = files[kind], prompts(MODELS[kind])
    alone = await split.solo(file, *CONTEXT)
    wanted = [await say(alone, prompt) for prompt in asked]
    alone.program.kill()
    check_answers(wanted)
    await split.hold([file])
    for workers in (1, 2):
        options = (*CONTEXT, *PLACED, *TELLING, "-ts", SHARES[workers])
        served = await split.serve(file, *options, workers=workers, compress=workers == 2)
        printed = served.server.program.printed()
        placed = {int(layer): device for layer, device in re.findall(r"layer +(\d+) assigned to device (\w+)", printed)}
        assert [placed[layer] for layer in range(MODELS[kind].layers)] == DEVICES[workers]
        for prompt, answer in zip(asked, wanted, strict=True):
            said = await say(served.server, prompt)
            said.assert_as(answer, f"{kind}, {workers + 1} nodes, a prompt of {len(prompt)} tokens")
        # Each worker computed: at least one reply for each of 3 x 32 tokens.
        assert all(gateway.counters.round_trips > 96 for gateway in served.gateways)
        await served.close()
        assert served.lost == []


def check_answers(answers: list[Said]) -> None:
    """That it means something when two answers are the same."""
    assert [answer.read_tokens for answer in answers] == list(PROMPT_LENGTHS)
    for answer in answers:
        assert len(answer.tokens) == 32
        assert [len(five) for five in answer.likeliest] == [5] * 32
        assert len(set(answer.tokens)) >= 4  # no single token for ever
        assert sum(other.tokens[:4] == answer.tokens[:4] for other in answers) == 1


@pytest.mark.timeout(600)
async def test_repacked_weights_say_something_else_which_is_why_the_others_are_compared_without(
    split: Split, files: dict[str, Path]
) -> None:
    """Not a fault of splits: the same machine says two things, by the kernels that the layout of its weights chooses."""
    asked = prompt_tokens(MODELS["Q4_0"], 100)
    repacked = await split.solo(files["Q4_0"], "--repack", *TELLING)
    one = await say(repacked, asked, 8)
    plain = await split.solo(files["Q4_0"], *PLAIN)
    two = await say(plain, asked, 8)
    # Where this processor has no kernels of that sort, nothing is repacked, and nothing differs.
    assert (one.likeliest != two.likeliest) == ("CPU_REPACK" in repacked.program.printed())
