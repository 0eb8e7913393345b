"""What is read from a post's text, and which posts are refused."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.blackboard.logic.post import (
    BLACKBOARD_KINDS,
    POST_RULE,
    PostKind,
    PostPayload,
    check_author,
    check_kind,
    check_text,
    check_topic,
    encode_post,
    read_heading,
    shown,
    validate_post,
)
from agentmesh.core.errors import InvalidInput
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.kinds import mesh_rules
from agentmesh.mesh.logic.record import Record
from tests.fakes.board import START_MS, signed, signed_post

KEY = NodeKey.generate()


@pytest.mark.parametrize("kind", [kind for kind in PostKind if kind != PostKind.NOTE])
def test_the_prefix_names_the_kind(kind: PostKind) -> None:
    assert read_heading(f"{kind}: something").kind == kind


@pytest.mark.parametrize("text", ["hello", "status: small letters", "a STATUS: later", "STATUS without a colon", ""])
def test_anything_else_is_a_note(text: str) -> None:
    assert read_heading(text).kind == PostKind.NOTE


@pytest.mark.parametrize(
    "text",
    [
        "[org/repo branch:fix/x] hello",
        "STATUS: [org/repo branch:fix/x] hello",
        "STATUS:[ org/repo  branch:fix/x ] hello",
        "  [org/repo branch:fix/x] STATUS: hello",
    ],
)
def test_topic_and_branch_come_from_a_bracket_at_the_start_or_after_the_prefix(text: str) -> None:
    heading = read_heading(text)
    assert (heading.topic, heading.branch) == ("org/repo", "fix/x")
    assert heading.kind == ("STATUS" if "STATUS" in text else "NOTE")


@pytest.mark.parametrize("text", ["[WIP] x", "see [org/repo] x", "[org/repo", "[a b/c] x", "STATUS: see [org/repo]"])
def test_other_brackets_are_no_topic(text: str) -> None:
    assert read_heading(text).topic is None


def test_an_endless_topic_or_branch_in_a_text_is_ignored_rather_than_refused() -> None:
    assert read_heading(f"[org/{'x' * 200}] hi").topic is None
    heading = read_heading(f"[org/repo branch:{'x' * 200}] hi")
    assert (heading.topic, heading.branch) == ("org/repo", None)


def test_a_text_of_exactly_the_limit_is_accepted_and_one_byte_more_is_refused_with_its_size() -> None:
    assert check_text("é" * 2_048) == 4_096
    with pytest.raises(InvalidInput, match="4,097 bytes long; at most 4,096"):
        check_text("é" * 2_048 + "x")


@pytest.mark.parametrize("text", ["", "   \n\t "])
def test_an_empty_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        check_text(text)


def test_a_lone_surrogate_is_refused_as_not_utf8() -> None:
    with pytest.raises(InvalidInput, match="UTF-8"):
        check_text("half \ud83d of an emoji")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1b[31m", "\u202eevil", "a\u200bb", "x" * 65, "\ud800"])
def test_author_names_that_could_deceive_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_author(name)


@pytest.mark.parametrize("name", ["claude", "Zoë", "小明", "agent 7 (night)", "🤖"])
def test_ordinary_author_names_are_accepted_and_trimmed(name: str) -> None:
    assert check_author(f" {name} ") == name


@pytest.mark.parametrize("topic", ["org/repo", "deploys", "a/b/c", "Org.x/re-po_2"])
def test_topics_may_be_given_freely(topic: str) -> None:
    assert check_topic(topic) == topic


@pytest.mark.parametrize("topic", ["", "/", "a b", "a//b", "x" * 129, "../"])
def test_impossible_topics_are_refused(topic: str) -> None:
    with pytest.raises(InvalidInput):
        check_topic(topic)


def test_an_unknown_kind_is_refused_with_the_kinds_there_are() -> None:
    assert check_kind("question") == PostKind.QUESTION
    with pytest.raises(InvalidInput, match="CLAIM"):
        check_kind("RUMOUR")


def test_a_peers_name_is_shown_without_characters_that_reorder_it() -> None:
    assert shown("a\u202eb") == "ab"
    assert shown("\u200b") == "?"


# ------------------------------------------------------------------ what peers send


def _record(**fields: object) -> Record:
    payload = {"text": "hi", "author": "me", "kind": "NOTE"} | fields
    return signed(KEY, "post", msgspec.msgpack.encode(payload), START_MS, 1_000)


def test_a_post_as_we_make_it_is_valid() -> None:
    assert validate_post(signed_post(KEY, "STATUS: [org/repo] hi", START_MS, reply_to=bytes(16))) is None


def test_unknown_fields_and_unknown_kinds_of_later_versions_are_accepted() -> None:
    assert validate_post(_record(kind="RUMOUR", mood={"deep": [1, 2]})) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ""},
        {"text": "x" * 4_097},
        {"text": 7},
        {"text": b"\xff"},
        {"author": ""},
        {"author": "x" * 65},
        {"author": "a\nb"},
        {"topic": "t" * 600},
        {"topic": ""},
        {"branch": "b" * 600},
        {"kind": "note"},
        {"kind": "N" * 17},
        {"reply_to": b"short"},
        {"idempotency": bytes(17)},
    ],
)
def test_posts_that_no_honest_node_makes_are_refused_with_a_reason(fields: dict[str, object]) -> None:
    assert validate_post(_record(**fields))


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"[]", msgspec.msgpack.encode([1]), b"\x91" * 5_000])
def test_payloads_that_are_no_post_are_refused(payload: bytes) -> None:
    assert validate_post(signed(KEY, "post", payload, START_MS, 1_000))


def test_the_largest_post_fits_its_kinds_payload_limit() -> None:
    payload = PostPayload("x" * 4_096, "a" * 64, "t" * 512, "b" * 512, "QUESTION", bytes(16), bytes(16))
    assert len(encode_post(payload)) <= POST_RULE.max_payload_bytes


def test_the_kinds_fit_into_the_meshs_rules() -> None:
    rules = mesh_rules(*BLACKBOARD_KINDS)
    assert rules["retraction"].retracts == "post"
    assert rules["post"].quota
