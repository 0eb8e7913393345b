"""Where a home is, and what is said when it cannot be one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentmesh.core.errors import HomeError
from agentmesh.core.paths import Home


def test_without_a_variable_it_is_in_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in (None, ""):
        monkeypatch.delenv("AGENTMESH_HOME", raising=False)
        if value is not None:
            monkeypatch.setenv("AGENTMESH_HOME", value)
        assert Home.from_environment().root == tmp_path / ".agentmesh"


def test_a_relative_home_is_made_absolute_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTMESH_HOME", "here")
    assert Home.from_environment().root == tmp_path / "here"


@pytest.mark.parametrize("path", [b"~nobody-of-that-name/x", b"/tmp/not utf-8 \xff"])
def test_a_path_that_cannot_be_a_home_is_one_sentence_that_can_be_printed(
    monkeypatch: pytest.MonkeyPatch, path: bytes
) -> None:
    monkeypatch.setenv("AGENTMESH_HOME", os.fsdecode(path))
    with pytest.raises(HomeError, match="AGENTMESH_HOME") as caught:
        Home.from_environment()
    caught.value.message.encode("utf-8")


def test_a_working_directory_that_was_removed_is_said_to_be_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("AGENTMESH_HOME", "relative")
    with pytest.raises(HomeError, match="full path"):
        Home.from_environment()
    monkeypatch.chdir(tmp_path)


def test_what_is_in_the_way_inside_the_home_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir(mode=0o700)
    home.logs.write_text("in the way")
    with pytest.raises(HomeError, match="logs: it is not a directory"):
        home.prepare()
