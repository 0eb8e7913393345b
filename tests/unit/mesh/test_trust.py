"""Who is in, after whose word."""

from __future__ import annotations

import pytest

from agentmesh.core.errors import InvalidInput, ProtocolError
from agentmesh.core.units import DAY_MS, HOUR_MS, SECOND_MS
from agentmesh.mesh.logic.capability import ExpiredChain, InvalidChain, verify_chain
from agentmesh.mesh.logic.certificate import Role, encode_chain, leaf_of
from agentmesh.mesh.logic.issuing import CannotIssue
from agentmesh.mesh.logic.policy import Policy, decode_policy, encode_policy
from agentmesh.mesh.logic.record import Record
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.logic.trust import Outcome, RevokedChain, Trust, VouchCandidate
from tests.fakes.family import NOW_MS, Family
from tests.sim.keys import cheap_verify

HALF_YEAR_MS = 190 * DAY_MS


@pytest.fixture
def family() -> Family:
    """founder > ann > bob > cat, and dan beside ann."""
    family = Family()
    family.join("ann")
    family.join("bob", "ann")
    family.join("cat", "bob")
    family.join("dan", invite="second")
    return family


@pytest.fixture
def trust(family: Family) -> Trust:
    trust = family.trust()
    for name in family.chains:
        assert _take(trust, family.member_record(name)) is Outcome.ACCEPTED
    trust.take_changes()
    return trust


def _take(trust: Trust, record: Record, now_ms: int = NOW_MS) -> Outcome:
    return trust.consider(record, now_ms).outcome


def _standings(trust: Trust, family: Family, now_ms: int = NOW_MS) -> dict[str, Standing]:
    return {name: trust.standing(family.key(name), now_ms) for name in family.chains}


def _members(trust: Trust, family: Family, now_ms: int = NOW_MS) -> set[str]:
    return {name for name, standing in _standings(trust, family, now_ms).items() if standing is Standing.MEMBER}


def test_everybody_with_a_chain_is_a_member_and_a_stranger_is_unknown(trust: Trust, family: Family) -> None:
    assert _members(trust, family) == {"founder", "ann", "bob", "cat", "dan"}
    assert trust.standing(b"?" * 32, NOW_MS) is Standing.UNKNOWN
    assert trust.standing(family.mesh, NOW_MS) is Standing.MEMBER


def test_revoking_a_node_puts_it_and_everybody_below_it_out(trust: Trust, family: Family) -> None:
    record = family.revocation("founder", "ann")
    assert _take(trust, record) is Outcome.ACCEPTED
    assert _members(trust, family) == {"founder", "dan"}
    changes = trust.take_changes()
    assert set(changes.out) == {family.key(n) for n in ("ann", "bob", "cat")}
    assert set(changes.dropped) == {family.member_record(n).id for n in ("ann", "bob", "cat")}
    assert trust.standing(family.key("bob"), NOW_MS) is Standing.OUT
    assert not trust.take_changes()


def test_a_certificate_that_comes_after_its_revocation_is_refused_without_blame(family: Family) -> None:
    trust = family.trust()
    assert _take(trust, family.revocation("root", "ann")) is Outcome.ACCEPTED
    verdict = trust.consider(family.member_record("bob"), NOW_MS)
    assert (verdict.outcome, verdict.blame) == (Outcome.REFUSED, False)
    assert trust.standing(family.key("ann"), NOW_MS) is Standing.OUT


def test_revoking_an_invite_puts_out_whom_it_admitted_and_nobody_else(trust: Trust, family: Family) -> None:
    assert _take(trust, family.revocation("founder", "of founder")) is Outcome.ACCEPTED
    assert _members(trust, family) == {"founder", "dan"}
    assert trust.vouch_candidates(family.key("founder"), family.serial("of founder"), NOW_MS) == ()
    assert trust.vouch_candidate(family.key("founder"), family.key("bob"), NOW_MS) is None


