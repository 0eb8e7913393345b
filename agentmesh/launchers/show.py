"""`--print-config`: a launch as shell commands that a user can paste, or as JSON. Pure; the key is never shown."""

from __future__ import annotations

import difflib
import re
import shlex
from pathlib import Path
from typing import Any, Final

from agentmesh.control.api_keys import KEY_VARIABLE
from agentmesh.launchers.base import NO_KEY, Agent, Launch, PlannedFile, Wish

HIDDEN: Final = "***"
# Members of the user's own settings, of which ours become a part.
_SECRET: Final = re.compile(
    r"""((?<![\w-])(?!env_key)[\w-]*(?:key|token|secret|password|authorization)["']?\s*[:=]\s*)"""
    r"""("(?:\\.|[^"\\\n])+|'(?:\\.|[^'\\\n])+)""",
    re.IGNORECASE,
)


def as_shell(agent: Agent, wish: Wish, launch: Launch) -> str:
    """The launch for a POSIX shell."""
    model = wish.model
    lines = [f"# {agent.title} with {_one_line(model.id)} ({model.context:,} tokens) at {wish.base_url}"]
    if KEY_VARIABLE in launch.environment or wish.key:
        lines.append(f"# needs {KEY_VARIABLE}, which is not shown")
    if launch.unset:
        lines.append("unset " + " ".join(launch.unset))
    for name, value in launch.environment.items():
        if name != KEY_VARIABLE:
            lines.append(f"export {name}={_quoted(value, wish.key)}")
    for file in launch.files:
        lines += _file_lines(file, wish.key)
    lines.append(" ".join(_quoted(word, wish.key) for word in launch.argv))
    return "\n".join(lines) + "\n"


def as_json(agent: Agent, wish: Wish, launch: Launch) -> dict[str, Any]:
    """The launch as a JSON object; `$AGENTMESH_API_KEY` stands for the key."""
    return {
        "agent": agent.name,
        "base_url": wish.base_url,
        "model": wish.model.id,
        "context_tokens": wish.model.context,
        "environment": {name: _masked(value, wish.key) for name, value in launch.environment.items()},
        "unset": list(launch.unset),
        "files": [_file_json(file, wish.key) for file in launch.files],
        "command": [_masked(word, wish.key) for word in launch.argv],
        "notes": list(launch.notes),
    }


def _file_json(file: PlannedFile, key: str | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"path": str(file.path), "state": _state(file)}
    if file.old is None:
        shown["content"] = _masked(file.content, key)
    elif file.changes:
        shown["diff"] = _masked(_diff(file), key)
    return shown


def _state(file: PlannedFile) -> str:
    return "new" if file.old is None else "changed" if file.changes else "unchanged"


def _file_lines(file: PlannedFile, key: str | None) -> list[str]:
    path = shlex.quote(str(file.path))
    if not file.changes:
        return [f"# {_one_line(str(file.path))} is as it should be"]
    if file.old is None:
        content, start = file.content, f"mkdir -p {shlex.quote(str(file.path.parent))} && cat > {path}"
    else:
        content, start = _diff(file), f"patch {path}"
    content = _masked(content, key)
    end = "EOF"
    while end in content.splitlines():
        end += "F"
    return [f"{start} <<'{end}'", content.rstrip("\n"), end]


def _diff(file: PlannedFile) -> str:
    """What changes, without the lines around it: they may hold others' secrets."""
    old, new = (_lines(text or "") for text in (file.old, file.content))
    name = Path(file.path).name
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(old, new, name, name, n=0)
    )


def _lines(text: str) -> list[str]:
    """As `patch` counts them: by line feeds only."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def _quoted(value: str, key: str | None) -> str:
    """A shell word; the key in it is the variable."""
    value = _SECRET.sub(lambda found: _hidden(found, key), value)
    if not key or key not in value:
        return shlex.quote(value)
    parts = (shlex.quote(part) if part else "" for part in value.split(key))
    return f'"${KEY_VARIABLE}"'.join(parts)


def _masked(text: str, key: str | None) -> str:
    text = _SECRET.sub(lambda found: _hidden(found, key), text)
    return text.replace(key, f"${KEY_VARIABLE}") if key else text


def _hidden(found: re.Match[str], key: str | None) -> str:
    """A member whose value is a secret of the user's own; ours, and references to variables, are shown."""
    quote, value = found[2][0], found[2][1:]
    ours = value in (NO_KEY, key) or value.startswith(("$", "{env:"))
    return found[0] if ours else f"{found[1]}{quote}{HIDDEN}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
