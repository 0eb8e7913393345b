"""opencode: its whole configuration in one variable, merged into what the user has there. No file is written. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, Final, cast

from agentmesh.launchers import json_edit
from agentmesh.launchers.base import MCP_NAME, PROVIDER, Agent, ConfigUnusable, Launch, LauncherError, MeshModel, Wish

VARIABLE: Final = "OPENCODE_CONFIG_CONTENT"
MCP_SERVERS_SINCE_MAJOR: Final = 2  # from then on `mcp.servers.NAME`, before `mcp.NAME`
# It puts variables and files in these places, before it reads the JSON: a member of the mesh could name a model so.
_REFERENCE: Final = re.compile(r"\{(?:env|file):")


def plan(wish: Wish) -> Launch:
    """The launch of opencode. Raises: LauncherError: the model has a name that opencode would read otherwise."""
    if _REFERENCE.search(wish.model.id):
        raise LauncherError(
            f"opencode would read the name {wish.model.id} as a reference to something else: give another with --model."
        )
    model = f"{PROVIDER}/{wish.model.id}"
    config: dict[str, Any] = {
        "$schema": "https://opencode.ai/config.json",
        "provider": {
            PROVIDER: {
                "npm": "@ai-sdk/openai-compatible",
                "name": "agentmesh",
                "options": {"baseURL": f"{wish.base_url}/v1", "apiKey": wish.token},
                "models": {each.id: _model(each) for each in wish.models if not _REFERENCE.search(each.id)},
            }
        },
        "model": model,
        "small_model": model,  # titles and summaries; else it takes one of another provider
    }
    if wish.blackboard:
        server = {
            "type": "local",
            "command": list(wish.blackboard.argv),
            "environment": dict(wish.blackboard.environment),
            "enabled": True,
        }
        nested = _major(wish.version) >= MCP_SERVERS_SINCE_MAJOR
        config["mcp"] = {"servers": {MCP_NAME: server}} if nested else {MCP_NAME: server}
    merged = _deep(_users(wish), config)
    return Launch(("opencode", *wish.arguments), {VARIABLE: json.dumps(merged, ensure_ascii=False)})


def _model(model: MeshModel) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": model.id,
        "limit": {"context": model.context, "output": model.output_tokens},
        "tool_call": model.can("tools"),
    }
    if "reasoning" in model.capabilities:
        entry["reasoning"] = True
    if "vision" in model.capabilities:
        entry |= {"attachment": True, "modalities": {"input": ["text", "image"], "output": ["text"]}}
    return entry


def _users(wish: Wish) -> dict[str, Any]:
    text = wish.environ.get(VARIABLE, "")
    try:
        value: object = json_edit.parse(text, relaxed=True) if text.strip() else {}
    except json_edit.BadText as error:
        raise ConfigUnusable(f"${VARIABLE} does not parse: {error}. Repair or unset it.") from error
    if not isinstance(value, dict):
        raise ConfigUnusable(f"${VARIABLE} is no JSON object. Repair or unset it.")
    return cast("dict[str, Any]", value)


def _deep(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both, member by member; where they differ, what is above."""
    merged = dict(below)
    for name, value in above.items():
        present = merged.get(name)
        if isinstance(value, dict) and isinstance(present, dict):
            merged[name] = _deep(cast("dict[str, Any]", present), cast("dict[str, Any]", value))
        else:
            merged[name] = value
    return merged


def _major(version: str) -> int:
    digits = version.lstrip("v").partition(".")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


OPENCODE: Final = Agent(
    name="opencode",
    title="opencode",
    command="opencode",
    install="npm install -g opencode-ai",
    plan=plan,
    reads=lambda _environ, _home, _write: (),
    needs_version=True,
)
