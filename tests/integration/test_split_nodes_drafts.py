"""Drafts of models that nodes share: they change no answer, are counted in status, and one that does not match is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.node_process import wait_for
from tests.fakes.split_cases import load, texts_of
from tests.fakes.split_nodes import MODEL, SOON_S, SplitNodes, model_of, rpc_servers, wait_state
from tests.fakes.tiny_gguf import LLAMA, write_tiny
from tests.integration.test_drafts import with_two_tokens_changed

pytestmark = pytest.mark.timeout(900)  # 45 s where nothing else runs

COUNTED = re.compile(r"\d+ % of [\d,]+ drafted tokens were right")


def test_a_split_with_a_draft_answers_as_one_node_without_and_shows_how_well_it_does(
    sharing: SplitNodes, dense_texts: list[str], tmp_path: Path
) -> None:
    draft = write_tiny(tmp_path / "small.gguf", replace(LLAMA, layers=1, seed=2))[0]
    first = sharing.start("first", "--draft", str(draft))
    second = sharing.lend("second", memory="0.3")
    told = wait_state(first, "ready")
    assert told["role"] == "host"
    assert "small.gguf drafts up to 8 tokens for dense." in told["draft"]
    assert texts_of(first) == dense_texts
    told = model_of(first)
    assert COUNTED.search(told["draft"]), told["draft"]  # noise: it changes nothing, and is no help

    assert first.cli("unload", MODEL).code == 0
    wait_for(lambda: not rpc_servers(second), SOON_S, "the worker to be free")
    assert load(first, sharing.file, "--no-draft").code == 0
    told = wait_state(first, "ready")
    assert not told["draft"]
    assert texts_of(first) == dense_texts

    assert first.cli("unload", MODEL).code == 0
    other = tmp_path / "other.gguf"
    other.write_bytes(with_two_tokens_changed(draft.read_bytes()))
    asked = first.cli("load", str(sharing.file), "--split", "--ctx-size", "512", "--draft", str(other))
    assert asked.code == 1
    assert f"{other} cannot draft for {MODEL}: " in asked.err
    assert "Name another draft, or use --no-draft." in asked.err
    asked = first.cli("load", str(sharing.file), "--split", "--ctx-size", "512", "--draft", str(tmp_path / "none.gguf"))
    assert asked.code == 1
    assert "none.gguf does not exist. --no-draft goes without." in asked.err

    asked = first.cli(
        "load",
        str(sharing.file),
        "--split",
        "--ctx-size",
        "512",
        "--draft",
        str(draft),
        "--draft-max",
        "4",
        timeout_s=300,
    )
    assert asked.code == 0
    assert first.stop() == 0
    first.start("--name", "first", "--rpc-peers", "all", "--max-vram", "0.2")
    told = wait_state(first, "ready")
    assert "small.gguf drafts up to 4 tokens for dense." in told["draft"]
    assert texts_of(first) == dense_texts
