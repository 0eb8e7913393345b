"""What an engine is started with, from what was found to fit: a whole model, or the host's part of a split.

Owns the choices that neither the user nor the plan makes: pooling, batches of embeddings, the prompt cache. Starts nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agentmesh.inference.draft import DraftChoice, draft_words
from agentmesh.inference.engine.arguments import DEFAULT_POOLING, ServerPlan
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.fetching import ModelFiles
from agentmesh.inference.logic.fit import Fit, batch_tokens, embeds
from agentmesh.inference.memory import MemoryBook

_MIB: Final = 1024 * 1024
MAX_PROMPT_CACHE_BYTES: Final = 8192 * _MIB  # llama-server's default, whatever the machine has
PROMPT_CACHE_SHARE: Final = (
    8  # of the machine's free memory, an eighth: a prompt that comes again is not computed again
)


def whole_plan(
    model_id: str, files: ModelFiles, fit: Fit, engine: Engine, memory: MemoryBook, draft: DraftChoice
) -> ServerPlan:
    """For an engine that has the whole model, or one file that is a model by itself."""
    facts, need = files.model.facts, fit.need
    is_embedding = embeds(facts)
    batch = batch_tokens(facts, need.context_tokens) if is_embedding else None
    words = [*_batches(engine, batch), *_prompt_cache(engine, memory), *draft_words(engine, draft, fit.room.device)]
    return ServerPlan(
        model=files.model.files[0],
        model_id=model_id,
        context_tokens=need.context_tokens * need.slots,
        slots=need.slots,
        device=fit.room.device,
        projector=files.projector,
        embeddings=need.embeddings,
        extra=tuple(words),
        # BERT-like files without a word on it mean the mean (llama.cpp's own default for them is none at all).
        pooling=None if facts.pooling_type else "mean" if is_embedding else DEFAULT_POOLING,
    )


def host_plan(
    model_id: str,
    model: Path,
    projector: Path | None,
    *,
    context_tokens: int,
    slots: int,
    words: tuple[str, ...],
    engine: Engine,
    memory: MemoryBook,
    draft: DraftChoice,
    draft_device: str | None,
) -> ServerPlan:
    """For the host of a split. `context_tokens` of one request; `words`: engine/split_arguments.py's, `--device` among them; `draft_device`: of the host, None
    for the processor. It answers no
    embeddings: models for them are small."""
    return ServerPlan(
        model=model,
        model_id=model_id,
        context_tokens=context_tokens * slots,
        slots=slots,
        projector=projector,
        embeddings=False,
        extra=(*_prompt_cache(engine, memory), *words, *draft_words(engine, draft, draft_device)),
        pooling=None,
    )


def _batches(engine: Engine, batch: int | None) -> list[str]:
    if batch is None or not {"--batch-size", "--ubatch-size"} <= engine.flags:
        return []
    return ["--batch-size", str(batch), "--ubatch-size", str(batch)]


def _prompt_cache(engine: Engine, memory: MemoryBook) -> list[str]:
    if "--cache-ram" not in engine.flags:
        return []
    share = memory.machine_free_bytes() // PROMPT_CACHE_SHARE
    return ["--cache-ram", str(min(share, MAX_PROMPT_CACHE_BYTES) // _MIB)]
