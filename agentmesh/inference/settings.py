"""How a node was asked to serve models: the values that the service is built from. Reads nothing by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
