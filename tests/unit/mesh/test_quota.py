"""Quota slots one by one: what displaces what, and how long a slot counts."""

from __future__ import annotations

from agentmesh.core.units import DAY_MS, HOUR_MS, MINUTE_MS
from agentmesh.mesh.logic.kinds import KindRule, mesh_rules
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.logic.verdict import Accepted, Reason, Refused
from tests.fakes.records import LIFETIME_MS, NOON_MS, POST, Policy, World, author, kept, post, record, retraction

ANN, BEN, CAT = author("ann"), author("ben"), author("cat")
OVER = Refused(Reason.OVER_QUOTA)


def test_the_first_of_a_minute_count_and_an_earlier_one_displaces_the_latest() -> None:
    world = World(policy=Policy(2, 100))
    index = world.index()
    late = [post(ANN, NOON_MS + number) for number in (10, 20, 30)]
    assert [index.offer(one, NOON_MS) for one in late] == [Accepted(), Accepted(), OVER]
    early = post(ANN, NOON_MS + 5)
    assert index.offer(early, NOON_MS) == Accepted((late[1].id,))
    assert not index.wants(late[1].id, NOON_MS)


def test_the_next_minute_has_a_quota_of_its_own() -> None:
    index = World(policy=Policy(1, 100)).index()
    for at in (0, MINUTE_MS - 1, MINUTE_MS):
        index.offer(post(ANN, NOON_MS + at), NOON_MS)
    assert len(index) == 2


def test_of_those_the_first_of_a_utc_day_count() -> None:
    index = World(policy=Policy(10, 3)).index()
    for minute in range(6):
        index.offer(post(ANN, NOON_MS - minute * MINUTE_MS), NOON_MS)
    assert sorted(entry.timestamp_ms for entry in index) == [NOON_MS - minute * MINUTE_MS for minute in (5, 4, 3)]
    midnight_ms = NOON_MS // DAY_MS * DAY_MS + DAY_MS
    assert index.offer(post(ANN, midnight_ms), midnight_ms) == Accepted()


def test_a_subtree_has_eight_daily_quotas_and_an_earlier_author_displaces_a_later_one() -> None:
    world = World(policy=Policy(10, 1))
    names = [author(str(number)) for number in range(9)]
    world.scopes = dict.fromkeys(names, (b"invite", b"ann"))
    index = world.index()
    posts = [post(name, NOON_MS + 10 + number) for number, name in enumerate(names)]
    assert [index.offer(one, NOON_MS) for one in posts] == [Accepted()] * 8 + [OVER]
    early = post(names[8], NOON_MS)
    assert index.offer(early, NOON_MS) == Accepted((posts[7].id,))
    outsider = post(BEN, NOON_MS + 99)
    assert index.offer(outsider, NOON_MS) == Accepted()


def test_only_quota_kinds_count() -> None:
    index = World(policy=Policy(1, 1)).index()
    for number in range(5):
        assert index.offer(record("note", ANN, NOON_MS + number), NOON_MS) == Accepted()


def test_expired_posts_count_until_no_post_of_their_day_can_live() -> None:
    index = World(policy=Policy(1, 1)).index()
    index.offer(post(ANN, NOON_MS, lifetime_ms=HOUR_MS), NOON_MS)
    later = post(ANN, NOON_MS + 2 * HOUR_MS)
    end_ms = NOON_MS + DAY_MS // 2 + LIFETIME_MS
    index.expire(later.expires_ms - 1)
    assert index.offer(later, later.expires_ms - 1) == OVER
    assert len(index.tombstones()) == 1
    index.expire(end_ms - 1)
    assert len(index.tombstones()) == 1
    index.expire(end_ms)
    assert index.tombstones() == []


def test_discarded_posts_still_count() -> None:
    index = World(policy=Policy(1, 1)).index()
    index.offer(post(ANN, NOON_MS), NOON_MS)
    index.evict_largest_author(1, spare=b"")
    assert index.offer(post(ANN, NOON_MS + 1), NOON_MS) == OVER


# ------------------------------------------------------------------ retraction


def test_a_retraction_takes_the_place_of_its_post_in_either_order() -> None:
    hello = post(ANN, NOON_MS)
    gone = retraction(hello)
    index = World().index()
    index.offer(hello, NOON_MS)
    assert index.offer(gone, NOON_MS) == Accepted((hello.id,))
    assert index.offer(hello, NOON_MS) == Refused(Reason.RETRACTED)
    other = World().index()
    assert other.offer(gone, NOON_MS) == Accepted()
    assert other.offer(hello, NOON_MS) == Refused(Reason.RETRACTED)
    assert kept(index) == kept(other) == [gone.id]


def test_a_retraction_needs_no_quota_beside_its_post() -> None:
    index = World(policy=Policy(1, 1)).index()
    hello = post(ANN, NOON_MS)
    index.offer(hello, NOON_MS)
    assert index.offer(retraction(hello), NOON_MS) == Accepted((hello.id,))
    assert index.offer(post(ANN, NOON_MS + 1), NOON_MS) == OVER


def test_retractions_of_posts_that_nobody_has_are_held_to_the_quota() -> None:
    index = World(policy=Policy(3, 100)).index()
    for number in range(10):
        index.offer(retraction(post(ANN, NOON_MS + number, "never sent")), NOON_MS)
    assert len(index) == 3


