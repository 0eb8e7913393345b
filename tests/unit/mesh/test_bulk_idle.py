"""Idle connections of the fast path: which is taken, which are closed."""

from __future__ import annotations

from agentmesh.mesh.bulk_idle import IdleLinks
from agentmesh.mesh.tls_link import TlsLink

ANN, BOB = b"a" * 32, b"b" * 32


def links(count: int) -> list[TlsLink]:
    return [TlsLink(ANN, dialled=True) for _ in range(count)]


def test_the_one_that_became_idle_last_is_taken_first() -> None:
    idle = IdleLinks(of_one=9, in_all=9)
    old, young = links(2)
    idle.add(ANN, old, 1)
    idle.add(ANN, young, 2)
    assert idle.take(BOB) is None
    assert idle.take(ANN) is young
    assert idle.take(ANN) is old
    assert idle.take(ANN) is None
    assert len(idle) == idle.count(ANN) == 0


def test_beyond_the_bound_of_one_peer_its_longest_idle_is_closed() -> None:
    idle = IdleLinks(of_one=2, in_all=9)
    (other,) = links(1)
    idle.add(BOB, other, 0)
    mine = links(3)
    for now_ms, link in enumerate(mine):
        idle.add(ANN, link, now_ms)
    assert [link.is_closed for link in (other, *mine)] == [False, True, False, False]
    assert idle.count(ANN) == 2


def test_beyond_the_bound_of_all_the_longest_idle_is_closed() -> None:
    idle = IdleLinks(of_one=9, in_all=2)
    first, second, third = links(3)
    idle.add(ANN, first, 0)
    idle.add(BOB, second, 1)
    idle.add(BOB, third, 2)
    assert [first.is_closed, second.is_closed, third.is_closed] == [True, False, False]
    assert (idle.count(ANN), idle.count(BOB), len(idle)) == (0, 2, 2)


def test_one_that_was_used_meanwhile_is_no_longer_the_longest_idle() -> None:
    idle = IdleLinks(of_one=2, in_all=9)
    first, second, third = links(3)
    idle.add(ANN, first, 0)
    idle.add(ANN, second, 1)
    idle.remove(first)
    idle.remove(first)  # not there: nothing happens
    idle.add(ANN, first, 2)
    idle.add(ANN, third, 3)
    assert [first.is_closed, second.is_closed, third.is_closed] == [False, True, False]


def test_trimming_closes_what_is_old_beyond_what_is_kept() -> None:
    idle = IdleLinks(of_one=9, in_all=9)
    made = links(5)
    for now_ms, link in enumerate(made):
        idle.add(ANN, link, now_ms)
    made[4].close("by itself")
    idle.trim(ANN, keep=1, idle_since_ms=1)
    assert [link.is_closed for link in made] == [True, True, False, False, True]
    idle.trim(ANN, keep=2, idle_since_ms=100)
    assert idle.count(ANN) == 2
    idle.trim(ANN, keep=0, idle_since_ms=-1)
    assert all(link.is_closed for link in made)
    assert len(idle) == 0
