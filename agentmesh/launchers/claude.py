"""Claude Code: everything through its environment; no file is written. Pure.

The settings.json of the user and of the project may hold an `env` of their own, which Claude Code puts before the process's:
where that would lead elsewhere, the same names are given again with `--settings`, which it puts before those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from agentmesh.launchers import json_edit
from agentmesh.launchers.base import MCP_NAME, Agent, Launch, Wish, folder_of

# Other clouds, other accounts, headers for another gateway: they would lead elsewhere, or tell the mesh what is not its business.
_ELSEWHERE: Final = (
    *("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY", "CLAUDE_CODE_USE_MANTLE"),
    *("CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS", "ANTHROPIC_SMALL_FAST_MODEL"),
)
_MODEL_VARIABLES: Final = (
    "ANTHROPIC_MODEL",
    *(f"ANTHROPIC_DEFAULT_{name}_MODEL" for name in ("OPUS", "SONNET", "HAIKU", "FABLE")),
    "CLAUDE_CODE_SUBAGENT_MODEL",
)
_TOKEN: Final = "ANTHROPIC_AUTH_TOKEN"  # noqa: S105 - the variable's name


def settings_files(environ: Mapping[str, str], home: Path) -> tuple[Path, ...]:
    """The user's, then those of the project in the working directory; what comes later goes before."""
    project = Path(".claude")
    user = folder_of(environ, "CLAUDE_CONFIG_DIR", home / ".claude")
    return user / "settings.json", project / "settings.json", project / "settings.local.json"


def plan(wish: Wish) -> Launch:
    """The launch of Claude Code."""
    environment = {
        "ANTHROPIC_BASE_URL": wish.base_url,  # it appends /v1/messages
        _TOKEN: wish.token,
        "ANTHROPIC_API_KEY": "",  # a real one would go before the token
        **dict.fromkeys(_MODEL_VARIABLES, wish.model.id),
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(
            wish.model.context
        ),  # it assumes 200,000 of a model that it does not know
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(wish.model.output_tokens),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # it differs each turn: every turn would miss the prefix cache
    }
    argv, notes = ["claude"], list[str]()
    own = _own_settings(wish)
    overridden = {name: value for name, value in own.environment.items() if value != environment.get(name)}
    again = {name: environment[name] for name in overridden if name in environment}
    again |= {name: "" for name in overridden if name in _ELSEWHERE}
    if wish.key and again.pop(_TOKEN, None) is not None:  # others can read the command line
        notes.append("An env in Claude Code's settings sets ANTHROPIC_AUTH_TOKEN: remove it there.")
    settings: dict[str, object] = {"env": again} if again else {}
    if own.key_helper:
        settings["apiKeyHelper"] = ""  # the key of another account is nothing for the mesh
    if settings:
        argv += ["--settings", json.dumps(settings)]
    if wish.blackboard:
        command, *arguments = wish.blackboard.argv
        server = {"type": "stdio", "command": command, "args": arguments, "env": dict(wish.blackboard.environment)}
        # One word: as two, the option would take the words after it for more files.
        argv.append("--mcp-config=" + json.dumps({"mcpServers": {MCP_NAME: server}}))
        argv.append(f"--allowedTools=mcp__{MCP_NAME}")  # who asks for the board wants it read and written
        # Else it offers a tool that looks for tools instead of these, and that needs what llama.cpp does not know.
        environment["ENABLE_TOOL_SEARCH"] = "false"
    return Launch((*argv, *wish.arguments), environment, _ELSEWHERE, notes=tuple(notes))


@dataclass(slots=True)
class _Settings:
    """Of the settings that there are, what could lead elsewhere."""

    environment: dict[str, str] = field(default_factory=dict[str, str])
    key_helper: bool = False


def _own_settings(wish: Wish) -> _Settings:
    """All settings together, without a file that Claude Code itself could not read."""
    merged = _Settings()
    for path in settings_files(wish.environ, wish.home):
        text = wish.existing.get(path)
        try:
            parsed: object = json_edit.parse(text) if text else None
        except json_edit.BadText:
            continue
        settings = cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {}
        env = settings.get("env")
        if isinstance(env, dict):
            merged.environment |= {name: str(value) for name, value in cast("dict[str, Any]", env).items()}
        merged.key_helper |= bool(settings.get("apiKeyHelper"))
    return merged


CLAUDE: Final = Agent(
    name="claude",
    title="Claude Code",
    command="claude",
    install="npm install -g @anthropic-ai/claude-code",
    plan=plan,
    reads=lambda environ, home, _write: settings_files(environ, home),
)
