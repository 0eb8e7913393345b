"""Nodes that share one model, as users start them: real processes, the real engine, memory so small that none can hold it alone."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.fakes.delay_line import DelayLine
from tests.fakes.engines import ENGINE_CACHE
from tests.fakes.node_process import NodeHome, Nodes, wait_for
from tests.fakes.patient_node import PATIENT
from tests.fakes.tiny_gguf import TinyModel, write_tiny

# 123 MB; with its buffers it takes some 200 MB.
DENSE = TinyModel(name="dense", context=512, layers=8, embedding=512, heads=8, kv_heads=2, feed_forward=2048)
MODEL = "dense"
MOST_OF_IT = "0.2"  # GB for --max-vram: two such nodes hold it together, one does not
ENOUGH = "0.6"
PLANNED_S = 180.0  # debounce, claim, load: 8 s alone
SOON_S = 60.0  # what comes within a second or two alone
TOLD_S = (
    45.0  # a loss, to who waits for an answer: at once, or after 10 s of silence; if nobody told, it would take minutes
)
ANSWER_S = 120.0


def a_dense(folder: Path) -> Path:
    return write_tiny(folder / f"{MODEL}.gguf", DENSE)[0]


@dataclass(frozen=True)
class Place:
    """A host of a line (delay_line.py) on which a node is to run. Its API answers there only: `with line.inside(number)`."""

    address: str
    command: Sequence[str]


def place_on(line: DelayLine, number: int) -> Place:
    return Place(line.address(number), line.command(number, []))


class SplitNodes:
    """Nodes on one mesh, each with `--split` and the model's file unless it is told otherwise."""

    def __init__(self, nodes: Nodes, file: Path) -> None:
        self.nodes = nodes
        self.file = file
        self.homes: list[NodeHome] = []

    def start(
        self,
        name: str,
        *more: str,
        memory: str = MOST_OF_IT,
        file: Path | None = None,
        home: NodeHome | None = None,
        place: Place | None = None,
    ) -> NodeHome:
        """One that wants the model spread."""
        words = ["--name", name, "--gguf", str(file or self.file), "--split", "--max-vram", memory, "--ctx-size", "512"]
        return self._start(words, more, home, place)

    def lend(self, name: str, *more: str, memory: str = MOST_OF_IT, place: Place | None = None) -> NodeHome:
        """One that only lends its memory, and has no file."""
        return self._start(["--name", name, "--rpc-peers", "all", "--max-vram", memory], more, None, place)

    def _start(
        self,
        words: list[str],
        more: tuple[str, ...],
        home: NodeHome | None,
        place: Place | None = None,
    ) -> NodeHome:
        if home is None:
            # One thread each: ggml's threads spin, and these machines have two cores.
            home = self.nodes.home({"AGENTMESH_ENGINE_CACHE": str(ENGINE_CACHE), "OMP_NUM_THREADS": "1"})
            if self.homes:
                words += ["--join", self.homes[0].invite]
            self.homes.append(home)
        if place is None:
            return home.start(*words, *more, prefix=PATIENT)
        home.environment["AGENTMESH_BIND_HOST"] = place.address
        return home.start(*words, *more, prefix=(*place.command, *PATIENT))


def model_of(node: NodeHome) -> dict[str, Any]:
    """What the node's status says of the model; empty before it says anything."""
    models: list[dict[str, Any]] = node.json("status")["models"]
    return next((one for one in models if one["id"] == MODEL), dict[str, Any]())


def wait_state(node: NodeHome, *states: str, timeout_s: float = PLANNED_S) -> dict[str, Any]:
    """Until the model is in one of these states there."""
    seen: dict[str, Any] = {}

    def is_so() -> bool:
        seen.clear()
        seen.update(model_of(node))
        return seen.get("state") in states

    try:
        wait_for(is_so, timeout_s, f"{MODEL} to be {states}")
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen}\n{node.stderr_file.read_text()[-3000:]}") from error
    return seen


def complete(node: NodeHome, prompt: str = "hello", tokens: int = 12, timeout_s: float = ANSWER_S) -> str:
    """The greedy continuation, through this node's API."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    return post(node, "/v1/completions", body, timeout_s)["choices"][0]["text"]


def post(node: NodeHome, path: str, body: Mapping[str, Any], timeout_s: float = ANSWER_S) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.api_port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        error.add_note(error.read().decode(errors="replace"))  # why, for whoever reads a failed test
        raise


class Streamed:
    """A long streamed answer that has begun when this is made."""

    def __init__(self, node: NodeHome) -> None:
        body = {"model": MODEL, "prompt": "a b c", "max_tokens": 450, "stream": True, "ignore_eos": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{node.api_port}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        try:
            self._answer = urllib.request.urlopen(request, timeout=ANSWER_S)
        except urllib.error.HTTPError as error:
            error.add_note(error.read().decode(errors="replace"))
            raise
        self.first = self._answer.readline().decode()
        assert self.first.startswith("data:"), self.first

    def end(self, within_s: float = TOLD_S) -> str:
        """Its last event, which must come within so long."""
        began, last = time.monotonic(), ""
        while line := self._answer.readline().decode():
            last = line if line.strip() else last
            assert time.monotonic() < began + within_s, f"it went on: {last}"
        self._answer.close()
        return last


def answers(node: NodeHome) -> bool:
    """Whether a request is answered in full."""
    try:
        return bool(complete(node, tokens=2))
    except (urllib.error.URLError, TimeoutError, ConnectionError, KeyError, ValueError):
        return False


def metrics_of(node: NodeHome) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{node.api_port}/metrics", timeout=SOON_S) as answer:
        return answer.read().decode()


def programs_below(node: NodeHome) -> list[psutil.Process]:
    """The engines of a node: llama-servers and RPC servers of its processes."""
    found: list[psutil.Process] = []
    for process in psutil.Process(node.pid).children(recursive=True):
        try:
            if process.name().startswith(("llama-server", "ggml-rpc-server", "rpc-server")):
                found.append(process)
        except psutil.Error:
            continue
    return found


def are_gone(programs: Sequence[psutil.Process]) -> bool:
    """Whether none of them runs."""
    return not any(map(_runs, programs))


def _runs(program: psutil.Process) -> bool:
    try:
        return program.is_running() and program.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it has ended between the two questions
        return False


def rpc_servers(node: NodeHome) -> list[psutil.Process]:
    return _named(node, "rpc")


def llama_servers(node: NodeHome) -> list[psutil.Process]:
    return _named(node, "llama")


def _named(node: NodeHome, word: str) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for one in programs_below(node):
        try:
            if word in one.name():
                found.append(one)
        except psutil.Error:
            continue
    return found
