"""The client's HTTP parser: whole, byte by byte, and damaged."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.control.http1 import BadResponse, ResponseReader, build_request, build_target

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n" + b'{"posts": []}'
CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"pos\r\n8;x=1\r\nts": []}\r\n0\r\n\r\n'
TO_END = b'HTTP/1.1 200 OK\r\n\r\n{"posts": []}'


def read(pieces: list[bytes]) -> tuple[int | None, bytes, bool]:
    reader, body = ResponseReader(), b""
    for piece in pieces:
        reader.feed(piece)
        body += reader.take()
    reader.feed_eof()
    return reader.status, body, reader.complete


@pytest.mark.parametrize("wire", [PLAIN, CHUNKED, TO_END])
def test_a_response_reads_the_same_whole_and_byte_by_byte(wire: bytes) -> None:
    expected = (200, b'{"posts": []}', True)
    assert read([wire]) == expected
    assert read([wire[i : i + 1] for i in range(len(wire))]) == expected


@given(st.lists(st.integers(0, len(CHUNKED)), max_size=6))
def test_a_chunked_response_reads_the_same_however_it_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(CHUNKED)]
    pieces = [CHUNKED[a:b] for a, b in pairwise(edges)]
    assert read(pieces) == (200, b'{"posts": []}', True)


@pytest.mark.parametrize("wire", [PLAIN, CHUNKED])
def test_a_response_that_is_cut_off_is_never_complete(wire: bytes) -> None:
    for length in range(len(wire) - 5):
        assert read([wire[:length]])[2] is False


def test_an_interim_response_is_skipped() -> None:
    assert read([b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN]) == (200, b'{"posts": []}', True)


def test_an_answer_without_content_has_no_body() -> None:
    assert read([b"HTTP/1.1 204 No Content\r\n\r\n"]) == (204, b"", True)


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"x" * 70_000,
    ],
)
def test_bytes_that_are_no_response_are_refused(wire: bytes) -> None:
    with pytest.raises(BadResponse):
        ResponseReader().feed(wire)


@given(st.binary(max_size=400))
def test_any_bytes_give_a_result_or_a_bad_response(data: bytes) -> None:
    for prefix in (b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        with suppress(BadResponse):
            read([prefix + data])


def test_parameters_that_are_none_are_left_out_and_the_rest_is_quoted() -> None:
    target = build_target(
        "/api/blackboard/search", {"query": "C++ & a/b ü", "topic": None, "limit": 20, "unanswered": True}
    )
    assert target == "/api/blackboard/search?query=C%2B%2B%20%26%20a%2Fb%20%C3%BC&limit=20&unanswered=true"


def test_a_request_carries_its_json_and_the_length_of_it() -> None:
    head, _, body = build_request("POST", "/x", {"text": "grüße"}).partition(b"\r\n\r\n")
    assert json.loads(body) == {"text": "grüße"}
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")


def test_a_post_without_a_body_says_that_its_length_is_zero() -> None:
    assert b"Content-Length: 0\r\n" in build_request("POST", "/api/node/stop")
