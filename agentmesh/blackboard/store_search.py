"""How posts are found, as functions of a connection inside one read transaction.

Owns ranking (bm25 of the words that are not in every fourth post), paging and the bounds that keep any search at a few milliseconds: filters are terms of the query (tags),
candidates are the newest 1,000, and an interrupted search answers with what it has.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from agentmesh.blackboard.database import Deadline
from agentmesh.blackboard.logic.cursor import SearchCursor, question_digest
from agentmesh.blackboard.logic.limits import (
    BM25_TERMS,
    COMMON_HITS,
    ENOUGH_HITS,
    LITERAL_SCAN_POSTS,
    MAX_THREAD_POSTS,
    MAX_TRIGRAM_CANDIDATES,
    RANKED_MATCHES,
    RANKINGS_KEPT,
    SCORED_MATCHES,
)
from agentmesh.blackboard.logic.query import Filters, PostRow, Stage, Step, plan, quoted
from agentmesh.blackboard.store_write import POST_COLUMNS, first_order, row_of

_NEWEST: Final = 2**63 - 1
_FETCH: Final = 64  # rows fetched by place at a time: a page needs 20
_TERMS_NEWEST: Final = (
    "SELECT rowid FROM posts_terms WHERE posts_terms MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rowid DESC LIMIT ?"
)
_TRIGRAMS_NEWEST: Final = "SELECT rowid FROM posts_trigrams WHERE posts_trigrams MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rowid DESC LIMIT ?"
_TERM_COUNT: Final = "SELECT count(*) FROM (SELECT 1 FROM posts_terms WHERE posts_terms MATCH ? AND rowid >= ? LIMIT ?)"
# What stands beside the text (names) counts half as much as the text.
_TERMS_BM25: Final = (
    "SELECT rowid, bm25(posts_terms, 1.0, 0.5) FROM posts_terms WHERE posts_terms MATCH ? AND rowid BETWEEN ? AND ?"
    " ORDER BY rowid DESC LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best places in order, then, by time, the matches of `tail` below `tail_below`."""

    places: tuple[int, ...]
    tail: str | None
    tail_below: int


@dataclass(frozen=True, slots=True)
class Found:
    """One page. `cursor` is where the next begins."""

    rows: tuple[PostRow, ...]
    cursor: SearchCursor | None


