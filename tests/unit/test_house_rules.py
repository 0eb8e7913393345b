"""The size limits and habits that keep the project readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
SOURCES = sorted((ROOT / "agentmesh").rglob("*.py"))
ALL_PYTHON = [p for folder in ("agentmesh", "tests", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))]


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_file_is_longer_than_the_limit() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in ALL_PYTHON
        if (n := len(p.read_text("utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert long == {}


def test_no_function_is_longer_than_the_limit() -> None:
    long = {
        f"{p.relative_to(ROOT)}:{f.name}": n
        for p in ALL_PYTHON
        for f in _functions(p)
        if (n := (f.end_lineno or f.lineno) - f.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_every_module_says_what_it_owns() -> None:
    assert [
        str(p.relative_to(ROOT))
        for p in ALL_PYTHON
        if p.read_text("utf-8").strip() and ast.get_docstring(ast.parse(p.read_text("utf-8"))) is None
    ] == []


def test_tasks_are_spawned_in_one_place_only() -> None:
    allowed = ROOT / "agentmesh/core/tasks.py"
    raw = [
        f"{p.relative_to(ROOT)}:{node.lineno}"
        for p in SOURCES
        if p != allowed
        for node in ast.walk(ast.parse(p.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("create_task", "ensure_future")
    ]
    assert raw == []


@pytest.mark.timeout(400)
def test_imports_keep_to_the_layers() -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--config", ROOT / "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("word", ["../shared", "/work/main"])
def test_nothing_names_the_place_where_it_was_made(word: str) -> None:
    here = Path(__file__)
    hits = [
        str(p.relative_to(ROOT))
        for folder in ("agentmesh", "tests", "benchmarks", "docs", "skills", ".ci")
        for p in (ROOT / folder).rglob("*")
        if p.is_file() and p != here and "__pycache__" not in p.parts and word in p.read_text("utf-8", "ignore")
    ]
    assert hits == []
