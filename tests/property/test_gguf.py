"""Whatever bytes a header has: facts or one refusal, with bounded reading."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.logic.gguf_facts import model_facts, split_facts
from agentmesh.inference.logic.gguf_header import MAX_HEADER_BYTES, BadHeader, parse_header
from agentmesh.inference.logic.model_files import is_safe_path, model_id, parts
from agentmesh.inference.logic.names import find
from agentmesh.inference.logic.reference import HubFile, HubRepo, parse_reference
from tests.fakes.tiny_gguf import QWEN3_MOE, write_tiny


def _valid() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        (path,) = write_tiny(Path(folder) / "tiny.gguf", QWEN3_MOE)
        data = path.read_bytes()
    return data[: parse_header(io.BytesIO(data).read).data_offset]


VALID = _valid()


class Counting(io.BytesIO):
    """Fails the test that makes it give too much at once."""

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert 0 <= size <= MAX_HEADER_BYTES
        return super().read(size)


def parse(data: bytes) -> None:
    header = parse_header(Counting(data).read)
    split_facts(header)
    facts = model_facts((header,))
    assert facts.kv_bytes(facts.context_length % (1 << 40)) >= 0


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=9)), max_size=4), st.data())
def test_a_changed_header_gives_facts_or_one_refusal(changes: list[tuple[int, bytes]], data: st.DataObject) -> None:
    changed = bytearray(VALID)
    for at, new in changes:
        changed[at : at + len(new)] = new
    end = data.draw(st.integers(0, len(changed)))
    for cut in (bytes(changed), bytes(changed[:end])):
        try:
            parse(cut)
        except BadHeader as error:
            assert str(error)


@given(st.binary(max_size=400))
def test_any_bytes_after_the_magic_are_refused_or_read(data: bytes) -> None:
    with pytest.raises(BadHeader):
        parse(b"GGUF\x03\0\0\0" + data)


@given(st.text(max_size=80))
def test_no_reference_leads_out_of_its_repository(text: str) -> None:
    for form in (text, f"org/repo/{text}.gguf", f"https://huggingface.co/org/repo/resolve/main/{text}.gguf"):
        try:
            meant = parse_reference(form)
        except InvalidInput:
            continue
        if isinstance(meant, HubFile):
            root = Path("/cache/snapshots")
            assert root in (root / meant.path).resolve().parents
        if isinstance(meant, HubFile | HubRepo):
            assert meant.repo.count("/") == 1
            assert ".." not in meant.repo
            assert ".." not in meant.revision


@given(st.text(max_size=60))
def test_safe_paths_stay_inside(path: str) -> None:
    if is_safe_path(path):
        root = Path("/cache/snapshots")
        assert root in (root / path).resolve().parents


@given(st.text(alphabet="ab/.-0123456789of", max_size=40))
def test_parts_of_a_set_have_one_id(path: str) -> None:
    names = parts(path)
    assert path in names
    assert {model_id(name) for name in names} == {model_id(path)}


@given(st.text(max_size=30), st.lists(st.text(max_size=20), unique=True, max_size=6))
def test_a_name_is_sure_only_for_one_key(wanted: str, keys: list[str]) -> None:
    found, sure = find(wanted, dict.fromkeys(keys, ()))
    assert set(found) <= set(keys)
    assert not sure or len(found) == 1
