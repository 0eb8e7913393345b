"""One reconciliation session: its figures on the wire, its clocks, and what it refuses."""

from __future__ import annotations

import random

import msgspec
import pytest

from agentmesh.core.errors import ProtocolError
from agentmesh.core.units import MINUTE_MS, SECOND_MS
from agentmesh.mesh.logic.limits import MAX_CLOCK_SKEW_MS, RECONCILE_STEPS
from agentmesh.mesh.logic.reconcile import begin, respond
from agentmesh.mesh.logic.reconcile_wire import (
    Buckets,
    Exchange,
    Listing,
    Opening,
    Restart,
    Split,
    bits,
    decode,
    encode,
    set_bits,
)
from tests.fakes.sessions import NOW_MS, SALT, WINDOW_MS, Post, run, snapshot

COUNT = 100_000


@pytest.fixture(scope="module")
def posts() -> list[Post]:
    rng = random.Random(1)
    made = [Post(rng.randbytes(16), NOW_MS - rng.randrange(WINDOW_MS)) for _ in range(COUNT)]
    return sorted(made, key=lambda post: (post.timestamp_ms, post.id))


def test_two_equal_boards_of_100_000_find_out_in_one_round_trip_and_350_bytes(posts: list[Post]) -> None:
    outcome = run(snapshot(posts), snapshot(posts))
    assert outcome.wire_bytes <= 350
    assert len(outcome.bodies) == 2
    assert outcome.sent == ([], [])


@pytest.mark.parametrize("asks", [True, False], ids=["it asks", "it is asked"])
def test_a_node_that_missed_the_newest_1000_of_100_000_learns_which_in_20_kb(posts: list[Post], asks: bool) -> None:
    away = posts[:-1_000]
    outcome = run(snapshot(away), snapshot(posts)) if asks else run(snapshot(posts), snapshot(away))
    assert outcome.wire_bytes <= 20_000
    assert len(outcome.bodies) <= 4
    assert sorted(outcome.sent[1 if asks else 0]) == sorted(post.id for post in posts[-1_000:])


def test_1000_scattered_differences_among_100_000_are_found_in_260_kb(posts: list[Post]) -> None:
    missing = set(random.Random(2).sample(range(COUNT), 1_000))
    left = [post for number, post in enumerate(posts) if number not in missing or number % 2]
    right = [post for number, post in enumerate(posts) if number not in missing or not number % 2]
    outcome = run(snapshot(left), snapshot(right))
    assert outcome.wire_bytes <= 260_000
    assert len(outcome.bodies) <= 6
    assert len(outcome.sent[0]) + len(outcome.sent[1]) == 1_000


def test_certificates_are_sent_before_what_they_vouch_for() -> None:
    rng = random.Random(3)
    late_certificates = [Post(rng.randbytes(16), NOW_MS - number, order_class=0) for number in range(50)]
    early_posts = [Post(rng.randbytes(16), NOW_MS - WINDOW_MS + number) for number in range(50)]
    outcome = run(snapshot([]), snapshot([*early_posts, *late_certificates]))
    assert set(outcome.sent[1][:50]) == {record.id for record in late_certificates}


def test_two_empty_boards_are_equal() -> None:
    outcome = run(snapshot([]), snapshot([]))
    assert outcome.done == [True, True]
    assert len(outcome.bodies) == 2


# ------------------------------------------------------------------ clocks and horizon


def expiring(rng: random.Random, in_ms: int) -> Post:
    return Post(rng.randbytes(16), NOW_MS - MINUTE_MS, expires_ms=NOW_MS + in_ms)


def test_what_expires_within_a_minute_is_left_out() -> None:
    rng = random.Random(4)
    soon, later = expiring(rng, MINUTE_MS), expiring(rng, MINUTE_MS + 1)
    assert run(snapshot([]), snapshot([soon, later])).sent[1] == [later.id]


