"""Models that were asked for on this node and do not answer here: found by any name that requests may use. Reads, changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from agentmesh.inference.logic.auto import is_auto
from agentmesh.inference.logic.model_files import model_id
from agentmesh.inference.model_run import ModelRun
from agentmesh.inference.models.catalog import look_up
from agentmesh.inference.models.errors import UnknownModel
from agentmesh.inference.run_views import unready_of
from agentmesh.inference.serving_types import MAX_SERVED, ModelState, Unready


def find_unready(runs: Sequence[ModelRun], name: str) -> Unready | None:
    """The model that `name` means here, if it does not answer; one that failed only if no other is meant. `auto` means any."""
    low = name.lower()
    found: list[tuple[bool, Unready]] = []
    for run in runs:
        if is_auto(name) or low in _names(run):
            if run.state is ModelState.READY and not is_auto(name):
                return None
            if (unready := unready_of(run)) is not None:
                found.append((unready.state is ModelState.FAILED, unready))
    return min(found, key=lambda one: one[0])[1] if found else None


def _names(run: ModelRun) -> set[str]:
    """In lower case. Of one that was not found, what it would be called if it had been."""
    written = run.request.model
    if run.located is not None:
        names = {run.id, *run.located.aliases}
    elif run.request.is_path:
        names = {model_id(Path(written).name)}
    else:
        called = [model_id(Path(written).name)] if written.lower().endswith(".gguf") else []
        names = {written, *called, *_catalog_names(written)}
    return {name.lower() for name in names}


@lru_cache(MAX_SERVED)
def _catalog_names(written: str) -> tuple[str, ...]:
    """Remembered: finding what was meant takes longer than all else here."""
    try:
        entry = look_up(written)
    except UnknownModel:
        return ()
    return (entry.id, entry.name, *entry.aliases)
