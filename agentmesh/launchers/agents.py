"""The agents that agentmesh starts, by the name of their command."""

from __future__ import annotations

from typing import Final

from agentmesh.launchers.base import Agent
from agentmesh.launchers.claude import CLAUDE
from agentmesh.launchers.codex import CODEX
from agentmesh.launchers.goose import GOOSE
from agentmesh.launchers.opencode import OPENCODE
from agentmesh.launchers.pi import PI

AGENTS: Final[tuple[Agent, ...]] = (CLAUDE, GOOSE, PI, OPENCODE, CODEX)
