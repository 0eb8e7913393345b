"""Shards on disk: whole under their name or not there at all, found again by content."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from agentmesh.core.errors import StorageError
from agentmesh.core.paths import Home
from agentmesh.inference.models import shard as shard_module
from agentmesh.inference.models.errors import ModelFileUnusable, NoSpace
from agentmesh.inference.models.gguf import read_header, read_model
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.models.shard import (
    LocalParts,
    SplitModel,
    clear_partials,
    layout_of,
    read_expert_model,
    shard_digest,
    write_shard,
)
from agentmesh.inference.models.shard_store import ShardStore, source_digest
from tests.fakes.expert_gguf import ExpertShape, write_expert_gguf

HALF = ((0, 2, 5, 7), (1, 2, 3, 4))
ALL = (tuple(range(8)),) * 2
PLENTY = 1 << 40


@pytest.fixture
def model(tmp_path: Path) -> SplitModel:
    write_expert_gguf(tmp_path / "experts.gguf", ExpertShape(kind="Q8_0", shared=True))
    return read_expert_model(tmp_path / "experts.gguf")


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    return ShardStore.of_home(Home(tmp_path / "home"))


def written(model: SplitModel, target: Path, kept: Any = HALF, **options: Any) -> shard_module.ShardFile:
    with LocalParts.open(model.files) as parts:
        layout = layout_of(model.headers, model.experts, parts, kept, "source")
        return write_shard(layout, parts, target, check=parts.check_unchanged, **options)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_shard_is_a_model_of_its_own(model: SplitModel, tmp_path: Path) -> None:
    done = written(model, tmp_path / "out" / "half.gguf")
    assert left_in(tmp_path / "out") == ["half.gguf"]
    assert done.sha256 == hashlib.sha256(done.path.read_bytes()).hexdigest()
    assert done.size_bytes == done.path.stat().st_size
    facts = read_model(done.path).facts
    assert (facts.expert_count, facts.expert_used_count) == (4, 1)
    assert facts.weight_bytes == model.experts.shard_bytes(4)
    theirs = gguf.GGUFReader(done.path)
    tokens = theirs.fields["tokenizer.ggml.tokens"].contents()
    assert tokens == gguf.GGUFReader(model.files[0]).fields["tokenizer.ggml.tokens"].contents()
    assert theirs.fields["agentmesh.shard.source_expert_count"].contents() == 8


def test_keeping_all_experts_keeps_every_tensor_byte_for_byte(model: SplitModel, tmp_path: Path) -> None:
    done = written(model, tmp_path / "all.gguf", ALL)
    before, after = read_header(model.files[0]), read_header(done.path)
    assert before.tensors == after.tensors
    assert model.files[0].read_bytes()[before.data_offset :] == done.path.read_bytes()[after.data_offset :]


def test_a_model_in_parts_gives_the_same_shard_in_one_file(model: SplitModel, tmp_path: Path) -> None:
    files = write_expert_gguf(tmp_path / "set.gguf", ExpertShape(kind="Q8_0", shared=True), tensors_a_part=5)
    assert len(files) > 2
    parts = written(read_expert_model(files[1]), tmp_path / "from-parts.gguf")
    whole = written(model, tmp_path / "from-one.gguf")
    assert parts.path.read_bytes() == whole.path.read_bytes(), "no trace of the set: split.* keys are gone"


def test_a_shard_is_not_split_again(model: SplitModel, tmp_path: Path) -> None:
    done = written(model, tmp_path / "half.gguf")
    with pytest.raises(ModelFileUnusable, match="a part already, 4 of 8 experts"):
        read_expert_model(done.path)


def test_progress_ends_at_the_whole_size(model: SplitModel, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = written(model, tmp_path / "half.gguf", progress=lambda *step: seen.append(step))
    assert seen == sorted(seen)
    assert seen[-1] == (done.size_bytes, done.size_bytes)


def test_the_hash_can_be_told_without_writing(model: SplitModel, tmp_path: Path) -> None:
    done = written(model, tmp_path / "half.gguf")
    with LocalParts.open(model.files) as parts:
        assert shard_digest(layout_of(model.headers, model.experts, parts, HALF, "source"), parts) == done.sha256


def test_what_cannot_fit_is_refused_before_the_first_byte(model: SplitModel, tmp_path: Path) -> None:
    with pytest.raises(NoSpace, match=r"needs .* to spare"):
        written(model, tmp_path / "out" / "half.gguf", free_bytes=lambda _: 1000)
    assert left_in(tmp_path / "out") == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    model: SplitModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match=r"The disk is full: .*Nothing was kept"):
        written(model, tmp_path / "out" / "half.gguf")
    assert left_in(tmp_path / "out") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_write_that_fails_in_the_middle_is_one_sentence(
    model: SplitModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", *a: real(Path("/dev/full"), "wb") if mode == "xb" else real(path, mode, *a)
    )
    with pytest.raises(NoSpace, match="The disk is full"):
        written(model, tmp_path / "half.gguf")
    assert "half.gguf" not in left_in(tmp_path)


def test_ctrl_c_leaves_nothing_and_what_was_there_before_stays(model: SplitModel, tmp_path: Path) -> None:
    target = tmp_path / "out" / "half.gguf"
    target.parent.mkdir()
    target.write_bytes(b"before")

    def interrupt(done: int, whole: int) -> None:
        if done > whole // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(model, target, progress=interrupt)
    assert left_in(target.parent) == ["half.gguf"]
    assert target.read_bytes() == b"before"


def test_a_model_that_changes_meanwhile_gives_no_shard(model: SplitModel, tmp_path: Path) -> None:
    def touch(done: int, whole: int) -> None:
        if done == whole:
            os.utime(model.files[0], (1, 1))

    with pytest.raises(ModelFileUnusable, match="changed while the shard was written"):
        written(model, tmp_path / "out" / "half.gguf", progress=touch)
    assert left_in(tmp_path / "out") == []


def test_a_model_that_shrinks_meanwhile_gives_no_shard(model: SplitModel, tmp_path: Path) -> None:
    with pytest.raises(ModelFileUnusable, match="its header tells of more"), LocalParts.open(model.files) as parts:
        layout = layout_of(model.headers, model.experts, parts, HALF, "source")
        os.truncate(model.files[0], model.headers[0].data_offset + 100)
        write_shard(layout, parts, tmp_path / "out" / "half.gguf")
    assert left_in(tmp_path / "out") == []


WRITER = """
import sys, time
from pathlib import Path
from agentmesh.inference.models.shard import LocalParts, layout_of, read_expert_model, write_shard

