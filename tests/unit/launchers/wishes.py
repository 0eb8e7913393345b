"""Wishes that the adapters' tests share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from agentmesh.launchers.base import Agent, Launch, McpCommand, MeshModel, Wish

HOME = Path("/home/ada")
BIG = MeshModel("big-Q4", ("big",), 131_072, frozenset(("chat", "tools", "vision", "reasoning")), 70_000_000_000)
SMALL = MeshModel("small-Q4", ("small",), 8_192, frozenset(("chat", "tools")), 3_000_000_000)
KEY = "a-secret-of-the-mesh-0001"
BOARD = McpCommand(("/opt/venv/bin/agentmesh", "blackboard", "--mcp"), {"AGENTMESH_HOME": "/home/ada/.agentmesh"})
WISH = Wish(base_url="http://127.0.0.1:9337", models=(BIG, SMALL), model=BIG, home=HOME)


def planned(agent: Agent, existing: dict[Path, str | None] | None = None, **changes: Any) -> Launch:
    """The launch of the usual wish with some changes."""
    return agent.plan(dataclasses.replace(WISH, existing=existing or {}, **changes))
