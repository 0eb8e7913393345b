"""How a node was asked to serve models: the values that the service is built from. Reads nothing by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from agentmesh.inference.logic.drafting import DraftFlags
from agentmesh.inference.serving_types import SplitFlags


class Weights(StrEnum):
    """What a worker does that lacks the model's files: fetch them from a member first, or let the weights come from the host."""

    FETCH = "fetch"
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Lending:
    """Who may use this node's memory for parts of models (`--rpc-peers`), and what happens to weights (`--weights`)."""

    everyone: bool = False
    peers: frozenset[bytes] = frozenset()
    weights: Weights = Weights.FETCH

    @property
    def is_any(self) -> bool:
        """Whether anything is lent at all."""
        return self.everyone or bool(self.peers)

    def may_use(self, peer: bytes) -> bool:
        return self.everyone or peer in self.peers


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """`--model`, `--gguf` and what goes with them.

    Attributes:
        models: references to serve from the start; ggufs: paths to serve from the start.
        context_tokens: of each request; None: what fits.
        max_vram_bytes: what all models together may use; None: what is free.
        device: where models run, as the engine names it; None: the best one.
        bin_dir, llama_flavor: which engine.
        again: begin with what was loaded before, too.
        no_engine: a client: no models, and loading any is refused.
        lending: of this node's memory to splits.
        split, draft: of every model named here; see LoadRequest.
    """

    models: tuple[str, ...] = ()
    ggufs: tuple[str, ...] = ()
    context_tokens: int | None = None
    max_vram_bytes: int | None = None
    device: str | None = None
    bin_dir: Path | None = None
    llama_flavor: str | None = None
    again: bool = True
    no_engine: bool = False
    lending: Lending = field(default_factory=Lending)
    split: SplitFlags | None = None
    draft: DraftFlags | None = None
