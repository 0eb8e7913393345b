"""One member of a JSON text is changed; every other byte stays."""

from __future__ import annotations

import json

import pytest

from agentmesh.launchers.json_edit import MAX_DEPTH, BadText, parse, set_member

JSONC = """// my models
{
  "providers": {
    /* the one at work */
    "work": { "apiKey": "s", "n": 1.50, }, // keep
  },
}
"""


def test_a_missing_or_empty_text_becomes_a_new_object() -> None:
    for text in (None, "", " \n", "\ufeff"):
        assert json.loads(set_member(text, ("a", "b"), 1)) == {"a": {"b": 1}}


def test_a_member_is_added_behind_the_others_in_their_indentation() -> None:
    assert set_member('{\n    "a": 1\n}\n', ("b",), [2]) == '{\n    "a": 1,\n    "b": [\n      2\n    ]\n}\n'
    assert set_member('{\n\t"a": 1\n}', ("b",), 2) == '{\n\t"a": 1,\n\t"b": 2\n}'


def test_a_member_is_replaced_in_its_place() -> None:
    assert set_member('{"a": 1.0, "b" :  [1, 2], "c": 3e2}', ("b",), 5) == '{"a": 1.0, "b" :  5, "c": 3e2}'


def test_an_equal_value_leaves_the_text_as_it_is() -> None:
    text = '{"a":{"b": [ 1,2 ]}}'
    assert set_member(text, ("a", "b"), [1, 2]) is text


def test_objects_on_the_way_are_made() -> None:
    assert json.loads(set_member('{"x": 1}', ("a", "b", "c"), 2)) == {"x": 1, "a": {"b": {"c": 2}}}
    assert json.loads(set_member("{}", ("a", "b"), 2)) == {"a": {"b": 2}}


def test_comments_and_trailing_commas_stay_where_they_are_allowed() -> None:
    edited = set_member(JSONC, ("providers", "mesh"), {"x": 1}, relaxed=True)
    assert parse(edited, relaxed=True) == {"providers": {"work": {"apiKey": "s", "n": 1.5}, "mesh": {"x": 1}}}
    for kept in ("// my models", "/* the one at work */", '"work": { "apiKey": "s", "n": 1.50, },', "// keep"):
        assert kept in edited


def test_a_comment_in_an_empty_object_stays() -> None:
    edited = set_member("{\n  // nothing yet\n}", ("a",), 1, relaxed=True)
    assert edited == '{\n  // nothing yet\n  "a": 1\n}'
    assert parse(set_member("{ /* x */ }", ("a",), 1, relaxed=True), relaxed=True) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("{", 1, 2),
        ('{\n  "a": 1,\n}', 2, 9),
        ('{\n  "a" 1}', 2, 7),
        ('{"a": 1 "b": 2}', 1, 9),
        ("{'a': 1}", 1, 2),
        ('{"a": nope}', 1, 7),
        ('{"a": "x\n"}', 1, 9),
        ('{"a": 1} x', 1, 10),
        ('{"a": [1, 2}', 1, 12),
        ('// c\n{"a": 1}', 1, 1),
        ('{"a": NaN}', 1, 7),
        ('{"a": ' + "[" * (MAX_DEPTH + 5), 1, 107),
    ],
)
def test_a_text_that_does_not_parse_is_refused_with_the_place(text: str, line: int, column: int) -> None:
    with pytest.raises(BadText) as refused:
        set_member(text, ("b",), 1)
    assert (refused.value.line, refused.value.column) == (line, column), refused.value.reason


def test_a_comment_that_does_not_end_is_refused() -> None:
    with pytest.raises(BadText, match="line 2, column 1: the comment"):
        parse("{}\n/* x", relaxed=True)


@pytest.mark.parametrize(("text", "path"), [("[]", ("a",)), ('{"a": 1}', ("a", "b")), ('"x"', ("a",))])
def test_something_that_is_no_object_on_the_way_is_refused(text: str, path: tuple[str, ...]) -> None:
    with pytest.raises(BadText, match="must be an object"):
        set_member(text, path, 1)
