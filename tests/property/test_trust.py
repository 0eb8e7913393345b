"""Who is in depends on the set of records, never on the order in which they came."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from agentmesh.core.units import SECOND_MS
from agentmesh.mesh.logic.certificate import leaf_of
from agentmesh.mesh.logic.issuing import CannotIssue
from agentmesh.mesh.logic.record import Record
from agentmesh.mesh.logic.trust import Outcome, Trust
from tests.fakes.family import NOW_MS, Family

NAMES = ("ann", "bob", "cat", "dan", "eve", "fay", "gus")
MAX_ROUNDS = 8  # each settles at least one level of revocations that put out the authors of others


class World:
    def __init__(self, family: Family, records: list[Record], story: list[str]) -> None:
        self.family, self.records, self.story = family, records, story

    def __repr__(self) -> str:
        return "; ".join(self.story)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Some members with random inviters and admitters, random revocations by whoever may, and some vouchers."""
    family = Family()
    inside, story = ["founder"], list[str]()
    for name in NAMES[: draw(st.integers(2, len(NAMES)))]:
        inviter, admitter = draw(st.sampled_from(inside)), draw(st.sampled_from(inside))
        family.join(name, inviter, admitter=admitter)
        inside.append(name)
        story.append(f"{inviter} invites {name} through {admitter}")
    records = [family.member_record(name) for name in inside]
    targets = [*inside, *family.invites]
    for number in range(draw(st.integers(0, 6))):
        target = draw(st.sampled_from(targets))
        author = draw(st.sampled_from(_above(family, target)))
        records.append(family.revocation(author, target, at_ms=NOW_MS + number))
        story.append(f"{author} revokes {target}")
    for _ in range(draw(st.integers(0, 4))):
        name, voucher = draw(st.sampled_from(inside[1:])), draw(st.sampled_from(inside))
        keys = [n for n in inside if family.key(n) in leaf_of(family.chains[name]).via]
        spared = draw(st.sampled_from(keys))
        try:
            records.append(family.voucher_record(name, voucher, (spared,)))
        except CannotIssue:
            continue
        story.append(f"{voucher} vouches for {name} without {spared}")
    return World(family, records, story)


def _above(family: Family, target: str) -> list[str]:
    if target in family.chains:
        chain = family.chains[target]
        return ["root", *(n for n in family.chains if n == target or family.key(n) in leaf_of(chain).via)]
    return ["root", *(n for n in family.chains if family.key(n) in leaf_of(family.invites[target][1]).via)]


def _feed(trust: Trust, records: list[Record], rng: random.Random) -> None:
    """Offer everything, again and again as reconciliation does, until nothing changes."""
    seen: object = None
    for _ in range(MAX_ROUNDS):
        rng.shuffle(records)
        for record in records:
            trust.consider(record, NOW_MS + SECOND_MS)
            if rng.random() < 0.3:
                trust.take_changes()
        now = _answers(trust)
        if now == seen:
            return
        seen = now
    raise AssertionError("what is offered again and again never settles")


def _answers(trust: Trust) -> tuple[object, ...]:
    members = trust.members()
    return members, trust.revoked(), tuple((trust.scopes(key), trust.chain_of(key)) for key in members)


@settings(max_examples=400, deadline=None)
@given(world=worlds(), seeds=st.lists(st.integers(0, 2**32), min_size=2, max_size=3, unique=True))
def test_members_scopes_and_revocations_do_not_depend_on_the_order_of_arrival(world: World, seeds: list[int]) -> None:
    answers: list[object] = []
    for seed in seeds:
        trust = world.family.trust()
        _feed(trust, list(world.records), random.Random(seed))
        answers.append(_answers(trust))
    assert all(answer == answers[0] for answer in answers)


@settings(max_examples=200, deadline=None)
@given(world=worlds(), seed=st.integers(0, 2**32))
def test_what_a_node_stored_evaluates_to_the_same_after_a_restart(world: World, seed: int) -> None:
    trust = world.family.trust()
    _feed(trust, list(world.records), random.Random(seed))
    # After a restart a node has what it kept: every revocation, and the member records that count.
    kept = [r for r in world.records if r.kind != "member" or trust.consider(r, NOW_MS + SECOND_MS).reason != REVOKED]
    again = world.family.trust()
    for record in kept:
        again.consider(record, NOW_MS + SECOND_MS, from_store=True)
    assert _answers(again) == _answers(trust)


REVOKED = "the membership has been revoked"


@settings(max_examples=200, deadline=None)
@given(world=worlds(), seed=st.integers(0, 2**32))
def test_the_reported_changes_add_up_to_the_members(world: World, seed: int) -> None:
    trust, members, out = world.family.trust(), set[bytes](), set[bytes]()
    order = list(world.records)
    random.Random(seed).shuffle(order)
    for record in order:
        trust.consider(record, NOW_MS + SECOND_MS)
        changes = trust.take_changes()
        members = (members | set(changes.members)) - set(changes.out)
        out = (out | set(changes.out)) - set(changes.members)
        assert members == set(trust.members())
        # Who was put out by somebody who is out too becomes a stranger, about whom there is nothing to do.
        assert set(trust.out()) <= out


@settings(max_examples=300, deadline=None)
@given(world=worlds(), seed=st.integers(0, 2**32))
def test_subtrees_of_quotas_never_cross(world: World, seed: int) -> None:
    trust = world.family.trust()
    _feed(trust, list(world.records), random.Random(seed))
    inside: dict[bytes, frozenset[bytes]] = {}
    for key in trust.members():
        for scope in trust.scopes(key):
            inside[scope] = inside.get(scope, frozenset()) | {key}
    for one in inside.values():
        for other in inside.values():
            assert one <= other or other <= one or not one & other


def test_nothing_is_accepted_that_no_rule_allows() -> None:
    family = Family()
    family.join("ann")
    family.join("bob", "ann")
    trust = family.trust()
    for bad in (family.revocation("bob", "ann"), family.revocation("bob", "founder")):
        verdict = trust.consider(bad, NOW_MS)
        assert (verdict.outcome, verdict.blame) == (Outcome.REFUSED, True)
