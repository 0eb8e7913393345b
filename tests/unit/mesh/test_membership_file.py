"""What a home keeps of its membership: whole or as before, whatever happens in between."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from agentmesh.core.errors import Ambiguous, HomeError, InvalidInput, NotFound, StorageError
from agentmesh.core.paths import Home
from agentmesh.core.units import DAY_MS, MINUTE_MS
from agentmesh.mesh import membership_file
from agentmesh.mesh.authority import Authority, export_root, found_mesh
from agentmesh.mesh.identity import NodeKey, encode_id, verify
from agentmesh.mesh.logic.handshake_messages import InviteRefused, RefusalCode
from agentmesh.mesh.logic.limits import KNOWN_PEERS
from agentmesh.mesh.logic.policy import Policy
from agentmesh.mesh.logic.trust import Trust
from agentmesh.mesh.membership_file import IssuedInvite, KnownPeer, MembershipFile, forget_membership
from tests.fakes.admission_world import NOW_MS, FakeClock


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def membership(home: Home) -> MembershipFile:
    return found_mesh(home, NodeKey.generate(), "home", Policy(), NOW_MS)[0]


def test_a_founded_mesh_is_there_after_a_restart_with_files_that_only_the_owner_reads(
    home: Home, membership: MembershipFile
) -> None:
    again = MembershipFile.current(home)
    assert again is not None
    assert (again.mesh, again.chain, again.name) == (membership.mesh, membership.chain, "home")
    root = again.root_key()
    assert root is not None
    assert root.public == membership.mesh
    for path in (again.folder / "membership.json", again.root_key_path, home.current_mesh):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_first_records_of_a_mesh_are_its_policy_and_its_founder(home: Home) -> None:
    key, policy = NodeKey.generate(), Policy(posts_per_minute=7)
    membership, drafts = found_mesh(home, key, "home", policy, NOW_MS)
    trust = Trust(membership.mesh, verify)
    for draft in drafts:
        trust.consider(draft.build(membership.mesh, NOW_MS), NOW_MS)
    assert trust.members() == (key.public,)
    assert trust.policy() == policy


def test_a_founder_that_ended_before_its_first_records_were_stored_makes_them_again(home: Home) -> None:
    key, policy = NodeKey.generate(), Policy(posts_per_minute=7)
    found_mesh(home, key, "home", policy, NOW_MS)
    membership = MembershipFile.current(home)
    assert membership is not None
    trust = Trust(membership.mesh, verify)
    authority = Authority(key, membership, trust, FakeClock())
    kinds: list[str] = []
    while (draft := asyncio.run(authority.maintain())) is not None:
        kinds.append(draft.kind)
        trust.consider(draft.build(membership.mesh, NOW_MS), NOW_MS)
    assert kinds == ["member", "policy"]
    assert trust.policy() == policy


def test_a_home_without_a_mesh_has_none(home: Home) -> None:
    assert MembershipFile.current(home) is None
    assert forget_membership(home) is False


def test_leaving_forgets_the_membership_but_keeps_board_and_root_key(home: Home, membership: MembershipFile) -> None:
    board = membership.folder / "blackboard.db"
    board.write_bytes(b"posts")
    assert forget_membership(home) is True
    assert MembershipFile.current(home) is None
    assert MembershipFile.open(home, membership.mesh).chain == ()
    assert board.exists()
    assert membership.root_key_path.exists()


@pytest.mark.parametrize("name", ["membership.json", "../current"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xff", b'{"version":1,"mesh":"x","name":"","chain":"AA=="}'])
def test_a_damaged_membership_is_named_and_never_overwritten(
    home: Home, membership: MembershipFile, name: str, content: bytes
) -> None:
    path = membership.folder / name
    path.write_bytes(content)
    with pytest.raises(HomeError, match="damaged"):
        MembershipFile.current(home)
    assert path.read_bytes() == content


def test_damaged_peers_are_begun_anew(membership: MembershipFile) -> None:
    peer = KnownPeer(b"k" * 32, "ann", ("192.0.2.1:1",), True, 5)
    membership.save_peers((peer,))
    assert membership.peers() == (peer,)
    (membership.folder / "peers.json").write_bytes(b"{")
    assert membership.peers() == ()


def test_only_the_peers_seen_last_are_kept(membership: MembershipFile) -> None:
    peers = tuple(KnownPeer(n.to_bytes(32, "big"), "", (), True, n) for n in range(KNOWN_PEERS + 5))
    membership.save_peers(peers)
    assert [p.seen_ms for p in membership.peers()][:2] == [KNOWN_PEERS + 4, KNOWN_PEERS + 3]
    assert len(membership.peers()) == KNOWN_PEERS


def test_uses_are_counted_by_key_and_survive(home: Home, membership: MembershipFile) -> None:
    membership.add_invite(b"s" * 16, IssuedInvite(b"", NOW_MS + DAY_MS, 1), NOW_MS)
    for _ in range(3):
        membership.count_use(b"s" * 16, b"a" * 32)
    again = MembershipFile.open(home, membership.mesh)
    again.count_use(b"s" * 16, b"a" * 32)
    with pytest.raises(InviteRefused) as caught:
        again.count_use(b"s" * 16, b"b" * 32)
    assert caught.value.refusal == RefusalCode.INVITE_USED_UP
    with pytest.raises(InviteRefused):
        again.count_use(b"?" * 16, b"b" * 32)


def test_a_lost_list_of_uses_admits_nobody_rather_than_too_many(membership: MembershipFile, home: Home) -> None:
    membership.add_invite(b"s" * 16, IssuedInvite(b"", NOW_MS + DAY_MS, 1), NOW_MS)
    (membership.folder / "invites.json").write_bytes(b"{")
    with pytest.raises(HomeError, match="damaged"):
        MembershipFile.open(home, membership.mesh).count_use(b"s" * 16, b"a" * 32)


def test_timestamps_never_repeat_or_go_back_even_after_a_crash(home: Home, membership: MembershipFile) -> None:
    stamps = [membership.next_timestamp(now) for now in (NOW_MS, NOW_MS, NOW_MS - MINUTE_MS, NOW_MS + 1)]
    assert stamps == [NOW_MS, NOW_MS + 1, NOW_MS + 2, NOW_MS + 3]
    again = MembershipFile.open(home, membership.mesh)
    assert again.next_timestamp(NOW_MS) > stamps[-1]
    again.note_timestamp(NOW_MS + MINUTE_MS)
    assert again.next_timestamp(NOW_MS) == NOW_MS + MINUTE_MS + 1


def test_a_clock_that_ran_ahead_and_was_set_right_is_forgotten(home: Home, membership: MembershipFile) -> None:
    membership.next_timestamp(NOW_MS + 400 * DAY_MS)
    assert membership.next_timestamp(NOW_MS) == NOW_MS
    membership.next_timestamp(NOW_MS + 400 * DAY_MS)
    again = MembershipFile.open(home, membership.mesh)
    assert again.next_timestamp(NOW_MS) == NOW_MS
    assert MembershipFile.open(home, membership.mesh).next_timestamp(NOW_MS) > NOW_MS


def test_a_file_too_large_to_be_read_again_is_not_written(membership: MembershipFile, home: Home) -> None:
    membership.add_invite(b"s" * 16, IssuedInvite(b"", NOW_MS + DAY_MS, 1), NOW_MS)
    with pytest.raises(StorageError, match="too large"):
        membership.add_invite(b"t" * 16, IssuedInvite(bytes(membership_file.MAX_FILE_BYTES), NOW_MS + DAY_MS), NOW_MS)
    assert set(MembershipFile.open(home, membership.mesh).invites()) == {b"s" * 16}


def test_timestamps_are_written_rarely(membership: MembershipFile, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    real = membership_file.replace_durably
    monkeypatch.setattr(membership_file, "replace_durably", lambda p, d: (written.append(p), real(p, d)))
    for now in range(NOW_MS, NOW_MS + 4_000, 10):
        membership.next_timestamp(now)
    assert len(written) == 1


def test_a_full_disk_changes_nothing(membership: MembershipFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(membership_file, "replace_durably", full)
    with pytest.raises(StorageError, match="No space left"):
        membership.next_timestamp(NOW_MS)
    with pytest.raises(StorageError):
        membership.add_invite(b"s" * 16, IssuedInvite(b"", NOW_MS + DAY_MS, 1), NOW_MS)
    assert membership.invites() == {}


def test_the_root_key_is_exported_into_a_new_private_file_only(membership: MembershipFile, tmp_path: Path) -> None:
    target = tmp_path / "root-copy"
    export_root(membership, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert NodeKey.load(target).public == membership.mesh
    with pytest.raises(InvalidInput, match="exists"):
        export_root(membership, target)
    membership.root_key_path.unlink()
    with pytest.raises(NotFound, match="founder"):
        export_root(membership, tmp_path / "other")


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "\u202e"])
def test_a_mesh_name_that_does_not_print_is_refused_before_anything_is_written(home: Home, name: str) -> None:
    with pytest.raises(InvalidInput, match="mesh name"):
        found_mesh(home, NodeKey.generate(), name, Policy(), NOW_MS)
    assert not home.meshes.exists()


def test_targets_are_found_by_the_beginning_of_their_id(home: Home) -> None:
    key = NodeKey.generate()
    membership, drafts = found_mesh(home, key, "home", Policy(), NOW_MS)
    trust = Trust(membership.mesh, verify)
    for draft in drafts:
        trust.consider(draft.build(membership.mesh, NOW_MS), NOW_MS)
    authority = Authority(key, membership, trust, FakeClock())
    made = asyncio.run(authority.create_invite(lifetime_ms=DAY_MS, uses=2, bootstrap=()))
    assert repr(made) == f"NewInvite({made.serial.hex()})"
    assert authority.resolve_target(encode_id(key.public)[:8].upper()) == key.public
    assert authority.resolve_target(made.serial.hex()[:8]) == made.serial
    with pytest.raises(InvalidInput):
        authority.resolve_target("abc")
    with pytest.raises(NotFound):
        authority.resolve_target("zzzzzzzz")
    twin = made.serial[:8] + bytes(8)
    membership.add_invite(twin, IssuedInvite(b"", NOW_MS + DAY_MS), NOW_MS)
    with pytest.raises(Ambiguous):
        authority.resolve_target(made.serial.hex()[:8])


def test_invites_out_of_range_are_refused(home: Home, membership: MembershipFile) -> None:
    authority = Authority(NodeKey.generate(), membership, Trust(membership.mesh, verify), FakeClock())
    for lifetime_ms, uses in ((0, None), (400 * DAY_MS, None), (DAY_MS, 0), (DAY_MS, 10_000)):
        with pytest.raises(InvalidInput):
            asyncio.run(authority.create_invite(lifetime_ms=lifetime_ms, uses=uses, bootstrap=()))
