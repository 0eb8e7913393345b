"""What is written to blackboard.db, as functions of a connection inside the writer's transaction.

Owns how a post is laid down so that reading is quick: its place in time, its tags, whether something closed it, and the
names it adds. Each function may run twice for one call (see database.py) and keeps nothing in memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from agentmesh.blackboard.logic.claims import ends_claim
from agentmesh.blackboard.logic.limits import ANSWERS_KEPT_MS, MAX_DAY_TOMBSTONES, MAX_OPEN_CLAIMS, MAX_READERS
from agentmesh.blackboard.logic.post import POST, RETRACTION, PostKind
from agentmesh.blackboard.logic.query import CLOSABLE, PostRow, tags_of
from agentmesh.core.units import DAY_MS
from agentmesh.mesh.logic.limits import POST_LIFETIME_MS
from agentmesh.mesh.logic.record import Record

# A post's place in the order of time: its signed milliseconds, then bits of its id.
ORDER_ID_BITS: Final = 20
_LATEST_MS: Final = 2**43 - 1  # the year 2248: later times share their place

POST_COLUMNS: Final = (
    "ord, arrival, id, kind, topic, branch, text, author, node, created_ms, expires_ms, reply_to, closed_by IS NOT NULL"
)
TOMBSTONE_KINDS: Final = (POST, RETRACTION)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a poster was answered, kept under its idempotency key. `asked` names what was asked for."""

    asked: bytes
    receipt: bytes


def first_order(timestamp_ms: int) -> int:
    """The place before every post of this millisecond."""
    return max(0, min(timestamp_ms, _LATEST_MS)) << ORDER_ID_BITS


def row_of(values: Sequence[Any]) -> PostRow:
    """A post from POST_COLUMNS."""
    return PostRow(*values[:-1], closed=bool(values[-1]))


# ------------------------------------------------------------------ records


def add_records(
    connection: sqlite3.Connection,
    records: Sequence[Record],
    own_posts: Mapping[bytes, PostRow],
    receipts: Mapping[bytes, tuple[bytes, Receipt]],
    now_ms: int,
) -> list[PostRow]:
    """Store new records; posts of this node (`own_posts`, by id) become visible at once, others wait to be masked.

    `receipts` by record id: (idempotency key, receipt), kept in the same transaction. Returns the posts that became visible.
    """
    visible: list[PostRow] = []
    for record in records:
        own = own_posts.get(record.id)
        signed = record.signed
        added = connection.execute(
            "INSERT OR IGNORE INTO records (id, kind, author, subkey, timestamp_ms, expires_ms, body, signature, waiting)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.id,
                record.kind,
                record.author,
                record.subkey,
                record.timestamp_ms,
                record.expires_ms,
                signed.body,
                signed.signature,
                int(record.kind == POST and own is None),
            ),
        ).rowcount
        if not added:
            continue
        if own is not None:
            visible.append(insert_post(connection, own))
        if record.id in receipts:
            key, receipt = receipts[record.id]
            keep_receipt(connection, key, record.id, receipt, now_ms)
    return visible


def drop_records(connection: sqlite3.Connection, ids: Sequence[bytes], now_ms: int) -> list[PostRow]:
    """Delete records and what is shown of them, leaving quota tombstones. Returns the posts that were visible."""
    connection.executemany(
        # A retraction holds its post's slot itself; its own tombstone takes over when it goes.
        "INSERT OR IGNORE INTO tombstones (slot_id, author, timestamp_ms)"
        " SELECT iif(kind = 'post', id, subkey), author, timestamp_ms FROM records AS gone"
        " WHERE id = ? AND kind IN ('post', 'retraction') AND NOT (kind = 'post' AND EXISTS"
        " (SELECT 1 FROM records AS r WHERE r.kind = 'retraction' AND r.subkey = gone.id AND r.author = gone.author))",
        ((id_,) for id_ in ids),
    )
    _bound_tombstones(connection, ids)
    connection.executemany("DELETE FROM records WHERE id = ?", ((id_,) for id_ in ids))
    # A day's slots count until no post of that day can live.
    oldest_ms = (now_ms - POST_LIFETIME_MS) // DAY_MS * DAY_MS - DAY_MS
    connection.execute("DELETE FROM tombstones WHERE timestamp_ms < ?", (oldest_ms,))
    return [row for id_ in ids if (row := remove_post(connection, id_)) is not None]


