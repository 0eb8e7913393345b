"""How long a post takes to be visible on every one of N real nodes of this machine.

    python benchmarks/spread.py [--nodes 20] [--posts 100]

Each node is a process of its own on loopback QUIC, with its own scrub worker; visible means that its live stream showed
the post: received, checked, stored, masked. The clock starts when the post is sent to the first node.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agentmesh.control.client import AsyncNodeClient
from benchmarks.board import RAISED, percentile
from tests.fakes.node_process import NodeHome, Nodes


class Arrivals:
    """When each node showed each post, by its text."""

    def __init__(self, nodes: int) -> None:
        self.seen: dict[str, list[float]] = {}
        self._nodes = nodes

    async def watch(self, home: NodeHome) -> None:
        """Follow one node's live stream until cancelled."""
        async for event in AsyncNodeClient(home.root).stream_events("/api/blackboard/events"):
            self.note(str(event))

    def note(self, data: str) -> None:
        """An event arrived; posts carry their number in their text."""
        if "spread-" in data:
            name = data.split("spread-")[1][:6]
            self.seen.setdefault(name, []).append(time.perf_counter())

    def complete(self, name: str) -> bool:
        return len(self.seen.get(name, ())) == self._nodes


async def measure(homes: list[NodeHome], posts: int) -> tuple[list[float], int]:
    """ms from sending to visible on every node, per post, and how many posts were missed somewhere."""
    arrivals = Arrivals(len(homes))
    watchers = [asyncio.create_task(arrivals.watch(home)) for home in homes]
    await asyncio.sleep(2)
    took: list[float] = []
    missed = 0
    for number in range(posts):
        name = f"{number:06}"
        began = time.perf_counter()
        poster = AsyncNodeClient(homes[number % len(homes)].root)
        await poster.request("POST", "/api/blackboard/post", json={"text": f"spread-{name}", "from": f"p{number % 50}"})
        deadline = began + 20
        while not arrivals.complete(name) and time.perf_counter() < deadline:
            await asyncio.sleep(0.002)
        if arrivals.complete(name):
            took.append((max(arrivals.seen[name]) - began) * 1000)
        else:
            missed += 1
        await asyncio.sleep(0.1)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    return took, missed


def warm_up(homes: list[NodeHome]) -> None:
    """One post on each node, one after the other, until every scrub worker runs and the tree has formed."""
    for home in homes:
        home.json("blackboard", f"warm up {home.root.name}")
    deadline = time.monotonic() + 120
    for home in homes:
        while home.json("status")["blackboard"]["posts"] < len(homes) and time.monotonic() < deadline:
            time.sleep(0.5)
    time.sleep(10)  # the spare workers have started too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--posts", type=int, default=100)
    arguments = parser.parse_args()
    with Nodes() as nodes:
        first = nodes.start("--name", "n0", *RAISED)
        homes = [first, *(nodes.start("--name", f"n{i}", "--join", first.invite) for i in range(1, arguments.nodes))]
        warm_up(homes)
        took, missed = asyncio.run(measure(homes, arguments.posts))
    print("| what | measured | target |\n|---|---|---|")
    print(
        f"| a post seen on every one of {arguments.nodes} loopback nodes: p50 / p99 / max | {statistics.median(took):.0f} / "
        f"{percentile(took, 0.99):.0f} / {max(took):.0f} ms | p99 <= 250 ms |"
    )
    print(f"| posts missed anywhere within 20 s, of {arguments.posts} | {missed} | 0 |")


if __name__ == "__main__":
    main()
