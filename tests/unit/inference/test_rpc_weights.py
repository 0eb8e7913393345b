"""A model's files as the relay uses them, hashes that are remembered, and sockets whose bulk moves in a thread."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest

from agentmesh.core.errors import StreamClosed
from agentmesh.inference.logic.rpc_limits import MAX_HASHED_FILES
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.rpc.counters import RelayCounters
from agentmesh.inference.rpc.local_socket import LocalSocket, is_own_user
from agentmesh.inference.rpc.weights import Part, Place, WeightFiles, WeightHashes
from tests.fakes.relay_world import tensors
from tests.fakes.tiny_gguf import write_tiny

UP = "blk.1.ffn_up.weight"
SIZE = 64 * 128 * 4


async def opened(folder: Path, *, parts: int = 1) -> WeightFiles:
    first = write_tiny(folder / "tiny.gguf", parts=parts)[0]
    return await WeightFiles.open(first, FileIdentities(folder / "identities.json"))


def place(name: str = "t", sha256: bytes = b"s" * 32) -> Place:
    return Place(Part(Path("x.gguf"), sha256, -1, (0, 0, 0, 0)), name, 0, 4, 0)


@pytest.mark.parametrize("parts", [1, 3])
async def test_every_tensor_is_found_where_it_is(tmp_path: Path, parts: int) -> None:
    files = await opened(tmp_path, parts=parts)
    assert len(files.digests) == parts
    for name, (tensor, data) in tensors(next(tmp_path.glob("*.gguf"))).items():
        found = files.find(name, tensor.type_number, len(data))
        assert found is not None
        assert os.pread(found.part.descriptor, len(data), found.offset) == data
    files.close()


async def test_another_name_type_or_size_is_not_found(tmp_path: Path) -> None:
    files = await opened(tmp_path)
    assert files.find(UP, 0, SIZE) is not None
    assert files.find("blk.9.ffn_up.weight", 0, SIZE) is None
    assert files.find(None, 0, SIZE) is None
    assert files.find(UP, 1, SIZE) is None
    assert files.find(UP, 0, SIZE - 4) is None
    files.close()


async def test_a_name_that_two_parts_have_is_in_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path / "tiny.gguf")
    twice = (tmp_path / "tiny.gguf", tmp_path / "tiny.gguf")
    monkeypatch.setattr("agentmesh.inference.rpc.weights.part_files", lambda _: twice)
    files = await WeightFiles.open(tmp_path / "tiny.gguf", FileIdentities(tmp_path / "identities.json"))
    assert files.find(UP, 0, SIZE) is None
    files.close()


async def test_a_file_that_changed_or_was_closed_is_not_served(tmp_path: Path) -> None:
    files = await opened(tmp_path)
    found = files.find(UP, 0, SIZE)
    assert found is not None
    files.check(found)
    with (tmp_path / "tiny.gguf").open("r+b") as file:
        file.seek(found.offset)
        file.write(b"other")
        os.utime(file.fileno(), ns=(1, 1))
    with pytest.raises(ModelFileUnusable, match="changed"):
        files.check(found)
    files.close()
    files.close()
    with pytest.raises(ModelFileUnusable):
        files.check(found)


async def test_a_missing_or_damaged_file_is_said_to_be_that(tmp_path: Path) -> None:
    identities = FileIdentities(tmp_path / "identities.json")
    with pytest.raises(ModelFileUnusable):
        await WeightFiles.open(tmp_path / "nothing.gguf", identities)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc").exists() else 0
    with pytest.raises(ModelFileUnusable):
        await WeightFiles.open(tmp_path / "bad.gguf", identities)
    assert not before or len(os.listdir("/proc/self/fd")) <= before  # those of tests before may be closed meanwhile


async def test_hashes_are_remembered_by_content_and_name(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "fnv.json"
    hashes = WeightHashes(path)
    hashes.learn(place("a"), 2**64 - 1)
    await hashes.save()
    again = WeightHashes(path)
    assert again.fits(place("a"), 2**64 - 1)
    assert not again.fits(place("a"), 5)
    assert not again.fits(place("b"), 2**64 - 1)
    assert not again.fits(place("a", b"o" * 32), 2**64 - 1)
    assert not again.fits(place("b"), 0)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": {"b": "c"}}', b"\xff"])
async def test_a_damaged_memory_of_hashes_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fnv.json").write_bytes(content)
    assert not WeightHashes(tmp_path / "fnv.json").fits(place(), 0)


async def test_files_of_which_hashes_are_kept_are_bounded() -> None:
    hashes = WeightHashes()
    for number in range(MAX_HASHED_FILES + 1):
        hashes.learn(place("a", number.to_bytes(32, "big")), number)
    assert not hashes.fits(place("a", bytes(32)), 0)
    assert hashes.fits(place("a", MAX_HASHED_FILES.to_bytes(32, "big")), MAX_HASHED_FILES)
    await hashes.save()  # nowhere


# ------------------------------------------------------------------ sockets


async def test_a_file_goes_out_and_is_recognised_as_it_comes(tmp_path: Path) -> None:
    files = await opened(tmp_path)
    found = files.find(UP, 0, SIZE)
    assert found is not None
    near, far = (LocalSocket(each) for each in socket.socketpair())
    sending = asyncio.ensure_future(near.send_file(found, start=100))
    data = tensors(tmp_path / "tiny.gguf")[UP][1]
    assert await far.match(found, SIZE, memoryview(data[:100])) == (SIZE, b"")
    await sending
    near.close()
    far.close()
    files.close()


async def test_a_cancelled_thread_lets_go_of_the_socket(tmp_path: Path) -> None:
    files = await opened(tmp_path)
    found = files.find(UP, 0, SIZE)
    assert found is not None
    near, far = (LocalSocket(each) for each in socket.socketpair())
    waiting = asyncio.ensure_future(far.match(found, SIZE, memoryview(b"")))
    await asyncio.sleep(0)
    began_s = time.monotonic()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert time.monotonic() - began_s < 60  # nothing will ever come
    near.end()
    with pytest.raises(StreamClosed):
        await far.match(found, SIZE, memoryview(b""))
    assert await far.read() == b""
    far.close()
    with pytest.raises(StreamClosed):
        await near.send_file(found)
    with pytest.raises(StreamClosed):
        await near.write(b"x")
    near.close()
    files.close()


def test_a_connection_of_this_user_is_told_from_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert is_own_user(accepted)


def test_a_connection_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted, client:
            row = f"0: 0100007F:{client.getsockname()[1]:04X} 0100007F:{listener.getsockname()[1]:04X} 01 0:0 0:0 0 "
            for user, own in ((os.geteuid() + 4242, False), (os.geteuid(), True)):
                table = f"head\n{row}{user} 0 1\n"
                monkeypatch.setattr(Path, "read_text", lambda *_, table=table: table)
                assert is_own_user(accepted) == own
            monkeypatch.setattr(Path, "read_text", lambda *_: "head\n")
            assert not is_own_user(accepted)


# ------------------------------------------------------------------ counters


def test_a_reply_is_overdue_from_its_request_and_from_the_last_sign_of_life() -> None:
    now_s = 100.0
    counters = RelayCounters(lambda: now_s)
    assert counters.overdue_s == 0
    counters.asked()
    now_s = 130.0
    counters.asked()
    assert counters.overdue_s == 30
    counters.heard(1)
    now_s = 131.0
    assert counters.overdue_s == 1
    counters.heard(0)
    assert counters.overdue_s == 0
    with counters.writing():
        now_s = 141.0
        assert counters.overdue_s == 10
    assert counters.overdue_s == 0


def test_commands_are_counted_by_name() -> None:
    counters = RelayCounters(time.monotonic)
    for command in (6, 0x80, 200):
        counters.of(command).requests += 1
    assert list(counters.by_name()) == ["set_tensor", "file_tensor", "200"]
