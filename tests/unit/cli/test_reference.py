"""docs/cli.md says what the commands say."""

from __future__ import annotations

from pathlib import Path

from agentmesh.cli.reference import reference


def test_the_page_is_current() -> None:
    page = Path(__file__).parents[3] / "docs" / "cli.md"
    assert page.read_text("utf-8") == reference(), "run: python -m agentmesh.cli.reference > docs/cli.md"
