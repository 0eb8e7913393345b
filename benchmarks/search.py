"""How long searches and listings take on a board of 100,000 posts. Prints the table of docs/benchmarks.md.

    python benchmarks/search.py [--posts 100000] [--runs 60]

The board is the real store, filled with posts of a Zipf-distributed vocabulary; each figure is taken through the store's
reader threads, after one warm-up call, each run with another word of the same rarity where the query has a word.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agentmesh.blackboard.logic.cursor import SearchCursor
from agentmesh.blackboard.logic.post import POST, PostPayload, encode_post, read_heading
from agentmesh.blackboard.logic.query import Filters
from agentmesh.blackboard.store import BlackboardStore, draft
from agentmesh.core.clock import SystemClock
from agentmesh.core.units import HOUR_MS
from agentmesh.mesh.logic.limits import POST_LIFETIME_MS
from agentmesh.mesh.logic.record import Record, RecordBody, SignedRecord, encode_body, record_id

VOCABULARY = 30_000
BATCH = 500
AUTHORS, NODES, TOPICS = 2_000, 300, 60
P95_GOAL_MS = 10.0

Ask = Callable[[int], Awaitable[int]]


def vocabulary(rng: random.Random) -> list[str]:
    """Pronounceable words, commonest first."""
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        word = "".join(rng.choices(syllables, k=rng.randint(1, 4))) + rng.choice(["", "n", "s", "r", "ing", "ed"])
        if len(word) > 2:
            words[word] = None
    return list(words)


def records(rng: random.Random, words: list[str], count: int, now_ms: int) -> list[tuple[Record, PostPayload]]:
    """Posts of the last 48 hours, oldest first. Signatures are blank: checking them is not measured here."""
    weights = list(itertools.accumulate(1 / (rank + 2) for rank in range(len(words))))
    nodes = [rng.randbytes(32) for _ in range(NODES)]
    made: list[tuple[Record, PostPayload]] = []
    questions: list[bytes] = []
    for number in range(count):
        at_ms = now_ms - POST_LIFETIME_MS + HOUR_MS + (POST_LIFETIME_MS - 2 * HOUR_MS) * number // count
        text = " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(12, 70)))
        if number % 3 == 0:
            text += f" src/{rng.choice(words)}_{number}.py getUser{number}Name"
        prefix = rng.choice(["", "", "STATUS: ", "QUESTION: ", "FINDING: ", "TIP: ", "DONE: "])
        topic = f"org/repo{min(int(rng.expovariate(0.2)), TOPICS)}"
        text = f"{prefix}[{topic}] {text}"
        reply = rng.choice(questions[-200:]) if questions and rng.random() < 0.2 else None
        heading = read_heading(text)
        author = f"agent-{min(int(rng.expovariate(0.02)), AUTHORS)}"
        payload = PostPayload(text, author, heading.topic, heading.branch, heading.kind, reply)
        node = rng.choice(nodes)
        body = encode_body(
            RecordBody(1, bytes(32), POST, node, b"", at_ms, at_ms + POST_LIFETIME_MS, encode_post(payload))
        )
        id_ = record_id(body)
        if heading.kind == "QUESTION":
            questions.append(id_)
        expires_ms = at_ms + POST_LIFETIME_MS
        record = Record(id_, POST, node, b"", at_ms, expires_ms, b"", SignedRecord(body, bytes(64)))
        made.append((record, payload))
    return made


async def fill(store: BlackboardStore, posts: list[tuple[Record, PostPayload]]) -> None:
    begun = time.perf_counter()
    for start in range(0, len(posts), BATCH):
        batch = posts[start : start + BATCH]
        await store.add([record for record, _ in batch])
        await store.show([draft(record, payload, payload.text) for record, payload in batch])
    each_us = (time.perf_counter() - begun) / len(posts) * 1e6
    print(f"filled with {len(posts):,} posts, {each_us:.0f} us each (stored, then shown, {BATCH} at a time)\n")


async def measure(name: str, runs: int, ask: Ask) -> float:
    times: list[float] = []
    hits = 0
    await ask(runs)
    for run in range(runs):
        begun = time.perf_counter()
        hits = await ask(run)
        times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    p50, p95 = times[len(times) // 2], times[int(len(times) * 0.95)]
    print(f"| {name:<44} | {hits:>4} | {p50:7.2f} | {p95:7.2f} | {times[-1]:7.2f} |")
    return p95


class Questions:
    """What is asked of the board. `number` picks another word of the same rarity for every run."""

    def __init__(self, store: BlackboardStore, words: list[str]) -> None:
        self._store = store
        self._words = words
        self._next: tuple[str, SearchCursor] | None = None

    def find(self, query: Callable[[int], str], **filters: object) -> Ask:
        async def ask(number: int) -> int:
            self._store.forget_rankings()  # every search is a first one
            return len((await self._store.search(query(number), Filters(**filters), 20, None)).rows)  # type: ignore[arg-type]

        return ask

    def listing(self, **filters: object) -> Ask:
        async def ask(number: int) -> int:
            return len((await self._store.feed(Filters(**filters), 20, None))[0])  # type: ignore[arg-type]

        return ask

    async def either_page(self, number: int) -> int:
        """A first page, then at the next call the page after it."""
        if self._next is None:
            self._store.forget_rankings()
            query = f"{self._words[number]} {self._words[number + 1]}"
            first = await self._store.search(query, Filters(), 20, None)
            self._next = None if first.cursor is None else (query, first.cursor)
            return len(first.rows)
        query, cursor = self._next
        self._next = None
        return len((await self._store.search(query, Filters(), 20, cursor)).rows)

    async def far_page(self, number: int) -> int:
        query = self._words[0]
        first = await self._store.search(query, Filters(), 20, None)
        assert first.cursor is not None
        past = SearchCursor(first.cursor.digest, first.cursor.newest, 2_000, first.rows[-1].order)
        return len((await self._store.search(query, Filters(), 20, past)).rows)

    async def first_unread(self, number: int) -> int:
        return len((await self._store.unread(f"reader-{number}", b"", Filters(author="agent-7"), 20))[0])


def searches(ask: Questions, words: list[str]) -> list[tuple[str, Ask]]:
    find = ask.find
    return [
        ("rare term", find(lambda n: words[-1 - n])),
        ("common word alone", find(lambda n: words[n % 10])),
        ("two common words", find(lambda n: f"{words[n % 10]} {words[(n + 3) % 10]}")),
        ("three common words", find(lambda n: f"{words[n % 10]} {words[(n + 3) % 10]} {words[(n + 5) % 10]}")),
        ("eight words, not all in one post", find(lambda n: " ".join(words[n % 10 + 40 * i] for i in range(8)))),
        ("ten common words", find(lambda n: " ".join(words[n % 10 : n % 10 + 10]))),
        ("common and rare word", find(lambda n: f"{words[n % 10]} {words[-1 - n]}")),
        ("nonexistent word", find(lambda n: f"qqxyzzy{n}")),
        ("prefix of 3 letters", find(lambda n: words[500 + n][:3])),
        ("prefix of a common word", find(lambda n: words[n % 10][:-1])),
        ("part of an identifier", find(lambda n: f"{n * 900}nam")),
        ("path that is nowhere", find(lambda n: f"src/{words[3]}_{n * 30}.py")),
        ("no word at all (->)", find(lambda n: "->")),
        ("first page, then the second, two common words", ask.either_page),
        ("page after the 1,000 that are ranked", ask.far_page),
    ]


def filtered(ask: Questions, words: list[str]) -> list[tuple[str, Ask]]:
    find, listing = ask.find, ask.listing
    since = SystemClock().now_ms() - 6 * HOUR_MS
    rare, busy, topic = f"agent-{AUTHORS // 8}", "agent-0", "org/repo0"
    return [
        ("author, rare", listing(author=rare)),
        ("author, common", listing(author=busy)),
        ("topic", listing(topic="org/repo3")),
        ("kind", listing(kind="FINDING")),
        ("since 6 hours", listing(since_ms=since)),
        ("unanswered", listing(unanswered=True)),
        ("topic, kind, author and since", listing(topic=topic, kind="TIP", author=busy, since_ms=since)),
        ("the same, none fits", listing(topic="org/repo40", kind="TIP", author="agent-3", since_ms=since)),
        ("common word, rare author", find(lambda n: words[n % 10], author=rare)),
        ("common word, common author", find(lambda n: words[n % 10], author=busy)),
        (
            "two common words, unanswered, topic",
            find(lambda n: f"{words[n % 10]} {words[11]}", unanswered=True, topic=topic),
        ),
        ("common word, since 6 hours", find(lambda n: words[n % 10], since_ms=since)),
        ("first unread of an author", ask.first_unread),
    ]


async def run(store: BlackboardStore, words: list[str], runs: int) -> bool:
    ask = Questions(store, words)
    print(f"| {'query':<44} | hits | p50 ms  | p95 ms  | max ms  |")
    print(f"|{'-' * 46}|------|---------|---------|---------|")
    worst = [await measure(name, runs, asked) for name, asked in searches(ask, words) + filtered(ask, words)]
    print(f"\nworst p95 {max(worst):.2f} ms; goal {P95_GOAL_MS:.0f} ms")
    return max(worst) <= P95_GOAL_MS


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--posts", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=60)
    options = parser.parse_args()
    rng = random.Random(1)
    words = vocabulary(rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blackboard.db"
        store = BlackboardStore(path, bytes(32), SystemClock())
        await store.open()
        await fill(store, records(rng, words, options.posts, SystemClock().now_ms()))
        within = await run(store, words, options.runs)
        await store.close()
        print(f"database: {path.stat().st_size / options.posts:,.0f} bytes a post")
    print("within the goal" if within else "over the goal: see the rows above 10 ms")


if __name__ == "__main__":
    asyncio.run(main())
