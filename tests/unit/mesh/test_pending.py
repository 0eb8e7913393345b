"""The pool of records that are "not yet": what it gives back, and that nobody can fill it for others."""

from __future__ import annotations

import hashlib

from agentmesh.mesh.logic.limits import MAX_PENDING_SHARE, PENDING_BYTES, PENDING_RECORDS
from agentmesh.mesh.logic.pending import PendingPool
from agentmesh.mesh.logic.record import Record, SignedRecord

A, B = b"a" * 32, b"b" * 32


def record(number: int, author: bytes = A, *, size: int = 10, kind: str = "post", expires_ms: int = 10**6) -> Record:
    id_ = hashlib.sha256(b"%d" % number + author).digest()[:16]
    return Record(id_, kind, author, b"", 1, expires_ms, b"", SignedRecord(bytes(size), bytes(64)))


def test_what_waits_for_an_author_is_given_back_with_who_brought_it() -> None:
    pool = PendingPool()
    one, two = record(1), record(2, B)
    pool.add(one, A, None)
    pool.add(two, B, None)
    assert pool.take_author(A) == [(one, A)]
    assert one.id not in pool
    assert two.id in pool


def test_what_waits_for_its_time_is_given_back_then_and_not_for_its_author() -> None:
    pool = PendingPool()
    one = record(1)
    pool.add(one, B, 500)
    assert pool.take_author(A) == []
    assert pool.take_ready(499) == []
    assert pool.take_ready(500) == [(one, B)]
    assert len(pool) == 0


def test_what_expires_while_it_waits_is_let_go() -> None:
    pool = PendingPool()
    pool.add(record(1, expires_ms=100), B, None)
    assert pool.take_ready(100) == []
    assert (len(pool), pool.bytes_held, pool.deadline_ms) == (0, 0, None)


def test_kinds_are_given_back_unless_they_wait_for_their_time() -> None:
    pool = PendingPool()
    member, early = record(1, kind="member"), record(2, kind="member")
    pool.add(member, B, None)
    pool.add(early, B, 500)
    pool.add(record(3), B, None)
    assert pool.take_kinds(frozenset(("member",))) == [(member, B)]


def test_a_peer_that_fills_its_share_pushes_out_its_own_records_only() -> None:
    pool = PendingPool()
    kept = record(-1)
    pool.add(kept, A, None)
    for number in range(PENDING_RECORDS):
        pool.add(record(number), B, None)
    assert kept.id in pool
    assert len(pool) == 1 + PENDING_RECORDS // MAX_PENDING_SHARE
    assert record(PENDING_RECORDS - 1).id in pool


def test_bytes_are_bounded_in_all_and_for_each_peer() -> None:
    pool = PendingPool()
    size = 60_000
    for number in range(400):
        pool.add(record(number, size=size), bytes([number % 8]) * 32, None)
    assert pool.bytes_held <= PENDING_BYTES
    pool = PendingPool()
    for number in range(400):
        pool.add(record(number, size=size), B, None)
    assert pool.bytes_held <= PENDING_BYTES // MAX_PENDING_SHARE


def test_an_author_that_is_out_is_dropped() -> None:
    pool = PendingPool()
    pool.add(record(1), B, None)
    pool.add(record(2), B, 500)
    pool.drop_author(A)
    assert len(pool) == 0
