"""Key files that nobody else can read, ids that people can type."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agentmesh.core.errors import IdentityKeyError, InvalidInput
from agentmesh.mesh import identity
from agentmesh.mesh.identity import NodeKey, decode_id, encode_id, short_id, verify


def test_a_key_is_made_once_and_loaded_ever_after(tmp_path: Path) -> None:
    path = tmp_path / "home" / "identity.key"
    made = NodeKey.load_or_create(path)
    assert NodeKey.load_or_create(path).public == made.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["identity.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    NodeKey.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(IdentityKeyError, match=f"chmod 600 {path}"):
        NodeKey.load_or_create(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"agentmesh ed25519 private key v1\n",
        b"agentmesh ed25519 private key v1\nAAAA\n",
        b"something else\n" + b"A" * 43 + b"=\n",
        b"agentmesh ed25519 private key v1\n" + b"A" * 43 + b"=" + b"\n" * 300,
    ],
)
def test_a_damaged_key_is_refused_and_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityKeyError, match="damaged"):
        NodeKey.load_or_create(path)
    assert path.read_bytes() == content


def test_an_unreadable_key_is_refused_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "identity.key"
    NodeKey.load_or_create(path)

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(identity.os, "open", refuse)  # chmod does not stop root, as whom tests may run
    with pytest.raises(IdentityKeyError, match="cannot be read: Permission denied"):
        NodeKey.load_or_create(path)


def test_a_folder_or_a_fifo_in_the_place_of_the_key_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name in ("folder", "fifo"):
        with pytest.raises(IdentityKeyError, match="not a regular file"):
            NodeKey.load_or_create(tmp_path / name)


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IdentityKeyError):
        NodeKey.load_or_create(path)
    assert not (tmp_path / "elsewhere").exists()


def test_of_two_processes_that_start_together_both_get_the_first_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "identity.key"
    real, other = os.link, NodeKey.generate()

    def other_was_quicker(source: Path, target: Path) -> None:
        monkeypatch.setattr(identity.os, "link", real)
        other.save(path)
        real(source, target)

    monkeypatch.setattr(identity.os, "link", other_was_quicker)
    assert NodeKey.load_or_create(path).public == other.public
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_full_disk_leaves_no_half_written_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(identity.os, "fsync", full)
    with pytest.raises(IdentityKeyError, match="No space left"):
        NodeKey.load_or_create(tmp_path / "identity.key")
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


def test_signatures_verify_and_bad_input_never_raises() -> None:
    key = NodeKey.generate()
    signature = key.sign(b"message")
    assert verify(key.public, signature, b"message")
    assert not verify(key.public, signature, b"other")
    assert not verify(key.public, b"short", b"message")
    assert not verify(b"short", signature, b"message")
    assert not verify(b"\xff" * 32, signature, b"message")


def test_the_private_key_is_not_in_the_representation() -> None:
    key = NodeKey.generate()
    assert repr(key) == f"NodeKey({encode_id(key.public)})"


def test_ids_are_52_characters_and_come_back_in_either_case() -> None:
    key = NodeKey.generate().public
    text = encode_id(key)
    assert len(text) == 52
    assert text == text.lower()
    assert decode_id(f" {text.upper()} ") == key


@pytest.mark.parametrize("text", ["", "a" * 51, "a" * 53, "1" * 52, "é" * 52, "a" * 51 + "b"])
def test_what_is_not_an_id_is_said_to_be_none(text: str) -> None:
    # In the last one the padding bits are set: two texts must not name one key.
    with pytest.raises(InvalidInput, match="is not an id"):
        decode_id(text)


def test_a_short_id_is_as_long_as_needed_and_eight_at_least() -> None:
    key = bytes(32)
    near = bytes(31) + b"\x01"
    assert short_id(key) == "a" * 8
    assert short_id(key, [b"\xff" * 32, key]) == "a" * 8
    assert short_id(key, [near]) == "a" * 52
    assert short_id(bytes([0, 0, 0, 0, 0, 1]) + bytes(26), [key]) == "a" * 9 + "e"