class Rankings:
    """The rankings of the last searches, so that a second page cannot shift when new posts change the scores."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[bytes, int], Ranking] = OrderedDict()

    def get(self, digest: bytes, newest: int) -> Ranking | None:
        return self._kept.get((digest, newest))

    def put(self, digest: bytes, newest: int, ranking: Ranking) -> None:
        self._kept[digest, newest] = ranking
        while len(self._kept) > RANKINGS_KEPT:
            with suppress(KeyError):  # two reader threads may drop the same one
                self._kept.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Window:
    """The places that are looked at: `low` <= place <= `high`, and only those of the thread when one is asked for."""

    low: int
    high: int
    thread: frozenset[int] | None

    def keep(self, places: Iterable[int]) -> list[int]:
        return list(places) if self.thread is None else [p for p in places if p in self.thread]


# ------------------------------------------------------------------ search


def search(
    connection: sqlite3.Connection,
    deadline: Deadline,
    *,
    query: str,
    filters: Filters,
    limit: int,
    now_ms: int,
    cursor: SearchCursor | None,
    rankings: Rankings,
) -> Found:
    """One page of what was looked for, best first.

    Raises:
        InvalidInput: the query is longer than any search.
        sqlite3.Error: the database cannot be read.
    """
    digest = question_digest(query, filters.digest())
    newest = cursor.newest if cursor else _newest_place(connection)
    window = _window(connection, filters, newest)
    ranking = rankings.get(digest, newest)
    if ranking is None:
        ranking = _rank(connection, query, filters, window)
        if not deadline.passed:
            rankings.put(digest, newest, ranking)
    deadline.lift()
    place, below = (cursor.place, cursor.below) if cursor else (0, None)
    rows: list[PostRow] = []
    for position, order, row in _in_order(connection, ranking, window, place, below):
        if row.expires_ms <= now_ms or not filters.matches(row):
            continue
        if len(rows) == limit:
            return Found(tuple(rows), SearchCursor(digest, newest, place, below))
        rows.append(row)
        place, below = position, order
    return Found(tuple(rows), None)


def _in_order(
    connection: sqlite3.Connection, ranking: Ranking, window: _Window, place: int, below: int | None
) -> Iterator[tuple[int, int | None, PostRow]]:
    """(place, below) after each post, and the post, from that cursor position on."""
    if below is None:
        for start in range(place, len(ranking.places), _FETCH):
            orders = ranking.places[start : start + _FETCH]
            rows = _by_order(connection, orders)
            for offset, order in enumerate(orders, start + 1):
                if order in rows:
                    yield offset, None, rows[order]
        below = ranking.tail_below
        place = len(ranking.places)
    if ranking.tail is None:
        return
    matches = connection.execute(
        "SELECT rowid FROM posts_terms WHERE posts_terms MATCH ? AND rowid < ? AND rowid >= ? ORDER BY rowid DESC",
        (ranking.tail, below, window.low),
    )
    first = ranking.places[:ENOUGH_HITS]  # hits of all terms may lie among those of any
    for (order,) in matches:
        if order in first:
            continue
        if window.thread is None or order in window.thread:
            for row in _by_order(connection, (order,)).values():
                yield place, order, row


def _rank(connection: sqlite3.Connection, query: str, filters: Filters, window: _Window) -> Ranking:
    """Relax the query until enough is found. What an interrupt leaves unfinished is left out."""
    places: dict[int, None] = {}
    tail: str | None = None
    tail_below = 0
    with _interruptible():
        for step in plan(query, filters):
            if tail is not None or len(places) >= ENOUGH_HITS:
                break
            if step.stage in (Stage.ALL, Stage.ANY) and step.match is not None:
                newest_first = _newest_matches(connection, step.match, window, RANKED_MATCHES)
                if len(newest_first) == RANKED_MATCHES and window.thread is None:
                    tail, tail_below = step.match, newest_first[-1]
                # Laid down before they are ranked, so that an interrupt loses the order and not the hits.
                found = list(newest_first)
                with _interruptible():
                    found = _ranked(connection, step, newest_first) if window.thread is None else newest_first
            else:
                found = _loose_matches(connection, step, filters, window)
            for place in found:
                places.setdefault(place)
    return Ranking(tuple(places), tail, tail_below)


@contextmanager
def _interruptible() -> Generator[None]:
    """Goes on after SQLite's interrupt; every other error passes."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
            raise


def _newest_matches(connection: sqlite3.Connection, match: str, window: _Window, limit: int) -> list[int]:
    rows = connection.execute(_TERMS_NEWEST, (match, window.low, window.high, limit if window.thread is None else -1))
    return window.keep(place for (place,) in rows)[:limit]


def _ranked(connection: sqlite3.Connection, step: Step, newest_first: Sequence[int]) -> list[int]:
    """The same places, best first; of equals the newer one first."""
    terms = _telling_terms(connection, step.terms)
    if len(newest_first) < 2 or not terms:
        return list(newest_first)
    match = (" AND " if step.stage == Stage.ALL else " OR ").join(quoted(term) for term in terms)
    match = f"({match}) AND {quoted(step.tag)}" if step.tag else match
    hits = connection.execute(_TERMS_BM25, (match, newest_first[-1], newest_first[0], SCORED_MATCHES))
    scores: dict[int, float] = dict(hits.fetchall())
    return sorted(newest_first, key=lambda place: (scores.get(place, 0.0), -place))


def _telling_terms(connection: sqlite3.Connection, terms: Sequence[str]) -> list[str]:
    """The rarest few terms, without those that are in every fourth post: bm25 walks through all postings of each.

    On a board of less than 500 posts every term tells something.
    """
    low = connection.execute(
        # The plus keeps SQLite from looking for the least ord in the table's own order, through all that came before.
        "SELECT min(+ord) FROM posts WHERE arrival > (SELECT max(arrival) FROM posts) - ?",
        (RANKED_MATCHES,),
    ).fetchone()[0]
    counted = [(connection.execute(_TERM_COUNT, (quoted(t), low, COMMON_HITS + 1)).fetchone()[0], t) for t in terms]
    return [term for hits, term in sorted(counted) if hits <= COMMON_HITS][:BM25_TERMS]


