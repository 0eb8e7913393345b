"""How words become queries, filters become tags, cursors stay ours, claims overlap, and what stays unread."""

from __future__ import annotations

import pytest

from agentmesh.blackboard.logic.claims import claimed_paths, claims_overlap, paths_overlap
from agentmesh.blackboard.logic.cursor import (
    FeedCursor,
    SearchCursor,
    decode_cursor,
    encode_cursor,
)
from agentmesh.blackboard.logic.query import Filters, Stage, clean, plan, tags_of, terms_of
from agentmesh.blackboard.logic.unread import FOREVER, Unread, decode_unread, encode_unread
from agentmesh.core.errors import InvalidInput


def test_words_and_quoted_phrases_are_terms_without_repeats() -> None:
    assert terms_of('flaky "two words" Flaky org/repo') == ("flaky", "two words", "org/repo")


def test_words_that_every_text_has_count_only_alone() -> None:
    assert terms_of("how do I fix the build") == ("fix", "build")
    assert terms_of("to be or not") == ("to", "be", "or", "not")


def test_what_holds_no_word_is_no_term() -> None:
    assert terms_of('" ( * -> 🎉 \x00') == ()


def test_a_query_beyond_all_measure_is_refused() -> None:
    with pytest.raises(InvalidInput, match="characters long"):
        terms_of("x" * 65_537)


def test_only_the_first_terms_of_an_endless_query_count() -> None:
    assert len(terms_of(" ".join(f"w{i}" for i in range(1_000)))) == 8


def test_relaxation_goes_from_all_terms_to_parts_of_words() -> None:
    steps = list(plan("alpha beta", Filters()))
    assert [step.stage for step in steps] == [Stage.ALL, Stage.ANY, Stage.PREFIX, Stage.TRIGRAM]
    assert steps[0].match == '"alpha" AND "beta"'


def test_short_words_are_no_prefixes() -> None:
    assert [step.stage for step in plan("v1", Filters())] == [Stage.ALL]
    assert [step.stage for step in plan("main.py", Filters())] == [Stage.ALL, Stage.TRIGRAM]


def test_of_many_terms_the_longest_must_all_be_there_and_any_may() -> None:
    every, some, *_ = plan("red blue yellow orange violet indigo green white", Filters())
    assert every.match == '"yellow" AND "orange" AND "violet" AND "indigo"'
    assert some.match is not None and some.match.count(" OR ") == 7


def test_control_characters_and_surrogates_become_spaces() -> None:
    assert clean("a\x00b\ud800c") == "a b c"


def test_each_filter_is_one_tag_that_fitting_posts_carry() -> None:
    tags = tags_of("Org/Repo", "QUESTION", "Me", closed=False).split()
    fits = [
        Filters(topic="org/repo"),
        Filters(kind="QUESTION"),
        Filters(author="me"),
        Filters(topic="org/repo", author="ME", unanswered=True),
        Filters(topic="org/repo", kind="QUESTION", author="me"),
    ]
    assert all(f.tag() in tags for f in fits)
    misses = [Filters(topic="org/other"), Filters(kind="NOTE"), Filters(topic="me"), Filters(author="org/repo")]
    assert not any(f.tag() in tags for f in misses)


def test_an_answered_question_no_longer_carries_the_tag_of_the_unanswered() -> None:
    assert Filters(unanswered=True).tag() not in tags_of(None, "QUESTION", "me", closed=True).split()


def test_unanswered_notes_are_impossible() -> None:
    assert Filters(kind="NOTE", unanswered=True).impossible
    assert not Filters(kind="QUESTION", unanswered=True).impossible


# ------------------------------------------------------------------ cursors

DIGEST = bytes(8)


@pytest.mark.parametrize("cursor", [FeedCursor(DIGEST, 7), SearchCursor(DIGEST, 2**62, 3, None)])
def test_a_cursor_comes_back_as_it_was(cursor: FeedCursor | SearchCursor) -> None:
    assert decode_cursor(encode_cursor(cursor), type(cursor), DIGEST) == cursor


@pytest.mark.parametrize("text", ["", "x", "äö", "AAAA", "a" * 5_000, "!!!!", encode_cursor(FeedCursor(DIGEST, -5))])
def test_what_is_no_cursor_of_ours_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(InvalidInput, match="cursor"):
        decode_cursor(text, FeedCursor, DIGEST)


def test_a_cursor_of_another_question_or_listing_is_refused() -> None:
    cursor = encode_cursor(FeedCursor(DIGEST, 7))
    with pytest.raises(InvalidInput, match="another listing"):
        decode_cursor(cursor, FeedCursor, b"\x01" * 8)
    with pytest.raises(InvalidInput, match="another listing"):
        decode_cursor(cursor, SearchCursor, DIGEST)


# ------------------------------------------------------------------ claims


def test_paths_of_a_claim_are_read_from_its_words() -> None:
    text = "CLAIM: [org/repo branch:x] I am changing `src/billing/**`, tests/x.py and README.md. See https://a.b/c, v1.2, 3/4?"
    assert claimed_paths(text)[:3] == ("src/billing/**", "tests/x.py", "README.md")


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("src/billing/**", "src/billing/invoice.py", True),
        ("src/billing", "src/billing/a/b.py", True),
        ("src/*.py", "src/a.py", True),
        ("src/a.py", "src/b.py", False),
        ("**/test.py", "a/b/test.py", True),
        ("**/test.py", "a/b/c.py", False),
        ("a/**/z.c", "a/z.c", True),
        ("a/**/z.c", "a/b/c/z.c", True),
        ("a/**", "b/**", False),
        ("**", "x.py", True),
        ("a*", "*b", True),
        ("a?c", "abc", True),
    ],
)
def test_globs_overlap_when_some_file_fits_both(one: str, other: str, overlap: bool) -> None:
    assert paths_overlap(one, other) == paths_overlap(other, one) == overlap


def test_claims_on_different_topics_never_overlap_and_one_without_paths_claims_its_topic() -> None:
    assert not claims_overlap("CLAIM: src/a.py", "org/one", "CLAIM: src/a.py", "org/two")
    assert claims_overlap("CLAIM: src/a.py", "org/one", "CLAIM: src/a.py", None)
    assert claims_overlap("CLAIM: the release", "org/one", "CLAIM: src/a.py", "org/one")
    assert not claims_overlap("CLAIM: the release", None, "CLAIM: src/a.py", "org/one")


# ------------------------------------------------------------------ what is unread


def test_what_a_page_leaves_over_stays_unread_below_and_what_comes_later_above() -> None:
    unread = Unread().without(81, 101)
    assert unread.ranges == ((101, FOREVER), (0, 81))
    assert not unread.contains(100)
    assert unread.contains(80)
    assert unread.contains(101)


def test_ranges_in_which_nothing_lives_any_more_are_forgotten() -> None:
    unread = Unread().without(81, 101).forgetting_below(90)
    assert unread.ranges == ((101, FOREVER),)
    assert Unread(((5, 10),)).forgetting_below(50).contains(50)


def test_unread_positions_survive_storage_and_damage_means_everything_is_unread() -> None:
    unread = Unread().without(5, 9)
    assert decode_unread(encode_unread(unread)) == unread
    assert decode_unread(b"\xc1") == Unread()