@pytest.mark.parametrize(("author", "target"), [("dan", "ann"), ("bob", "ann"), ("ann", "founder"), ("cat", "of ann")])
def test_a_revocation_by_somebody_who_stands_nowhere_above_is_held_against_its_sender(
    trust: Trust, family: Family, author: str, target: str
) -> None:
    verdict = trust.consider(family.revocation(author, target), NOW_MS)
    assert (verdict.outcome, verdict.blame) == (Outcome.REFUSED, True)
    assert len(_members(trust, family)) == 5


def test_a_revocation_by_somebody_who_is_out_does_not_count(trust: Trust, family: Family) -> None:
    _take(trust, family.revocation("bob", "cat"))
    assert family.key("cat") in trust.revoked()
    vouched = family.voucher_record("cat", "founder", ("bob",))
    _take(trust, vouched)
    assert trust.standing(family.key("cat"), NOW_MS) is Standing.OUT
    _take(trust, family.revocation("ann", "bob"))
    assert trust.revoked() == (family.key("bob"),)
    _take(trust, vouched)
    assert trust.standing(family.key("cat"), NOW_MS) is Standing.MEMBER


def test_a_key_that_revokes_itself_stays_out_although_its_author_is_out(trust: Trust, family: Family) -> None:
    _take(trust, family.revocation("dan", "dan"))
    assert trust.standing(family.key("dan"), NOW_MS) is Standing.OUT
    assert _take(trust, family.member_record("dan", at_ms=NOW_MS)) is Outcome.REFUSED


def test_vouchers_that_travel_ahead_keep_everybody_in_without_a_gap(trust: Trust, family: Family) -> None:
    candidates = trust.vouch_candidates(family.key("founder"), family.key("ann"), NOW_MS)
    assert {c.subject for c in candidates} == {family.key("bob"), family.key("cat")}
    assert all(c.spared == (family.key("ann"),) for c in candidates)
    for name in ("bob", "cat"):
        assert _take(trust, family.voucher_record(name, "founder", ("ann",))) is Outcome.ACCEPTED
    _take(trust, family.revocation("founder", "ann"))
    changes = trust.take_changes()
    assert changes.out == (family.key("ann"),)
    assert _members(trust, family) == {"founder", "bob", "cat", "dan"}


def test_who_was_spared_counts_in_the_subtree_of_who_vouched(trust: Trust, family: Family) -> None:
    assert trust.scopes(family.key("bob")) == (family.serial("of ann"), family.key("ann"), family.serial("of founder"))
    _take(trust, family.voucher_record("bob", "dan", ("ann",)))
    _take(trust, family.revocation("founder", "ann"))
    assert trust.scopes(family.key("bob")) == (family.key("dan"), family.serial("second"))


def test_members_vouch_later_for_whom_they_knew(trust: Trust, family: Family) -> None:
    _take(trust, family.revocation("founder", "ann"))
    assert _members(trust, family) == {"founder", "dan"}
    found = trust.vouch_candidates(family.key("dan"), family.key("ann"), NOW_MS)
    assert [c.subject for c in found] == sorted(family.key(n) for n in ("bob", "cat"))
    expected = VouchCandidate(family.key("bob"), family.chains["bob"], (family.key("ann"),))
    assert trust.vouch_candidate(family.key("dan"), family.key("bob"), NOW_MS) == expected
    assert trust.vouch_candidates(family.key("bob"), family.key("ann"), NOW_MS) == ()


def test_revoking_the_voucher_puts_out_whom_it_vouched_for(trust: Trust, family: Family) -> None:
    _take(trust, family.voucher_record("bob", "dan", ("ann",)))
    _take(trust, family.revocation("founder", "ann"))
    _take(trust, family.revocation("root", "dan"))
    assert trust.standing(family.key("bob"), NOW_MS) is Standing.OUT


