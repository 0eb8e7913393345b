"""No query, cursor or sequence of arrivals breaks searching, paging or unread positions."""

from __future__ import annotations

import asyncio
import itertools
import re
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from agentmesh.blackboard.logic.claims import _names_overlap, paths_overlap
from agentmesh.blackboard.logic.cursor import FeedCursor, SearchCursor, decode_cursor
from agentmesh.blackboard.logic.limits import MAX_UNREAD_RANGES
from agentmesh.blackboard.logic.query import Filters, Stage, plan, tags_of
from agentmesh.blackboard.logic.unread import Unread, decode_unread
from agentmesh.core.errors import InvalidInput
from tests.fakes.board import open_board

ANY_TEXT = st.text(st.characters(), max_size=60)  # surrogates too
SYNTAX = st.text(st.sampled_from("\"'*:^(){}+-.,/ abAB\x00é🎉\ud800"), max_size=30)
WORDS = st.lists(
    st.sampled_from(["AND", "OR", "NOT", "NEAR(", "v1.2", "C++", "org/repo", '"', "a b", "col:"]), max_size=8
)


def _fts() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE posts_terms USING fts5 (text, tokenize='porter unicode61', prefix='3 4')")
    connection.execute("CREATE VIRTUAL TABLE posts_trigrams USING fts5 (text, tokenize='trigram', detail=none)")
    for table in ("posts_terms", "posts_trigrams"):
        connection.execute(f"INSERT INTO {table} VALUES ('some AND text v1.2')")
    return connection


FTS = _fts()


@given(ANY_TEXT | SYNTAX | WORDS.map(" ".join))
@settings(max_examples=600, deadline=None)
def test_every_step_of_every_query_is_valid_full_text_syntax(query: str) -> None:
    for step in plan(query, Filters(topic="org/repo", author='a"b')):
        if step.match is not None:
            table = "posts_trigrams" if step.stage == Stage.TRIGRAM else "posts_terms"
            FTS.execute(f"SELECT rowid FROM {table} WHERE {table} MATCH ?", (step.match,)).fetchall()


@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda raw: raw.decode("latin1")))
@settings(max_examples=500)
def test_any_text_as_a_cursor_is_refused_with_our_own_error_or_is_a_cursor(text: str) -> None:
    for kind in (FeedCursor, SearchCursor):
        try:
            decode_cursor(text, kind, bytes(8))
        except InvalidInput:
            continue


@given(st.binary(max_size=60))
def test_any_stored_unread_position_is_readable(raw: bytes) -> None:
    assert decode_unread(raw).ranges


@given(
    st.sampled_from([None, "org/a", "org/B"]),
    st.sampled_from(["NOTE", "QUESTION", "CLAIM"]),
    st.sampled_from(["ann", "Bob"]),
    st.booleans(),
)
def test_a_post_carries_the_tag_of_a_filter_exactly_when_it_fits(
    topic: str | None, kind: str, author: str, closed: bool
) -> None:
    tags = tags_of(topic, kind, author, closed=closed).split()
    assert len(tags) == len(set(tags))
    for t, k, a, unanswered in itertools.product(
        (None, "ORG/A", "org/b"), (None, "NOTE", "QUESTION"), (None, "ANN"), (0, 1)
    ):
        wanted = Filters(topic=t, kind=k, author=a, unanswered=bool(unanswered))
        tag = wanted.tag()
        if tag is None or wanted.impossible:
            continue
        fits = (t is None or (topic or "").casefold() == t.casefold()) and (
            a is None or author.casefold() == a.casefold()
        )
        fits = fits and (k is None or kind == k) and (not unanswered or (kind == "QUESTION" and not closed))
        assert (tag in tags) == fits


@given(st.text("ab*?", min_size=1, max_size=3), st.text("ab*?", min_size=1, max_size=3))
@settings(max_examples=400, deadline=None)
def test_two_patterns_overlap_exactly_when_some_name_fits_both(one: str, other: str) -> None:
    def regex(pattern: str) -> re.Pattern[str]:
        return re.compile("".join({"*": ".*", "?": "."}.get(c, c) for c in pattern))

    names = ("".join(name) for size in range(7) for name in itertools.product("ab", repeat=size))
    fits_both = any(regex(one).fullmatch(name) and regex(other).fullmatch(name) for name in names)
    assert _names_overlap(one, other) == fits_both
    assert paths_overlap(f"src/{one}/x.py", f"src/{other}/x.py") == paths_overlap(
        f"src/{other}/x.py", f"src/{one}/x.py"
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), max_size=12), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_unread_gives_each_post_once_however_arrivals_and_reads_interleave(
    turns: list[tuple[int, int]], gap: int
) -> None:
    async def run(folder: Path) -> None:
        async with open_board(folder) as board:
            made: list[str] = []
            seen: list[str] = []
            for arrivals, limit in turns:
                posts = [
                    board.peer_post(f"post {len(made) + i}", hours_ago=(len(made) * gap) % 40) for i in range(arrivals)
                ]
                made += [f"post {len(made) + i}" for i in range(arrivals)]
                if posts:
                    await board.see(*posts)
                page = await board.service.feed(unread_only=True, reader="r", limit=limit)
                seen += [post.text for post in page.posts]
            while page := (await board.service.feed(unread_only=True, reader="r", limit=2)).posts:
                seen += [post.text for post in page]
            assert sorted(seen) == sorted(made)

    with TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 20)), max_size=30))
def test_ranges_stay_apart_ordered_and_exact(reads: list[tuple[int, int]]) -> None:
    unread = Unread()
    gone: set[int] = set()
    for start, size in reads:
        unread = unread.without(start, start + size)
        gone.update(range(start, start + size))
    assert all(unread.contains(n) == (n not in gone) for n in range(530))
    ends = [edge for low, high in unread.ranges for edge in (high, low)]
    assert ends == sorted(ends, reverse=True)
    assert len(unread.ranges) <= len(reads) + 1 <= MAX_UNREAD_RANGES
