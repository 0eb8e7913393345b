"""How fast `agentmesh blackboard --mcp` is: start of the process to its first answer, and each call. Prints a table.

    python benchmarks/mcp_latency.py [--starts 10] [--calls 300] [--without-node]

A real node runs in a temporary home on loopback, with quotas raised by policy; the MCP process is spoken to over its pipes,
one call at a time, as an agent does. Times are wall clock, of whole processes and whole calls. `--without-node` measures the
start when nothing runs: the handshake must not wait for the node, the first call does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

AGENTMESH = (sys.executable, "-m", "agentmesh")
POLICY = ("--policy", "posts_per_minute=1000000")
START_GOAL_MS, CALL_GOAL_MS = 1_200.0, 5.0
NODE_START_S = 60.0
SECOND_TEXT = "the retry loop in src/pool.py doubles its delay; getPoolTimeout reads it from the environment"


class McpProcess:
    """One MCP server process and the time at which it was started."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [*AGENTMESH, "blackboard", "--mcp"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._calls = 0

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._calls += 1
        message = {"jsonrpc": "2.0", "id": self._calls, "method": method, "params": params}
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["id"] == self._calls, answer
        return answer["result"]

    def initialize(self) -> float:
        """Milliseconds from the start of the process to the answer of the handshake."""
        client = {"name": "benchmark", "version": "1"}
        self.request("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client})
        return 1_000 * (time.perf_counter() - self.started)

    def call(self, tool: str, arguments: dict[str, Any]) -> float:
        """Milliseconds of one tool call."""
        begun = time.perf_counter()
        result = self.request("tools/call", {"name": tool, "arguments": arguments})
        took_ms = 1_000 * (time.perf_counter() - begun)
        assert result["isError"] is False, result["content"]
        return took_ms

    def close(self) -> float:
        """Milliseconds from the end of its input to the end of the process."""
        assert self._process.stdin is not None
        begun = time.perf_counter()
        self._process.stdin.close()
        self._process.wait(10)
        return 1_000 * (time.perf_counter() - begun)


@contextlib.contextmanager
def running_node(environment: dict[str, str]) -> Iterator[None]:
    node = subprocess.Popen(
        [*AGENTMESH, "--client", "--console", "0", "--bind-port", "0", *POLICY],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert node.stdout is not None
        if not node.stdout.readline().startswith(b"Invite: "):
            raise SystemExit("the node did not start")
        yield
    finally:
        node.terminate()
        node.wait(NODE_START_S)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def show(name: str, values: list[float], goal_ms: float | None) -> None:
    goal = "" if goal_ms is None else f"p50 <= {goal_ms:g}"
    print(
        f"| {name:<34} | {min(values):8.1f} | {statistics.median(values):8.1f} | {percentile(values, 0.95):8.1f} | {goal:<12} |",
        flush=True,
    )


def measure_starts(environment: dict[str, str], count: int) -> None:
    answers: list[float] = []
    lists: list[float] = []
    ends: list[float] = []
    for _ in range(count):
        server = McpProcess(environment)
        answers.append(server.initialize())
        begun = time.perf_counter()
        server.request("tools/list", {})
        lists.append(1_000 * (time.perf_counter() - begun))
        ends.append(server.close())
    show("start of the process to first answer", answers, START_GOAL_MS)
    show("tools/list, first of the process", lists, None)
    show("end of input to end of process", ends, None)


def measure_calls(environment: dict[str, str], count: int) -> None:
    server = McpProcess(environment)
    server.initialize()
    server.call("blackboard_post", {"text": "FINDING: [acme/shop] " + SECOND_TEXT})  # the scrub worker starts
    kinds: dict[str, Callable[[int], tuple[str, dict[str, Any]]]] = {
        "blackboard_post": lambda n: ("blackboard_post", {"text": f"FINDING: [acme/shop] {n}: {SECOND_TEXT}"}),
        "blackboard_search, 5 posts": lambda n: ("blackboard_search", {"query": f"retry {n}", "limit": 5}),
        "blackboard_feed, 5 posts": lambda _: ("blackboard_feed", {"limit": 5}),
        "blackboard_feed, 20 posts": lambda _: ("blackboard_feed", {}),
        "blackboard_feed, nothing unread": lambda _: ("blackboard_feed", {"unread_only": True, "author": "nobody"}),
    }
    for name, make in kinds.items():
        show(name, [server.call(*make(number)) for number in range(count)], CALL_GOAL_MS)
    server.close()


def measure_without_node(environment: dict[str, str]) -> None:
    server = McpProcess(environment)
    answered = server.initialize()
    first = server.call("blackboard_feed", {})
    show("nothing running: start to first answer", [answered], START_GOAL_MS)
    show("nothing running: first call after it", [first], None)
    server.close()
    subprocess.run([*AGENTMESH, "stop"], env=environment, capture_output=True, timeout=NODE_START_S, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--without-node", action="store_true")
    options = parser.parse_args()
    print(f"| {'ms':<34} | {'min':>8} | {'p50':>8} | {'p95':>8} | {'goal':<12} |")
    print(f"|{'-' * 36}|{'-' * 10}|{'-' * 10}|{'-' * 10}|{'-' * 14}|")
    with tempfile.TemporaryDirectory(prefix="agentmesh-mcp-") as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTMESH_")}
        environment |= {"AGENTMESH_HOME": str(Path(folder) / "home"), "AGENTMESH_BIND_HOST": "127.0.0.1"}
        if options.without_node:
            measure_without_node(environment)
            return
        with running_node(environment):
            measure_starts(environment, options.starts)
            measure_calls(environment, options.calls)


if __name__ == "__main__":
    main()
