"""What a model's run needs from outside, as types: an engine's process, how one is made, how a draft is found."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Protocol

from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.process import EngineStatus
from agentmesh.inference.fetching import Located, ModelFiles
from agentmesh.inference.logic.target import EngineAddress
from agentmesh.inference.serving_types import Draft, LoadRequest


class RunningEngine(Protocol):
    """An engine process; engine/process.py: EngineProcess."""

    @property
    def address(self) -> EngineAddress | None: ...

    @property
    def status(self) -> EngineStatus: ...

    async def start(self) -> None: ...

    async def wait_ready(self) -> None: ...

    async def stop(self, grace_s: float | None = None) -> None: ...


MakeEngine = Callable[[Engine, ServerPlan, Callable[[EngineStatus], None]], RunningEngine]


FindDraft = Callable[[LoadRequest, Located, ModelFiles, Engine, threading.Event], Awaitable[Draft | None]]
"""Finds, fetches and pairs a draft. Raises AgentMeshError: the user named one that cannot be used."""
