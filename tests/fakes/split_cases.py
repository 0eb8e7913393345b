"""What tests of shared models ask of nodes beside split_nodes.py: loads, refusals, engines of another version."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from agentmesh.inference.engine.engine import Engine
from tests.fakes.node_process import NodeHome, Nodes, Result, wait_for
from tests.fakes.split_nodes import ENOUGH, MODEL, PLANNED_S, SplitNodes, complete, model_of, post, wait_state


def load(node: NodeHome, file: Path, *words: str, split: bool = True) -> Result:
    """`agentmesh load` without waiting for more than that it is admitted."""
    way = ("--split",) if split else ()
    return node.cli("load", str(file), *way, "--ctx-size", "512", "--no-wait", *words)


TEXTS = ("hello", "what is a mesh?")


@dataclass(frozen=True)
class Alone:
    """What the dense model says on one node that can hold it: as `complete` asks, and as `texts_of`."""

    said: str
    texts: list[str]


def texts_of(node: NodeHome) -> list[str]:
    """Longer answers, to two prompts."""
    return [complete(node, text, tokens=24) for text in TEXTS]


@cache
def ask_alone(file: Path) -> Alone:
    """On a node of its own, once. (No fixture of the session: if it failed once, all tests would fail.)"""
    with Nodes() as nodes:
        node = SplitNodes(nodes, file).start("whole", memory=ENOUGH)
        told = wait_state(node, "ready")
        assert told["role"] == "alone"
        assert not told["workers"]
        return Alone(complete(node), texts_of(node))


def refused(node: NodeHome, model: str = MODEL) -> tuple[int, dict[str, Any]]:
    """Status and error of a request that is not answered."""
    try:
        answer = post(node, "/v1/completions", {"model": model, "prompt": "a", "max_tokens": 1})
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.__notes__[0])["error"]  # `post` has read it
    raise AssertionError(f"it was answered: {answer}")


def wait_reason(node: NodeHome, *words: str, timeout_s: float = PLANNED_S) -> dict[str, Any]:
    """Until what status says of the model has all these words in it."""
    return _wait(node, lambda seen: all(word in str(seen.get("reason", "")) for word in words), timeout_s, words)


def wait_told(node: NodeHome, *words: str, timeout_s: float = PLANNED_S) -> dict[str, Any]:
    """The same of its advice and its draft's sentence."""

    def told(seen: dict[str, Any]) -> bool:
        text = " ".join([*seen.get("advice", ()), str(seen.get("draft", ""))])
        return all(word in text for word in words)

    return _wait(node, told, timeout_s, words)


def _wait(
    node: NodeHome, is_so: Callable[[dict[str, Any]], bool], timeout_s: float, words: tuple[str, ...]
) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def look() -> bool:
        seen.clear()
        seen.update(model_of(node))
        return is_so(seen)

    try:
        wait_for(look, timeout_s, f"{words}")
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen}\n{node.stderr_file.read_text()[-3000:]}") from error
    return seen


def parts_lent(node: NodeHome) -> list[dict[str, Any]]:
    """What the node computes for others, by its status."""
    return node.json("status")["lent"]


def other_engine(folder: Path, engine: Engine, commit: str = "0123abc") -> Path:
    """A folder for --bin-dir with this engine, which says that it was built from another commit."""
    folder.mkdir()
    assert engine.rpc_server is not None
    server = folder / "llama-server"
    server.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "version: 1 ({commit})" && exit\nexec "{engine.command[0]}" "$@"\n'
    )
    rpc = folder / engine.rpc_server.name
    rpc.write_text(f'#!/bin/sh\nexec "{engine.rpc_server}" "$@"\n')
    for script in (server, rpc):
        script.chmod(0o755)
    return folder