def test_clocks_within_a_minute_of_each_other_do_not_make_equal_boards_differ() -> None:
    """The later one has dropped what expired by its clock; the earlier one has not yet."""
    rng = random.Random(5)
    posts = [expiring(rng, number * SECOND_MS) for number in range(-30, 600)]
    early = snapshot(posts)
    late = snapshot([post for post in posts if post.expires_ms > NOW_MS + 30 * SECOND_MS])
    ahead_ms = NOW_MS + 30 * SECOND_MS
    for outcome in (run(early, late, clocks=(NOW_MS, ahead_ms)), run(late, early, clocks=(ahead_ms, NOW_MS))):
        assert len(outcome.bodies) == 2


def test_a_responder_whose_clock_is_much_later_sets_the_horizon() -> None:
    rng = random.Random(6)
    posts = [expiring(rng, number * SECOND_MS) for number in range(1_500)]
    ahead_ms = NOW_MS + 5 * MINUTE_MS
    late = snapshot([post for post in posts if post.expires_ms > ahead_ms])
    outcome = run(snapshot(posts), late, clocks=(NOW_MS, ahead_ms))
    assert isinstance(decode(outcome.bodies[1]), Restart)
    assert len(outcome.bodies) == 4
    assert outcome.sent == ([], [])
    assert outcome.done == [True, True]


@pytest.mark.parametrize(
    "clocks", [(NOW_MS, NOW_MS + 10 * MAX_CLOCK_SKEW_MS), (NOW_MS + 10 * MAX_CLOCK_SKEW_MS, NOW_MS)]
)
def test_clocks_that_are_hours_apart_end_the_session_without_blame(clocks: tuple[int, int]) -> None:
    board = snapshot([expiring(random.Random(7), WINDOW_MS)])
    outcome = run(board, snapshot([]), clocks=clocks)
    assert outcome.sent == ([], [])
    assert outcome.done[0]


# ------------------------------------------------------------------ refusals


def honest_opening(count: int = 500) -> bytes:
    rng = random.Random(8)
    reply = begin(snapshot([Post(rng.randbytes(16), NOW_MS - number) for number in range(count)]), SALT, NOW_MS).reply
    assert reply is not None
    return reply


def test_a_message_without_a_session_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no session"):
        respond(snapshot([]), None, encode(Exchange()), NOW_MS)


def test_a_session_cannot_be_opened_twice() -> None:
    begun = begin(snapshot([]), SALT, NOW_MS)
    with pytest.raises(ProtocolError, match="twice"):
        respond(snapshot([]), begun.state, honest_opening(), NOW_MS)


def test_a_session_cannot_be_restarted_by_its_initiator_or_late() -> None:
    answered = respond(snapshot([]), None, honest_opening(), NOW_MS)
    with pytest.raises(ProtocolError, match="restarted"):
        respond(snapshot([]), answered.state, encode(Restart(NOW_MS + MINUTE_MS)), NOW_MS)


def test_a_restart_must_move_the_horizon_forward() -> None:
    begun = begin(snapshot([]), SALT, NOW_MS)
    with pytest.raises(ProtocolError, match="restarted"):
        respond(snapshot([]), begun.state, encode(Restart(NOW_MS)), NOW_MS)


def test_a_session_that_goes_on_and_on_is_ended() -> None:
    begun = begin(snapshot([Post(bytes(16), NOW_MS)]), SALT, NOW_MS)
    assert begun.state is not None
    begun.state.steps = RECONCILE_STEPS
    with pytest.raises(ProtocolError, match="too many steps"):
        respond(snapshot([]), begun.state, encode(Exchange()), NOW_MS)


def test_asking_for_more_than_was_shown_is_refused() -> None:
    begun = begin(snapshot([Post(bytes(16), NOW_MS)]), SALT, NOW_MS)
    for wanted in (b"\x01", bytes(9)):
        with pytest.raises(ProtocolError, match="shown"):
            respond(snapshot([]), begun.state, encode(Exchange(wanted=wanted)), NOW_MS)


