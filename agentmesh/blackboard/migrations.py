"""The schema of blackboard.db, as named steps. A step and the note that it was taken are one transaction (sqlite-utils).

`records` holds signed records of every kind, as received. `posts` holds what is shown of posts (masked, headed, indexed);
its `ord` sorts by the signed time, its `arrival` by when a post became visible here. The full-text tables are filled and
emptied by triggers, so that no path can forget them.
"""

from __future__ import annotations

import sqlite3

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

migrations = Migrations("blackboard")

_RECORDS = """
CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    author BLOB NOT NULL,
    subkey BLOB NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    body BLOB NOT NULL,
    signature BLOB NOT NULL,
    waiting INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX records_by_kind ON records (kind, subkey);
CREATE INDEX records_waiting ON records (seq) WHERE waiting;
CREATE TABLE tombstones (
    author BLOB NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    slot_id BLOB NOT NULL,
    PRIMARY KEY (author, timestamp_ms, slot_id)
) WITHOUT ROWID;
CREATE INDEX tombstones_by_time ON tombstones (timestamp_ms);
"""

_POSTS = """
CREATE TABLE posts (
    ord INTEGER PRIMARY KEY,
    arrival INTEGER NOT NULL UNIQUE,
    id BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    topic TEXT,
    branch TEXT,
    text TEXT NOT NULL,
    author TEXT NOT NULL,
    node BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    reply_to BLOB,
    closed_by BLOB,
    about TEXT NOT NULL
);
CREATE INDEX posts_by_reply ON posts (reply_to) WHERE reply_to IS NOT NULL;
CREATE INDEX posts_by_closer ON posts (closed_by) WHERE closed_by IS NOT NULL;
CREATE INDEX posts_claims ON posts (ord) WHERE kind = 'CLAIM';
CREATE INDEX posts_done ON posts (node, ord) WHERE kind = 'DONE';
CREATE TABLE names (
    sort TEXT NOT NULL,
    folded TEXT NOT NULL,
    name TEXT NOT NULL,
    posts INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    PRIMARY KEY (sort, folded)
) WITHOUT ROWID;
CREATE INDEX names_by_time ON names (sort, last_ms);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE answers (
    key BLOB PRIMARY KEY,
    post_id BLOB NOT NULL,
    asked BLOB NOT NULL,
    receipt BLOB NOT NULL,
    created_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX answers_by_time ON answers (created_ms);
CREATE TABLE readers (
    reader TEXT NOT NULL,
    view BLOB NOT NULL,
    unread BLOB NOT NULL,
    used_ms INTEGER NOT NULL,
    PRIMARY KEY (reader, view)
) WITHOUT ROWID;
"""

# Prefix indexes of 3 and 4: `conf*` then costs what a word costs; longer prefixes gather few words.
# detail=none for trigrams: positions would make them three times as large, and every hit is compared with the text anyway.
_SEARCH = """
CREATE VIRTUAL TABLE posts_terms USING fts5 (
    text, about, content='posts', content_rowid='ord', tokenize='porter unicode61', prefix='3 4'
);
CREATE VIRTUAL TABLE posts_trigrams USING fts5 (
    text, content='posts', content_rowid='ord', tokenize='trigram', detail=none
);
CREATE TRIGGER posts_added AFTER INSERT ON posts BEGIN
    INSERT INTO posts_terms (rowid, text, about) VALUES (new.ord, new.text, new.about);
    INSERT INTO posts_trigrams (rowid, text) VALUES (new.ord, new.text);
END;
CREATE TRIGGER posts_removed AFTER DELETE ON posts BEGIN
    INSERT INTO posts_terms (posts_terms, rowid, text, about) VALUES ('delete', old.ord, old.text, old.about);
    INSERT INTO posts_trigrams (posts_trigrams, rowid, text) VALUES ('delete', old.ord, old.text);
END;
CREATE TRIGGER posts_retagged AFTER UPDATE OF about ON posts BEGIN
    INSERT INTO posts_terms (posts_terms, rowid, text, about) VALUES ('delete', old.ord, old.text, old.about);
    INSERT INTO posts_terms (rowid, text, about) VALUES (new.ord, new.text, new.about);
END;
"""


@migrations()
def m001_records(db: Database) -> None:
    _execute(db, _RECORDS)


@migrations()
def m002_posts(db: Database) -> None:
    _execute(db, _POSTS)


@migrations()
def m003_search(db: Database) -> None:
    _execute(db, _SEARCH)


def prepare(connection: sqlite3.Connection) -> None:
    """Bring a database up to date."""
    migrations.apply(Database(connection, execute_plugins=False))


def rebuild_search(connection: sqlite3.Connection) -> bool:
    """Make the full-text indexes anew from `posts` (about 6 s for 100,000)."""
    for table in ("posts_terms", "posts_trigrams"):
        connection.execute(f"INSERT INTO {table} ({table}) VALUES ('rebuild')")  # noqa: S608 - names of our own
    return True


def _execute(db: Database, script: str) -> None:
    # Not executescript: it commits first, and the step would no longer be one transaction with its note.
    statement = ""
    for line in script.strip().splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            db.conn.execute(statement)
            statement = ""
