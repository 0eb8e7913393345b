"""Whole nodes without a network: whatever happened to them and in whatever order, after some sessions they keep the same.

Each node is Trust, index, inbox and a store, as on a real node; sessions are real reconciliations with a lossless link. People
post, retract, join, revoke, vouch, change the policy; nodes restart from their store; hours pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from agentmesh.core.units import HOUR_MS, MINUTE_MS, SECOND_MS
from agentmesh.mesh.logic import chainbook, reconcile, revocation_book
from agentmesh.mesh.logic.certificate import CapabilityError, leaf_of
from agentmesh.mesh.logic.entry import StoredEntry, Tombstone
from agentmesh.mesh.logic.inbox import Inbox, Outcome
from agentmesh.mesh.logic.kinds import mesh_rules
from agentmesh.mesh.logic.limits import MAX_BATCH_RECORDS, REFUSED_MEMORY_MS
from agentmesh.mesh.logic.policy import Policy
from agentmesh.mesh.logic.record import Record
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.logic.trust import TRUST_KINDS, Trust
from agentmesh.mesh.logic.trust import Outcome as TrustOutcome
from tests.fakes.family import NOW_MS, Family
from tests.fakes.records import POST, RETRACTION
from tests.sim.keys import cheap_verify

RULES = mesh_rules(POST, RETRACTION)
ROUNDS = 12  # of sessions between all pairs, refused ids forgotten in between; far fewer are needed


@dataclass
class Node:
    """One node's records: what it decides with, and what is on its disk."""

    name: str
    family: Family
    disk: dict[bytes, Record] = field(default_factory=dict[bytes, Record])
    tombstones: list[Tombstone] = field(default_factory=list[Tombstone])

    def __post_init__(self) -> None:
        self.start(self.family.now_ms)

    def start(self, now_ms: int) -> None:
        """As mesh/state.py does it."""
        self.trust = Trust(self.family.mesh, cheap_verify)
        absent: set[bytes] = set()
        for kind in TRUST_KINDS:
            for record in [record for record in self.disk.values() if record.kind == kind]:
                if self.trust.consider(record, now_ms, from_store=True).outcome is not TrustOutcome.ACCEPTED:
                    absent.add(record.id)
        absent.update(self.trust.take_changes().dropped)
        self.index = RecordIndex(RULES, self.trust.standing, self.trust.scopes, self.trust.policy)
        stored = [
            StoredEntry(r.id, r.kind, r.author, r.subkey, r.timestamp_ms, r.expires_ms, r.size_bytes)
            for r in self.disk.values()
            if r.id not in absent
        ]
        gone = self.index.restore(stored, self.tombstones, now_ms)
        self.disk = {id_: r for id_, r in self.disk.items() if id_ not in absent and id_ not in gone}
        self.inbox = Inbox(self.family.mesh, self.index, self.trust, cheap_verify)

    def restart(self, now_ms: int) -> None:
        self.tombstones = self.index.tombstones()
        self.start(now_ms)

    def take(self, outcome: Outcome) -> None:
        for record in (*outcome.fresh, *outcome.revived):
            self.disk[record.id] = record
        for id_ in outcome.dropped:
            self.disk.pop(id_, None)

    def own(self, record: Record, now_ms: int) -> None:
        self.take(self.inbox.own(record, record.author, now_ms))

    def receive(self, records: list[Record], peer: bytes, now_ms: int) -> None:
        for start in range(0, len(records), MAX_BATCH_RECORDS):
            batch = [record.signed for record in records[start : start + MAX_BATCH_RECORDS]]
            outcome = self.inbox.receive(batch, peer, now_ms)
            assert not outcome.blame, f"{self.name} blames an honest peer"
            self.take(outcome)

    def pass_time(self, now_ms: int) -> None:
        self.take(self.inbox.tick(now_ms))
        self.take(self.inbox.expire(now_ms))

    def kept(self) -> dict[bytes, str]:
        assert {entry.id for entry in self.index} == set(self.disk), f"{self.name}: disk and index differ"
        return {entry.id: entry.kind for entry in self.index}


