"""Who posts and who reads: the order in which names are taken, and that a reader is the same after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmesh.blackboard import mcp
from agentmesh.blackboard.logic.limits import MAX_READER_CHARS


@pytest.mark.parametrize(
    ("given", "environ", "author"),
    [
        ("ada", {"AGENTMESH_AUTHOR": "grace"}, "ada"),
        (None, {"AGENTMESH_AUTHOR": " grace "}, "grace"),
        ("  ", {"AGENTMESH_AUTHOR": ""}, None),
        (None, {}, None),
    ],
)
def test_the_author_is_the_option_else_the_environment_else_the_nodes_choice(
    given: str | None, environ: dict[str, str], author: str | None
) -> None:
    assert mcp.author_name(given, environ) == author


def test_a_reader_is_the_same_after_a_restart_and_another_for_another_agent(tmp_path: Path) -> None:
    def name(client: str = "claude-code", author: str = "ada", place: Path = tmp_path) -> str:
        return mcp.reader_name(client, author, {}, place)

    assert name() == name()
    assert len({name(), name(client="codex"), name(author="grace"), name(place=tmp_path / "b")}) == 4


def test_the_environment_may_name_the_reader(tmp_path: Path) -> None:
    assert mcp.reader_name("codex", None, {"AGENTMESH_READER": " team "}, tmp_path) == "team"


def test_any_client_name_makes_a_reader_that_the_node_takes(tmp_path: Path) -> None:
    for client in ("", "x" * 10_000, "a\x00b\n/c\ud800", "ü" * 500):
        name = mcp.reader_name(client, client or None, {}, tmp_path)
        assert 0 < len(name) <= MAX_READER_CHARS
        assert name.isprintable()
