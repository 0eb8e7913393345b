"""Changing one member of any JSON text gives that document with that member."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.launchers.json_edit import BadText, parse, set_member

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    document=st.dictionaries(st.text(), values, max_size=4),
    path=st.lists(st.text(), min_size=1, max_size=3),
    value=values,
    indent=st.sampled_from([None, 0, 1, 4, "\t"]),
)
def test_the_result_is_the_document_with_that_member(
    document: dict[str, Any], path: list[str], value: object, indent: int | str | None
) -> None:
    text = json.dumps(document, indent=indent)
    expected: Any = json.loads(text)
    inner = expected
    for name in path[:-1]:
        if not isinstance(inner.setdefault(name, {}), dict):
            with pytest.raises(BadText):
                set_member(text, path, value)
            return
        inner = inner[name]
    inner[path[-1]] = value
    assert json.loads(set_member(text, path, value)) == expected


@given(st.text(alphabet='{}[]",:/*\\ntrue1 \n', max_size=30), st.booleans())
def test_any_text_is_read_or_refused(text: str, relaxed: bool) -> None:
    try:
        value = parse(text, relaxed=relaxed)
    except BadText:
        if not relaxed:
            with pytest.raises(ValueError):
                json.loads(text)
        return
    if not relaxed:
        assert json.loads(text) == value
