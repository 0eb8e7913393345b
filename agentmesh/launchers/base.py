"""What a launch of a coding agent is: values only. Every adapter turns a `Wish` into a `Launch` without touching anything.

Owns the shapes that adapters, the runner and `--print-config` share, and the errors of launching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentmesh.control.api_keys import KEY_VARIABLE
from agentmesh.core.errors import EXIT_NO_NODE, AgentMeshError

PROVIDER: Final = "mesh"  # what agents call the mesh among their providers
NO_KEY: Final = "mesh"  # agents want some key; a node without keys ignores it
MCP_NAME: Final = "agentmesh"
UNKNOWN_CONTEXT_TOKENS: Final = 32_768  # for a server that does not say; a guess that most models of today reach
MAX_OUTPUT_TOKENS: Final = 32_000
MIN_OUTPUT_TOKENS: Final = 4_096  # an answer that is cut off here is an error for Claude Code, which then asks again
OUTPUT_SHARE: Final = 4  # of the context: an answer may take a quarter, the rest is the conversation


class LauncherError(AgentMeshError):
    """The agent could not be started."""


class AgentMissing(LauncherError):
    """The agent is not installed."""


class ConfigUnusable(LauncherError):
    """A configuration file of the agent cannot be used; it was left as it is."""


class NoModel(AgentMeshError):
    """There is no model anywhere on the mesh."""

    exit_code = EXIT_NO_NODE
    http_status = 503
    retryable = True


@dataclass(frozen=True, slots=True)
class MeshModel:
    """A model that the API offers. `context_tokens` and `parameters` are 0, `capabilities` empty, where it does not say."""

    id: str
    aliases: tuple[str, ...] = ()
    context_tokens: int = 0
    capabilities: frozenset[str] = field(default_factory=frozenset[str])
    parameters: int = 0
    ready: bool = True

    @property
    def context(self) -> int:
        """Tokens of one request, guessed where unknown."""
        return self.context_tokens or UNKNOWN_CONTEXT_TOKENS

    @property
    def output_tokens(self) -> int:
        """How long one answer may be, so that prompt and answer fit the context together."""
        return min(MAX_OUTPUT_TOKENS, max(self.context // OUTPUT_SHARE, min(MIN_OUTPUT_TOKENS, self.context)))

    def can(self, capability: str) -> bool:
        """Whether it has the capability, or its server says nothing of capabilities."""
        return not self.capabilities or capability in self.capabilities


@dataclass(frozen=True, slots=True)
class McpCommand:
    """How an agent starts the blackboard's MCP server: this very agentmesh, in the same home."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Wish:
    """Everything that an adapter may look at.

    Attributes:
        base_url: of the API without `/v1`, e.g. `http://127.0.0.1:9337`.
        models: all that can chat; `model`, the chosen one, is among them.
        key: the API's key, None if it asks for none.
        blackboard: the MCP server to attach, if any; `skill`: the folder of the skill, for agents without MCP.
        arguments: the user's, for the agent.
        environ: the user's environment; `home`: the user's home directory.
        write: also put the settings into the agent's own configuration.
        existing: the content of each file that the adapter named, None where there is no such file.
        version: of the agent, empty if unknown.
    """

    base_url: str
    models: tuple[MeshModel, ...]
    model: MeshModel
    key: str | None = None
    blackboard: McpCommand | None = None
    skill: str | None = None
    arguments: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict[str, str])
    home: Path = Path("/")
    write: bool = False
    existing: Mapping[Path, str | None] = field(default_factory=dict[Path, "str | None"])
    version: str = ""

    @property
    def token(self) -> str:
        """What to send as key."""
        return self.key or NO_KEY

    @property
    def token_reference(self) -> str:
        """The key for a file: the name of a variable instead of a secret."""
        return f"${KEY_VARIABLE}" if self.key else NO_KEY

    @property
    def key_environment(self) -> dict[str, str]:
        """What a file or flag that refers to the key needs to be set."""
        return {KEY_VARIABLE: self.key} if self.key else {}


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file as it should be. `old`: as it was when this was planned, None if there was none."""

    path: Path
    content: str
    old: str | None

    @property
    def changes(self) -> bool:
        return self.content != self.old


@dataclass(frozen=True, slots=True)
class Launch:
    """What starting the agent takes.

    Attributes:
        argv: the program's name or path first.
        environment: to set; `unset`: to remove, because it would lead the agent elsewhere.
        files: to bring into this state before.
        notes: what the user should know.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    unset: tuple[str, ...] = ()
    files: tuple[PlannedFile, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agent:
    """A coding agent.

    Attributes:
        name: of our command; `title`: as its makers write it.
        command: its program; `install`: how to get it.
        reads: the files that `plan` must see, from the environment, the home directory and `--write`.
        plan: the adapter.
        needs_version: whether `plan` looks at the version.
        app: opened on macOS where the program is missing.
        writes: what `--write` changes, empty if it has no meaning for this agent.
    """

    name: str
    title: str
    command: str
    install: str
    plan: Callable[[Wish], Launch]
    reads: Callable[[Mapping[str, str], Path, bool], tuple[Path, ...]]
    needs_version: bool = False
    app: str | None = None
    writes: str = ""


def folder_of(environ: Mapping[str, str], variable: str, otherwise: Path) -> Path:
    """The folder that a variable names, else the usual one.

    Relative values of the XDG variables are ignored, as their specification says; those of an agent's own are taken from the
    working directory, as agents do.
    """
    value = environ.get(variable, "")
    if value.startswith("~/"):
        return Path(environ.get("HOME") or "~").expanduser() / value[2:]
    if not value or (variable.startswith("XDG_") and not value.startswith("/")):
        return otherwise
    return Path(value)
