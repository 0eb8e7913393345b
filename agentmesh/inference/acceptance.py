"""How well a draft does: asked of the engine that runs, when somebody wants to know. Nothing is counted on the way of requests."""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import KIB
from agentmesh.inference.engine.health import ask_engine
from agentmesh.inference.logic.spec_metrics import Acceptance, acceptance_of
from agentmesh.inference.logic.target import EngineAddress

TIMEOUT_S: Final = (
    1.0  # llama-server answers between two batches and while it computes one; status must not wait for it
)
MAX_METRICS_BYTES: Final = 64 * KIB  # 5 KiB with 64 positions of a draft


async def acceptance(address: EngineAddress) -> Acceptance | None:
    """What the engine counts of its draft; None if it does not answer in time, or is one that does not count (builds before
    August 2026). Counts begin at 0 with each start of the engine."""
    answer = await ask_engine(address, "/metrics", timeout_s=TIMEOUT_S, max_bytes=MAX_METRICS_BYTES)
    if answer is None or answer.split(b" ", 2)[1:2] != [b"200"]:
        return None
    return acceptance_of(answer)