def progress(done, whole):
    if done > whole // 2:
        print("half", flush=True)
        time.sleep(600)

model = read_expert_model(Path(sys.argv[1]))
with LocalParts.open(model.files) as parts:
    layout = layout_of(model.headers, model.experts, parts, ((0, 1, 2, 3),) * 2, "s")
    write_shard(layout, parts, Path(sys.argv[2]), progress=progress)
"""


def test_a_killed_writer_gives_no_shard_and_the_next_one_removes_its_rest(model: SplitModel, tmp_path: Path) -> None:
    target = tmp_path / "out" / "half.gguf"
    command = [sys.executable, "-c", WRITER, str(model.files[0]), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"half\n"
            (partial,) = left_in(target.parent)
            assert partial.startswith(".half.gguf.")
            clear_partials(target)
            assert left_in(target.parent) == [partial], "its writer lives"
        finally:
            writer.kill()
    assert left_in(target.parent) == [partial]
    written(model, target)
    assert left_in(target.parent) == ["half.gguf"]


def test_a_folder_that_cannot_be_made_is_one_sentence(model: SplitModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be used"):
        written(model, tmp_path / "file" / "half.gguf")


# ------------------------------------------------------------------ the store


def no_reading(*_: object) -> Iterator[bytes]:
    raise AssertionError("the shard is there; nothing is to be copied")


def test_a_stored_shard_is_found_again_without_writing(
    model: SplitModel, store: ShardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.make(model, "s", HALF)
    assert store.path(first).name == "experts.gguf", "served under the whole model's id"
    assert first.sha256 == hashlib.sha256(store.path(first).read_bytes()).hexdigest()
    monkeypatch.setattr(shard_module, "_stream", no_reading)
    assert store.make(model, "s", HALF) == first
    assert store.records() == [first]


def test_another_model_and_another_choice_are_other_shards(model: SplitModel, store: ShardStore) -> None:
    keys = {store.make(model, source, kept).key for source in ("s", "t") for kept in (HALF, ALL)}
    assert len(keys) == len(store.records()) == 4


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "no record", "bad record"])
def test_a_stored_shard_that_is_damaged_is_made_again(model: SplitModel, store: ShardStore, damage: str) -> None:
    first = store.make(model, "s", HALF)
    path, record = store.path(first), store.path(first).with_name("shard.json")
    good = path.read_bytes()
    if damage == "changed":
        path.write_bytes(good[:-9] + b"!" + good[-8:])
    elif damage == "cut":
        path.write_bytes(good[:-1])
    elif damage == "gone":
        path.unlink()
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("{")
    assert store.find(first.key) is None
    assert store.make(model, "s", HALF) == first
    assert path.read_bytes() == good


def test_a_record_cannot_name_a_file_elsewhere(model: SplitModel, store: ShardStore) -> None:
    first = store.make(model, "s", HALF)
    record = store.path(first).with_name("shard.json")
    record.write_text(record.read_text().replace('"experts.gguf"', '"../../experts.gguf"'))
    assert store.find(first.key) is None


def test_a_models_content_is_that_of_all_its_parts_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    identities = FileIdentities(tmp_path / "hashes.json")
    digests = {source_digest([tmp_path / name for name in names], identities) for names in ("a", "b", "ab", "ba")}
    assert len(digests) == 4
