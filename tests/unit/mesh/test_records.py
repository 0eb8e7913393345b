"""What the record index keeps, refuses, replaces and forgets."""

from __future__ import annotations

import random

import pytest

from agentmesh.core.units import DAY_MS, HOUR_MS, MINUTE_MS
from agentmesh.mesh.logic.entry import Entry, SortedEntries, StoredEntry, Tombstone
from agentmesh.mesh.logic.kinds import KindRule, Register, mesh_rules
from agentmesh.mesh.logic.limits import MAX_CLOCK_SKEW_MS, REFUSED_IDS, REFUSED_MEMORY_MS
from agentmesh.mesh.logic.record import Record
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.logic.refused import RefusedIds
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.logic.verdict import Accepted, Known, NotYet, Reason, Refused
from tests.fakes.records import (
    LIFETIME_MS,
    NOON_MS,
    POST,
    RETRACTION,
    Policy,
    World,
    author,
    kept,
    post,
    record,
    retraction,
)

ANN, BEN = author("ann"), author("ben")


def stored(one: Record) -> StoredEntry:
    return StoredEntry(one.id, one.kind, one.author, one.subkey, one.timestamp_ms, one.expires_ms, one.size_bytes)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def index(world: World) -> RecordIndex:
    return world.index()


# ------------------------------------------------------------------ accepting


def test_what_is_reconciled_after_a_retraction_is_the_retraction(index: RecordIndex) -> None:
    gone = retraction(hello := post(ANN, NOON_MS, "hello"))
    for one in (hello, gone):
        index.offer(one, NOON_MS)
    assert [item.id for item in index.snapshot(NOON_MS).items] == [gone.id]


def test_of_records_in_one_place_each_is_taken_out_by_itself() -> None:
    rules = mesh_rules(POST, RETRACTION)
    same = [Entry(bytes([n]) * 16, rules["retraction"], ANN, bytes(16), NOON_MS, HOUR_MS, 100) for n in range(250)]
    entries = SortedEntries()
    for _ in range(5):
        for entry in same:
            entries.add(entry)
    for entry in same[::2] * 5:
        entries.remove(entry)
    assert sorted(e.id for e in entries.copy()) == sorted(e.id for e in same[1::2] * 5)


def test_a_record_is_accepted_once_and_known_after(index: RecordIndex) -> None:
    hello = post(ANN, NOON_MS, "hello")
    assert index.offer(hello, NOON_MS) == Accepted()
    assert index.offer(hello, NOON_MS) == Known()
    entry = index.entry(hello.id)
    assert entry is not None
    assert (entry.kind, entry.author, entry.expires_ms) == ("post", ANN, hello.expires_ms)
    assert hello.id in index
    assert len(index) == 1


def test_a_kind_without_rules_is_refused_without_blame(index: RecordIndex) -> None:
    """The sender may be of a later version."""
    assert index.offer(record("novelty", ANN, NOON_MS), NOON_MS) == Refused(Reason.UNKNOWN_KIND)


@pytest.mark.parametrize(
    "bad",
    [
        post(ANN, NOON_MS, "x" * 101),
        post(ANN, NOON_MS, lifetime_ms=LIFETIME_MS + 1),
        record("post", ANN, NOON_MS, subkey=b"post"),
        record("retraction", ANN, NOON_MS, subkey=b"no id"),
        record("retraction", ANN, NOON_MS, subkey=bytes(16), lifetime_ms=LIFETIME_MS - 1),
        record("retraction", ANN, NOON_MS, subkey=bytes(16), payload=b"sorry"),
    ],
    ids=["payload", "lifetime", "subkey", "no target", "short-lived retraction", "retraction with text"],
)
def test_what_no_honest_node_can_send_is_held_against_the_sender(index: RecordIndex, bad: Record) -> None:
    verdict = index.offer(bad, NOON_MS)
    assert isinstance(verdict, Refused)
    assert verdict.reason == Reason.MALFORMED
    assert verdict.blame
    assert verdict.detail


