"""goose: a custom provider in a file of its own, and the choice of it in the environment. Pure.

goose reads every JSON file of custom_providers and stops at the first bad one, so that file is written whole or not at all.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from agentmesh.control.api_keys import KEY_VARIABLE
from agentmesh.launchers import json_edit
from agentmesh.launchers.base import PROVIDER, Agent, ConfigUnusable, Launch, McpCommand, PlannedFile, Wish, folder_of

TIMEOUT_S: Final = 600  # the first token of a long prompt on a slow machine takes minutes
_WITH_EXTENSIONS: Final = frozenset(("session", "s", "run"))
_WITHOUT: Final = frozenset(("list", "remove", "export", "import", "diagnostics", "help"))  # of `goose session`


_USERS_CHOICE: Final = frozenset(("display_name", "description", "timeout_seconds"))


def provider_file(environ: Mapping[str, str], home: Path) -> Path:
    root = environ.get("GOOSE_PATH_ROOT", "")
    folder = Path(root) / "config" if root else folder_of(environ, "XDG_CONFIG_HOME", home / ".config") / "goose"
    return folder / "custom_providers" / f"{PROVIDER}.json"


def plan(wish: Wish) -> Launch:
    """The launch of goose."""
    environment = {
        "GOOSE_PROVIDER": PROVIDER,
        "GOOSE_MODEL": wish.model.id,
        "GOOSE_CONTEXT_LIMIT": str(wish.model.context),
        **wish.key_environment,
    }
    arguments, notes = wish.arguments or ("session",), tuple[str, ...]()
    if wish.blackboard:
        if arguments[0] in _WITH_EXTENSIONS and arguments[1:2] not in [(word,) for word in _WITHOUT]:
            arguments = (arguments[0], "--with-extension", _extension(wish.blackboard), *arguments[1:])
        else:
            notes = (f"goose {arguments[0]} takes no extension: it runs without the blackboard.",)
    # Set to nothing, goose takes the working directory for its root.
    unset = ("GOOSE_PATH_ROOT",) if wish.environ.get("GOOSE_PATH_ROOT") == "" else ()
    return Launch(("goose", *arguments), environment, unset, files=(_provider(wish),), notes=notes)


def _extension(server: McpCommand) -> str:
    """As goose wants it: `NAME=VALUE … command arguments…` in one word."""
    words = [f"{name}={value}" for name, value in server.environment.items()] + list(server.argv)
    return " ".join(shlex.quote(word) for word in words)


def _provider(wish: Wish) -> PlannedFile:
    path = provider_file(wish.environ, wish.home)
    old = wish.existing.get(path)
    ours = {
        "name": PROVIDER,
        "engine": "openai",
        "display_name": "agentmesh",
        "description": "Models of the mesh",
        "api_key_env": KEY_VARIABLE if wish.key else "",
        "base_url": f"{wish.base_url}/v1/chat/completions",
        "models": [{"name": model.id, "context_limit": model.context} for model in wish.models],
        "timeout_seconds": TIMEOUT_S,
        "supports_streaming": True,
        "requires_auth": wish.key is not None,
    }
    text = old
    try:
        present: Any = json_edit.parse(old) if old and old.strip() else {}
        kept = cast("dict[str, Any]", present) if isinstance(present, dict) else {}
        for name, value in ours.items():
            text = json_edit.set_member(text, (name,), kept.get(name, value) if name in _USERS_CHOICE else value)
    except json_edit.BadText as error:
        raise ConfigUnusable(f"{path} does not parse: {error}. It is left as it is; repair it first.") from error
    return PlannedFile(path, text or "", old)


GOOSE: Final = Agent(
    name="goose",
    title="goose",
    command="goose",
    install="npm install -g @aaif/goose",
    plan=plan,
    reads=lambda environ, home, _write: (provider_file(environ, home),),
    app="Goose",
    writes="its provider file, which is written in any case",
)
