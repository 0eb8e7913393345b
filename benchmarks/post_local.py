"""How long a post takes in service and store, without HTTP and mesh: signed, durable, visible. Prints the figures.

    python benchmarks/post_local.py [--posts 1000] [--scrub]

The publisher signs with a real key and stores with `synchronous=FULL`. Without --scrub texts are taken as they are; with it
they go through the real scrub worker.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentmesh.blackboard.ports import TextScrubber
from agentmesh.blackboard.service import BlackboardService
from agentmesh.blackboard.store import BlackboardStore
from agentmesh.core.clock import SystemClock
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.record import Record, RecordBody, build_record

TEXT = (
    "FINDING: [acme/shop branch:main] retries double-charge when the clock jumps; use the idempotency key "
    + "word " * 60
)
CLIENTS = 10


@dataclass(frozen=True)
class Plain:
    text: str
    redactions: tuple[()] = ()


class NoScrubber:
    async def scrub(self, text: str) -> Plain:
        return Plain(text)

    async def scrub_many(self, texts: Sequence[str]) -> list[Plain | None]:
        return [Plain(text) for text in texts]


class SigningPublisher:
    """Signs and stores; there is no mesh to spread to."""

    def __init__(self, store: BlackboardStore, key: NodeKey) -> None:
        self._store = store
        self._key = key
        self._last_ms = 0

    async def publish(self, kind: str, subkey: bytes, payload: bytes, lifetime_ms: int) -> Record:
        at_ms = self._last_ms = max(SystemClock().now_ms(), self._last_ms + 1)
        body = RecordBody(1, bytes(32), kind, self._key.public, subkey, at_ms, at_ms + lifetime_ms, payload)
        record = build_record(body, self._key.sign)
        await self._store.add([record])
        return record

    def quota_retry_at_ms(self, kind: str, now_ms: int) -> int | None:
        return None


def _figures(name: str, times_ms: list[float], seconds: float) -> None:
    times_ms.sort()
    p50, p99 = times_ms[len(times_ms) // 2], times_ms[int(len(times_ms) * 0.99)]
    print(f"{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, {len(times_ms) / seconds:,.0f} posts/s")


async def _post_all(service: BlackboardService, client: int, count: int) -> list[float]:
    times: list[float] = []
    for number in range(count):
        begun = time.perf_counter()
        await service.post(f"{TEXT} {client}.{number}", author=f"client-{client}", idempotency_key=f"{client}.{number}")
        times.append((time.perf_counter() - begun) * 1000)
    return times


async def run(folder: Path, posts: int, scrubber: TextScrubber) -> None:
    key = NodeKey.generate()
    store = BlackboardStore(folder / "blackboard.db", key.public, SystemClock())
    service = BlackboardService(
        store=store,
        scrubber=scrubber,
        publisher=SigningPublisher(store, key),
        clock=SystemClock(),
        own_node=key.public,
        author_posts_per_minute=lambda: 10**9,
    )
    await store.open()
    await service.start()
    await _post_all(service, 99, 20)
    begun = time.perf_counter()
    times = await _post_all(service, 0, posts)
    _figures("one client", times, time.perf_counter() - begun)
    begun = time.perf_counter()
    each = await asyncio.gather(*(_post_all(service, client, posts // CLIENTS) for client in range(1, CLIENTS + 1)))
    _figures(f"{CLIENTS} clients at once", [t for times in each for t in times], time.perf_counter() - begun)
    expected = 20 + posts + posts // CLIENTS * CLIENTS
    print(f"posted {expected:,}, on the board {await service.count():,}, lost {expected - await service.count()}")
    await service.close()
    await store.close()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--posts", type=int, default=1_000)
    parser.add_argument("--scrub", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not options.scrub:
            await run(Path(folder), options.posts, NoScrubber())
            return
        from agentmesh.blackboard.scrub import ScrubPool, machine_context

        pool = ScrubPool(machine_context())
        try:
            await run(Path(folder), options.posts, pool)
        finally:
            await pool.close()


if __name__ == "__main__":
    asyncio.run(main())
