"""What a model's run needs from outside, as types: an engine's process, how one is made, how a draft is found."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from agentmesh.inference.draft import DraftChoice
from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.process import EngineStatus
from agentmesh.inference.logic.drafting import DraftFlags
from agentmesh.inference.logic.target import EngineAddress
from agentmesh.inference.models.catalog import CatalogEntry
from agentmesh.inference.serving_types import Progress


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


class FindDraft(Protocol):
    """Finds, fetches and pairs a draft; draft.py: Drafter.find."""

    async def __call__(
        self,
        flags: DraftFlags,
        model_id: str,
        entry: CatalogEntry | None,
        target: Path,
        *,
        engine: Engine,
        is_split: bool,
        stop: threading.Event,
        seen: Callable[[Progress], None],
        has_projector: bool,
        context_tokens: int | None,
        slots: int | None,
    ) -> DraftChoice: ...
