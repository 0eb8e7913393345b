"""A head that is known from before is understood as if it were read: only its Content-Length may differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.inference.logic.head_memo import MAX_REMEMBERED_BYTES, HeadMemo
from agentmesh.inference.logic.http_head import BadMessage, parse_request_head

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX: y\r\n\r\n"


def memo(head: bytes = HEAD) -> HeadMemo[str]:
    made = HeadMemo[str]()
    made.remember(head, "known")
    return made


def test_the_same_head_with_another_length_is_known() -> None:
    head = HEAD.replace(b"12", b"3456")
    assert memo().recall(head + b"body") == ("known", 3456, len(head))


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"X: y", b"X: z"),
        HEAD.replace(b"X: y", b"X: y\r\nContent-Length: 3"),
        HEAD.replace(b"12", b""),
        HEAD.replace(b"12", b"+1"),
        HEAD.replace(b"12", b"1 2"),
        HEAD.replace(b"12", b"1" * 16),
        HEAD.replace(b"12", b"1\n2"),
        HEAD.replace(b"POST", b"GET"),
        HEAD[:-1],
        HEAD[:30],
        b"",
    ],
)
def test_any_other_difference_makes_it_unknown(head: bytes) -> None:
    assert memo().recall(head) is None


def test_heads_without_a_length_and_very_large_ones_are_not_remembered() -> None:
    assert memo(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n").recall(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n") is None
    large = HEAD.replace(b"X: y", b"X: " + b"y" * MAX_REMEMBERED_BYTES)
    assert memo(large).recall(large) is None


@given(st.integers(0, len(HEAD) - 1), st.binary(max_size=3))
def test_what_is_known_would_have_been_read_in_the_same_way(place: int, piece: bytes) -> None:
    changed = HEAD[:place] + piece + HEAD[place + 1 :]
    recalled = memo().recall(changed)
    if recalled is None:
        return
    _, length, end = recalled
    head = parse_request_head(changed[: end - 2])
    assert (head.length, head.headers[b"x"], head.method) == (length, b"y", "POST")
    with pytest.raises(BadMessage):
        parse_request_head(changed[: end - 2] + b"Content-Length: 1\r\n")