def test_who_vouches_gets_no_power_over_whom_it_vouched_for(trust: Trust, family: Family) -> None:
    family.chains["bob"] = family.vouch("bob", "dan", ("ann",))
    verdict = trust.consider(family.revocation("dan", "bob"), NOW_MS)
    assert (verdict.outcome, verdict.blame) == (Outcome.REFUSED, True)


def test_an_invite_that_was_revoked_takes_those_too_who_were_vouched_for_since(trust: Trust, family: Family) -> None:
    _take(trust, family.voucher_record("cat", "founder", ("ann",)))
    _take(trust, family.revocation("founder", "ann"))
    assert trust.standing(family.key("cat"), NOW_MS) is Standing.MEMBER
    _take(trust, family.revocation("founder", "of bob"))
    assert trust.standing(family.key("cat"), NOW_MS) is Standing.OUT


def test_a_member_record_of_somebody_else_without_a_voucher_is_held_against_its_sender(family: Family) -> None:
    trust, chain = family.trust(), family.chains["bob"]
    for author, subkey in (("dan", family.key("bob")), ("bob", family.key("bob")), ("dan", b"")):
        record = family.record(author, "member", subkey, encode_chain(chain), NOW_MS, leaf_of(chain).expires_ms)
        verdict = trust.consider(record, NOW_MS)
        assert (verdict.outcome, verdict.blame) == (Outcome.REFUSED, True)


def test_a_membership_ends_by_itself_and_lasts_when_renewed(trust: Trust, family: Family) -> None:
    leaf = leaf_of(family.chains["bob"])
    assert trust.standing(family.key("bob"), leaf.expires_ms - 1) is Standing.MEMBER
    assert trust.standing(family.key("bob"), leaf.expires_ms) is Standing.UNKNOWN
    later = NOW_MS + HALF_YEAR_MS
    assert _take(trust, family.member_record("bob", family.renew("bob", "dan", later)), later) is Outcome.ACCEPTED
    assert trust.standing(family.key("bob"), leaf.expires_ms) is Standing.MEMBER
    trust.take_changes()
    trust.expire(leaf.expires_ms + HOUR_MS)
    assert trust.members() == (family.key("bob"),)


def test_a_renewal_is_refused_in_the_first_half_of_life_after_its_end_and_by_oneself(family: Family) -> None:
    leaf = leaf_of(family.chains["bob"])
    for now_ms in (NOW_MS, leaf.expires_ms):
        with pytest.raises(CannotIssue):
            family.renew("bob", "founder", now_ms)
    with pytest.raises(CannotIssue, match="own"):
        family.renew("bob", "bob", NOW_MS + HALF_YEAR_MS)


def test_somebody_renewed_stays_below_who_invited_it(trust: Trust, family: Family) -> None:
    later = NOW_MS + HALF_YEAR_MS
    _take(trust, family.member_record("bob", family.renew("bob", "founder", later)), later)
    _take(trust, family.revocation("founder", "ann", at_ms=later), later)
    assert trust.standing(family.key("bob"), later) is Standing.OUT


def test_chains_deeper_than_the_limit_are_not_issued(family: Family) -> None:
    family.join("eve", "cat")
    for number in range(6, 9):
        family.join(f"m{number}", "eve" if number == 6 else f"m{number - 1}")
    assert leaf_of(family.chains["m8"]).depth == 8
    with pytest.raises(CannotIssue, match="nearer to"):
        family.join("m9", "m8")
    assert leaf_of(family.join("m9", "cat", admitter="founder")).depth == 5


def test_who_may_not_invite_cannot_admit_or_vouch_but_renews(family: Family) -> None:
    family.invite("plain", "founder", may_invite=False)
    family.join("guest", invite="plain")
    assert leaf_of(family.chains["guest"]).may_invite is False
    with pytest.raises(CannotIssue):
        family.invite("more", "guest")
    with pytest.raises(CannotIssue):
        family.vouch("bob", "guest", ("ann",))
    chain = family.renew("bob", "guest", NOW_MS + HALF_YEAR_MS)
    assert verify_chain(chain, family.mesh, NOW_MS + HALF_YEAR_MS, cheap_verify).subject == family.key("bob")


