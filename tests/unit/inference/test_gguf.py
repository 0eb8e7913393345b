"""Headers of GGUF files: what they say of a model, and one sentence for every file that is none."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from agentmesh.inference.logic import gguf_facts, gguf_header
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.models.gguf import read_header, read_model
from tests.fakes.tiny_gguf import LLAMA, LONG_CONTEXT, QWEN3_MOE, write_tiny

U64 = struct.Struct("<Q")


def text(value: str) -> bytes:
    return U64.pack(len(value)) + value.encode()


def preamble(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def test_our_tensor_types_are_those_of_the_gguf_package() -> None:
    theirs = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert theirs == gguf_header.TENSOR_TYPES


def test_our_file_types_are_those_of_the_gguf_package() -> None:
    ours = dict(gguf_facts.FILE_TYPES)
    theirs = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    del theirs[int(gguf.LlamaFileType.GUESSED)]
    assert ours == theirs


def test_a_llama_model_is_described(tmp_path: Path) -> None:
    (path,) = write_tiny(tmp_path / "tiny.gguf")
    model = read_model(path)
    facts = model.facts
    assert (facts.architecture, facts.quant, facts.layer_count, facts.context_length) == ("llama", "F32", 2, 512)
    assert (facts.embedding_length, facts.head_count, facts.head_count_kv, facts.key_length) == (64, 4, 2, 16)
    assert facts.weight_bytes == facts.parameter_count * 4
    assert facts.weight_bytes < model.size_bytes == path.stat().st_size
    assert facts.kv_bytes_per_token() == 2 * 2 * (16 + 16) * 2
    assert facts.kv_bytes(512) == 512 * facts.kv_bytes_per_token()
    assert facts.chat_template


def test_parameters_agree_with_the_gguf_packages_own_reader(tmp_path: Path) -> None:
    (path,) = write_tiny(tmp_path / "moe.gguf", QWEN3_MOE)
    theirs = gguf.GGUFReader(path)
    ours = read_header(path)
    assert [(t.name, t.elements, t.size_bytes) for t in ours.tensors] == [
        (t.name, int(t.n_elements), int(t.n_bytes)) for t in theirs.tensors
    ]
    assert [ours.data_offset + t.offset for t in ours.tensors] == [int(t.data_offset) for t in theirs.tensors]


def test_a_mixture_of_experts_is_described(tmp_path: Path) -> None:
    (path,) = write_tiny(tmp_path / "moe.gguf", QWEN3_MOE)
    facts = read_model(path).facts
    assert (facts.architecture, facts.expert_count, facts.expert_used_count) == ("qwen3moe", 8, 2)
    assert facts.expert_bytes == 2 * 3 * 8 * 128 * 64 * 4


def test_a_long_context_is_read(tmp_path: Path) -> None:
    (path,) = write_tiny(tmp_path / "long.gguf", LONG_CONTEXT)
    assert read_model(path).facts.context_length == 131_072


def test_the_same_vocabulary_has_the_same_digest(tmp_path: Path) -> None:
    (first,) = write_tiny(tmp_path / "a.gguf", replace(LLAMA, seed=1))
    (second,) = write_tiny(tmp_path / "b.gguf", QWEN3_MOE)
    assert read_model(first).facts.vocabulary == read_model(second).facts.vocabulary
    assert read_model(first).facts.vocabulary.size == 259


def test_a_set_is_read_from_any_of_its_parts(tmp_path: Path) -> None:
    files = write_tiny(tmp_path / "big.gguf", parts=3)
    (whole,) = write_tiny(tmp_path / "whole.gguf")
    for file in files:
        model = read_model(file)
        assert model.files == tuple(files)
        assert model.facts == read_model(whole).facts


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    files = write_tiny(tmp_path / "big.gguf", parts=3)
    files[1].unlink()
    with pytest.raises(ModelFileUnusable, match=r"missing: big-00002-of-00003\.gguf"):
        read_model(files[0])


def test_a_part_of_another_set_is_found_out(tmp_path: Path) -> None:
    files = write_tiny(tmp_path / "big.gguf", parts=3)
    files[1].write_bytes(files[2].read_bytes())
    with pytest.raises(ModelFileUnusable, match="is not part 2 of 3: its header says 3 of 3"):
        read_model(files[0])
    (single,) = write_tiny(tmp_path / "single.gguf")
    files[1].write_bytes(single.read_bytes())
    with pytest.raises(ModelFileUnusable, match="tells of no set"):
        read_model(files[0])


def test_a_part_under_a_name_of_its_own_is_not_taken_for_a_model(tmp_path: Path) -> None:
    files = write_tiny(tmp_path / "big.gguf", parts=3)
    files[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFileUnusable, match="part 1 of 3, but its name does not say so"):
        read_model(tmp_path / "model.gguf")


def test_a_file_cut_short_is_found_out_wherever_it_is_cut(tmp_path: Path) -> None:
    (path,) = write_tiny(tmp_path / "tiny.gguf")
    data = path.read_bytes()
    end = read_header(path).file_end
    for length in (0, 3, 4, 20, 100, 5000, end // 2, end - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ModelFileUnusable) as raised:
            read_model(path)
        assert str(path) in raised.value.message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PK\x03\x04" + b"\0" * 100, "does not begin with GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (preamble(0, 0, version=1), "version 1"),
        (preamble(1 << 40, 0), "claims 1099511627776 tensors"),
        (preamble(0, 1 << 40), "claims 1099511627776 keys"),
        (preamble(0, 1) + U64.pack(1 << 60), "longer than"),
        (preamble(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 1 << 60), "entries"),
        (preamble(0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1), "entries of type 9"),
        (preamble(0, 1) + text("k") + struct.pack("<I", 77), "unknown type 77"),
        (preamble(0, 2) + 2 * (text("k") + struct.pack("<IB", 0, 1)), "comes twice"),
        (preamble(0, 1) + text("general.alignment") + struct.pack("<II", 4, 3), "alignment is 3"),
        (preamble(1, 0) + tensor("t", (1,) * 5), "5 dimensions"),
        (preamble(1, 0) + tensor("t", (1 << 40, 1 << 40)), "impossible size"),
        (preamble(1, 0) + tensor("t", (32,), kind=99), "unknown type 99"),
        (preamble(1, 0) + tensor("t", (31,), kind=8), "whole number of blocks"),
        (preamble(1, 0) + tensor("t", (32,), offset=5), "not aligned"),
        (preamble(2, 0) + 2 * tensor("t", (32,)), "tensor comes twice"),
        (preamble(1, 0) + tensor("t", (1 << 40,)), "cut short"),
        (preamble(0, 0), "which architecture"),
        (
            preamble(0, 1) + text("general.architecture") + struct.pack("<I", 8) + text("clip"),
            "no model that can be run",
        ),
    ],
)
def test_a_hostile_file_gives_one_sentence(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileUnusable, match=reason) as raised:
        read_model(path)
    assert "\n" not in raised.value.message


def test_what_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path, tmp_path / "pipe.gguf"):
        with pytest.raises(ModelFileUnusable, match="is not a file"):
            read_model(path)
    with pytest.raises(ModelFileUnusable, match="does not exist"):
        read_model(tmp_path / "nothing.gguf")
