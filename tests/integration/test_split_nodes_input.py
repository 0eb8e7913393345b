"""Shared models with what users and other nodes get wrong: other engines, other files, too little memory, models that do not load."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentmesh.inference.engine.engine import Engine
from tests.fakes.node_process import NodeHome, wait_for
from tests.fakes.split_cases import other_engine, parts_lent, refused, wait_reason, wait_told
from tests.fakes.split_nodes import (
    DENSE,
    ENOUGH,
    MODEL,
    PLANNED_S,
    SOON_S,
    SplitNodes,
    answers,
    complete,
    rpc_servers,
    wait_state,
)
from tests.fakes.tiny_gguf import write_tiny

pytestmark = pytest.mark.timeout(900)  # 10 to 40 s each where nothing else runs

LIBRARY = """\
__version__ = "1.2.3"
BUILD_INFO = {"build_number": 7, "commit": "unknown", "compiler": "cc", "build_target": "here"}


def get_device_info():
    return []
"""


def id_of(node: NodeHome) -> str:
    return node.json("status")["node_id"]


def test_another_engine_version_is_left_out_and_one_of_the_same_is_used(
    sharing: SplitNodes, real_engine: Engine, dense_alone: str, tmp_path: Path
) -> None:
    first = sharing.start("first")
    other = sharing.start("other", "--bin-dir", str(other_engine(tmp_path / "bin", real_engine)), memory="0.15")
    words = ("other has llama.cpp 0123abc", f"first has {real_engine.commit[:7]}", "agentmesh engine install")
    wait_reason(first, *words)
    wait_reason(other, *words)
    third = sharing.lend("third")
    told = wait_state(first, "ready")
    assert told["nodes"] == [id_of(first), id_of(third)]
    assert not parts_lent(other)
    assert complete(first) == dense_alone
    wait_state(other, "standby")
    wait_for(lambda: answers(other), SOON_S, "an answer through the node that is left out")


def test_another_file_of_the_same_name_is_told_and_never_mixed_up(
    sharing: SplitNodes, dense_alone: str, tmp_path: Path
) -> None:
    """Each waits for itself, and says so; with room each answers with its own file, and who has none with one of them always."""
    file = write_tiny(tmp_path / f"{MODEL}.gguf", replace(DENSE, seed=2))[0]
    first = sharing.start("first", memory="0.1")
    second = sharing.start("second", memory="0.1", file=file)
    wait_told(first, "second", "has other files under the name dense")
    wait_told(second, "first", "has other files under the name dense")
    wait_state(first, "waiting")
    wait_state(second, "waiting")
    assert first.stop() == 0
    assert second.stop() == 0
    sharing.start("first", memory=ENOUGH, home=first)
    sharing.start("second", memory=ENOUGH, home=second, file=file)
    client = sharing.nodes.start("--name", "client", "--join", first.invite)
    wait_state(first, "ready")
    wait_state(second, "ready")
    texts = {name: complete(node)[:4] for name, node in (("first", first), ("second", second))}
    assert texts["first"] == dense_alone[:4] != texts["second"]
    wait_for(lambda: answers(client), SOON_S, "an answer for the client")
    seen = {complete(client)[:4] for _ in range(4)}
    assert len(seen) == 1
    assert seen <= {*texts.values()}


def test_a_file_that_is_cut_short_is_refused_with_a_sentence(sharing: SplitNodes, tmp_path: Path) -> None:
    cut = tmp_path / f"{MODEL}.gguf"
    cut.write_bytes(sharing.file.read_bytes()[:60_000_000])
    node = sharing.start("cut", file=cut)
    seen = wait_state(node, "failed")
    assert "is cut short" in seen["reason"]
    assert "Download it again" in seen["reason"]


def test_too_little_memory_says_how_much_is_missing_until_a_third_node_joins(
    sharing: SplitNodes, dense_alone: str
) -> None:
    first = sharing.start("first", memory="0.14")
    second = sharing.start("second", memory="0.13")
    client = sharing.nodes.start("--name", "client", "--join", first.invite)
    for node in (first, second):
        seen = wait_reason(node, "2 nodes have", "are missing")
        assert seen["state"] == "waiting"
    for node in (first, second, client):
        wait_for(
            lambda node=node: "are missing" in refused(node)[1]["message"], SOON_S, "the reason on every node's API"
        )
        status, error = refused(node)
        assert (status, error["code"]) == (503, "model_waiting")
    third = sharing.lend("third", memory="0.2")
    told = wait_state(first, "ready")
    assert id_of(third) in told["nodes"]
    wait_for(lambda: answers(client), SOON_S, "an answer for the client")
    assert complete(client) == dense_alone


def test_a_model_that_llama_cpp_does_not_know_says_why_and_is_not_started_hot(
    sharing: SplitNodes, tmp_path: Path
) -> None:
    file = write_tiny(tmp_path / f"{MODEL}.gguf", replace(DENSE, architecture="frobnicate"))[0]
    first = sharing.start("first", file=file)
    second = sharing.lend("second")
    waits: list[int] = []
    status, error = 0, dict[str, Any]()

    def waits_long() -> bool:
        """Asked for as often as can be: it waits 3 s only, and to be told a status by a command takes that long on a slow machine."""
        nonlocal status, error
        status, error = refused(first)
        told = re.search(r"is tried again in (\d+) s\. .*frobnicate", error["message"])
        if told is not None and int(told[1]) not in waits[-1:]:
            waits.append(int(told[1]))
        return 12 in waits

    wait_for(waits_long, PLANNED_S, "the third start to be waited for")
    assert waits == [one for one in (3, 6, 12) if one in waits]  # one may not be seen where the machine stands still
    assert len(waits) >= 2  # it grows
    seen = wait_reason(first, "is tried again in ", "does not know the model's architecture, frobnicate")
    assert seen["state"] == "waiting"
    assert (status, error["code"]) == (503, "model_waiting")
    assert str(first.root) not in error["message"]  # no log, no paths: the whole mesh may read it
    assert ".gguf" not in error["message"]
    wait_for(lambda: not rpc_servers(second), SOON_S, "the worker to be free")
    assert first.stderr_file.read_text().count(f"{MODEL} waits: This build of the engine does not know") == 1


def test_the_embedded_engine_says_that_it_cannot_share(sharing: SplitNodes, tmp_path: Path) -> None:
    package = tmp_path / "xllamacpp"
    package.mkdir()
    (package / "__init__.py").write_text(LIBRARY)
    first = sharing.start("first")
    home = sharing.nodes.home({"PYTHONPATH": str(tmp_path)})
    words = ["--join", first.invite, "--name", "embedded", "--gguf", str(sharing.file), "--split", "--max-vram", "0.15"]
    second = home.start(*words, "--llama-flavor", "embedded")
    what = "embedded has no engine that can share a model: run 'agentmesh engine install' there."
    wait_reason(first, what)
    wait_reason(second, what)
    for line in (
        f"{MODEL}: the embedded engine cannot share models with other nodes",
        "Nothing can be lent: the embedded engine cannot share models with other nodes.",
    ):
        wait_for(lambda line=line: line in second.stderr_file.read_text(), SOON_S, line)
    assert not parts_lent(second)
