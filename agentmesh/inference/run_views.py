"""What is said of a model of this node: to people and the management API, and to the mesh and to routing. Reads, changes nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol

from agentmesh.inference.acceptance import Acceptance
from agentmesh.inference.draft import DraftChoice
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine_questions import EngineSays
from agentmesh.inference.fetching import Located, ModelFiles
from agentmesh.inference.logic.capabilities import capabilities_of
from agentmesh.inference.logic.fit import Fit, size
from agentmesh.inference.logic.model_files import model_id
from agentmesh.inference.logic.reasons import for_others
from agentmesh.inference.logic.target import ServedModel
from agentmesh.inference.run_types import RunningEngine
from agentmesh.inference.serving_types import LoadRequest, ModelState, ModelStatus, Progress, SpreadView, Unready
from agentmesh.mesh.identity import encode_id


class Viewed(Protocol):
    """model_run.ModelRun, as far as it is read here."""

    request: LoadRequest
    state: ModelState
    reason: str
    sha256: str
    process: RunningEngine | None
    engine: Engine | None
    located: Located | None
    files: ModelFiles | None
    fit: Fit | None
    draft: DraftChoice
    accepted: Acceptance | None
    spread: SpreadView | None
    says: EngineSays | None
    progress: Progress | None

    @property
    def id(self) -> str: ...


def status_of(run: Viewed, node: str) -> ModelStatus:
    """For people and the management API. `node` is this node's id as they read it."""
    fit, offer, spread = run.fit, offer_of(run), run.spread
    return ModelStatus(
        id=run.id,
        state=run.state,
        role=spread.role if spread is not None else "solo",
        nodes=tuple(encode_id(one) for one in spread.nodes) if spread is not None else (node,),
        aliases=offer.aliases,
        reason=run.reason,
        memory=fit.sentence if fit is not None else "",
        progress=run.progress if run.state == ModelState.DOWNLOADING else None,
        need_bytes=fit.need.total if fit is not None else 0,
        have_bytes=fit.room.free_bytes if fit is not None else 0,
        size_bytes=offer.size_bytes,
        context_tokens=offer.context_tokens,
        slots=offer.slots if fit is not None or spread is not None else 0,
        capabilities=offer.capabilities,
        pid=run.process.status.pid if run.process is not None else None,
        flavour=run.engine.flavor if run.engine is not None else "",
        device=fit.room.device if fit is not None and fit.room.on_device else None,
        plan=spread.sentence if spread is not None else "",
        advice=spread.advice if spread is not None else (),
        workers=spread.workers() if spread is not None else (),
        doubts=spread.doubts() if spread is not None else (),
        draft=" ".join(one for one in (run.draft.sentence, run.accepted.sentence if run.accepted else "") if one),
    )


def offer_of(run: Viewed) -> ServedModel:
    """For the mesh and for routing."""
    located, files, fit, says = run.located, run.files, run.fit, run.says
    entry = located.entry if located is not None else None
    known = entry.capabilities if entry is not None else ()
    facts = files.model.facts if files is not None else None
    plan = located.plan if located is not None else None
    context = fit.need.context_tokens if fit is not None else 0
    slots = fit.need.slots if fit is not None else 1
    spread = run.spread
    if spread is not None and spread.slots:
        context, slots = spread.context_tokens, spread.slots
    return ServedModel(
        id=run.id,
        aliases=located.aliases if located is not None else (),
        ready=run.state == ModelState.READY,
        context_tokens=says.context_tokens if says is not None and says.context_tokens else context,
        slots=says.slots if says is not None and says.slots else slots,
        capabilities=capabilities_of(
            facts, known, projector=files.projector is not None, embeddings=fit is not None and fit.need.embeddings
        )
        if facts is not None and files is not None
        else tuple(sorted(known)),
        parameters=facts.parameter_count if facts is not None else 0,
        size_bytes=facts.weight_bytes if facts is not None else plan.size_bytes if plan is not None else 0,
        sha256=run.sha256,
        shard=spread.shard if spread is not None else "",
        waits=for_others(run.reason, _folders(run)) if run.state == ModelState.WAITING else "",
    )


def unready_of(run: Viewed) -> Unready | None:
    """For requests that nobody can answer; None if the model is ready, or about to be gone."""
    if run.state in (ModelState.READY, ModelState.STOPPING):
        return None
    folders, written = _folders(run), run.request.model
    reason = for_others(run.reason, folders)
    if run.state == ModelState.DOWNLOADING and run.progress is not None and run.progress.total_bytes:
        done, total = run.progress.done_bytes, run.progress.total_bytes
        reason = f"{100 * done // total} % of {size(total)} are here."
    is_unknown = run.located is None and run.request.is_path  # its id would be a path
    again = "" if run.request.is_path else for_others(written)
    return Unready(model_id(Path(written).name) if is_unknown else run.id, run.state, reason, again)


def _folders(run: Viewed) -> list[str]:
    """Where what its reason may name lies."""
    files = [Path(run.request.model)] if run.request.is_path else list[Path]()
    if run.located is not None:
        files += [file for file in (run.located.file, run.located.projector) if file is not None]
    if run.files is not None:
        files += run.files.model.files
    if run.draft.path is not None:
        files.append(run.draft.path)
    if run.engine is not None:
        files.append(Path(run.engine.command[0]))
    folders = [str(file.parent) for file in files]
    with contextlib.suppress(RuntimeError):  # a user without a home
        folders.append(str(Path.home()))
    return folders
