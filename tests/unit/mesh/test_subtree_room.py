"""How many certificates and revocations a subtree may have: whoever floods crowds out itself and its own, on all nodes the same."""

from __future__ import annotations

import random

import pytest

from agentmesh.mesh.logic import chainbook, revocation_book
from agentmesh.mesh.logic.record import Record
from agentmesh.mesh.logic.subtree_room import SubtreeRoom, path_of, path_of_author
from agentmesh.mesh.logic.trust import Outcome, Trust
from tests.fakes.family import NOW_MS, Family


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr(chainbook, "MAX_SUBTREE_CERTIFICATES", 8)
    monkeypatch.setattr(chainbook, "MAX_INNER_CERTIFICATES", 3)
    monkeypatch.setattr(revocation_book, "MAX_SUBTREE_REVOCATIONS", 8)
    monkeypatch.setattr(revocation_book, "MAX_INNER_REVOCATIONS", 3)


@pytest.fixture
def family() -> Family:
    family = Family()
    family.join("ann")
    family.join("bad")
    return family


def _trust_of(family: Family, records: list[Record]) -> Trust:
    trust = family.trust()
    for record in records:
        trust.consider(record, NOW_MS)
    trust.take_changes()
    return trust


def test_who_invites_by_the_thousand_has_room_for_few_and_crowds_out_nobody_above(family: Family) -> None:
    puppets = [f"puppet {number}" for number in range(20)]
    for name in puppets:
        family.join(name, "bad")
    honest = ["founder", "ann", "bad"]
    trust = _trust_of(family, [family.member_record(name) for name in (*puppets, *honest)])
    assert {family.key(name) for name in honest} <= set(trust.members())
    assert len(trust.members()) == len(honest) + 3


def test_a_guest_of_somebody_who_floods_below_it_stays(family: Family) -> None:
    """The founder's invite is full of what "bad" made; whoever is nearer to the founder comes in still."""
    for inviter in ("bad 1", "bad 2", "bad 3"):
        family.join(inviter, invite="of founder")
        for number in range(5):
            family.join(f"{inviter} {number}", inviter)
    family.join("late")
    trust = _trust_of(family, [family.member_record(name) for name in family.chains])
    assert family.key("late") in trust.members()


def test_the_invites_and_puppets_that_somebody_revokes_fill_nothing_but_its_own_room(family: Family) -> None:
    records = [family.member_record(name) for name in ("founder", "ann", "bad")]
    for number in range(20):
        family.invite(f"invite {number}", "bad")
        family.join(f"puppet {number}", "bad")
        puppet = f"puppet {number}"
        records += [family.revocation("bad", f"invite {number}"), family.revocation(puppet, puppet)]
    records.append(family.revocation("founder", "bad", at_ms=NOW_MS + 1))
    trust = _trust_of(family, records)
    assert family.key("bad") in trust.revoked()
    assert len(trust.revoked()) <= 1 + 3 + 3


def test_the_root_key_and_founders_revoke_without_end(family: Family) -> None:
    records = [family.member_record("founder")]
    for number in range(12):
        family.join(f"guest {number}")
        records.append(family.revocation(("root", "founder")[number % 2], f"guest {number}"))
    assert len(_trust_of(family, records).revoked()) == 12


def test_what_is_kept_is_the_same_in_every_order_and_nothing_is_lost_of_it_on_the_way(family: Family) -> None:
    for inviter in ("bad", "ann"):
        for number in range(6):
            family.join(f"{inviter}{number}", inviter)
            family.join(f"{inviter}{number}x", f"{inviter}{number}")
    records = [family.member_record(name) for name in family.chains]
    first = _trust_of(family, records).members()
    for seed in range(30):
        random.Random(seed).shuffle(records)
        trust, held = family.trust(), set[bytes]()
        for record in records:
            if trust.consider(record, NOW_MS).outcome is Outcome.ACCEPTED:
                held.add(record.id)
            held -= set(trust.take_changes().dropped)
        assert trust.members() == first
        assert len(held) == len(first)


def test_a_renewal_that_finds_no_room_leaves_the_older_certificate_in_force() -> None:
    room = SubtreeRoom(2, 2)
    scope = (b"s" * 16,)
    assert room.take((b"a", b""), scope, 1, b"1") is None
    assert room.take((b"b", b""), scope, 2, b"2") is None
    assert room.take((b"c", b""), scope, 3, b"3") == (b"c", b"")
    assert room.take((b"a", b""), (b"t" * 16, *scope), 9, b"4") is None  # its own place is free for it
    assert room.take((b"c", b""), scope, 3, b"3") == (b"a", b"")
    assert room.take((b"b", b""), (b"t" * 16, *scope), 9, b"5") is None


def test_an_author_counts_below_its_inviters_whatever_chain_it_shows(family: Family) -> None:
    family.join("puppet", "bad")
    serial, bads = family.serial("of founder"), family.serial("of bad")
    assert path_of(family.chains["puppet"]) == (bads, family.key("bad"), serial)
    chains = (family.chains["puppet"], family.chains["bad"])
    assert path_of_author(family.key("bad"), *chains) == (family.key("bad"), serial)
    assert path_of_author(family.key("puppet"), chains[0]) == (family.key("puppet"), bads, family.key("bad"), serial)
    assert path_of_author(family.key("founder"), *chains) == ()
