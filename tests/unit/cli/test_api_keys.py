"""Keys of the model API come from files and the environment, never from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmesh.control.api_keys import api_keys
from agentmesh.core.errors import InvalidInput

KEY = "k" * 32


def test_without_option_and_variable_there_are_no_keys() -> None:
    assert api_keys(None, {}) == frozenset()


def test_the_variable_may_hold_several_keys() -> None:
    assert api_keys(None, {"AGENTMESH_API_KEY": f"{KEY} {KEY}2"}) == {KEY, KEY + "2"}


def test_a_file_holds_one_key_a_line_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# the team's\n{KEY}  # Ann\n\n{KEY}2\n")
    assert api_keys(f"@{file}", {"AGENTMESH_API_KEY": "x" * 20}) == {KEY, KEY + "2"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (KEY, "command line"),
        ("@/nowhere/at/all", "cannot be read"),
        ("@/dev/null", "no key"),
        ("@a\0b", "cannot be read"),
    ],
)
def test_what_is_no_key_file_is_refused_in_words(given: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as refused:
        api_keys(given, {})
    assert KEY not in refused.value.message


def test_a_key_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 16"):
        api_keys(None, {"AGENTMESH_API_KEY": "short"})
