"""What a model's run needs from outside, as types: an engine's process, and how one is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.process import EngineStatus
from agentmesh.inference.logic.target import EngineAddress


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
