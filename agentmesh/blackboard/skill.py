"""`agentmesh blackboard install-skill`: puts the blackboard skill where the agents of this machine read skills.

Owns which agents are known, where they look, and how a copy is placed: each agent sees exactly one, a file that the user
changed is kept beside it under a name that no agent reads, and a half-written file is never seen. The text itself is
package data (skills/blackboard).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from agentmesh.blackboard.logic.skill_cover import choose_folders
from agentmesh.core.errors import AgentMeshError, InvalidInput

SKILL: Final = "blackboard"
SKILL_FILE: Final = "SKILL.md"
SHARED_FOLDER: Final = ".agents/skills"  # what agents agreed on to read beside their own
MARKER: Final = ".agentmesh.json"  # what we wrote, so that a change by the user is noticed
MAX_BACKUPS: Final = 100


class SkillError(AgentMeshError):
    """The skill cannot be installed."""


@dataclass(frozen=True)
class Agent:
    """A coding agent: how it is found on a machine, and the folders under the user's home where it reads skills."""

    name: str
    title: str
    commands: tuple[str, ...]
    config: str
    reads: tuple[str, ...]  # its own first


# Where each one reads was checked in November 2026.
AGENTS: Final = (
    Agent("claude", "Claude Code", ("claude",), ".claude", (".claude/skills",)),
    Agent(
        "goose",
        "goose",
        ("goose",),
        ".config/goose",
        (".config/goose/skills", ".config/agents/skills", ".claude/skills"),
    ),
    Agent("pi", "pi", ("pi",), ".pi", (".pi/agent/skills", SHARED_FOLDER)),
    Agent(
        "opencode",
        "opencode",
        ("opencode",),
        ".config/opencode",
        (".config/opencode/skills", ".claude/skills", SHARED_FOLDER),
    ),
    Agent("codex", "codex", ("codex",), ".codex", (".codex/skills", SHARED_FOLDER)),
    Agent("gemini", "Gemini CLI", ("gemini",), ".gemini", (".gemini/skills",)),
    Agent("cursor", "Cursor", ("cursor", "cursor-agent"), ".cursor", (".cursor/skills",)),
)
_TITLES: Final = {agent.name: agent.title for agent in AGENTS}


@dataclass(frozen=True)
class Installed:
    """What was done with one copy. `agents`: the names of those on this machine that read it."""

    path: Path
    agents: tuple[str, ...]
    action: Literal["installed", "updated", "unchanged", "removed"]
    backup: Path | None = None

    def sentence(self) -> str:
        """One line for the user."""
        readers = ", ".join(_TITLES[name] for name in self.agents)
        what = {
            "installed": f"Installed {self.path}" + (f" for {readers}" if readers else ""),
            "updated": f"Updated {self.path}" + (f" for {readers}" if readers else ""),
            "unchanged": f"{self.path} is up to date" + (f" ({readers})" if readers else ""),
            "removed": f"Removed {self.path}: {readers or 'its agent'} would have seen the skill twice",
        }[self.action]
        return what + (f"; your changed version is kept as {self.backup}." if self.backup else ".")


def install_skill(home_dir: Path, agent: str | None = None) -> list[Installed]:
    """Install or update the skill for `agent`, else for every agent found under `home_dir` and on the PATH.

    Raises:
        InvalidInput: there is no agent of that name.
        SkillError: a folder or file cannot be written; nothing half-written is left.
    """
    if agent is not None and agent not in _TITLES:
        raise InvalidInput(f"'{agent}' is no agent that this knows; it knows {', '.join(_TITLES)}.")
    files = skill_files()
    found = find_agents(home_dir)
    folders = {known.name: _real_folders(home_dir, known) for known in AGENTS}
    everywhere = tuple(dict.fromkeys(folder for reads in folders.values() for folder in reads))
    existing = [folder for folder in everywhere if (Path(folder) / SKILL / SKILL_FILE).exists()]
    if agent is None:
        required = found
    else:
        served = [name for name in found if any(folder in existing for folder in folders[name])]
        required = tuple(dict.fromkeys((agent, *served)))
    if required:
        chosen = choose_folders(folders, required, found, existing)
    else:
        chosen = (os.path.realpath(home_dir / SHARED_FOLDER),)
    readers = {
        folder: tuple(name for name in folders if folder in folders[name] and name in (*required, *found))
        for folder in everywhere
    }
    try:
        done = [_place(Path(folder) / SKILL, files, readers.get(folder, ())) for folder in chosen]
        surplus = [folder for folder in existing if folder not in chosen and readers[folder]]
        done += [_withdraw(Path(folder) / SKILL, readers[folder]) for folder in surplus]
    except OSError as error:
        raise SkillError(f"{error.filename or home_dir} cannot be written: {error.strerror or error}.") from error
    return done


