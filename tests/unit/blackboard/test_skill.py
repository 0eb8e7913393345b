"""The skill's text, which folders get it, and that nothing of the user's is lost."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import pytest

from agentmesh.blackboard import skill
from agentmesh.blackboard.logic.skill_cover import choose_folders
from agentmesh.core.errors import InvalidInput

NAMES = tuple(agent.name for agent in skill.AGENTS)
READS = {agent.name: agent.reads for agent in skill.AGENTS}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with no agent in it, and none on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    folder = tmp_path / "user"
    folder.mkdir()
    return folder


def has(home: Path, *agents: str) -> None:
    for agent in skill.AGENTS:
        if agent.name in agents:
            (home / agent.config).mkdir(parents=True, exist_ok=True)
            (home / agent.config / "settings.json").write_text("{}")


def copies(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("blackboard/SKILL.md")}


def seen_by(home: Path, agent: str) -> int:
    folders = {os.path.realpath(home / folder) for folder in READS[agent]}
    return sum((Path(folder) / "blackboard" / "SKILL.md").exists() for folder in folders)


# ------------------------------------------------------------------ the text


def test_the_skill_has_the_front_matter_that_agents_require() -> None:
    text = skill.skill_files()["SKILL.md"].decode()
    front = dict(line.split(": ", 1) for line in text.split("---\n")[1].strip().splitlines())
    assert front["name"] == "blackboard"
    assert 20 < len(front["description"]) <= 1024
    assert len(front["compatibility"]) <= 500


def test_the_skill_is_short_enough_to_be_read_whole() -> None:
    text = skill.skill_files()["SKILL.md"].decode()
    assert len(text.splitlines()) < 500
    assert len(text) / 3 < 5_000  # three characters a token is less than any English text has


@pytest.mark.parametrize(
    "words",
    ["Search before", "unanswered", "STATUS:", "as you go", "reply_to", "CLAIM:", "DONE:", "never instructions"],
)
def test_the_skill_teaches_the_whole_rhythm(words: str) -> None:
    assert words in skill.skill_files()["SKILL.md"].decode()


# ------------------------------------------------------------------ which folders


def test_every_set_of_agents_gets_exactly_one_copy_each() -> None:
    for count in range(1, len(NAMES) + 1):
        for found in combinations(NAMES, count):
            chosen = choose_folders(READS, found, found, ())
            assert [sum(folder in chosen for folder in READS[agent]) for agent in found] == [1] * count, found


def test_one_shared_copy_is_preferred_to_two() -> None:
    assert choose_folders(READS, ("pi", "codex"), ("pi", "codex"), ()) == (skill.SHARED_FOLDER,)


def test_an_agent_alone_gets_its_own_folder() -> None:
    assert {choose_folders(READS, (name,), (name,), ())[0] for name in NAMES} == {a.reads[0] for a in skill.AGENTS}


def test_folders_that_hold_a_copy_are_kept_when_they_do() -> None:
    assert choose_folders(READS, ("pi",), ("pi",), (skill.SHARED_FOLDER,)) == (skill.SHARED_FOLDER,)


# ------------------------------------------------------------------ on the disk


def test_with_no_agent_it_goes_where_most_agents_look(home: Path) -> None:
    (done,) = skill.install_skill(home)
    assert copies(home) == {".agents/skills/blackboard/SKILL.md"}
    assert done.action == "installed"
    assert str(done.path) in done.sentence()


def test_each_agent_that_is_found_sees_one_copy(home: Path) -> None:
    has(home, "claude", "opencode", "codex", "pi", "goose")
    skill.install_skill(home)
    assert [seen_by(home, name) for name in ("claude", "opencode", "codex", "pi", "goose")] == [1] * 5


def test_agents_are_found_by_their_command(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "gemini"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    assert skill.find_agents(home) == ("gemini",)


def test_a_folder_that_holds_nothing_but_skills_does_not_make_an_agent(home: Path) -> None:
    (home / ".claude" / "skills").mkdir(parents=True)
    assert skill.find_agents(home) == ()


def test_installing_again_changes_nothing_and_says_so(home: Path) -> None:
    has(home, "claude")
    skill.install_skill(home)
    (again,) = skill.install_skill(home)
    assert again.action == "unchanged"
    assert again.backup is None


def test_an_older_copy_of_ours_is_updated_without_a_backup(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(home, "claude")
    monkeypatch.setattr(skill, "skill_files", lambda: {"SKILL.md": b"old"})
    skill.install_skill(home)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    (done,) = skill.install_skill(home)
    assert (done.action, done.backup) == ("updated", None)
    assert done.path.read_bytes() == skill.skill_files()["SKILL.md"]


def test_a_copy_that_the_user_changed_is_kept_where_no_agent_reads_it(home: Path) -> None:
    has(home, "claude")
    (first,) = skill.install_skill(home)
    first.path.write_text("mine")
    (done,) = skill.install_skill(home)
    assert done.backup is not None
    assert done.backup.read_text() == "mine"
    assert done.backup.name != "SKILL.md"
    assert done.backup.name in done.sentence()
    done.path.write_text("mine again")
    (again,) = skill.install_skill(home)
    assert again.backup is not None
    assert {done.backup.read_text(), again.backup.read_text()} == {"mine", "mine again"}


def test_a_copy_that_would_be_seen_twice_is_withdrawn(home: Path) -> None:
    skill.install_skill(home)  # nothing found: the shared folder
    has(home, "claude", "opencode")
    done = skill.install_skill(home)
    assert copies(home) == {".claude/skills/blackboard/SKILL.md"}
    assert [item.action for item in done] == ["installed", "removed"]
    assert not (home / ".agents/skills/blackboard").exists()


def test_a_withdrawn_copy_that_the_user_changed_is_kept_under_another_name(home: Path) -> None:
    (shared,) = skill.install_skill(home)
    shared.path.write_text("mine")
    has(home, "claude", "opencode")
    skill.install_skill(home)
    assert [path.read_text() for path in shared.path.parent.iterdir()] == ["mine"]
    assert not shared.path.exists()


def test_a_named_agent_gets_its_copy_though_it_is_not_found(home: Path) -> None:
    (done,) = skill.install_skill(home, "codex")
    assert done.path == home / ".codex/skills/blackboard/SKILL.md"


def test_naming_an_agent_leaves_the_others_with_one_copy(home: Path) -> None:
    has(home, "opencode", "codex")
    skill.install_skill(home)
    skill.install_skill(home, "claude")
    assert [seen_by(home, name) for name in ("claude", "opencode", "codex")] == [1, 1, 1]


def test_an_unknown_agent_is_refused_with_the_known_ones(home: Path) -> None:
    with pytest.raises(InvalidInput, match="claude, goose, pi, opencode, codex"):
        skill.install_skill(home, "clippy")


def test_folders_that_are_links_to_one_another_get_one_copy(home: Path) -> None:
    (home / ".agents/skills").mkdir(parents=True)
    has(home, "claude", "opencode")
    (home / ".claude/skills").symlink_to(home / ".agents/skills")
    skill.install_skill(home)
    assert [seen_by(home, name) for name in ("claude", "opencode")] == [1, 1]


def test_a_folder_that_cannot_be_made_is_an_error_in_words(home: Path) -> None:
    has(home, "claude")
    (home / ".claude/skills").write_text("a file in the way")
    with pytest.raises(skill.SkillError, match="cannot be written"):
        skill.install_skill(home)


def test_a_marker_that_was_tampered_with_removes_nothing_outside_its_folder(home: Path) -> None:
    (shared,) = skill.install_skill(home)
    precious = home / ".agents/skills/precious"
    precious.write_text("keep me")
    (shared.path.parent / skill.MARKER).write_text('{"sha256": {"../precious": "0", "..": "0"}}')
    has(home, "claude", "opencode")
    skill.install_skill(home)
    assert precious.read_text() == "keep me"
