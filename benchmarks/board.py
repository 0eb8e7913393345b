"""The board's figures on real node processes: post latency, sustained rate, the whole command, memory.

    python benchmarks/board.py [--posts 2000] [--clients 10]

Each figure is printed beside what the machine itself costs in the same run: a bare fsync of the same file system, and a
Python process that does nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from agentmesh.control.client import AsyncNodeClient
from tests.fakes.node_process import NodeHome, Nodes

RAISED = ("--policy", "posts_per_minute=60000")
TEXT = (
    "FINDING: [acme/shop branch:main] the retry loop in src/billing/client.py double-charges when the clock jumps; " * 4
)


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def fsync_ms(folder: Path, count: int = 200) -> float:
    """Median time of appending 4 KiB and fsync, in ms."""
    times = []
    with (folder / "fsync-probe").open("wb") as file:
        for _ in range(count):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


async def post(client: AsyncNodeClient, number: int, author: str) -> None:
    """One post of about 450 bytes."""
    body: dict[str, Any] = {"text": f"{TEXT[:440]} {number}", "from": author}
    await client.request("POST", "/api/blackboard/post", json=body, timeout_s=30)


async def latency(home: NodeHome, count: int) -> list[float]:
    """ms of each of `count` posts, one after the other."""
    client = AsyncNodeClient(home.root)
    times = []
    for number in range(count):
        began = time.perf_counter()
        await post(client, number, "latency")
        times.append((time.perf_counter() - began) * 1000)
    return times


async def sustained(home: NodeHome, clients: int, posts: int) -> tuple[float, list[float]]:
    """Posts per second of `clients` at once, and each post's ms."""
    times: list[float] = []

    async def one(name: int) -> None:
        client = AsyncNodeClient(home.root)
        for number in range(posts // clients):
            began = time.perf_counter()
            await post(client, number, f"client-{name}")
            times.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(one(name) for name in range(clients)))
    return len(times) / (time.perf_counter() - began), times


async def count(home: NodeHome) -> int:
    """How many posts the node says that it has."""
    return (await AsyncNodeClient(home.root).request("GET", "/api/status"))["blackboard"]["posts"]


def whole_command_ms(home: NodeHome, runs: int = 15) -> tuple[float, float]:
    """Median ms of `agentmesh blackboard x` as a process, and of a Python process that does nothing."""
    ours, nothing = [], []
    for number in range(runs):
        began = time.perf_counter()
        command = [sys.executable, "-m", "agentmesh", "blackboard", f"command {number}", "--from", f"c{number}"]
        subprocess.run(command, env=home.environment, check=True, capture_output=True)
        ours.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        nothing.append((time.perf_counter() - began) * 1000)
    return statistics.median(ours), statistics.median(nothing)


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident MB of the node, and of its scrub workers."""
    process = psutil.Process(pid)
    workers = sum(child.memory_info().rss for child in process.children(recursive=True))
    return process.memory_info().rss / 1e6, workers / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=int, default=2_000)
    parser.add_argument("--clients", type=int, default=10)
    arguments = parser.parse_args()
    with Nodes() as nodes, tempfile.TemporaryDirectory() as folder:
        node = nodes.start("--name", "bench", *RAISED)
        idle, _ = memory_mb(node.pid)
        disk = fsync_ms(Path(folder))
        asyncio.run(latency(node, 20))  # the scrub worker warms up
        one = asyncio.run(latency(node, 200))
        rate, many = asyncio.run(sustained(node, arguments.clients, arguments.posts))
        kept = asyncio.run(count(node))
        command, nothing = whole_command_ms(node)
        after, workers = memory_mb(node.pid)
    expected = 20 + 200 + arguments.posts // arguments.clients * arguments.clients
    print("| what | measured | target |\n|---|---|---|")
    print(
        f"| post over the socket, scrubbed, durable: p50 / p99 | {statistics.median(one):.1f} / {percentile(one, 0.99):.1f} ms "
        f"(a bare fsync: {disk:.2f} ms) | p50 <= 5 ms |"
    )
    print(
        f"| sustained from {arguments.clients} clients | {rate:.0f}/s, p50 {statistics.median(many):.1f} ms, p99 {percentile(many, 0.99):.0f} ms | >= 200/s |"
    )
    print(f"| posts lost of {expected:,} | {expected - kept} | 0 |")
    print(
        f"| `agentmesh blackboard x`, whole process | {command:.0f} ms (`python -c pass`: {nothing:.0f} ms) | <= 300 ms |"
    )
    print(f"| memory of an idle gossip-only node | {idle:.0f} MB | <= 120 MB |")
    print(f"| after {kept:,} posts, and its scrub workers | {after:.0f} MB, {workers:.0f} MB | |")


if __name__ == "__main__":
    main()
