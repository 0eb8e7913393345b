"""Codex: `-c key=value` on its command line; its config.toml only with --write. Pure.

It speaks the Responses API only (`wire_api = "responses"`).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final, cast

from agentmesh.control.api_keys import KEY_VARIABLE
from agentmesh.launchers.base import MCP_NAME, PROVIDER, Agent, ConfigUnusable, Launch, PlannedFile, Wish, folder_of

BYTE_ORDER_MARK: Final = "\ufeff"
# Codex 0.169 wraps MCP tools into a kind of tool that llama.cpp leaves out; the skill uses the command line instead.
SKILL_NOTE: Final = (
    "Codex does not show MCP tools to every local model; the skill works with all:"
    " agentmesh blackboard install-skill --agent codex"
)


def config_file(environ: Mapping[str, str], home: Path) -> Path:
    return folder_of(environ, "CODEX_HOME", home / ".codex") / "config.toml"


def plan(wish: Wish) -> Launch:
    """The launch of Codex."""
    settings = _settings(wish)
    flags: list[str] = []
    if not wish.write:
        for name, value in settings.items():
            flags += ["-c", f"{name}={_toml(value)}"]
    files = (_config(wish, settings),) if wish.write else ()
    notes = (SKILL_NOTE,) if wish.blackboard and not _has_skill(wish) else ()
    return Launch(("codex", *flags, *wish.arguments), wish.key_environment, files=files, notes=notes)


def skill_files(environ: Mapping[str, str], home: Path) -> tuple[Path, ...]:
    folders = (config_file(environ, home).parent / "skills", home / ".agents" / "skills")
    return tuple(folder / "blackboard" / "SKILL.md" for folder in folders)


def _has_skill(wish: Wish) -> bool:
    return any(wish.existing.get(path) for path in skill_files(wish.environ, wish.home))


def _settings(wish: Wish) -> dict[str, object]:
    """Dotted key -> value."""
    provider = f"model_providers.{PROVIDER}"
    settings: dict[str, object] = {
        "model": wish.model.id,
        "model_provider": PROVIDER,
        "model_context_window": wish.model.context,
        f"{provider}.name": "agentmesh",
        f"{provider}.base_url": f"{wish.base_url}/v1",
        f"{provider}.wire_api": "responses",
    }
    if wish.key:
        settings[f"{provider}.env_key"] = KEY_VARIABLE
    if wish.blackboard:
        command, *arguments = wish.blackboard.argv
        server = f"mcp_servers.{MCP_NAME}"
        settings |= {f"{server}.command": command, f"{server}.args": arguments}
        settings |= {f"{server}.env.{name}": value for name, value in wish.blackboard.environment.items()}
    return settings


def _toml(value: object) -> str:
    """A string, list of strings or whole number as TOML: JSON's form of these is TOML's too."""
    return json.dumps(value, ensure_ascii=False)


def _config(wish: Wish, settings: Mapping[str, object]) -> PlannedFile:
    import tomlkit
    from tomlkit.exceptions import ParseError, TOMLKitError

    path = config_file(wish.environ, wish.home)
    old = wish.existing.get(path)
    try:
        document = tomlkit.parse((old or "").removeprefix(BYTE_ORDER_MARK))
        for name, value in settings.items():
            _set(cast("MutableMapping[str, Any]", document), name.split("."), value, path)
        content = tomlkit.dumps(document)  # pyright: ignore[reportUnknownMemberType]: its signature is partly untyped
        if not _holds(tomllib.loads(content), settings):  # never hand Codex what would not be read as it is meant
            raise ConfigUnusable(
                f"{path} is written in a way that cannot be added to. It is left as it is; leave out --write."
            )
    except ParseError as error:
        where = f"line {error.line}, column {error.col}"
        reason = str(error).removesuffix(f" at line {error.line} col {error.col}").removesuffix(".")
        raise ConfigUnusable(
            f"{path} does not parse: {where}: {reason}. It is left as it is; repair it first."
        ) from error
    except (TOMLKitError, ValueError) as error:
        raise ConfigUnusable(f"{path} cannot be changed: {error}. It is left as it is.") from error
    mark = BYTE_ORDER_MARK if (old or "").startswith(BYTE_ORDER_MARK) else ""
    return PlannedFile(path, mark + content, old)


def _holds(document: dict[str, Any], settings: Mapping[str, object]) -> bool:
    for name, value in settings.items():
        found: Any = document
        for part in name.split("."):
            found = cast("dict[str, Any]", found).get(part) if isinstance(found, dict) else None
        if found != value:
            return False
    return True


def _set(table: MutableMapping[str, Any], names: list[str], value: object, path: Path) -> None:
    import tomlkit
    from tomlkit.items import InlineTable

    first, *rest = names
    if not rest:
        if table.get(first) != value:
            table[first] = value
        return
    inner = table.get(first)
    if inner is None:
        inline = isinstance(table, InlineTable)  # which can hold nothing but its like
        table[first] = tomlkit.inline_table() if inline else tomlkit.table(is_super_table=len(rest) > 1)
        inner = table[first]
    if not isinstance(inner, MutableMapping):
        raise ConfigUnusable(f"In {path}, '{first}' is no table. It is left as it is.")
    _set(cast("MutableMapping[str, Any]", inner), rest, value, path)


CODEX: Final = Agent(
    name="codex",
    title="Codex",
    command="codex",
    install="npm install -g @openai/codex",
    plan=plan,
    reads=lambda environ, home, write: (
        *((config_file(environ, home),) if write else ()),
        *skill_files(environ, home),
    ),
    writes="its config.toml: Codex then uses the mesh whenever it is started",
)
