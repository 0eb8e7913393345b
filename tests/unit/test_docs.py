"""Pages that are written from the code are current, and what the docs name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.limits_table import page

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_the_limits_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "limits.md").read_text("utf-8") == page(), "run: python tools/limits_table.py --write"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", path.read_text("utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_files_that_the_docs_name_exist(path: Path) -> None:
    named = set(
        re.findall(
            r"`?((?:agentmesh|tests|benchmarks|tools|docs|skills)/[\w/.-]+\.(?:py|md|toml))", path.read_text("utf-8")
        )
    )
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
