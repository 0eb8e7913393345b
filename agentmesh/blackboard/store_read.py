"""What is read from blackboard.db besides searches and feeds: single posts, what is unread, names, the index at start."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentmesh.blackboard.logic.limits import MASKING_ATTEMPTS, MAX_NAMES, MAX_OPEN_CLAIMS, MIN_ID_PREFIX
from agentmesh.blackboard.logic.query import Filters, PostRow, quoted
from agentmesh.blackboard.logic.unread import Unread, decode_unread
from agentmesh.blackboard.store_search import places_of_thread
from agentmesh.blackboard.store_write import POST_COLUMNS, Receipt, first_order, row_of
from agentmesh.core.errors import Ambiguous, InvalidInput, NotFound
from agentmesh.mesh.logic.entry import StoredEntry, Tombstone
from agentmesh.mesh.logic.record import ID_BYTES, SIGNATURE_BYTES, SignedRecord

# So few matches of a filter are gathered and looked for by place (1 us each); of more, some are among the next arrivals.
_FEW_MATCHES: Final = 3_000
_ID_CHARS: Final = 2 * ID_BYTES
_POST: Final = f"SELECT {POST_COLUMNS} FROM posts"  # noqa: S608 - columns of our own


@dataclass(frozen=True, slots=True)
class Waiting:
    """A peer's post that is stored and not yet masked."""

    id: bytes
    author: bytes
    timestamp_ms: int
    expires_ms: int
    body: bytes


# ------------------------------------------------------------------ records


def load(connection: sqlite3.Connection, ids: Sequence[bytes]) -> list[SignedRecord]:
    """The stored records among `ids`, in the order asked for."""
    found: list[SignedRecord] = []
    for id_ in ids:
        row = connection.execute("SELECT body, signature FROM records WHERE id = ?", (id_,)).fetchone()
        if row is not None:
            found.append(SignedRecord(*row))
    return found


def load_kind(connection: sqlite3.Connection, kind: str) -> list[SignedRecord]:
    rows = connection.execute("SELECT body, signature FROM records WHERE kind = ? ORDER BY seq", (kind,))
    return [SignedRecord(*row) for row in rows]


def load_index(connection: sqlite3.Connection) -> tuple[list[StoredEntry], list[Tombstone]]:
    entries = connection.execute(
        "SELECT id, kind, author, subkey, timestamp_ms, expires_ms, length(body) + ? FROM records ORDER BY seq",
        (SIGNATURE_BYTES,),
    )
    tombstones = connection.execute("SELECT author, timestamp_ms, slot_id FROM tombstones")
    return [StoredEntry(*row) for row in entries], [Tombstone(*row) for row in tombstones]


def waiting(connection: sqlite3.Connection, limit: int, *, again: bool = False) -> list[Waiting]:
    """The posts that wait longest to be masked and shown; `again`: those that could not be checked a few times."""
    tried = f"waiting BETWEEN 2 AND {MASKING_ATTEMPTS}" if again else "waiting = 1"
    rows = connection.execute(
        "SELECT id, author, timestamp_ms, expires_ms, body FROM records"  # noqa: S608 - numbers of our own
        f" WHERE waiting AND {tried} ORDER BY waiting, seq LIMIT ?",
        (limit,),
    )
    return [Waiting(*row) for row in rows]


# ------------------------------------------------------------------ single posts


def find(connection: sqlite3.Connection, text: str, now_ms: int) -> PostRow:
    """The post with this id, or whose id begins so.

    Raises:
        InvalidInput: it is not hexadecimal, too short or too long.
        NotFound, Ambiguous: none or several begin so.
    """
    wanted = text.strip().lower()
    if not MIN_ID_PREFIX <= len(wanted) <= _ID_CHARS or not all(c in "0123456789abcdef" for c in wanted):
        raise InvalidInput(
            f"'{text[:40]}' is not a post's id: give {MIN_ID_PREFIX} to {_ID_CHARS} hexadecimal characters."
        )
    low, high = bytes.fromhex(wanted.ljust(_ID_CHARS, "0")), bytes.fromhex(wanted.ljust(_ID_CHARS, "f"))
    query = f"{_POST} WHERE id BETWEEN ? AND ? AND expires_ms > ? ORDER BY id LIMIT 2"
    found = connection.execute(query, (low, high, now_ms)).fetchall()
    if not found:
        raise NotFound(f"There is no post {wanted[:8]} here: it has expired, was retracted, or has not arrived yet.")
    if len(found) > 1:
        one, other = (row_of(row).id.hex()[: len(wanted) + 4] for row in found)
        raise Ambiguous(f"The id {wanted} fits several posts ({one}, {other}, ...); give more characters.")
    return row_of(found[0])


def by_ids(connection: sqlite3.Connection, ids: Sequence[bytes], now_ms: int) -> list[PostRow]:
    """The live posts among `ids`, in the order asked for."""
    query = f"{_POST} WHERE id = ? AND expires_ms > ?"
    rows = (connection.execute(query, (id_, now_ms)).fetchone() for id_ in ids)
    return [row_of(row) for row in rows if row is not None]


def open_claims(connection: sqlite3.Connection, now_ms: int) -> list[PostRow]:
    """The newest claims that nothing has ended."""
    query = f"{_POST} WHERE kind = 'CLAIM' AND closed_by IS NULL AND expires_ms > ? ORDER BY ord DESC LIMIT ?"
    return [row_of(row) for row in connection.execute(query, (now_ms, MAX_OPEN_CLAIMS))]


