"""The management API's routes for models: what this node serves, loading and unloading.

Owns the shapes of requests; what they do is behind `ServingNode`. Errors take the form that console/http.py gives them: a model that
does not fit is a 409 with the arithmetic, an unknown one a 404.
"""

from __future__ import annotations

from typing import Any, Final, Literal, Protocol

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.process import EngineStatus
from agentmesh.inference.logic.drafting import DraftFlags
from agentmesh.inference.logic.fit import MAX_CONTEXT_TOKENS, MAX_WANTED_SLOTS
from agentmesh.inference.logic.reference import MAX_REFERENCE_CHARS
from agentmesh.inference.logic.target import EngineAddress
from agentmesh.inference.serving_types import LoadRequest, ModelStatus, SplitFlags

MAX_DEVICE_CHARS: Final = 256
MAX_MEMORY_BYTES: Final = 1 << 50


class ServingNode(Protocol):
    """service.ModelService, as far as the routes use it."""

    async def load(self, request: LoadRequest) -> ModelStatus: ...

    async def unload(self, name: str) -> str: ...

    async def drop(self, name: str) -> str: ...

    async def look(self) -> None: ...

    def status(self) -> list[ModelStatus]: ...

    def processes(self) -> list[tuple[str, EngineStatus, EngineAddress | None]]: ...

    async def engine(self) -> Engine | None: ...


class SplitBody(BaseModel):
    """How a model is spread; see SplitFlags."""

    model_config = ConfigDict(extra="forbid")

    way: Literal["any", "layers", "experts"] = "any"
    tensor_split: list[float] = Field(default_factory=list[float], max_length=16)
    host: str = Field(default="", max_length=64)
    min_peers: int = Field(default=0, ge=0, le=15)


class DraftBody(BaseModel):
    """Which model drafts; see DraftFlags."""

    model_config = ConfigDict(extra="forbid")

    draft: str | None = Field(default=None, min_length=1, max_length=MAX_REFERENCE_CHARS)
    draft_max: int | None = Field(default=None, ge=1, le=64)
    no_draft: bool = False


class LoadBody(BaseModel):
    """A model to serve: a reference, or with `is_path` a file of the node's machine. Sizes in bytes."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=MAX_REFERENCE_CHARS)
    is_path: bool = False
    ctx_size: int | None = Field(default=None, ge=1, le=MAX_CONTEXT_TOKENS)
    max_vram: int | None = Field(default=None, ge=1, le=MAX_MEMORY_BYTES)
    device: str | None = Field(default=None, min_length=1, max_length=MAX_DEVICE_CHARS)
    slots: int | None = Field(default=None, ge=1, le=MAX_WANTED_SLOTS)
    split: SplitBody | None = None
    draft: DraftBody | None = None


class DownloadProgress(BaseModel):
    """Bytes of all files of a model."""

    done_bytes: int
    total_bytes: int


class SplitWorker(BaseModel):
    """One worker of a split that this node hosts. `commands`: requests, round trips, bytes sent, bytes received of each."""

    node: str
    name: str
    layers: int
    share_bytes: int
    state: str
    has_files: bool
    round_trips: int
    sent_bytes: int
    received_bytes: int
    referenced_bytes: int
    overdue_s: float
    commands: dict[str, tuple[int, int, int, int]]


class SplitDoubt(BaseModel):
    """A node that this one's plans for a model do without for a while, where they can. `role`: worker or host; `why`: how the last run
    that it ended did."""

    node: str
    name: str
    role: str
    times: int
    left_s: float
    why: str
    sentence: str


class ServedModelStatus(BaseModel):
    """One model of this node; see docs/serving.md for `state`."""

    id: str
    state: str
    role: str
    nodes: list[str]
    aliases: list[str]
    reason: str
    memory: str
    progress: DownloadProgress | None
    need_bytes: int
    have_bytes: int
    size_bytes: int
    context_tokens: int
    slots: int
    capabilities: list[str]
    pid: int | None
    flavour: str
    device: str | None
    plan: str
    advice: list[str]
    workers: list[SplitWorker]
    doubts: list[SplitDoubt]
    draft: str


class ServedModels(BaseModel):
    """Every model of this node."""

    models: list[ServedModelStatus]


class EngineInfo(BaseModel):
    """The llama.cpp engine of this node."""

    flavour: str
    origin: str
    build: int | None
    commit: str
    program: str
    rpc: bool


class Runtime(ServedModels):
    """The engine, None when there is none, and the models."""

    engine: EngineInfo | None


class ProcessInfo(BaseModel):
    """One engine process."""

    model: str
    state: str
    pid: int | None
    reason: str
    restarts: int
    socket: str | None
    port: int | None


class Processes(BaseModel):
    """Every engine process of this node."""

    processes: list[ProcessInfo]


class Ended(BaseModel):
    """The model's engine is gone and its memory free."""

    id: str
    message: str


def runtime_router(serving: ServingNode) -> APIRouter:
    """The routes below /api/runtime."""
    router = APIRouter(prefix="/api/runtime", tags=["models"])

    async def runtime() -> Runtime:
        """The engine and the models of this node."""
        engine = await serving.engine()
        await serving.look()
        return Runtime(engine=_engine_info(engine) if engine is not None else None, models=_rows(serving))

    async def processes() -> Processes:
        """The engine processes of this node."""
        return Processes(processes=[_process(*one) for one in serving.processes()])

    async def models() -> ServedModels:
        """The models of this node."""
        await serving.look()
        return ServedModels(models=_rows(serving))

    async def load(body: LoadBody) -> ServedModelStatus:
        """Serve a model. Answers when it is admitted: it is downloaded or loaded then, and `models` shows how far it is."""
        request = LoadRequest(
            model=body.model,
            is_path=body.is_path,
            context_tokens=body.ctx_size,
            slots=body.slots,
            max_vram_bytes=body.max_vram,
            device=body.device,
            split=msgspec.convert(body.split.model_dump(), SplitFlags) if body.split is not None else None,
            draft=DraftFlags(**body.draft.model_dump()) if body.draft is not None else None,
        )
        return _row(await serving.load(request))

    async def unload(name: str, forget: bool = False) -> Ended:
        """End a model; `forget` also takes it from what the next start serves again."""
        if forget:
            found = await serving.drop(name)
            return Ended(id=found, message=f"{found} is unloaded and forgotten.")
        found = await serving.unload(name)
        return Ended(id=found, message=f"{found} is unloaded; its memory is free.")

    router.add_api_route("", runtime)
    router.add_api_route("/processes", processes)
    router.add_api_route("/models", models)
    router.add_api_route("/models", load, methods=["POST"])
    router.add_api_route("/models/{name:path}", unload, methods=["DELETE"])
    return router


def _rows(serving: ServingNode) -> list[ServedModelStatus]:
    return [_row(status) for status in serving.status()]


def _row(status: ModelStatus) -> ServedModelStatus:
    built: dict[str, Any] = msgspec.to_builtins(status)
    return ServedModelStatus.model_validate(built)


def _engine_info(engine: Engine) -> EngineInfo:
    return EngineInfo(
        flavour=engine.flavor,
        origin=engine.origin,
        build=engine.build,
        commit=engine.commit,
        program=engine.command[0],
        rpc=engine.has_rpc,
    )


def _process(model: str, status: EngineStatus, address: EngineAddress | None) -> ProcessInfo:
    return ProcessInfo(
        model=model,
        state=str(status.state),
        pid=status.pid,
        reason=status.reason,
        restarts=status.restarts,
        socket=address.socket if address is not None else None,
        port=address.port if address is not None else None,
    )
