"""The way in for records: what gets in, what waits, who is blamed."""

from __future__ import annotations

import pytest

from agentmesh.core.units import DAY_MS, HOUR_MS, MINUTE_MS
from agentmesh.mesh.logic.inbox import Inbox
from agentmesh.mesh.logic.limits import BAN_MS, MAX_BATCH_RECORDS, MAX_BLAME, REFUSED_MEMORY_MS
from agentmesh.mesh.logic.policy import Policy, encode_policy
from agentmesh.mesh.logic.record import Record, SignedRecord
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.logic.trust import Trust
from tests.sim.keys import RULES, START_MS, Mint

PEER, OTHER = b"p" * 32, b"o" * 32
NOW = START_MS


class Node:
    """A node of a mesh of three members, that so far knows the first two."""

    def __init__(self, *, known: int = 2, real: bool = False) -> None:
        self.mint = Mint(real=real)
        for number in range(3):
            self.mint.member(number)
        self.trust = Trust(self.mint.mesh, self.mint.verify)
        self.index = RecordIndex(RULES, self.trust.standing, self.trust.scopes, self.trust.policy)
        self.inbox = Inbox(self.mint.mesh, self.index, self.trust, self.mint.verify)
        for number in range(known):
            assert self.receive(self.mint.member_record(number)).fresh

    def receive(self, *records: Record | SignedRecord, peer: bytes = PEER, now_ms: int = NOW):
        signed = [r.signed if isinstance(r, Record) else r for r in records]
        return self.inbox.receive(signed, peer, now_ms)

    def post(self, number: int, text: str = "hello", at_ms: int = NOW) -> Record:
        return self.mint.post(number, text, at_ms)


@pytest.mark.parametrize("real", [False, True], ids=["cheap signatures", "Ed25519"])
def test_a_members_signed_post_gets_in_once(real: bool) -> None:
    node = Node(real=real)
    post = node.post(1)
    assert node.receive(post).fresh == [post]
    again = node.receive(post)
    assert (again.fresh, again.repeats, again.blame) == ([], [post.id], {})


def test_a_forged_signature_is_blamed_and_does_not_keep_the_real_record_out() -> None:
    node = Node(real=True)
    post = node.post(1)
    forged = node.receive(SignedRecord(post.signed.body, bytes(64)))
    assert (forged.fresh, forged.blame) == ([], {PEER: 1})
    assert node.receive(post).fresh == [post]


def test_records_that_break_their_kinds_rules_are_blamed() -> None:
    node = Node()
    key = node.mint.keys[1]
    too_long = node.mint.record(key, "post", b"x", NOW, 90 * DAY_MS)
    too_big = node.mint.record(key, "post", bytes(17_000), NOW, HOUR_MS)
    false_policy = node.mint.record(key, "policy", encode_policy(Policy()), NOW, DAY_MS)
    for number, record in enumerate((too_long, too_big, false_policy)):
        outcome = node.receive(record, now_ms=NOW + number)
        assert (outcome.fresh, outcome.blame) == ([], {PEER: 1}), record.kind


def test_what_a_later_version_knows_is_neither_kept_nor_blamed() -> None:
    node = Node()
    outcome = node.receive(node.mint.record(node.mint.keys[1], "poll", b"", NOW, HOUR_MS))
    assert (outcome.fresh, outcome.refused, outcome.blame) == ([], 1, {})


def test_what_was_refused_is_not_looked_at_again_for_ten_minutes() -> None:
    node = Node()
    expired = node.mint.record(node.mint.keys[1], "post", b"", NOW - HOUR_MS, MINUTE_MS)
    assert node.receive(expired).refused == 1
    assert node.inbox.has(expired.id, NOW + REFUSED_MEMORY_MS - 1)
    assert not node.inbox.has(expired.id, NOW + REFUSED_MEMORY_MS)


def test_a_post_of_an_unknown_author_waits_for_the_certificate() -> None:
    node = Node()
    post = node.post(2)
    outcome = node.receive(post)
    assert (outcome.fresh, outcome.unplaced, outcome.blame) == ([], 1, {})
    assert node.inbox.has(post.id, NOW), "it is not asked for again"
    assert post.id in node.inbox.snapshot(NOW).unwanted
    outcome = node.receive(node.mint.member_record(2), peer=OTHER)
    assert [r.kind for r in outcome.fresh] == ["member"]
    assert outcome.revived == [post]
    assert len(node.inbox.pool) == 0