def _bound_tombstones(connection: sqlite3.Connection, ids: Sequence[bytes]) -> None:
    """Keep an author's first slots of a day: a flood that displaces its own posts must not fill the disk."""
    days: dict[tuple[bytes, int], None] = {}
    for id_ in ids:
        query = "SELECT author, timestamp_ms FROM records WHERE id = ? AND kind IN ('post', 'retraction')"
        for author, timestamp_ms in connection.execute(query, (id_,)):
            days.setdefault((author, timestamp_ms // DAY_MS * DAY_MS))
    for author, day_ms in days:
        connection.execute(
            "DELETE FROM tombstones WHERE author = ?1 AND timestamp_ms < ?3 AND timestamp_ms > (SELECT timestamp_ms FROM"
            " tombstones WHERE author = ?1 AND timestamp_ms >= ?2 AND timestamp_ms < ?3 ORDER BY timestamp_ms LIMIT 1 OFFSET ?4)",
            (author, day_ms, day_ms + DAY_MS, MAX_DAY_TOMBSTONES),
        )


# ------------------------------------------------------------------ posts


def show_posts(
    connection: sqlite3.Connection, posts: Iterable[PostRow], withheld: frozenset[bytes] = frozenset()
) -> list[PostRow]:
    """Make masked posts of peers visible, unless they are gone or visible already.

    Those `withheld` could not be checked and are shown without their text: `records.waiting` counts the attempts.
    """
    visible: list[PostRow] = []
    for post in posts:
        attempts = "waiting + 1" if post.id in withheld else "0"
        changed = connection.execute(
            f"UPDATE records SET waiting = {attempts} WHERE id = ? AND waiting RETURNING waiting",  # noqa: S608
            (post.id,),
        ).fetchone()
        if changed is None or changed[0] > 2:
            continue  # gone, or still without its text
        remove_post(connection, post.id)  # it was shown without its text before
        visible.append(insert_post(connection, post))
    return visible


def insert_post(connection: sqlite3.Connection, post: PostRow) -> PostRow:
    """Lay down a post; its `order`, `arrival` and `closed` are settled here."""
    closer = _closer_of(connection, post)
    post = replace(
        post, order=_free_place(connection, post), arrival=_next_arrival(connection), closed=closer is not None
    )
    connection.execute(
        "INSERT INTO posts (ord, arrival, id, kind, topic, branch, text, author, node, created_ms, expires_ms, reply_to,"
        " closed_by, about) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            post.order,
            post.arrival,
            post.id,
            post.kind,
            post.topic,
            post.branch,
            post.text,
            post.author,
            post.node,
            post.created_ms,
            post.expires_ms,
            post.reply_to,
            closer,
            _about(post),
        ),
    )
    for sort, name in _names(post):
        connection.execute(
            "INSERT INTO names (sort, folded, name, posts, last_ms) VALUES (?, ?, ?, 1, ?) ON CONFLICT (sort, folded)"
            " DO UPDATE SET posts = posts + 1, last_ms = max(last_ms, excluded.last_ms)",
            (sort, name.casefold(), name, post.created_ms),
        )
    for other in _closed_by(connection, post):
        _set_closer(connection, other, post.id)
    return post


def remove_post(connection: sqlite3.Connection, id_: bytes) -> PostRow | None:
    """Take a post out of sight; what it had closed is open again, unless something else closes it."""
    found = connection.execute(f"SELECT {POST_COLUMNS} FROM posts WHERE id = ?", (id_,)).fetchone()  # noqa: S608
    if found is None:
        return None
    post = row_of(found)
    connection.execute("DELETE FROM posts WHERE ord = ?", (post.order,))
    for sort, name in _names(post):
        key = (sort, name.casefold())
        connection.execute("UPDATE names SET posts = posts - 1 WHERE sort = ? AND folded = ?", key)
        connection.execute("DELETE FROM names WHERE sort = ? AND folded = ? AND posts <= 0", key)
    closed = connection.execute(f"SELECT {POST_COLUMNS} FROM posts WHERE closed_by = ?", (id_,)).fetchall()  # noqa: S608
    for other in map(row_of, closed):
        _set_closer(connection, other, _closer_of(connection, other))
    return post


def _free_place(connection: sqlite3.Connection, post: PostRow) -> int:
    order = first_order(post.created_ms) | int.from_bytes(post.id[:3], "big") >> (24 - ORDER_ID_BITS)
    while connection.execute("SELECT 1 FROM posts WHERE ord = ?", (order,)).fetchone():
        order += 1
    return order


def _next_arrival(connection: sqlite3.Connection) -> int:
    return connection.execute(
        "INSERT INTO counters (name, value) VALUES ('arrival', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
        " RETURNING value"
    ).fetchone()[0]


def _about(post: PostRow) -> str:
    """What is indexed beside the text: the names, so that they can be searched for, and the tags of the filters."""
    tags = tags_of(post.topic, post.kind, post.author, closed=post.closed)
    return " ".join(part for part in (post.topic, post.branch, post.author, tags) if part)


def _names(post: PostRow) -> list[tuple[str, str]]:
    return [("author", post.author)] + ([("topic", post.topic)] if post.topic else [])


# ------------------------------------------------------------------ what closes what


def _closer_of(connection: sqlite3.Connection, post: PostRow) -> bytes | None:
    """The reply that answers a question, or the DONE that ends a claim, when it is already here."""
    if post.kind == PostKind.QUESTION:
        reply = connection.execute("SELECT id FROM posts WHERE reply_to = ? LIMIT 1", (post.id,)).fetchone()
        return None if reply is None else reply[0]
    if post.kind != PostKind.CLAIM:
        return None
    dones = connection.execute(
        f"SELECT {POST_COLUMNS} FROM posts WHERE kind = 'DONE' AND node = ? AND ord >= ? ORDER BY ord LIMIT ?",  # noqa: S608
        (post.node, first_order(post.created_ms), MAX_OPEN_CLAIMS),
    ).fetchall()
    return next((done.id for done in map(row_of, dones) if ends_claim(done, post)), None)


def _closed_by(connection: sqlite3.Connection, post: PostRow) -> list[PostRow]:
    """The open questions and claims that a new post closes."""
    found: list[PostRow] = []
    if post.reply_to is not None:
        query = f"SELECT {POST_COLUMNS} FROM posts WHERE id = ? AND kind = 'QUESTION' AND closed_by IS NULL"  # noqa: S608
        found += map(row_of, connection.execute(query, (post.reply_to,)).fetchall())
    if post.kind == PostKind.DONE:
        query = (
            f"SELECT {POST_COLUMNS} FROM posts WHERE kind = 'CLAIM' AND node = ? AND closed_by IS NULL"  # noqa: S608
            " ORDER BY ord DESC LIMIT ?"
        )
        claims = map(row_of, connection.execute(query, (post.node, MAX_OPEN_CLAIMS)).fetchall())
        found += [claim for claim in claims if ends_claim(post, claim)]
    return found


def _set_closer(connection: sqlite3.Connection, post: PostRow, closer: bytes | None) -> None:
    if post.kind not in CLOSABLE:
        return
    about = _about(replace(post, closed=closer is not None))
    connection.execute("UPDATE posts SET closed_by = ?, about = ? WHERE ord = ?", (closer, about, post.order))


# ------------------------------------------------------------------ answers and readers


def keep_receipt(connection: sqlite3.Connection, key: bytes, post_id: bytes, receipt: Receipt, now_ms: int) -> None:
    """Remember the answer given under an idempotency key, and forget old ones."""
    connection.execute(
        "INSERT OR IGNORE INTO answers (key, post_id, asked, receipt, created_ms) VALUES (?, ?, ?, ?, ?)",
        (key, post_id, receipt.asked, receipt.receipt, now_ms),
    )
    connection.execute("DELETE FROM answers WHERE created_ms < ?", (now_ms - ANSWERS_KEPT_MS,))


def keep_unread(connection: sqlite3.Connection, reader: str, view: bytes, unread: bytes, now_ms: int) -> None:
    """Remember what a reader has not read, and forget the readers longest away beyond the limit."""
    connection.execute(
        "INSERT INTO readers (reader, view, unread, used_ms) VALUES (?, ?, ?, ?) ON CONFLICT (reader, view)"
        " DO UPDATE SET unread = excluded.unread, used_ms = excluded.used_ms",
        (reader, view, unread, now_ms),
    )
    extra = connection.execute("SELECT count(*) FROM readers").fetchone()[0] - MAX_READERS
    if extra > 0:
        connection.execute(
            "DELETE FROM readers WHERE (reader, view) IN (SELECT reader, view FROM readers ORDER BY used_ms LIMIT ?)",
            (extra,),
        )