def test_a_kind_judges_its_own_records() -> None:
    picky = KindRule("picky", 10, HOUR_MS, validate=lambda one: None if one.payload else "it is empty")
    index = RecordIndex(mesh_rules(picky), lambda a, n: Standing.MEMBER, lambda a: (), Policy)
    empty = index.offer(record("picky", ANN, NOON_MS, lifetime_ms=HOUR_MS), NOON_MS)
    assert empty == Refused(Reason.MALFORMED, blame=True, detail="it is empty")
    assert index.offer(record("picky", ANN, NOON_MS, lifetime_ms=HOUR_MS, payload=b"x"), NOON_MS) == Accepted()


def test_an_expired_record_is_refused_by_its_own_signed_time(index: RecordIndex) -> None:
    old = post(ANN, NOON_MS)
    assert index.offer(old, old.expires_ms) == Refused(Reason.EXPIRED)
    assert index.offer(old, old.expires_ms - 1) == Accepted()


def test_a_record_from_the_future_is_not_yet_and_not_remembered_as_refused(index: RecordIndex) -> None:
    early = post(ANN, NOON_MS + MAX_CLOCK_SKEW_MS + 1)
    assert index.offer(early, NOON_MS) == NotYet(Reason.TOO_EARLY)
    assert index.wants(early.id, NOON_MS)
    assert index.offer(early, NOON_MS + 1) == Accepted()


def test_a_record_of_an_unknown_author_waits_for_its_certificate(world: World, index: RecordIndex) -> None:
    world.standings[ANN] = Standing.UNKNOWN
    hello = post(ANN, NOON_MS)
    assert index.offer(hello, NOON_MS) == NotYet(Reason.AUTHOR_UNKNOWN)
    world.standings[ANN] = Standing.MEMBER
    assert index.offer(hello, NOON_MS) == Accepted()


def test_certificates_are_kept_before_their_author_is_a_member(world: World, index: RecordIndex) -> None:
    world.standings[ANN] = Standing.UNKNOWN
    assert index.offer(record("member", ANN, NOON_MS, payload=b"chain"), NOON_MS) == Accepted()


def test_nothing_new_of_an_author_that_is_out_is_kept_but_what_trust_judges(world: World, index: RecordIndex) -> None:
    world.standings[ANN] = Standing.OUT
    assert index.offer(post(ANN, NOON_MS), NOON_MS) == Refused(Reason.AUTHOR_OUT)
    assert index.offer(record("demand", ANN, NOON_MS, lifetime_ms=HOUR_MS), NOON_MS) == Refused(Reason.AUTHOR_OUT)
    assert index.offer(record("revocation", ANN, NOON_MS, subkey=ANN), NOON_MS) == Accepted()


# ------------------------------------------------------------------ last writer wins


def test_the_newer_record_of_a_register_wins_in_either_order(index: RecordIndex) -> None:
    older, newer = (record("demand", ANN, NOON_MS + at, lifetime_ms=HOUR_MS) for at in (0, 5))
    assert index.offer(older, NOON_MS) == Accepted()
    assert index.offer(newer, NOON_MS) == Accepted((older.id,))
    assert index.offer(older, NOON_MS) == Refused(Reason.REPLACED)
    assert kept(index) == [newer.id]
    entry = index.register("demand", ANN, b"")
    assert entry is not None
    assert entry.id == newer.id


def test_ties_in_a_register_go_by_id(world: World) -> None:
    rivals = [record("demand", ANN, NOON_MS, lifetime_ms=HOUR_MS, payload=text) for text in (b"a", b"b", b"c")]
    winner = max(rivals, key=lambda one: one.id).id
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        index = world.index()
        for number in order:
            index.offer(rivals[number], NOON_MS)
        assert kept(index) == [winner]


def test_registers_differ_by_author_subkey_and_kind(index: RecordIndex) -> None:
    for one in (
        record("demand", ANN, NOON_MS, lifetime_ms=HOUR_MS),
        record("demand", BEN, NOON_MS, lifetime_ms=HOUR_MS),
        record("demand", ANN, NOON_MS, subkey=b"x", lifetime_ms=HOUR_MS),
        record("note", ANN, NOON_MS),
        record("note", ANN, NOON_MS + 1),
    ):
        assert index.offer(one, NOON_MS) == Accepted()