def session(one: Node, other: Node, now_ms: int, salt: bytes) -> int:
    """One reconciliation; returns how many records travelled."""
    sides = (one, other)
    states: list[reconcile.Session | None] = [None, None]
    step, at, moved = reconcile.begin(one.inbox.snapshot(now_ms), salt, now_ms), 0, 0
    states[0] = step.state
    while True:
        here, there = sides[at], sides[1 - at]
        records = [here.disk[id_] for id_ in step.send if id_ in here.disk]
        moved += len(records)
        there.receive(records, here.name.encode().ljust(32), now_ms)
        if step.reply is None:
            return moved
        at = 1 - at
        step = reconcile.respond(sides[at].inbox.snapshot(now_ms), states[at], step.reply, now_ms)
        states[at] = step.state


class Story:
    """A random history of one mesh, told to nodes that meet by chance."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.rng = random.Random(seed)
        self.family = Family()
        self.now_ms = self.family.now_ms
        self.nodes = [Node(f"node {number}", self.family) for number in range(nodes)]
        self.members = ["founder"]
        self.posts: list[tuple[str, Record]] = []
        self.lines: list[str] = []
        self._tell(self.family.policy_record(Policy(posts_per_minute=3, posts_per_day=8)), "policy")
        self._tell(self.family.member_record("founder"), "founder")
        for _ in range(4):
            self.join()

    def _tell(self, record: Record, line: str) -> None:
        node = self.rng.choice(self.nodes)
        self.lines.append(f"{line} -> {node.name}")
        node.own(record, self.now_ms)

    def join(self) -> None:
        name = f"m{len(self.members)}"
        inviter, admitter = self.rng.choice(self.members), self.rng.choice(self.members)
        try:
            self.family.join(name, inviter, admitter=admitter)
        except CapabilityError:
            return
        self.members.append(name)
        self._tell(self.family.member_record(name), f"{inviter} invites {name} through {admitter}")

    def post(self) -> None:
        name = self.rng.choice(self.members)
        # A burst within few minutes, so that the quotas bind.
        at_ms = self.now_ms - self.rng.choice((0, 1, 2, 40)) * MINUTE_MS - self.rng.randrange(20) * SECOND_MS
        payload = str(len(self.posts)).encode()
        record = self.family.record(name, "post", b"", payload, at_ms, at_ms + POST.max_lifetime_ms)
        self.posts.append((name, record))
        self._tell(record, f"{name} posts {record.id.hex()[:6]}")

    def retract(self) -> None:
        if not self.posts:
            return
        name, post = self.rng.choice(self.posts)
        if post.timestamp_ms + POST.max_lifetime_ms <= self.now_ms:
            return
        at_ms = post.timestamp_ms
        record = self.family.record(name, "retraction", post.id, b"", at_ms, at_ms + POST.max_lifetime_ms)
        self._tell(record, f"{name} retracts {post.id.hex()[:6]}")

    def revoke(self) -> None:
        target = self.rng.choice([*self.members[1:], *self.family.invites])
        chain = self.family.chains[target] if target in self.family.chains else self.family.invites[target][1]
        above = [n for n in self.members if self.family.key(n) in leaf_of(chain).via]
        author = self.rng.choice([*above, "root", *([target] if target in self.family.chains else [])])
        self._tell(self.family.revocation(author, target, at_ms=self.now_ms), f"{author} revokes {target}")

    def vouch(self) -> None:
        name, voucher = self.rng.choice(self.members[1:]), self.rng.choice(self.members)
        keys = [n for n in self.members if self.family.key(n) in leaf_of(self.family.chains[name]).via]
        try:
            record = self.family.voucher_record(name, voucher, (self.rng.choice(keys),))
        except CapabilityError:
            return
        self._tell(record, f"{voucher} vouches for {name}")

    def govern(self) -> None:
        policy = Policy(posts_per_minute=self.rng.choice((1, 2, 3)), posts_per_day=self.rng.choice((2, 4, 8)))
        self._tell(self.family.policy_record(policy, at_ms=self.now_ms), f"policy {policy.posts_per_day} a day")

    def restart(self) -> None:
        self.rng.choice(self.nodes).restart(self.now_ms)

    def meet(self) -> None:
        one, other = self.rng.sample(self.nodes, 2)
        self.lines.append(f"{one.name} meets {other.name}")
        session(one, other, self.now_ms, self.rng.randbytes(16))

    def wait(self) -> None:
        self.now_ms += self.rng.choice((10 * SECOND_MS, 20 * MINUTE_MS, 5 * HOUR_MS))
        self.family.now_ms = self.now_ms
        self.lines.append(f"wait until {self.now_ms - NOW_MS}")
        for node in self.nodes:
            node.pass_time(self.now_ms)

    def settle(self) -> int:
        """Sessions between all pairs until nothing travels any more; returns the rounds."""
        for number in range(ROUNDS):
            # What is refused is remembered for ten minutes only.
            self.now_ms += REFUSED_MEMORY_MS + SECOND_MS
            for node in self.nodes:
                node.pass_time(self.now_ms)
            moved = 0
            for one in self.nodes:
                for other in self.nodes:
                    if one is not other:
                        moved += session(one, other, self.now_ms, self.rng.randbytes(16))
            if not moved:
                return number
        return ROUNDS


def tell(seed: int, nodes: int, steps: int, actions: dict[str, int]) -> Story:
    story = Story(seed, nodes)
    deeds: dict[str, Callable[[], None]] = {name: getattr(story, name) for name in actions}
    for name in story.rng.choices(list(deeds), weights=list(actions.values()), k=steps):
        deeds[name]()
    return story


def assert_equal(story: Story, seed: int) -> None:
    rounds = story.settle()
    first = story.nodes[0]
    for node in story.nodes[1:]:
        told = f"seed {seed}: " + "; ".join(story.lines)
        mine, theirs = first.kept(), node.kept()
        differing = {id_.hex()[:6]: kind for id_, kind in (mine.items() ^ theirs.items())}
        assert not differing, f"{differing} {told}"
        assert node.trust.members() == first.trust.members(), told
        assert node.trust.revoked() == first.trust.revoked(), told
    assert rounds < ROUNDS, f"seed {seed}: records travel for ever"


BOARD = {"post": 30, "retract": 8, "govern": 2, "restart": 3, "meet": 12, "wait": 4, "join": 1}
EVERYTHING = BOARD | {"revoke": 4, "vouch": 2, "join": 4}


@pytest.mark.parametrize("nodes", [2, 5])
def test_nodes_agree_whatever_was_posted_retracted_and_governed(nodes: int) -> None:
    for seed in range(25):
        assert_equal(tell(seed, nodes, 120, BOARD), seed)


@pytest.mark.parametrize("nodes", [2, 5])
def test_nodes_agree_whoever_was_revoked_and_vouched_for(nodes: int) -> None:
    for seed in range(25):
        assert_equal(tell(seed, nodes, 120, EVERYTHING), seed)


@pytest.mark.parametrize("nodes", [2, 5])
def test_nodes_agree_when_subtrees_have_more_members_and_revocations_than_room(
    nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chainbook, "MAX_SUBTREE_CERTIFICATES", 4)
    monkeypatch.setattr(chainbook, "MAX_INNER_CERTIFICATES", 2)
    monkeypatch.setattr(revocation_book, "MAX_SUBTREE_REVOCATIONS", 3)
    monkeypatch.setattr(revocation_book, "MAX_INNER_REVOCATIONS", 2)
    for seed in range(1_000, 1_025):
        assert_equal(tell(seed, nodes, 120, EVERYTHING), seed)
