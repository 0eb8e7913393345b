"""Pages that are written from the code are current, and what the docs name exists."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from agentmesh.cli.main import cli
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


def test_every_command_that_the_readme_shows_exists_with_its_options() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    shown = re.findall(r"(?:[`$] ?|\$ )agentmesh ((?:--)?[a-z][a-z-]*(?: +-{0,2}[a-z][a-z-]*)*)", text)
    assert len(shown) > 10
    unknown: list[str] = []
    for words in (line.split() for line in shown):
        command: click.Command = cli
        for word in words:
            if isinstance(command, click.Group) and not word.startswith("-") and word in command.commands:
                command = command.commands[word]
            elif word.startswith("-") and word not in {option for param in command.params for option in param.opts} | {
                "--help"
            }:
                unknown.append(" ".join(words))
        if command is cli and not words[0].startswith("-"):
            unknown.append(" ".join(words))
    assert unknown == []