def test_a_counted_invite_admits_through_its_issuer_only(family: Family) -> None:
    family.invite("three", "ann", uses=3)
    family.join("eve", "ann", invite="three")
    chain = family.join("fay", "ann", admitter="founder", invite="three")
    with pytest.raises(InvalidChain, match="counted invite"):
        verify_chain(chain, family.mesh, NOW_MS, cheap_verify)


def test_nobody_becomes_its_own_ancestor(family: Family) -> None:
    chain = family.join("ann", "bob")
    with pytest.raises(InvalidChain, match="own ancestors"):
        verify_chain(chain, family.mesh, NOW_MS, cheap_verify)


def test_a_presented_chain_is_checked_for_time_role_and_revocation(trust: Trust, family: Family) -> None:
    chain, invite = family.chains["bob"], family.invites["of ann"][1]
    assert trust.check_presented(chain, NOW_MS).subject == family.key("bob")
    assert trust.check_presented(invite, NOW_MS, role=Role.INVITE).role is Role.INVITE
    with pytest.raises(InvalidChain):
        trust.check_presented(invite, NOW_MS)
    with pytest.raises(ExpiredChain):
        trust.check_presented(chain, leaf_of(chain).expires_ms)
    _take(trust, family.revocation("ann", "of ann"))
    with pytest.raises(RevokedChain):
        trust.check_presented(chain, NOW_MS)
    with pytest.raises(RevokedChain, match="invite has been revoked"):
        trust.check_presented(invite, NOW_MS, role=Role.INVITE)


def test_an_invite_is_found_in_the_chains_of_those_it_admitted(trust: Trust, family: Family) -> None:
    assert trust.invite_chain(family.serial("of bob")) == family.invites["of bob"][1]
    assert trust.invite_chain(b"?" * 16) is None
    assert family.serial("of ann") in trust.invite_serials()


def test_the_newest_policy_of_the_root_key_holds_and_nobody_elses(trust: Trust, family: Family) -> None:
    assert trust.policy() == Policy()
    newer, older = Policy(posts_per_minute=7), Policy(posts_per_minute=8)
    assert _take(trust, family.policy_record(newer)) is Outcome.ACCEPTED
    assert trust.take_changes().policy
    assert _take(trust, family.policy_record(older, at_ms=NOW_MS - SECOND_MS)) is Outcome.REFUSED
    forged = trust.consider(family.policy_record(older, author="founder", at_ms=NOW_MS + SECOND_MS), NOW_MS)
    assert (forged.outcome, forged.blame) == (Outcome.REFUSED, True)
    assert trust.policy() == newer


def test_raising_the_first_quota_raises_the_others_unless_they_are_given() -> None:
    assert Policy.from_overrides({}) == Policy()
    assert Policy.from_overrides({"posts_per_minute": 1200}) == Policy(1, 1200, 25_000, 100)
    assert Policy.from_overrides({"posts_per_minute": 60}) == Policy(1, 60, 2_500, 10)
    assert Policy.from_overrides({"posts_per_minute": 1200, "posts_per_day": 9}) == Policy(1, 1200, 9, 100)


@pytest.mark.parametrize("overrides", [{"posts": 1}, {"posts_per_day": 0}, {"posts_per_minute": 10**9}])
def test_an_unknown_or_impossible_quota_is_refused(overrides: dict[str, int]) -> None:
    with pytest.raises(InvalidInput):
        Policy.from_overrides(overrides)


@pytest.mark.parametrize("payload", [b"", b"\x91\x01", b"\x94\x01\x00\x01\x01", b"\xc1", encode_policy(Policy())[:-1]])
def test_a_damaged_policy_is_a_protocol_error(payload: bytes) -> None:
    if payload == b"\x91\x01":
        assert decode_policy(payload) == Policy()
        return
    with pytest.raises(ProtocolError):
        decode_policy(payload)