def opening_with(**changes: object) -> bytes:
    opening = decode(honest_opening())
    assert isinstance(opening, Opening)
    split = {key: changes.pop(key) for key in ("bounds", "counts", "prints", "cell") if key in changes}
    changed = msgspec.structs.replace(opening, split=msgspec.structs.replace(opening.split, **split), **changes)
    return encode(changed)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        opening_with(salt=b"short"),
        opening_with(root=b"short"),
        opening_with(horizon_ms=-1),
        opening_with(cell=1),
        opening_with(bounds=(5, -1, 3)),
        opening_with(counts=(1,)),
        opening_with(bounds=(1,), counts=(1, -1), prints=bytes(16)),
        opening_with(counts=(), bounds=(), prints=b""),
        opening_with(prints=b"1234567"),
        opening_with(bounds=(2**60,), counts=(1, 1), prints=bytes(16)),
        opening_with(bounds=(1,) * 999, counts=(0,) * 1_000, prints=bytes(8_000)),
        msgspec.msgpack.encode((2, [(2, 0, b"12345")], b"", b"")),
        msgspec.msgpack.encode((2, [(2, 0, b"")], b"", b"")),
        msgspec.msgpack.encode((2, [(3, 0, b"1234")], b"", b"")),
        msgspec.msgpack.encode((2, [(3, 1, b""), (3, 1, b"")], b"", b"")),
        msgspec.msgpack.encode((2, [(3, -1, b"")], b"", b"")),
        msgspec.msgpack.encode((2, [], b"", b"1234")),
        msgspec.msgpack.encode((3, 0)),
        msgspec.msgpack.encode((9,)),
    ],
)
def test_a_body_that_does_not_add_up_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(body)


def test_fields_that_a_later_version_appends_are_ignored() -> None:
    later = msgspec.msgpack.encode((*msgspec.msgpack.decode(encode(Exchange(offered=b"12345"))), "new", 1))
    assert decode(later) == Exchange(offered=b"12345")


def test_bitmaps_come_back_as_they_were() -> None:
    flags = [random.Random(9).random() < 0.3 for _ in range(1_001)]
    assert list(set_bits(bits(flags))) == [number for number, flag in enumerate(flags) if flag]
    assert bits([False] * 20) == b""


def test_cells_that_are_not_there_or_cannot_be_divided_are_refused() -> None:
    rng = random.Random(10)
    posts = [Post(rng.randbytes(16), NOW_MS - number) for number in range(400)]
    begun = begin(snapshot(posts), SALT, NOW_MS)
    dealt = respond(snapshot(posts[1:]), None, begun.reply or b"", NOW_MS)
    assert dealt.state is not None
    assert any(isinstance(cell, list) for cell in dealt.state.cells)
    bucket = next(number for number, cell in enumerate(dealt.state.cells) if isinstance(cell, list))
    for part in (
        Listing(len(dealt.state.cells), b""),
        Buckets(bucket, bytes(6)),
        Split(bucket, (), (1,), bytes(8)),
    ):
        with pytest.raises(ProtocolError):
            respond(snapshot([]), dealt.state, encode(Exchange(parts=(part,))), NOW_MS)


def test_a_range_outside_its_cell_is_refused() -> None:
    posts = [Post(bytes([number] * 16), NOW_MS - 1_000 * number) for number in range(100)]
    begun = begin(snapshot(posts), SALT, NOW_MS)
    outside = Split(0, (2**59,), (0, 0), bytes(16))
    with pytest.raises(ProtocolError, match="leaves its cell"):
        respond(snapshot([]), begun.state, encode(Exchange(parts=(outside,))), NOW_MS)


def test_what_was_not_shown_cannot_be_had() -> None:
    """Nine ids shown: the bitmap's second byte has one bit that means something."""
    posts = [Post(bytes([number] * 16), NOW_MS - number) for number in range(9)]
    empty = begin(snapshot([]), SALT, NOW_MS)
    shown = respond(snapshot(posts), None, empty.reply or b"", NOW_MS)
    with pytest.raises(ProtocolError, match="not shown"):
        respond(snapshot([]), shown.state, encode(Exchange(wanted=b"\x00\x02")), NOW_MS)
    assert len(respond(snapshot([]), shown.state, encode(Exchange(wanted=b"\xff\x01")), NOW_MS).send) == 9
