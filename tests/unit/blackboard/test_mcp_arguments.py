"""Tool arguments: what is announced, what is accepted, and that every refusal says what to pass instead."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.blackboard.logic.mcp_arguments import FEED, POST, SEARCH, Signature
from agentmesh.core.errors import InvalidInput

ALL = (POST, SEARCH, FEED)


def refusal(signature: Signature, arguments: dict[str, Any]) -> str:
    with pytest.raises(InvalidInput) as caught:
        signature.check(arguments)
    return caught.value.message


def test_the_three_tools_take_exactly_the_arguments_of_the_specification() -> None:
    assert [a.name for a in POST.arguments] == ["text", "reply_to", "topic", "from", "idempotency_key"]
    assert [a.name for a in SEARCH.arguments] == [
        "query", "topic", "kind", "author", "since_hours", "unanswered", "limit", "cursor",
    ]  # fmt: skip
    assert [a.name for a in FEED.arguments] == [
        "since_hours", "topic", "kind", "author", "thread", "unread_only", "wait_seconds", "limit", "cursor",
    ]  # fmt: skip


def test_only_text_and_query_are_required() -> None:
    assert [signature.schema()["required"] for signature in ALL] == [["text"], ["query"], []]


def test_a_schema_allows_nothing_that_is_not_listed() -> None:
    for signature in ALL:
        assert signature.schema()["additionalProperties"] is False


def test_good_arguments_pass_unchanged() -> None:
    given_arguments = {"text": "STATUS: hi", "reply_to": "3f2a9c01", "from": "ada"}
    assert POST.check(given_arguments) == given_arguments


def test_null_counts_as_not_given() -> None:
    assert SEARCH.check({"query": "x", "topic": None, "limit": None}) == {"query": "x"}


def test_a_kind_is_taken_in_any_case() -> None:
    assert SEARCH.check({"query": "", "kind": "question"})["kind"] == "QUESTION"


def test_a_whole_number_written_as_a_fraction_is_whole() -> None:
    assert FEED.check({"limit": 20.0})["limit"] == 20


@pytest.mark.parametrize(
    ("signature", "arguments", "words"),
    [
        (POST, {}, ["needs `text`"]),
        (POST, {"text": None}, ["needs `text`"]),
        (POST, {"text": "  \n"}, ["`text` is empty"]),
        (POST, {"text": 5}, ["`text` must be a string", "the number 5"]),
        (POST, {"text": ["a"]}, ["`text` must be a string", "a list"]),
        (POST, {"text": "x" * 16_385}, ["`text` has 16385 characters", "16384"]),
        (POST, {"text": "\ud800"}, ["surrogate"]),
        (POST, {"text": "a", "reply": "b"}, ["no argument `reply`", "reply_to"]),
        (SEARCH, {"query": "a", "limit": "ten"}, ["`limit` must be a whole number from 1 to 200", "'ten'"]),
        (SEARCH, {"query": "a", "limit": 0}, ["from 1 to 200"]),
        (SEARCH, {"query": "a", "limit": 2.5}, ["whole number"]),
        (SEARCH, {"query": "a", "limit": True}, ["whole number", "true"]),
        (SEARCH, {"query": "a", "kind": "RANT"}, ["NOTE, STATUS, QUESTION", "'RANT'"]),
        (SEARCH, {"query": "a", "unanswered": "yes"}, ["true or false"]),
        (FEED, {"since_hours": float("nan")}, ["`since_hours` must be a number"]),
        (FEED, {"since_hours": float("inf")}, ["`since_hours` must be a number"]),
        (FEED, {"wait_seconds": 56}, ["from 0 to 55"]),
        (FEED, {"wait_seconds": {"s": 1}}, ["an object"]),
    ],
)
def test_a_wrong_argument_is_refused_with_what_to_pass_instead(
    signature: Signature, arguments: dict[str, Any], words: list[str]
) -> None:
    message = refusal(signature, arguments)
    assert all(word in message for word in words), message


def test_what_is_echoed_of_a_wrong_argument_is_short_and_printable() -> None:
    message = refusal(SEARCH, {"query": "a", "kind": "\x1b[31m" + "x" * 1000})
    assert "\x1b" not in message
    assert len(message) < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(sorted({a.name for s in ALL for a in s.arguments})) | st.text(max_size=10)


@given(st.sampled_from(ALL), st.dictionaries(names, json_values, max_size=6))
def test_any_json_is_either_checked_or_refused_in_a_sentence(signature: Signature, arguments: dict[str, Any]) -> None:
    try:
        checked = signature.check(arguments)
    except InvalidInput as error:
        assert error.message
        assert error.message.isprintable()
    else:
        known = {argument.name: argument for argument in signature.arguments}
        types = {"string": str, "integer": int, "number": int | float, "boolean": bool}
        assert all(isinstance(value, types[known[name].type]) for name, value in checked.items())
