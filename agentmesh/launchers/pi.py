"""pi: a provider in its models.json, and the model on its command line. Pure.

pi has no MCP: the blackboard comes as a skill, which it is pointed to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from agentmesh.launchers import json_edit
from agentmesh.launchers.base import PROVIDER, Agent, ConfigUnusable, Launch, MeshModel, PlannedFile, Wish, folder_of

# Its own commands: they take no model.
_COMMANDS: Final = frozenset(("install", "remove", "uninstall", "update", "list", "config", "auth"))
_COMPAT: Final = {"maxTokensField": "max_tokens", "supportsDeveloperRole": False, "supportsUsageInStreaming": False}


def models_file(environ: Mapping[str, str], home: Path) -> Path:
    return folder_of(environ, "PI_CODING_AGENT_DIR", home / ".pi" / "agent") / "models.json"


def plan(wish: Wish) -> Launch:
    """The launch of pi."""
    argv = ["pi"]
    if wish.arguments[:1] not in [(word,) for word in _COMMANDS]:
        argv += ["--model", f"{PROVIDER}/{wish.model.id}"]
        if wish.skill:
            argv += ["--skill", wish.skill]
    return Launch((*argv, *wish.arguments), wish.key_environment, files=(_models(wish),))


def _models(wish: Wish) -> PlannedFile:
    path = models_file(wish.environ, wish.home)
    old = wish.existing.get(path)
    try:
        present: object = json_edit.parse(old, relaxed=True) if old and old.strip() else None
        provider = _merged(_member(_member(present, "providers"), PROVIDER), wish)
        text = json_edit.set_member(old, ("providers", PROVIDER), provider, relaxed=True)
    except json_edit.BadText as error:
        raise ConfigUnusable(f"{path} does not parse: {error}. It is left as it is; repair it first.") from error
    return PlannedFile(path, text, old)


def _merged(present: Mapping[str, Any], wish: Wish) -> dict[str, Any]:
    """What is ours is set, whatever else the user put there stays: of the provider, and of each model that there still is."""
    listed = present.get("models")
    entries = cast("list[Any]", listed) if isinstance(listed, list) else []
    known = {str(entry.get("id")): entry for entry in map(_object, entries)}
    return {
        **present,
        "api": "openai-completions",
        "apiKey": wish.token_reference,
        "baseUrl": f"{wish.base_url}/v1",
        "models": [_entry(model, known.get(model.id, {})) for model in wish.models],
    }


def _entry(model: MeshModel, present: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {
        "name": model.id,
        "reasoning": "reasoning" in model.capabilities,
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        "compat": _COMPAT,
    }
    facts = {
        "id": model.id,
        "contextWindow": model.context,
        "maxTokens": model.output_tokens,
        "input": ["text", "image"] if "vision" in model.capabilities else ["text"],
    }
    return {**defaults, **present, **facts}


def _member(value: object, name: str) -> dict[str, Any]:
    return _object(_object(value).get(name))


def _object(value: object) -> dict[str, Any]:
    """The object, or an empty one in place of anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


PI: Final = Agent(
    name="pi",
    title="pi",
    command="pi",
    install="npm install -g @earendil-works/pi-coding-agent",
    plan=plan,
    reads=lambda environ, home, _write: (models_file(environ, home),),
    writes="its models.json, which is written in any case",
)
