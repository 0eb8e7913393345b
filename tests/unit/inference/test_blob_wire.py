"""What is said on a blob stream: whole messages come back, whatever is cut, changed or appended is refused or harmless."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.core.errors import ProtocolError
from agentmesh.inference.logic.blob_limits import MAX_BLOB_ANSWER_BYTES, MAX_BLOB_REQUEST_BYTES, MAX_LISTED_FILES
from agentmesh.inference.logic.blob_wire import (
    LENGTH_BYTES,
    MAX_FILE_BYTES,
    Answer,
    Find,
    Found,
    FoundFile,
    Get,
    Probe,
    Request,
    Status,
    answer_decoder,
    found_decoder,
    frame_of,
    request_decoder,
    usable,
)
from agentmesh.mesh.logic.frames import decode

digests = st.binary(min_size=32, max_size=32)
sizes = st.integers(0, MAX_FILE_BYTES)
requests = st.one_of(
    st.builds(Probe, digests),
    st.builds(Get, digests, sizes),
    st.builds(Find, st.text(min_size=3, max_size=200), st.text(min_size=1, max_size=128)),
)
files = st.builds(FoundFile, st.text(min_size=1, max_size=60), sizes, digests)


def body(frame: bytes) -> bytes:
    assert int.from_bytes(frame[:LENGTH_BYTES], "big") == len(frame) - LENGTH_BYTES
    return frame[LENGTH_BYTES:]


@given(requests)
def test_a_request_comes_back_as_it_was(request: Request) -> None:
    encoded = body(frame_of(request))
    assert decode(encoded, request_decoder) == request
    assert len(encoded) <= MAX_BLOB_REQUEST_BYTES


@given(st.sampled_from(Status), sizes)
def test_an_answer_comes_back_as_it_was(status: Status, size: int) -> None:
    assert decode(body(frame_of(Answer(status, size))), answer_decoder) == Answer(status, size)


@given(requests, st.data())
def test_a_request_that_is_cut_short_is_refused(request: Request, data: st.DataObject) -> None:
    encoded = body(frame_of(request))
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ProtocolError):
        decode(encoded[:cut], request_decoder)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_good_request_or_refused(raw: bytes) -> None:
    try:
        request = decode(raw, request_decoder)
    except ProtocolError:
        return
    if isinstance(request, Get):
        assert len(request.sha256) == 32
        assert 0 <= request.offset <= MAX_FILE_BYTES


def test_what_a_later_version_appends_is_skipped() -> None:
    later = msgspec.msgpack.encode([2, bytes(32), 7, 2, {"compress": True}])
    request = decode(later, request_decoder)
    assert isinstance(request, Get)
    assert (request.offset, request.version) == (7, 2)


@pytest.mark.parametrize(
    "raw",
    [
        [9, bytes(32)],
        [1, bytes(31)],
        [1, bytes(33)],
        [2, bytes(32), -1],
        [2, bytes(32), MAX_FILE_BYTES + 1],
        [2, bytes(32), "0"],
        [1, "a" * 32],
        [3, "r", "main"],
        [3, "o/r", ""],
        [3, "o" * 201, "main"],
        {"sha256": bytes(32)},
    ],
)
def test_a_request_outside_of_its_limits_is_refused(raw: object) -> None:
    with pytest.raises(ProtocolError):
        decode(msgspec.msgpack.encode(raw), request_decoder)


@pytest.mark.parametrize("raw", [[3, 5], [-1, 5], [1, -5], [1, MAX_FILE_BYTES + 1], [True], []])
def test_an_answer_outside_of_its_limits_is_refused(raw: object) -> None:
    with pytest.raises(ProtocolError):
        decode(msgspec.msgpack.encode(raw), answer_decoder)


@given(st.lists(files, max_size=20))
def test_a_listing_comes_back_as_it_was(listed: list[FoundFile]) -> None:
    found = Found("a" * 40, tuple(listed))
    assert decode(body(frame_of(found)), found_decoder) == found


def test_a_listing_that_is_too_long_loses_files_from_its_end() -> None:
    listed = tuple(FoundFile(f"{number:04d}{'x' * 500}.gguf", 1, bytes(32)) for number in range(MAX_LISTED_FILES))
    frame = frame_of(Found("a" * 40, listed))
    assert len(frame) - LENGTH_BYTES <= MAX_BLOB_ANSWER_BYTES
    kept = decode(body(frame), found_decoder).files
    assert kept == listed[: len(kept)]
    assert kept


def test_a_listing_of_too_many_files_is_refused() -> None:
    listed = [["a.gguf", 1, bytes(32)]] * (MAX_LISTED_FILES + 1)
    with pytest.raises(ProtocolError):
        decode(msgspec.msgpack.encode(["a" * 40, listed]), found_decoder)


@pytest.mark.parametrize(
    "path", ["../x.gguf", "/x.gguf", "a/../../x.gguf", "a\\x.gguf", "x.txt", "~/x.gguf", "C:x.gguf"]
)
def test_names_that_lead_elsewhere_or_are_no_models_are_left_out(path: str) -> None:
    good = FoundFile("folder/x.gguf", 1, bytes(32))
    assert usable(Found("a" * 40, (FoundFile(path, 1, bytes(32)), good))).files == (good,)


@pytest.mark.parametrize("commit", ["a" * 39, "A" * 40, "../" + "a" * 37, "main"])
def test_a_commit_that_is_none_is_refused(commit: str) -> None:
    with pytest.raises(ProtocolError):
        usable(Found(commit, ()))