def test_blame_for_what_waited_falls_on_who_brought_it() -> None:
    node = Node()
    bad = node.mint.record(node.mint.keys[2], "post", b"x", NOW, HOUR_MS, subkey=b"posts have none")
    waits = node.mint.record(node.mint.keys[2], "post", b"x", NOW, 40 * HOUR_MS)
    assert node.receive(bad, waits, peer=OTHER).blame == {OTHER: 1}
    node.receive(node.mint.post(2, "late", NOW + 20 * MINUTE_MS), peer=OTHER)
    outcome = node.receive(node.mint.member_record(2), peer=PEER)
    assert PEER not in outcome.blame


def test_an_early_post_waits_for_its_time() -> None:
    node = Node()
    early = node.post(1, at_ms=NOW + 20 * MINUTE_MS)
    assert node.receive(early).waiting == 1
    assert node.inbox.pool.deadline_ms == NOW + 5 * MINUTE_MS
    assert node.inbox.tick(NOW + 5 * MINUTE_MS - 1).revived == []
    assert node.inbox.tick(NOW + 5 * MINUTE_MS).revived == [early]


def test_a_post_from_the_far_future_is_refused_and_from_days_ahead_blamed() -> None:
    node = Node()
    assert node.receive(node.post(1, at_ms=NOW + 3 * HOUR_MS)).blame == {}
    assert node.receive(node.post(1, at_ms=NOW + 3 * DAY_MS)).blame == {PEER: 1}
    assert len(node.inbox.pool) == 0


def test_a_revocation_drops_what_the_outcast_wrote_and_what_of_it_waited() -> None:
    node = Node(known=3)
    kept, gone = node.post(1), node.post(2)
    waits = node.post(2, "early", NOW + 20 * MINUTE_MS)
    node.receive(kept, gone, waits)
    outcome = node.receive(node.mint.revocation(2, NOW))
    assert outcome.out == (node.mint.keys[2].public,)
    assert gone.id in outcome.dropped
    assert kept.id not in outcome.dropped
    assert len(node.inbox.pool) == 0
    later = node.receive(node.post(2, "again", NOW + 1), gone)
    assert (later.fresh, later.refused, later.blame) == ([], 2, {})


def test_a_stricter_policy_drops_what_is_over_it() -> None:
    node = Node()
    posts = [node.post(1, f"{n}", NOW + n) for n in range(10)]
    node.receive(*posts)
    payload = encode_policy(Policy(posts_per_minute=4))
    outcome = node.receive(node.mint.record(node.mint.root, "policy", payload, NOW, DAY_MS))
    assert sorted(outcome.dropped) == sorted(post.id for post in posts[4:])


def test_over_quota_posts_are_refused_without_blame() -> None:
    node = Node()
    outcome = node.receive(*[node.post(1, f"{n}", NOW + n) for n in range(130)])
    assert (len(outcome.fresh), outcome.refused, outcome.blame) == (120, 10, {})


def test_one_message_is_read_up_to_its_limit_only() -> None:
    node = Node()
    outcome = node.receive(*[node.post(1, "again", NOW)] * (MAX_BATCH_RECORDS + 100))
    assert len(outcome.fresh) + len(outcome.repeats) == MAX_BATCH_RECORDS


def test_a_message_of_garbage_is_read_until_its_sender_is_disconnected_for_it() -> None:
    node = Node()
    garbage = [SignedRecord(b"%d" % n, bytes(64)) for n in range(MAX_BATCH_RECORDS)]
    assert node.receive(*garbage).blame == {PEER: MAX_BLAME + 1}


def test_an_own_record_is_judged_like_any_other_but_for_its_signature() -> None:
    node = Node()
    own = [node.post(1, f"{n}", NOW + n) for n in range(121)]
    outcomes = [node.inbox.own(record, PEER, NOW) for record in own]
    assert [len(outcome.fresh) for outcome in outcomes] == [1] * 120 + [0]
    assert node.inbox.own(own[0], PEER, NOW).repeats == [own[0].id]


def test_what_expires_is_dropped() -> None:
    node = Node()
    post = node.post(1)
    node.receive(post)
    assert node.inbox.expire(post.expires_ms - 1).dropped == {}
    assert list(node.inbox.expire(post.expires_ms).dropped) == [post.id]


def test_blame_is_counted_for_a_while_and_then_forgiven() -> None:
    node = Node()
    assert node.inbox.add_blame(PEER, 3, NOW) == 3
    assert node.inbox.add_blame(PEER, 3, NOW + BAN_MS) == 6
    assert node.inbox.add_blame(PEER, 3, NOW + BAN_MS + 1) == 3
