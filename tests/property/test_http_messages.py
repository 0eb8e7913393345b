"""The proxy's reading of HTTP/1.1: the same whole, in any pieces and with a tail; and never another reading than llhttp's."""

from __future__ import annotations

from itertools import pairwise

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentmesh.inference.logic.http_body import ChunkedFraming, LengthFraming, as_chunk
from agentmesh.inference.logic.http_head import (
    BadMessage,
    answer_head,
    end_to_end_fields,
    parse_request_head,
    parse_response_head,
    target_request_head,
)

TOKENS = st.text("abcXYZ019-_!~", min_size=1, max_size=12)
NAMES = st.one_of(
    TOKENS,
    st.sampled_from(
        [
            "Content-Length",
            "Transfer-Encoding",
            "Connection",
            "Host",
            "Upgrade",
            "TE",
            "Keep-Alive",
            "x-agentmesh-model",
        ]
    ),
)
VALUES = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    st.sampled_from(
        ["chunked", "0", "5", "05", "close", "keep-alive", "chunked, chunked", "\tx", "5, 5", "a\nb", "a\r\n b", "\0"]
    ),
)
HEADS = st.builds(
    lambda method, target, minor, fields: (
        f"{method} {target} HTTP/1.{minor}\r\n" + "".join(f"{name}:{space}{value}\r\n" for name, space, value in fields)
    ),
    st.sampled_from(["GET", "POST", "OPTIONS", "PO ST"]),
    st.sampled_from(["/", "/v1/chat/completions?x=1", "*", "http://localhost/a", "x", "/a b"]),
    st.integers(0, 2),
    st.lists(st.tuples(NAMES, st.sampled_from(["", " ", "  \t"]), VALUES), max_size=6),
).map(lambda text: text.encode("latin-1"))


class _Llhttp:
    """What llhttp makes of a request."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.url = self.body = b""
        self.messages = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages += 1


@given(HEADS)
@example(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n")
def test_what_is_accepted_llhttp_reads_in_the_same_way(head: bytes) -> None:
    try:
        mine = parse_request_head(head)
    except BadMessage as error:
        assert error.status in (400, 431, 505)
        return
    if b"upgrade" in mine.headers:  # llhttp stops there; such requests are refused later
        return
    body = b"hello"
    sent = as_chunk(body) + b"0\r\n\r\n" if mine.length is None else body[:5] + b"x" * max(0, mine.length - 5)
    sent = sent[: mine.length] if mine.length is not None else sent
    theirs = _Llhttp()
    parser = httptools.HttpRequestParser(theirs)
    parser.feed_data(head + b"\r\n" + sent)
    assert theirs.messages == 1, "another end of the message"
    assert parser.get_method().decode() == mine.method
    assert theirs.body == (body if mine.length is None else sent)
    merged: dict[bytes, bytes] = {}
    for name, value in theirs.headers:
        merged[name] = merged[name] + b", " + value if name in merged else value
    if not theirs.url.startswith(b"http"):
        assert mine.headers == merged
        assert (mine.path + ("?" + mine.query if mine.query else "")).encode() == theirs.url
    assert parser.should_keep_alive() or not mine.keep_alive


@given(st.binary(max_size=300))
@example(b"HTTP/1.1 200 OK\r\n")
def test_no_bytes_make_a_parser_fail_in_another_way(data: bytes) -> None:
    for parse in (parse_request_head, parse_response_head):
        try:
            parse(data)
        except BadMessage as error:
            assert str(error)


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.sampled_from([b"", b";x", b" ;a=b"]),
    st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]),
    st.binary(max_size=20),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_a_chunked_body_is_read_the_same_in_any_pieces_and_its_end_is_exact(
    contents: list[bytes], extension: bytes, trailer: bytes, tail: bytes, cuts: list[int]
) -> None:
    body = b"".join(b"%X%b\r\n%b\r\n" % (len(c), extension, c) for c in contents) + b"0\r\n" + trailer + b"\r\n"
    framing = ChunkedFraming([])
    used = 0
    for piece in _cut(body + tail, cuts):
        used += framing.feed(piece)
        if framing.done:
            break
    assert framing.done
    assert used == len(body)
    assert b"".join(framing.parts or []) == b"".join(contents)


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(0, 200), st.binary(max_size=30))
def test_a_body_of_known_length_ends_exactly(cuts: list[int], length: int, tail: bytes) -> None:
    framing = LengthFraming(length, [])
    used = sum(framing.feed(piece) for piece in _cut(b"x" * length + tail, cuts))
    assert (framing.done, used) == (True, length)
    assert b"".join(framing.parts or []) == b"x" * length


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=8))
def test_any_bytes_are_the_same_to_the_chunk_reader_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    def read(pieces: list[bytes]) -> tuple[str, bytes]:
        framing = ChunkedFraming([])
        try:
            for piece in pieces:
                framing.feed(piece)
                if framing.done:
                    break
        except BadMessage:
            return ("bad", b"")
        return (f"{framing.done}", b"".join(framing.parts or []))

    whole, cut = read([data]), read(_cut(data, cuts))
    assert whole == cut


@given(
    st.dictionaries(
        st.sampled_from([b"content-type", b"connection", b"x-a", b"server", b"x-agentmesh-y"]),
        st.sampled_from([b"a", b"x-a", b"close"]),
    )
)
def test_what_is_written_for_the_next_hop_is_read_back_as_meant(headers: dict[bytes, bytes]) -> None:
    head = answer_head(200, end_to_end_fields(headers), 5, False)
    read = parse_response_head(head[:-2])
    assert (read.status, read.length) == (200, 5)
    assert set(read.headers) <= {b"content-type", b"x-a", b"content-length"}
    request = target_request_head("/v1/messages", headers, 7, engine_key="k", model="m")
    back = parse_request_head(request[:-2])
    assert (back.method, back.path, back.length) == ("POST", "/v1/messages", 7)
    assert b"x-a" not in back.headers


@pytest.mark.parametrize("status", [200, 304, 404, 500])
def test_answers_without_a_length_end_with_their_connection(status: int) -> None:
    read = parse_response_head(b"HTTP/1.1 %d X\r\n" % status)
    assert read.length == (0 if status == 304 else None)
    assert read.keep_alive is (status == 304)


@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5),
    st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b", b"+%x", b"0x%x", b"%x ", b"%d"]),
    st.binary(max_size=3),
)
def test_a_chunk_that_comes_alone_is_read_as_it_is_byte_by_byte(
    contents: list[bytes], size_form: bytes, behind: bytes
) -> None:
    def read(pieces: list[bytes]) -> tuple[str, bool]:
        framing = ChunkedFraming()
        used = 0
        try:
            for piece in pieces:
                used += framing.feed(piece)
        except BadMessage:
            return ("bad", False)
        return (str(used), framing.at_boundary)

    chunks = [size_form % len(content) + b"\r\n" + content + b"\r\n" for content in contents]
    chunks[-1] += behind
    assert read(chunks) == read([bytes([byte]) for chunk in chunks for byte in chunk])
