"""Joining, coming back, renewing and being sent away, over the in-memory transport with real keys and files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agentmesh.core.errors import StorageError, TokenError
from agentmesh.core.units import DAY_MS, HOUR_MS
from agentmesh.mesh import authority, membership_file
from agentmesh.mesh.identity import encode_id
from agentmesh.mesh.logic.certificate import (
    Basis,
    leaf_of,
)
from agentmesh.mesh.logic.handshake_messages import ClockMismatch, InviteRefused, RefusalCode, RefusedByPeer
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.membership_file import MembershipFile
from tests.fakes.admission_world import NOW_MS, WAIT_S, FakeClock, Node, World


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr("agentmesh.mesh.control_service.ANSWER_TIMEOUT_S", WAIT_S)  # answers wait for a disk
    made = World(tmp_path)
    async with asyncio.timeout(100):
        yield made
        await made.close()


async def _refused(node: Node, server: Node, token: str = "") -> RefusedByPeer | InviteRefused:
    with pytest.raises((RefusedByPeer, InviteRefused)) as caught:
        await node.dial(server, token)
    return caught.value


async def _until(holds: Callable[[], bool]) -> None:
    """Let the other tasks run until it holds."""
    async with asyncio.timeout(WAIT_S):
        while not holds():
            await asyncio.sleep(0)


async def test_a_token_lets_a_node_in_once_and_its_chain_ever_after(world: World) -> None:
    founder = await world.found()
    token = await founder.invite()
    node = await world.newcomer("ann", token)
    joined = await node.dial(founder, token)
    assert (joined.node, joined.name, joined.mesh_name) == (founder.public, "founder", "home")
    assert joined.publish is not None
    assert founder.trust.standing(node.public, NOW_MS) is Standing.MEMBER
    leaf = leaf_of(node.membership.chain)
    assert (leaf.basis, leaf.issuer, leaf.via[:2]) == (
        Basis.ADMISSION,
        founder.public,
        (node.membership.mesh, founder.public),
    )

    again = MembershipFile.current(node.home)
    assert again is not None
    assert (again.chain, again.pin) == (node.membership.chain, f"home@{encode_id(node.membership.mesh)}")
    back = await node.dial(founder)
    assert back.publish is None
    await _until(lambda: len(founder.admitted) == 2)
    assert {a.node for a in founder.admitted} == {node.public}
    assert founder.admitted[0].addresses == (node.address,)


async def test_any_member_that_may_invite_admits_and_answers_for_it(world: World) -> None:
    founder = await world.found()
    ann = await world.member("ann", founder)
    token = await founder.invite()
    bob = await world.newcomer("bob", token)
    await bob.dial(ann, token)
    via = leaf_of(bob.membership.chain).via
    assert {founder.public, ann.public} <= set(via)


async def test_a_member_that_may_not_invite_passes_a_join_on_to_the_issuer(world: World) -> None:
    founder = await world.found()
    token = await founder.invite(may_invite=False)
    guest = await world.newcomer("guest", token)
    await guest.dial(founder, token)
    bob = await world.newcomer("bob", await founder.invite())
    await bob.dial(guest, await founder.invite())
    assert leaf_of(bob.membership.chain).issuer == founder.public


async def test_a_counted_invite_is_passed_on_to_its_issuer_or_it_is_said_that_it_is_offline(world: World) -> None:
    founder = await world.found()
    ann = await world.member("ann", founder)
    token = await founder.invite(uses=1)
    bob = await world.newcomer("bob", token)
    await bob.dial(ann, token)
    assert leaf_of(bob.membership.chain).issuer == founder.public

    other = await founder.invite(uses=1)
    ann.links[founder.public].close("gone")
    cat = await world.newcomer("cat", other)
    error = await _refused(cat, ann, other)
    assert error.refusal == RefusalCode.ISSUER_OFFLINE
    assert encode_id(founder.public)[:8] in error.message


async def test_an_issuer_that_is_connected_but_silent_is_offline_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    founder = await world.found()
    ann = await world.member("ann", founder)
    token = await founder.invite(uses=1)
    monkeypatch.setattr("agentmesh.mesh.control_service.ANSWER_TIMEOUT_S", 0.2)
    world.network.cut(ann.public, founder.public)
    bob = await world.newcomer("bob", token)
    assert (await _refused(bob, ann, token)).refusal == RefusalCode.ISSUER_OFFLINE


async def test_concurrent_joins_never_exceed_the_number_of_uses(world: World) -> None:
    founder = await world.found()
    ann = await world.member("ann", founder)
    token = await founder.invite(uses=3)
    joiners = [await world.newcomer(f"joiner {n}", token) for n in range(8)]
    results = await asyncio.gather(
        *(joiner.dial((founder, ann)[n % 2], token) for n, joiner in enumerate(joiners)), return_exceptions=True
    )
    refused = [r for r in results if isinstance(r, BaseException)]
    assert len(refused) == 5
    assert all(isinstance(r, InviteRefused) and r.refusal == RefusalCode.INVITE_USED_UP for r in refused)
    assert sum(bool(joiner.membership.chain) for joiner in joiners) == 3


async def test_a_lost_answer_and_a_restart_of_the_issuer_burn_no_second_use(world: World) -> None:
    founder = await world.found()
    token = await founder.invite(uses=1)
    bob = await world.newcomer("bob", token)
    await bob.dial(founder, token)
    bob.membership.chain = ()  # the answer never came
    founder.membership._invites = None  # the issuer reads its file anew
    await bob.dial(founder, token)
    assert bob.membership.chain
    cat = await world.newcomer("cat", token)
    assert (await _refused(cat, founder, token)).refusal == RefusalCode.INVITE_USED_UP


async def test_a_use_that_could_not_be_written_down_admits_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    founder = await world.found()
    token = await founder.invite(uses=1)
    bob = await world.newcomer("bob", token)
    real = membership_file.replace_durably

    def full(path: Path, data: bytes) -> None:
        if path.name == "invites.json":
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(membership_file, "replace_durably", full)
    error = await _refused(bob, founder, token)
    assert error.refusal == RefusalCode.INTERNAL
    assert str(founder.home.root) not in error.message
    assert not bob.membership.chain
    monkeypatch.setattr(membership_file, "replace_durably", real)
    await bob.dial(founder, token)


async def test_expired_revoked_and_foreign_invites_each_get_their_sentence(world: World, tmp_path: Path) -> None:
    founder = await world.found()
    token = await founder.invite(lifetime_ms=HOUR_MS)
    late = await world.newcomer("late", token, clock=FakeClock(NOW_MS + 2 * HOUR_MS))
    with pytest.raises(TokenError, match="expired on 2027-01-15 09:00 UTC"):
        await late.dial(founder, token)

    made = await founder.authority.create_invite(lifetime_ms=DAY_MS, uses=None, bootstrap=())
    for draft in founder.authority.plan_revocation(made.serial):
        world.spread(draft)
    bob = await world.newcomer("bob", made.token)
    assert (await _refused(bob, founder, made.token)).refusal == RefusalCode.INVITE_REVOKED

    elsewhere = World(tmp_path / "elsewhere")
    stranger = await elsewhere.found()
    foreign = await stranger.invite()
    cat = await world.newcomer("cat", foreign)
    assert (await _refused(cat, founder, foreign)).refusal == RefusalCode.FOREIGN_MESH
    await elsewhere.close()


async def test_an_invite_that_expired_by_the_members_clock_is_refused_there(world: World) -> None:
    founder = await world.found()
    token = await founder.invite(lifetime_ms=HOUR_MS)
    bob = await world.newcomer("bob", token, clock=FakeClock(NOW_MS + HOUR_MS - 1))
    founder.clock.ms += HOUR_MS
    error = await _refused(bob, founder, token)
    assert isinstance(error, TokenError)
    assert (error.refusal, error.exit_code) == (RefusalCode.INVITE_EXPIRED, 2)


async def test_a_revoked_member_is_told_so_and_cannot_join_again(world: World) -> None:
    founder = await world.found()
    bob = await world.member("bob", founder)
    for draft in founder.authority.plan_revocation(bob.public, "left the team"):
        world.spread(draft)
    error = await _refused(bob, founder)
    assert (error.refusal, error.message) == (RefusalCode.REVOKED, "This membership has been revoked.")
    token = await founder.invite()
    assert (await _refused(bob, founder, token)).refusal == RefusalCode.REVOKED


async def test_whoever_was_known_before_a_revocation_is_kept_in_or_taken_back(world: World) -> None:
    founder = await world.found()
    ann = await world.member("ann", founder)
    bob, cat = await world.member("bob", ann), await world.member("cat", ann)
    plan = founder.authority.plan_revocation(ann.public)
    assert [d.kind for d in plan] == ["member", "member", "revocation"]
    spared = [d for d in plan if d.subkey != cat.public]  # the voucher for cat is lost on its way
    for draft in spared:
        world.spread(draft)
    assert founder.trust.standing(bob.public, NOW_MS) is Standing.MEMBER
    assert founder.trust.standing(cat.public, NOW_MS) is Standing.OUT

    bobs = await bob.dial(founder)
    assert bobs.publish is not None  # its own chain is no longer the best: it gets the better one
    assert leaf_of(bob.membership.chain).basis is Basis.VOUCHER
    await cat.dial(founder)
    assert founder.trust.standing(cat.public, NOW_MS) is Standing.MEMBER
    assert [d.subkey for d in founder.published] == [cat.public]
    assert (await _refused(ann, founder)).refusal == RefusalCode.REVOKED


async def test_a_spared_node_finds_its_voucher_among_the_records_by_itself(world: World) -> None:
    founder = await world.found()
    ann = await world.member("ann", founder)
    bob = await world.member("bob", ann)
    assert await bob.authority.maintain() is None
    for draft in founder.authority.plan_revocation(ann.public):
        world.spread(draft)
    draft = await bob.authority.maintain()
    assert draft is not None
    assert leaf_of(bob.membership.chain).basis is Basis.VOUCHER


async def test_who_answers_a_revocation_vouches_for_few_and_for_those_nearest_to_the_founder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority, "VOUCHERS_PER_REVOCATION", 2)
    founder = await world.found()
    ann = await world.member("ann", founder)
    guests = [await world.member(name, ann) for name in ("bob", "cat")]
    for number in range(3):
        await world.member(f"puppet {number}", guests[0])
    *vouchers, revocation = founder.authority.plan_revocation(ann.public)
    assert {draft.subkey for draft in vouchers} == {guest.public for guest in guests}
    assert revocation.kind == "revocation"


async def test_a_member_is_renewed_by_any_other_member_in_the_second_half_of_its_year(world: World) -> None:
    founder = await world.found()
    ann = await world.member("ann", founder)
    bob = await world.member("bob", founder)
    await bob.dial(ann)
    stream = await bob.reach(ann.public)
    assert stream is not None
    with pytest.raises(RefusedByPeer, match="first half"):
        await bob.admission.request_renewal(stream)
    world.clock.ms += 200 * DAY_MS
    assert bob.authority.renewal_is_due()
    stream = await bob.reach(ann.public)
    assert stream is not None
    draft = await bob.admission.request_renewal(stream)
    world.spread(draft)
    leaf = leaf_of(bob.membership.chain)
    assert (leaf.basis, leaf.issuer, ann.public in leaf.lineage) == (Basis.RENEWAL, ann.public, False)
    world.clock.ms += 200 * DAY_MS  # the first certificate has ended long ago
    assert founder.trust.standing(bob.public, world.clock.ms) is Standing.MEMBER


async def test_a_founder_renews_itself_with_the_root_key(world: World) -> None:
    founder = await world.found()
    assert await founder.authority.maintain() is None
    world.clock.ms += 200 * DAY_MS
    draft = await founder.authority.maintain()
    assert draft is not None
    assert leaf_of(founder.membership.chain).expires_ms == world.clock.ms + 365 * DAY_MS


async def test_a_voucher_is_asked_for_by_who_needs_it(world: World) -> None:
    founder = await world.found()
    ann = await world.member("ann", founder)
    bob = await world.member("bob", ann)
    await bob.dial(founder)
    world.spread(founder.authority.plan_revocation(ann.public)[-1])
    stream = await bob.reach(founder.public)
    assert stream is not None
    await bob.admission.request_voucher(stream)
    assert founder.trust.standing(bob.public, NOW_MS) is Standing.MEMBER


async def test_clocks_that_differ_are_named_on_both_sides(world: World) -> None:
    founder = await world.found()
    bob = await world.member("bob", founder)
    bob.clock = bob.authority._clock = bob.admission._clock = FakeClock(NOW_MS - 5 * HOUR_MS)
    with pytest.raises(ClockMismatch, match="This machine's clock is 5 hours behind"):
        await bob.dial(founder)


async def test_a_membership_that_cannot_be_written_is_reported_and_the_join_can_be_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    founder = await world.found()
    token = await founder.invite(uses=1)
    bob = await world.newcomer("bob", token)

    def full(path: Path, data: bytes) -> None:
        if path.name == "membership.json":
            raise OSError(28, "No space left on device")
        real(path, data)

    real = membership_file.replace_durably
    monkeypatch.setattr(membership_file, "replace_durably", full)
    with pytest.raises(StorageError, match="No space left"):
        await bob.dial(founder, token)
    assert not bob.membership.chain
    monkeypatch.setattr(membership_file, "replace_durably", real)
    await bob.dial(founder, token)
    stored = json.loads((bob.membership.folder / "membership.json").read_text())
    assert stored["name"] == "home"
