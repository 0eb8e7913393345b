"""Other people's words cannot steer the reader's terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.blackboard.logic.hidden import readable
from agentmesh.cli.output import age, post_heading, safe, safe_line, show_posts

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt.exe\r\x00"
POST = {
    "id": "1f3a90bc" * 4,
    "kind": "TIP",
    "topic": f"acme/api{EVIL}\n",
    "text": f"first{EVIL}\nsecond\tcolumn",
    "author": f"ada{EVIL}\nFAKE HEADING",
    "node_id": "k5v7wq2m" + "a" * 44,
    "created_at": 0,
    "reply_to": None,
    "verified": True,
}


@given(st.text())
def test_no_control_character_survives_but_line_breaks_and_tabs(text: str) -> None:
    shown = safe(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) <= 159 for c in shown)
    assert "\n" not in safe_line(text)
    assert len(shown) == len(readable(text))


def test_a_hostile_post_is_shown_without_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    show_posts([POST])
    shown = capsys.readouterr().out
    assert not set(EVIL) & set(shown) - set("owned[]2J;31mtxt.exe0")
    assert shown.splitlines()[1:] == [f"    first{safe(EVIL)}", "    second\tcolumn"]


def test_an_authors_name_cannot_forge_a_heading() -> None:
    assert "\n" not in post_heading(POST, 1)


def test_the_node_id_that_no_poster_can_choose_is_always_shown() -> None:
    assert "(node k5v7wq2m)" in post_heading(POST, 1)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "now"), (30, "30 s ago"), (61, "1 min ago"), (7200, "2 h ago"), (172_800, "2 d ago"), (-9, "now")],
)
def test_ages_are_told_in_the_unit_that_says_something(seconds: int, expected: str) -> None:
    assert age(0, seconds * 1000) == expected