# ------------------------------------------------------------------ expiry


def test_records_expire_by_their_own_time_and_in_its_order(index: RecordIndex) -> None:
    notes = [record("note", ANN, NOON_MS, lifetime_ms=ms) for ms in (70_000, 10_000, 59_000, 61_000)]
    for note in notes:
        index.offer(note, NOON_MS)
    assert index.expire(NOON_MS + 9_999) == ()
    assert index.expire(NOON_MS + 61_000) == (notes[1].id, notes[2].id, notes[3].id)
    assert index.expire(NOON_MS + 70_000) == (notes[0].id,)
    assert len(index) == 0
    assert index.snapshot(NOON_MS).items == []


def test_a_replaced_record_does_not_expire_again(index: RecordIndex) -> None:
    index.offer(record("demand", ANN, NOON_MS, lifetime_ms=MINUTE_MS), NOON_MS)
    newer = record("demand", ANN, NOON_MS + 1, lifetime_ms=HOUR_MS)
    index.offer(newer, NOON_MS)
    assert index.expire(NOON_MS + 2 * MINUTE_MS) == ()
    assert kept(index) == [newer.id]


# ------------------------------------------------------------------ authors that are out


def test_dropping_an_author_drops_all_that_it_wrote_but_what_trust_judges(index: RecordIndex) -> None:
    mine = [post(ANN, NOON_MS), record("demand", ANN, NOON_MS, lifetime_ms=HOUR_MS)]
    judged = [record(kind, ANN, NOON_MS, subkey=BEN) for kind in ("member", "revocation")]
    other = post(BEN, NOON_MS)
    for one in (*mine, *judged, other):
        index.offer(one, NOON_MS)
    assert sorted(index.drop_author(ANN)) == sorted(one.id for one in mine)
    assert kept(index) == sorted(one.id for one in (*judged, other))
    assert index.register("demand", ANN, b"") is None


def test_the_slots_of_a_dropped_author_are_free_for_its_subtree(world: World) -> None:
    world.policy = Policy(100, 1)
    world.scopes = {author(str(number)): (b"invite",) for number in range(9)}
    index = world.index()
    posts = [post(author(str(number)), NOON_MS + number) for number in range(9)]
    verdicts = [index.offer(one, NOON_MS) for one in posts]
    assert verdicts[8] == Refused(Reason.OVER_QUOTA)
    index.drop_author(author("3"))
    assert index.offer(posts[8], NOON_MS) == Accepted()


# ------------------------------------------------------------------ what is not wanted


def test_a_refused_id_is_not_wanted_for_ten_minutes(index: RecordIndex) -> None:
    index.refuse(b"i" * 16, NOON_MS)
    assert not index.wants(b"i" * 16, NOON_MS + REFUSED_MEMORY_MS - 1)
    assert index.snapshot(NOON_MS).unwanted == [b"i" * 16]
    assert index.wants(b"i" * 16, NOON_MS + REFUSED_MEMORY_MS)
    assert index.snapshot(NOON_MS + REFUSED_MEMORY_MS).unwanted == []


def test_refused_ids_are_bounded_and_the_oldest_go_first() -> None:
    refused = RefusedIds()
    for number in range(REFUSED_IDS + 5):
        refused.add(number.to_bytes(16), NOON_MS)
    assert len(refused) == REFUSED_IDS
    assert not refused.holds((4).to_bytes(16), NOON_MS)
    assert refused.holds((5).to_bytes(16), NOON_MS)


def test_only_lasting_kinds_are_reconciled_and_certificates_come_first(index: RecordIndex) -> None:
    hello, member = post(ANN, NOON_MS), record("member", ANN, NOON_MS + 5)
    presence = record("node", ANN, NOON_MS, lifetime_ms=HOUR_MS)
    for one in (hello, member, presence):
        index.offer(one, NOON_MS)
    assert [item.id for item in index.snapshot(NOON_MS).items] == [member.id, hello.id]
    assert index.passing() == (presence.id,)


