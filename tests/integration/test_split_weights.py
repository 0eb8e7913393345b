"""Weights in splits: none crosses the mesh, counted and searched for where the bytes go; and none is taken for another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.inference.engine.draft_arguments import draft_arguments
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.logic.rpc_wire import Command
from agentmesh.inference.models.gguf import read_header
from tests.fakes.rpc_split import ALL_ON_WORKERS, Served, Split, found, samples, say, splits
from tests.fakes.split_models import (
    HALF,
    LARGE,
    TIED,
    SplitModel,
    prompt_tokens,
    write_adapter,
    write_parts,
    write_split_model,
)

pytestmark = pytest.mark.timeout(900)  # 5 to 40 s each alone

MIB = 1 << 20
LOAD_BYTES = 300_000  # to all workers in a load: names, sizes, graphs, references
REPLY_BYTES = 200_000  # from them: sizes, and the logits of the warm-up, four bytes for each token of the vocabulary
PROMPT = prompt_tokens(HALF, 40)
DRAFT_TOKENS = 4
# Some of what it proposes is what the target says: a draft with the target's weights would be right always, one with others never.
DRAFT = replace(HALF, noise=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("models")
    yield made
    for file in made.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def half(folder: Path) -> Path:
    return write_split_model(folder / "half.gguf", HALF)


@pytest.fixture
async def split(real_engine: Engine, tmp_path: Path) -> AsyncIterator[Split]:
    async with splits(real_engine, tmp_path, workers=2) as made:
        yield made


def sent_bytes(served: Served) -> int:
    return sum(each.sent for each in served.carried)


def received_bytes(served: Served) -> int:
    return sum(each.received for each in served.carried)


def found_weights(served: Served, files: list[Path]) -> int:
    """How many of the samples of the files' tensors are among the bytes that crossed."""
    wanted = [sample for file in files for sample in samples(file)]
    hits = set[bytes]()
    for each in served.carried:
        assert each.kept is not None
        hits |= found(each.kept, wanted)
    return len(hits)


def assert_no_weights_crossed(served: Served, files: list[Path]) -> None:
    """After a load, before anything was asked."""
    assert sent_bytes(served) < LOAD_BYTES
    assert received_bytes(served) < REPLY_BYTES
    assert found_weights(served, files) == 0