def find_agents(home_dir: Path) -> tuple[str, ...]:
    """The names of the agents on this machine: those whose command is on the PATH or whose configuration exists."""
    return tuple(
        agent.name
        for agent in AGENTS
        if _is_configured(home_dir, agent) or any(shutil.which(command) for command in agent.commands)
    )


def skill_files() -> Mapping[str, bytes]:
    """The files of the skill by their name.

    Raises:
        SkillError: the installation of agentmesh lacks them.
    """
    from importlib.resources import files

    import agentmesh

    checkout = Path(agentmesh.__file__).resolve().parent.parent / "skills" / SKILL
    for folder in (files("agentmesh") / "_data" / "skills" / SKILL, checkout):
        if folder.is_dir():
            content = {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}
            if SKILL_FILE in content:
                return dict(sorted(content.items()))
    raise SkillError("This installation of agentmesh lacks the skill's file; install it again.")


# ------------------------------------------------------------------ where


def _is_configured(home_dir: Path, agent: Agent) -> bool:
    """Its configuration folder exists and holds more than a skills folder, which may be all that somebody put there."""
    try:
        return any(entry.name != "skills" for entry in (home_dir / agent.config).iterdir())
    except OSError:
        return False


def _real_folders(home_dir: Path, agent: Agent) -> tuple[str, ...]:
    """What it reads, with links followed: two names of one folder are one folder."""
    return tuple(dict.fromkeys(os.path.realpath(home_dir / folder) for folder in agent.reads))


# ------------------------------------------------------------------ placing


def _place(folder: Path, files: Mapping[str, bytes], readers: tuple[str, ...]) -> Installed:
    current = _content(folder, files)
    path = folder / SKILL_FILE
    if current == files:
        _write(folder / MARKER, _marker(files))
        return Installed(path, readers, "unchanged")
    folder.mkdir(parents=True, exist_ok=True)
    backup = _keep_changes(folder)
    for name, content in files.items():
        _write(folder / name, content)
    _write(folder / MARKER, _marker(files))
    return Installed(path, readers, "updated" if SKILL_FILE in current else "installed", backup)


def _withdraw(folder: Path, readers: tuple[str, ...]) -> Installed:
    """Take a copy away that an agent would see beside another one; what the user changed stays under another name."""
    path = folder / SKILL_FILE
    written = _written(folder)
    backup = _keep_changes(folder)
    path.unlink(missing_ok=True)
    for name in (*written, MARKER):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
    return Installed(path, readers, "removed", backup)


def _content(folder: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files if (folder / name).is_file()}


def _keep_changes(folder: Path) -> Path | None:
    """Move a skill file that is not as we wrote it to a name that agents do not read; None if it is as we wrote it."""
    path = folder / SKILL_FILE
    if not path.is_file() or _written(folder).get(SKILL_FILE) == _digest(path.read_bytes()):
        return None
    for number in range(1, MAX_BACKUPS):
        backup = folder / f"{SKILL_FILE}.backup-{number}"
        if not backup.exists():
            shutil.copy2(path, backup)  # a copy: the new file then replaces the old one in one step
            return backup
    raise SkillError(f"There are {MAX_BACKUPS - 1} backups in {folder}; remove some.")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _marker(files: Mapping[str, bytes]) -> bytes:
    return (
        json.dumps({"sha256": {name: _digest(content) for name, content in files.items()}}, indent=2).encode() + b"\n"
    )


def _written(folder: Path) -> dict[str, str]:
    """The digests of the files that we wrote there; empty when we did not, or the marker is damaged."""
    try:
        marker = cast("dict[str, Any]", json.loads((folder / MARKER).read_bytes()))
        digests = cast("dict[object, object]", marker["sha256"])
        return {name: str(digest) for name, digest in digests.items() if isinstance(name, str) and _is_plain(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_plain(name: str) -> bool:
    """A file name and not a way out of the folder: the marker may have been edited."""
    return name == Path(name).name and name not in ("", ".", "..")


def _write(path: Path, content: bytes) -> None:
    """The whole file or none of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