def test_a_snapshot_is_not_touched_by_what_comes_after(index: RecordIndex) -> None:
    index.offer(post(ANN, NOON_MS), NOON_MS)
    before = index.snapshot(NOON_MS)
    index.offer(post(ANN, NOON_MS + 1), NOON_MS)
    assert len(before.items) == 1


def test_a_full_store_discards_the_largest_author_first_and_does_not_fetch_it_again(index: RecordIndex) -> None:
    small = post(BEN, NOON_MS)
    large = [post(ANN, NOON_MS + number, "x" * 90) for number in range(5)]
    certificate = record("member", ANN, NOON_MS, payload=b"c" * 1_000)
    for one in (small, *large, certificate):
        index.offer(one, NOON_MS)
    needed = large[0].size_bytes + 1
    assert index.evict_largest_author(needed, spare=b"") == (large[0].id, large[1].id)
    assert index.offer(large[0], NOON_MS) == Refused(Reason.DISCARDED)
    assert not index.wants(large[0].id, NOON_MS + HOUR_MS)
    assert large[0].id in index.snapshot(NOON_MS + HOUR_MS).unwanted
    assert certificate.id in index
    index.expire(large[1].expires_ms)
    assert index.snapshot(large[1].expires_ms).unwanted == []


def test_a_full_store_spares_its_own_author_and_gives_all_others_if_it_must(index: RecordIndex) -> None:
    posts = [post(by, NOON_MS + number) for by in (ANN, BEN) for number in range(3)]
    for one in posts:
        index.offer(one, NOON_MS)
    assert len(index.evict_largest_author(10**9, spare=ANN)) == 3
    assert kept(index) == sorted(one.id for one in posts[:3])
    assert index.size_bytes() == sum(one.size_bytes for one in posts[:3])


# ------------------------------------------------------------------ timestamps of our own


def test_our_timestamps_rise_even_when_the_clock_does_not(index: RecordIndex) -> None:
    index.offer(post(ANN, NOON_MS + 500), NOON_MS)
    first = index.next_timestamp(ANN, NOON_MS)
    assert first == NOON_MS + 501
    assert index.next_timestamp(ANN, NOON_MS) == first + 1
    index.offer(post(ANN, NOON_MS + 900), NOON_MS)
    assert index.next_timestamp(ANN, NOON_MS) == NOON_MS + 901
    assert index.next_timestamp(BEN, NOON_MS) == NOON_MS


def test_a_record_dated_by_a_clock_that_ran_ahead_does_not_lift_our_timestamps(index: RecordIndex) -> None:
    index.offer(post(ANN, NOON_MS + DAY_MS), NOON_MS + DAY_MS)
    assert index.next_timestamp(ANN, NOON_MS) == NOON_MS
    assert index.next_timestamp(ANN, NOON_MS) == NOON_MS + 1


def test_a_retraction_gets_the_time_of_its_target(index: RecordIndex) -> None:
    hello = post(ANN, NOON_MS, lifetime_ms=HOUR_MS)
    index.offer(hello, NOON_MS)
    times = index.times_for("retraction", ANN, hello.id, HOUR_MS, NOON_MS + MINUTE_MS)
    assert times == (NOON_MS, NOON_MS + LIFETIME_MS)
    assert index.times_for("demand", BEN, b"", DAY_MS, NOON_MS) == (NOON_MS, NOON_MS + HOUR_MS)
    for by, target in ((BEN, hello.id), (ANN, bytes(16))):
        with pytest.raises(LookupError):
            index.times_for("retraction", by, target, HOUR_MS, NOON_MS)


# ------------------------------------------------------------------ restart


