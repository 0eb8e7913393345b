"""Nodes that share a mixture of experts by shards: real processes, the real engine, memory for three quarters of the experts each."""

from __future__ import annotations

import re
import urllib.error
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentmesh.core.paths import Home
from agentmesh.inference.logic.moe import SOURCE_CALIBRATION
from agentmesh.inference.models.expert_ranking import ExpertCounts, RememberedCounts
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.models.shard import read_expert_model
from agentmesh.inference.models.shard_store import source_digest
from tests.fakes.engines import ENGINE_CACHE
from tests.fakes.node_process import NodeHome, Nodes, wait_for
from tests.fakes.patient_node import PATIENT
from tests.fakes.split_nodes import PLANNED_S, SOON_S, metrics_of, post
from tests.fakes.tiny_gguf import QWEN3_MOE, write_tiny

MODEL = "tiny-moe"
EXPERTS = 16
SHARED_EXPERTS = 12  # half of them on every node, and half of the others
MOE = replace(
    QWEN3_MOE,
    experts=EXPERTS,
    experts_used=4,
    context=1024,
    layers=8,
    embedding=256,
    heads=8,
    feed_forward=512,
)  # 207 MB; whole it takes 290 MB with its buffers
PART = "0.275"  # GB for --max-vram: 12 experts a layer fit beside the rest, 16 do not
ENOUGH = "0.6"
CONTEXT = "512"
ANSWER_S = 180.0  # 0.2 s alone


def a_moe(folder: Path, *, experts: int = EXPERTS) -> Path:
    return write_tiny(folder / f"{MODEL}.gguf", replace(MOE, experts=experts))[0]


class ShardNodes:
    """Nodes on one mesh that want the model spread by experts, unless they are told otherwise."""

    def __init__(self, nodes: Nodes, file: Path) -> None:
        self.nodes = nodes
        self.file = file
        self.homes: list[NodeHome] = []

    def start(
        self,
        name: str,
        *more: str,
        memory: str = PART,
        split: str = "--split=experts",
        file: Path | None = None,
        home: NodeHome | None = None,
        counts: bool = False,
    ) -> NodeHome:
        """One that wants the model. `home`: it was there before; `counts`: the last experts are the most used ones, it knows."""
        words = ["--name", name, "--gguf", str(file or self.file), split, "--max-vram", memory, "--ctx-size", CONTEXT]
        if home is None:
            home = self.nodes.home({"AGENTMESH_ENGINE_CACHE": str(ENGINE_CACHE), "OMP_NUM_THREADS": "1"})
            if self.homes:
                words += ["--join", self.homes[0].invite]
            self.homes.append(home)
        if counts:
            self._remember_counts(Home(home.root))
        return home.start(*words, *more, prefix=PATIENT)

    def _remember_counts(self, home: Home) -> None:
        model = read_expert_model(self.file)
        used = tuple(float(number) for number in range(1, EXPERTS + 1))
        counts = ExpertCounts(SOURCE_CALIBRATION, dict.fromkeys(model.experts.layers, used))
        RememberedCounts.of_home(home).remember(source_digest(model.files, FileIdentities.of_home(home)), counts)

    def two(self, *, split: str = "--split=experts") -> tuple[NodeHome, NodeHome]:
        """Two whose shards answer, and that know of each other."""
        both = self.start("first", split=split), self.start("second", split=split)
        for node in both:
            wait_shard(node)
        for node in both:
            wait_for(lambda node=node: hosts_of(node) == 2, SOON_S, "each to hear of the other's shard")
        return both


def model_of(node: NodeHome) -> dict[str, Any]:
    """What the node's status says of the model; empty before it says anything."""
    models: list[dict[str, Any]] = node.json("status")["models"]
    return next((one for one in models if one["id"] == MODEL), dict[str, Any]())


def wait_role(node: NodeHome, role: str, state: str = "ready", timeout_s: float = PLANNED_S) -> dict[str, Any]:
    """Until the node runs the model so."""
    seen: dict[str, Any] = {}

    def is_so() -> bool:
        seen.clear()
        seen.update(model_of(node))
        return (seen.get("role"), seen.get("state")) == (role, state)

    try:
        wait_for(is_so, timeout_s, f"{MODEL} to be {role}, {state}")
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen}\n{node.stderr_file.read_text()[-3000:]}") from error
    return seen


def wait_shard(node: NodeHome) -> dict[str, Any]:
    return wait_role(node, "shard")


def ask(node: NodeHome, user: str = "", *, prompt: str = "hello", tokens: int = 8) -> str:
    """The greedy continuation, through this node's API, in a session of `user`."""
    body: dict[str, Any] = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    if user:
        body["user"] = user
    return post(node, "/v1/completions", body, ANSWER_S)["choices"][0]["text"]


def asked(node: NodeHome, user: str, tokens: int = 8) -> str | None:
    """As `ask`; None if it was not answered."""
    try:
        return ask(node, user, tokens=tokens)
    except (urllib.error.URLError, TimeoutError, ConnectionError, KeyError, ValueError):
        return None


def hosts_of(node: NodeHome) -> int:
    """How many hosts of the model are ready, as this node's proxy sees it."""
    return _gauge(node, "agentmesh_ready_targets")


def answered_by(node: NodeHome) -> dict[str, int]:
    """Requests of its own clients that this node's proxy sent to its own engine ("local") and to others ("peer")."""
    text = metrics_of(node)
    found = re.findall(r'^agentmesh_route_decisions_total\{route="(\w+)"\} ([0-9.e+]+)', text, re.MULTILINE)
    return {route: int(float(count)) for route, count in found}


def shards_on_disk(node: NodeHome) -> list[Path]:
    return sorted((node.root / "shards").glob("*/*.gguf"))


def _gauge(node: NodeHome, name: str) -> int:
    found = re.search(rf'^{name}\{{[^}}]*model="{MODEL}"[^}}]*\}} ([0-9.e+]+)', metrics_of(node), re.MULTILINE)
    return int(float(found[1])) if found else 0