async def test_a_large_model_loads_twice_and_no_weight_crosses(
    split: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_split_model(tmp_path / "large.gguf", LARGE)
    sizes = [tensor.size_bytes for tensor in read_header(file).tensors if tensor.size_bytes > MIB]
    assert file.stat().st_size > 700_000_000
    assert min(sizes) < 10 * MIB < max(sizes)  # below it llama-server sends a tensor, above it asks for its hash first
    try:
        alone = await split.solo(file)
        prompt = prompt_tokens(LARGE, 20)
        wanted = await say(alone, prompt, 8)
        alone.program.kill()
        await split.hold([file], link=True)
        for load in (1, 2):
            served = await split.serve(file, *ALL_ON_WORKERS, keep=True)
            assert_no_weights_crossed(served, [file])
            sent, received = sent_bytes(served), received_bytes(served)
            (await say(served.server, prompt, 8)).assert_as(wanted, f"load {load}")
            assert found_weights(served, [file]) == 0
            with capsys.disabled():
                print(
                    f"\nload {load} of {file.stat().st_size:,} bytes: {sent:,} bytes to two workers, {received:,} back"
                )
            await served.close()
            assert served.lost == []
    finally:
        for each in (file, *(held for worker in split.workers for held in worker.files)):
            each.unlink()  # pytest keeps folders of several runs


async def test_a_tied_embedding_loads_on_a_worker_without_crossing(split: Split, folder: Path) -> None:
    file = write_split_model(folder / "tied.gguf", TIED)
    tensors = {tensor.name: tensor.size_bytes for tensor in read_header(file).tensors}
    assert "output.weight" not in tensors and tensors["token_embd.weight"] > 10 * MIB
    alone = await split.solo(file)
    prompt = prompt_tokens(TIED, 40)
    wanted = await say(alone, prompt)
    await split.hold([file])
    for _ in range(2):
        served = await split.serve(file, *ALL_ON_WORKERS, keep=True)
        assert_no_weights_crossed(served, [file])
        # The worker with the output has the embedding too.
        assert served.gateways[1].counters.referenced_bytes > tensors["token_embd.weight"]
        (await say(served.server, prompt)).assert_as(wanted)
        await served.close()


async def test_a_model_in_parts_loads_without_crossing(split: Split, folder: Path, half: Path, tmp_path: Path) -> None:
    parts = write_parts(split.engine, half, folder, tensors_a_part=13)
    assert len(parts) > 3
    alone = await split.solo(half)
    wanted = await say(alone, PROMPT)
    await split.hold(parts)
    for _ in range(2):
        served = await split.serve(parts[0], *ALL_ON_WORKERS, keep=True)
        assert_no_weights_crossed(served, parts)
        (await say(served.server, PROMPT)).assert_as(wanted)
        await served.close()
    # One part of one worker is another: the same names, sizes and number of parts.
    data = bytearray(split.workers[1].files[2].read_bytes())
    data[-1] ^= 1
    split.workers[1].files[2].write_bytes(data)
    await split.workers[1].open()
    served = await split.serve(parts[0], *ALL_ON_WORKERS)
    assert [gateway.facts is not None and gateway.facts.same_files for gateway in served.gateways] == [True, False]
    assert served.carried[0].sent < LOAD_BYTES < 5_000_000 < served.carried[1].sent
    (await say(served.server, PROMPT)).assert_as(wanted)
    await served.close()


async def test_a_draft_with_the_targets_tensor_names_stays_on_the_host(split: Split, folder: Path, half: Path) -> None:
    draft = write_split_model(folder / "draft.gguf", DRAFT)
    assert [(t.name, t.size_bytes) for t in read_header(draft).tensors] == [
        (t.name, t.size_bytes) for t in read_header(half).tensors
    ]
    options = draft_arguments(split.engine, draft, DRAFT_TOKENS)
    alone = await split.solo(half, *options)
    wanted = await say(alone, PROMPT)
    assert 0.1 < wanted.accepted / wanted.drafted < 0.9
    await split.hold([half])
    served = await split.serve(half, *ALL_ON_WORKERS, *options, keep=True)
    assert_no_weights_crossed(served, [half, draft])
    said = await say(served.server, PROMPT)
    said.assert_as(wanted)
    assert (said.drafted, said.accepted) == (wanted.drafted, wanted.accepted)
    await served.close()


async def test_a_draft_that_somebody_puts_on_the_worker_is_not_taken_for_the_target(split: Split, folder: Path) -> None:
    """Its tensors have the names, types and sizes of the target's, one of them is so large that its hash comes first, and at the second
    load that hash is known of the target's: only the bytes tell. So they flow."""
    target = write_split_model(folder / "tied.gguf", TIED)
    draft = write_split_model(folder / "tied-draft.gguf", replace(TIED, noise=DRAFT.noise))
    prompt = prompt_tokens(TIED, 40)
    alone = await split.solo(target, *draft_arguments(split.engine, draft, DRAFT_TOKENS))
    wanted = await say(alone, prompt)
    alone.program.kill()
    assert 0.1 < wanted.accepted / wanted.drafted < 0.9
    await split.hold([target])
    for _ in range(2):
        options = (*ALL_ON_WORKERS, *draft_arguments(split.engine, draft, DRAFT_TOKENS, device="RPC0"))
        served = await split.serve(target, *options, workers=1, keep=True)
        assert found_weights(served, [target]) == 0
        assert found_weights(served, [draft]) > 50
        assert served.gateways[0].counters.of(Command.SET_TENSOR_HASH).answered_here == 2
        said = await say(served.server, prompt)
        said.assert_as(wanted)
        assert (said.drafted, said.accepted) == (wanted.drafted, wanted.accepted)
        await served.close()


async def test_an_adapter_flows_and_the_model_does_not(split: Split, folder: Path, half: Path) -> None:
    adapter = write_adapter(folder / "adapter.gguf", HALF)
    plain = await split.solo(half)
    without = await say(plain, PROMPT)
    alone = await split.solo(half, "--lora", str(adapter))
    wanted = await say(alone, PROMPT)
    assert wanted.tokens != without.tokens
    await split.hold([half])
    served = await split.serve(half, *ALL_ON_WORKERS, "--lora", str(adapter), keep=True)
    assert found_weights(served, [half]) == 0
    assert sent_bytes(served) < LOAD_BYTES + adapter.stat().st_size
    assert found_weights(served, [adapter]) > 0
    (await say(served.server, PROMPT)).assert_as(wanted)
    await served.close()


def one_bit(file: Path) -> None:
    """Change one bit in the middle of a tensor."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def another(file: Path) -> None:
    """Put another model of the same shape under the name."""
    write_split_model(file, replace(HALF, seed=99))


def smaller(file: Path) -> None:
    """Put another model of another shape under the name."""
    write_split_model(file, SplitModel(layers=2, width=256, seed=98))


@pytest.mark.parametrize("change", [one_bit, another, smaller])
async def test_a_worker_with_another_file_under_the_same_name_gets_the_hosts_weights(
    split: Split, half: Path, change: Callable[[Path], None]
) -> None:
    alone = await split.solo(half)
    wanted = await say(alone, PROMPT)
    await split.hold([half])
    bad = split.workers[1]
    change(bad.files[0])
    await bad.open()
    served = await split.serve(half, *ALL_ON_WORKERS, keep=True)
    assert served.carried[0].sent < LOAD_BYTES < 10_000_000 < served.carried[1].sent
    # The search finds weights where they are: those of the host.
    assert found_weights(served, [half]) > 50
    (await say(served.server, PROMPT)).assert_as(wanted)
    await served.close()
    assert served.lost == []