def test_a_restored_index_keeps_what_it_kept(world: World, index: RecordIndex) -> None:
    world.policy = Policy(3, 100)
    posts = [post(ANN, NOON_MS + number) for number in range(5)]
    gone = post(BEN, NOON_MS - DAY_MS, lifetime_ms=DAY_MS + 1)
    everything = [*posts, gone, retraction(posts[0]), record("demand", ANN, NOON_MS, lifetime_ms=HOUR_MS)]
    for one in everything:
        index.offer(one, NOON_MS)
    index.expire(NOON_MS + 1)
    again = world.index()
    here = [stored(one) for one in everything if one.id in index]
    assert again.restore(here, index.tombstones(), NOON_MS + 1) == ()
    assert kept(again) == kept(index)
    assert again.size_bytes() == index.size_bytes()
    assert sorted(again.tombstones()) == sorted(index.tombstones())
    for one in everything:
        assert type(again.offer(one, NOON_MS + 1)) is type(index.offer(one, NOON_MS + 1))
    assert again.next_timestamp(ANN, 0) == index.next_timestamp(ANN, 0)


def test_restoring_names_what_is_not_kept_any_more(world: World) -> None:
    world.policy = Policy(2, 100)
    posts = [post(ANN, NOON_MS + number) for number in range(3)]
    old = post(BEN, NOON_MS - DAY_MS, lifetime_ms=HOUR_MS)
    replaced, newer = (record("demand", ANN, NOON_MS + at, lifetime_ms=HOUR_MS) for at in (0, 1))
    foreign = record("novelty", ANN, NOON_MS)
    index = world.index()
    dropped = index.restore([stored(one) for one in (newer, replaced, *posts, old, foreign)], [], NOON_MS)
    assert sorted(dropped) == sorted([posts[2].id, old.id, replaced.id, foreign.id])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: KindRule("a", 1, 1, quota=True),
        lambda: KindRule("a", 1, 1, retracts="post"),
        lambda: KindRule("a", 2**20, 1),
        lambda: KindRule("a", 1, 1, register=Register.ID, quota=True, lasting=False),
        lambda: mesh_rules(KindRule("a", 1, 1, quota=True, retracts="member")),
    ],
)
def test_rules_that_contradict_each_other_are_found_at_start(wrong) -> None:
    with pytest.raises(ValueError):
        wrong()


def test_records_that_trust_lets_go_are_dropped_and_not_fetched_again(index: RecordIndex) -> None:
    member = record("member", ANN, NOON_MS)
    index.offer(member, NOON_MS)
    assert index.drop([member.id, bytes(16)], NOON_MS) == (member.id,)
    assert not index.wants(member.id, NOON_MS)
    assert index.snapshot(NOON_MS).items == []


def test_thousands_of_records_of_any_times_stay_in_order(index: RecordIndex) -> None:
    rng = random.Random(1)
    notes = [
        record("note", ANN, NOON_MS - rng.choice([7, rng.randrange(HOUR_MS)]), payload=b"%d" % n) for n in range(4_000)
    ]
    for note in notes:
        index.offer(note, NOON_MS)
    gone = notes[::3]
    index.drop([note.id for note in gone], NOON_MS)
    left = sorted((note.timestamp_ms, note.id) for number, note in enumerate(notes) if number % 3)
    assert [(item.timestamp_ms, item.id) for item in index.snapshot(NOON_MS).items] == left


def test_nothing_of_an_author_that_is_out_is_restored_not_even_its_slots(world: World) -> None:
    world.policy = Policy(100, 1)
    names = [author(str(number)) for number in range(9)]
    world.scopes = dict.fromkeys(names, (b"invite",))
    world.standings[names[0]] = Standing.OUT
    mine = [post(name, NOON_MS + number) for number, name in enumerate(names)]
    farewell = record("revocation", names[0], NOON_MS, subkey=names[0])
    index = world.index()
    tombstone = Tombstone(names[0], NOON_MS, bytes(16))
    assert index.restore([stored(one) for one in (*mine, farewell)], [tombstone], NOON_MS) == (mine[0].id,)
    assert kept(index) == sorted(one.id for one in (*mine[1:], farewell))