def _loose_matches(connection: sqlite3.Connection, step: Step, filters: Filters, window: _Window) -> list[int]:
    """Prefixes as they are; trigrams and texts after comparing them with what was written."""
    if step.stage == Stage.PREFIX and step.match is not None:
        return _newest_matches(connection, step.match, window, RANKED_MATCHES)
    by_trigrams = step.stage == Stage.TRIGRAM
    limit = MAX_TRIGRAM_CANDIDATES if by_trigrams else LITERAL_SCAN_POSTS
    if step.match is None:
        places = connection.execute(
            "SELECT ord FROM posts WHERE ord BETWEEN ? AND ? ORDER BY ord DESC LIMIT ?",
            (window.low, window.high, limit),
        )
    else:
        query = _TRIGRAMS_NEWEST if by_trigrams else _TERMS_NEWEST
        places = connection.execute(query, (step.match, window.low, window.high, limit))
    candidates = window.keep(place for (place,) in places)
    found: list[int] = []
    with _interruptible():
        for start in range(0, len(candidates), _FETCH):
            rows = _by_order(connection, candidates[start : start + _FETCH])
            for row in sorted(rows.values(), key=lambda r: -r.order):
                text = row.text.casefold()
                if filters.matches(row) and any(needle in text for needle in step.needles):
                    found.append(row.order)
    return found


# ------------------------------------------------------------------ listings by time


def feed(
    connection: sqlite3.Connection,
    deadline: Deadline,
    *,
    filters: Filters,
    limit: int,
    now_ms: int,
    below: int | None,
) -> tuple[list[PostRow], int | None]:
    """Posts, newest first, and the place to go on below."""
    window = _window(connection, filters, _NEWEST if below is None else below - 1)
    rows: list[PostRow] = []
    with _interruptible():
        for row in _newest_rows(connection, filters, window):
            if row.expires_ms <= now_ms or not filters.matches(row):
                continue
            if len(rows) == limit:
                deadline.lift()
                return rows, rows[-1].order
            rows.append(row)
    # Interrupted among rows that do not count: the next page goes on below the last that did.
    return rows, rows[-1].order if rows and deadline.passed else None


def _newest_rows(connection: sqlite3.Connection, filters: Filters, window: _Window) -> Iterator[PostRow]:
    tag = filters.tag()
    if window.thread is not None:
        places = sorted((p for p in window.thread if window.low <= p <= window.high), reverse=True)
        for start in range(0, len(places), _FETCH):
            rows = _by_order(connection, places[start : start + _FETCH])
            yield from sorted(rows.values(), key=lambda r: -r.order)
    elif tag is None:
        query = f"SELECT {POST_COLUMNS} FROM posts WHERE ord BETWEEN ? AND ? ORDER BY ord DESC"  # noqa: S608
        yield from map(row_of, connection.execute(query, (window.low, window.high)))
    else:
        for (place,) in connection.execute(_TERMS_NEWEST, (quoted(tag), window.low, window.high, -1)):
            yield from _by_order(connection, (place,)).values()


def places_of_thread(connection: sqlite3.Connection, post_id: bytes) -> frozenset[int]:
    """The places of every post of the thread that a post is in, whichever of them it is."""
    root = connection.execute(
        "WITH RECURSIVE up (id, depth) AS (SELECT ?, 0 UNION SELECT p.reply_to, depth + 1 FROM posts p JOIN up USING (id)"
        " WHERE p.reply_to IS NOT NULL AND depth < ?) SELECT id FROM up ORDER BY depth DESC LIMIT 1",
        (post_id, MAX_THREAD_POSTS),
    ).fetchone()[0]
    places = connection.execute(
        "WITH RECURSIVE down (id) AS (SELECT ? UNION SELECT p.id FROM posts p JOIN down ON p.reply_to = down.id LIMIT ?)"
        " SELECT ord FROM posts JOIN down USING (id)",
        (root, MAX_THREAD_POSTS),
    )
    return frozenset(place for (place,) in places)


# ------------------------------------------------------------------ parts


def _window(connection: sqlite3.Connection, filters: Filters, high: int) -> _Window:
    low = 0 if filters.since_ms is None else first_order(filters.since_ms)
    thread = None if filters.thread is None else places_of_thread(connection, filters.thread)
    if thread is not None:
        low, high = max(low, min(thread, default=0)), min(high, max(thread, default=0))
    return _Window(low, high, thread)


def _newest_place(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT coalesce(max(ord), 0) FROM posts").fetchone()[0]


def _by_order(connection: sqlite3.Connection, orders: Sequence[int]) -> dict[int, PostRow]:
    marks = ",".join("?" * len(orders))
    found = connection.execute(f"SELECT {POST_COLUMNS} FROM posts WHERE ord IN ({marks})", orders)  # noqa: S608
    return {row.order: row for row in map(row_of, found)}