def test_nobody_retracts_for_another_and_a_false_time_retracts_nothing() -> None:
    index = World().index()
    hello = post(ANN, NOON_MS)
    index.offer(hello, NOON_MS)
    index.offer(retraction(hello, by=BEN), NOON_MS)
    index.offer(retraction(hello, at_ms=NOON_MS - 1), NOON_MS)
    assert hello.id in index


def test_a_retracted_post_that_loses_its_slot_takes_its_retraction_along() -> None:
    index = World(policy=Policy(1, 1)).index()
    hello = post(ANN, NOON_MS + 1)
    gone = retraction(hello)
    index.offer(gone, NOON_MS)
    assert index.offer(post(ANN, NOON_MS), NOON_MS) == Accepted((gone.id,))


def test_a_retraction_outlives_a_short_lived_post() -> None:
    """Otherwise a node that never saw the retraction could bring the post back."""
    index = World().index()
    hello = post(ANN, NOON_MS)
    index.offer(retraction(hello), NOON_MS)
    index.expire(hello.expires_ms - 1)
    assert index.offer(hello, hello.expires_ms - 1) == Refused(Reason.RETRACTED)


# ------------------------------------------------------------------ changes


def test_raised_quotas_let_refused_posts_be_fetched_again() -> None:
    world = World(policy=Policy(1, 10))
    index = world.index()
    first, second = post(ANN, NOON_MS), post(ANN, NOON_MS + 1)
    index.offer(first, NOON_MS)
    index.offer(second, NOON_MS)
    assert not index.wants(second.id, NOON_MS)
    world.policy = Policy(2, 10)
    assert index.requota(NOON_MS) == ()
    assert index.wants(second.id, NOON_MS)
    assert index.offer(second, NOON_MS) == Accepted()


def test_lowered_quotas_drop_the_latest() -> None:
    world = World(policy=Policy(5, 10))
    index = world.index()
    posts = [post(ANN, NOON_MS + number) for number in range(5)]
    for one in posts:
        index.offer(one, NOON_MS)
    world.policy = Policy(2, 10)
    assert sorted(index.requota(NOON_MS)) == sorted(one.id for one in posts[2:])


def test_an_author_that_moves_under_a_full_invite_gives_way_and_the_next_expiry_tells() -> None:
    world = World(policy=Policy(10, 1))
    names = [author(str(number)) for number in range(8)]
    world.scopes = dict.fromkeys(names, (b"invite",))
    index = world.index()
    for number, name in enumerate(names):
        index.offer(post(name, NOON_MS + number), NOON_MS)
    mine = post(CAT, NOON_MS + 50)
    index.offer(mine, NOON_MS)
    world.scopes[CAT] = (b"invite",)
    assert index.offer(post(CAT, NOON_MS + 60), NOON_MS) == OVER
    assert index.expire(NOON_MS) == (mine.id,)


def test_an_author_that_moves_is_followed_at_once_when_asked() -> None:
    world = World(policy=Policy(10, 1))
    names = [author(str(number)) for number in range(8)]
    world.scopes = dict.fromkeys(names, (b"invite",))
    index = world.index()
    mine = post(CAT, NOON_MS + 50)
    for one in (*(post(name, NOON_MS + number) for number, name in enumerate(names)), mine):
        index.offer(one, NOON_MS)
    assert index.follow([CAT, BEN], NOON_MS) == ()
    world.scopes[CAT] = (b"invite",)
    assert index.follow([CAT, BEN], NOON_MS) == (mine.id,)


def test_of_two_retractions_of_one_post_the_smaller_id_stays_in_either_order() -> None:
    kind = KindRule("retraction", 10, LIFETIME_MS, quota=True, retracts="post")
    hello = post(ANN, NOON_MS)
    both = [record("retraction", ANN, NOON_MS, subkey=hello.id, payload=text) for text in (b"a", b"b")]
    for order in (both, both[::-1]):
        index = RecordIndex(mesh_rules(POST, kind), lambda a, n: Standing.MEMBER, lambda a: (), Policy)
        for one in (*order, hello):
            index.offer(one, NOON_MS)
        assert kept(index) == [min(one.id for one in both)]


def test_the_index_tells_how_much_of_a_quota_is_used() -> None:
    world = World(scopes={ANN: (b"inner", b"outer"), BEN: (b"outer",)})
    index = world.index()
    assert index.quota_used(ANN, NOON_MS) == (0, 0, 0)
    for one in (post(ANN, NOON_MS), post(ANN, NOON_MS - MINUTE_MS), post(BEN, NOON_MS)):
        index.offer(one, NOON_MS)
    assert index.quota_used(ANN, NOON_MS + MINUTE_MS - 1) == (1, 2, 3)


def test_refused_records_may_come_again_once_membership_changed() -> None:
    world = World(standings={ANN: Standing.OUT})
    index = world.index()
    hello = post(ANN, NOON_MS)
    index.offer(hello, NOON_MS)
    assert not index.wants(hello.id, NOON_MS)
    index.forget_refused()
    assert index.wants(hello.id, NOON_MS)
