"""A board without a mesh: a clock that is set, a publisher that signs and stores, a scrubber that masks one word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agentmesh.blackboard.logic.post import POST, RETRACTION, PostPayload, encode_post, read_heading
from agentmesh.blackboard.ports import TextScrubber
from agentmesh.blackboard.service import BlackboardService
from agentmesh.blackboard.store import BlackboardStore
from agentmesh.core.errors import InvalidInput, QuotaExceeded
from agentmesh.core.units import HOUR_MS
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.limits import POST_LIFETIME_MS
from agentmesh.mesh.logic.record import Record, RecordBody, build_record

MESH = b"m" * 32
START_MS = 1_795_000_000_000
SECRET = "hunter2"


@dataclass
class FakeClock:
    now: int = START_MS

    def now_ms(self) -> int:
        return self.now


@dataclass(frozen=True)
class Masked:
    kind: str
    count: int


@dataclass(frozen=True)
class MaskedText:
    text: str
    redactions: tuple[Masked, ...] = ()


class FakeScrubber:
    """Masks `hunter2`; refuses a text that is nothing else; cannot check a text that says `[stall]`, `stalls` times."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.stalls = 10**9
        self.asked: list[str] = []

    def _mask(self, text: str) -> MaskedText:
        count = text.count(SECRET)
        return MaskedText(text.replace(SECRET, "{{PASSWORD}}"), (Masked("PASSWORD", count),) if count else ())

    async def scrub(self, text: str) -> MaskedText:
        await self.gate.wait()
        if text.strip() == SECRET:
            raise InvalidInput("The text is mostly secret.")
        return self._mask(text)

    async def scrub_many(self, texts: Sequence[str]) -> list[MaskedText | None]:
        await self.gate.wait()
        return [self._mask_or_stall(text) for text in texts]

    def _mask_or_stall(self, text: str) -> MaskedText | None:
        self.asked.append(text)
        if "[stall]" in text and self.stalls > 0:
            self.stalls -= 1
            return None
        return self._mask(text)


def signed_post(
    key: NodeKey,
    text: str,
    at_ms: int,
    *,
    author: str = "peer",
    topic: str | None = None,
    reply_to: bytes | None = None,
    idempotency: bytes | None = None,
    lifetime_ms: int = POST_LIFETIME_MS,
) -> Record:
    """A post as a node signs it."""
    heading = read_heading(text)
    payload = PostPayload(text, author, topic or heading.topic, heading.branch, heading.kind, reply_to, idempotency)
    return signed(key, POST, encode_post(payload), at_ms, lifetime_ms)


def signed(key: NodeKey, kind: str, payload: bytes, at_ms: int, lifetime_ms: int, subkey: bytes = b"") -> Record:
    return build_record(RecordBody(1, MESH, kind, key.public, subkey, at_ms, at_ms + lifetime_ms, payload), key.sign)


class FakePublisher:
    """Signs and stores, as the mesh does; `quota` posts are allowed."""

    def __init__(self, store: BlackboardStore, key: NodeKey, clock: FakeClock) -> None:
        self._store = store
        self._key = key
        self._clock = clock
        self._last_ms = 0
        self.quota = 10**9
        self.published: list[Record] = []

    async def publish(self, kind: str, subkey: bytes, payload: bytes, lifetime_ms: int) -> Record:
        if kind == POST and self.quota <= 0:
            raise QuotaExceeded
        self.quota -= 1
        if kind == RETRACTION:
            target = next((r for r in self.published if r.id == subkey), None)
            if target is None:
                raise LookupError("unknown")
            at_ms = target.timestamp_ms
        else:
            at_ms = self._last_ms = max(self._clock.now_ms(), self._last_ms + 1)
        record = signed(self._key, kind, payload, at_ms, lifetime_ms, subkey)
        await self._store.add([record])
        self.published.append(record)
        return record

    def quota_retry_at_ms(self, kind: str, now_ms: int) -> int | None:
        return None if self.quota > 0 else now_ms + 30_000


@dataclass
class Board:
    """One node's board in a test."""

    store: BlackboardStore
    service: BlackboardService
    publisher: FakePublisher
    scrubber: FakeScrubber
    clock: FakeClock
    key: NodeKey
    peer: NodeKey = field(default_factory=NodeKey.generate)
    resets: list[str] = field(default_factory=list[str])

    async def arrive(self, *records: Record) -> None:
        """Records come from a peer, as the mesh driver hands them in."""
        await self.store.add(records)
        await self.service.on_records(records)

    async def see(self, *records: Record) -> None:
        """They come and are visible."""
        await self.arrive(*records)
        await self.service.settled()

    def peer_post(self, text: str, *, hours_ago: float = 0, **fields: object) -> Record:
        return signed_post(self.peer, text, int(self.clock.now - hours_ago * HOUR_MS), **fields)  # type: ignore[arg-type]


@asynccontextmanager
async def open_board(
    folder: Path,
    *,
    key: NodeKey | None = None,
    clock: FakeClock | None = None,
    per_minute: int = 10**6,
    scrubber: TextScrubber | None = None,
) -> AsyncIterator[Board]:
    """A board on the database in `folder`; opened again with the same key it is the same node after a restart."""
    key, clock, fake = key or NodeKey.generate(), clock or FakeClock(), FakeScrubber()
    store = BlackboardStore(folder / "blackboard.db", key.public, clock)
    publisher = FakePublisher(store, key, clock)
    service = BlackboardService(
        store=store,
        scrubber=scrubber or fake,
        publisher=publisher,
        clock=clock,
        own_node=key.public,
        author_posts_per_minute=lambda: per_minute,
        default_author="me",
    )
    board = Board(store, service, publisher, fake, clock, key)
    store.on_reset = board.resets.append
    await store.open()
    await service.start()
    try:
        yield board
    finally:
        fake.gate.set()
        await service.close()
        await store.close()