def receipt(connection: sqlite3.Connection, key: bytes) -> tuple[bytes, Receipt] | None:
    """(post id, receipt) of an idempotency key that was used."""
    row = connection.execute("SELECT post_id, asked, receipt FROM answers WHERE key = ?", (key,)).fetchone()
    return None if row is None else (row[0], Receipt(row[1], row[2]))


def authors_since(connection: sqlite3.Connection, node: bytes, since_ms: int) -> list[tuple[str, int]]:
    """(author's name, time) of each post of this node since then, oldest first."""
    query = "SELECT author, created_ms FROM posts WHERE ord >= ? AND node = ? ORDER BY ord"
    return connection.execute(query, (first_order(since_ms), node)).fetchall()


# ------------------------------------------------------------------ what is new to a reader


def unread(
    connection: sqlite3.Connection, *, reader: str, view: bytes, filters: Filters, limit: int, now_ms: int
) -> tuple[list[PostRow], Unread, bool]:
    """Up to `limit` posts that the reader has not seen, what is unread after them, and whether more is unread."""
    stored = connection.execute("SELECT unread FROM readers WHERE reader = ? AND view = ?", (reader, view)).fetchone()
    oldest, newest = connection.execute(
        # Apart, each is one step in the index; together they walk through all of it (sqlite.org/optoverview.html, "The MIN/MAX Optimization").
        "SELECT coalesce((SELECT min(arrival) FROM posts), 0), coalesce((SELECT max(arrival) FROM posts), 0)"
    ).fetchone()
    state = (decode_unread(stored[0]) if stored else Unread()).forgetting_below(oldest)
    few = _few_places(connection, filters)
    rows: list[PostRow] = []
    for low, high in state.ranges:
        start, stop = max(low, oldest), min(high, newest + 1)
        found = _arrived(
            connection,
            filters,
            few,
            start=start,
            stop=stop,
            limit=limit - len(rows) + 1,
            now_ms=now_ms,
            oldest_first=state.crowded,
        )
        if len(found) > limit - len(rows):
            found = found[:-1]
            rows += found
            edge = found[-1].arrival if found else None
            if edge is not None:
                state = state.without(start, edge + 1) if state.crowded else state.without(edge, stop)
            return rows, state, True
        rows += found
        state = state.without(start, stop)
    return rows, state, False


def _few_places(connection: sqlite3.Connection, filters: Filters) -> frozenset[int] | None:
    """The places of everything that the filters allow, when that is not much; a rare author is not looked for among all."""
    if filters.thread is not None:
        return places_of_thread(connection, filters.thread)
    if (tag := filters.tag()) is None:
        return None
    query = "SELECT rowid FROM posts_terms WHERE posts_terms MATCH ? LIMIT ?"
    places = frozenset(place for (place,) in connection.execute(query, (quoted(tag), _FEW_MATCHES + 1)))
    return places if len(places) <= _FEW_MATCHES else None


def _arrived(
    connection: sqlite3.Connection,
    filters: Filters,
    few: frozenset[int] | None,
    *,
    start: int,
    stop: int,
    limit: int,
    now_ms: int,
    oldest_first: bool,
) -> list[PostRow]:
    """Up to `limit` wanted posts that arrived in [start, stop)."""
    order = "ASC" if oldest_first else "DESC"
    between = f"WHERE arrival >= ? AND arrival < ? ORDER BY arrival {order}"
    found: list[PostRow] = []
    if few is None:
        rows = connection.execute(f"{_POST} {between}", (start, stop))
    else:
        # The index of arrivals holds the places too: a walk through it reads no post.
        places = connection.execute(f"SELECT ord FROM posts {between}", (start, stop)) if few else ()  # noqa: S608
        wanted = (place for (place,) in places if place in few)
        rows = (connection.execute(f"{_POST} WHERE ord = ?", (place,)).fetchone() for place in wanted)
    for row in map(row_of, rows):
        if row.expires_ms > now_ms and filters.matches(row):
            found.append(row)
            if len(found) == limit:
                break
    return found


def arrived_after(connection: sqlite3.Connection, arrival: int, limit: int, now_ms: int) -> list[PostRow]:
    """Live posts that became visible after `arrival`, in that order."""
    query = f"{_POST} WHERE arrival > ? AND expires_ms > ? ORDER BY arrival LIMIT ?"
    return [row_of(row) for row in connection.execute(query, (arrival, now_ms, limit))]


def last_arrival(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT value FROM counters WHERE name = 'arrival'").fetchone()
    return 0 if row is None else row[0]


# ------------------------------------------------------------------ names and numbers


def names(connection: sqlite3.Connection, sort: str) -> list[tuple[str, int, int]]:
    """(name, posts, time of the last) of the topics or authors used last."""
    query = "SELECT name, posts, last_ms FROM names WHERE sort = ? ORDER BY last_ms DESC LIMIT ?"
    return connection.execute(query, (sort, MAX_NAMES)).fetchall()


def count(connection: sqlite3.Connection) -> int:
    """How many posts are shown."""
    return connection.execute("SELECT count(*) FROM posts").fetchone()[0]
