"""What is said about served models: requests to load one, its status, and what can be wrong with a request."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from agentmesh.core.errors import AgentMeshError, InvalidInput, NotFound

MAX_SERVED: Final = 64  # models of one node; logic/presence.py: MAX_MODELS


class ModelState(StrEnum):
    """Where a model is on its way. docs/serving.md has the table."""

    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    WAITING = "waiting"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class LoadRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model to serve, and how. Also what is remembered across restarts.

    Attributes:
        model: a reference, or a path when `is_path`.
        context_tokens: of each request; slots: requests at once; max_vram_bytes: cap for all models together; device: see
            ServeSettings. None: the node's own setting, or what fits.
    """

    model: str
    is_path: bool = False
    context_tokens: int | None = None
    slots: int | None = None
    max_vram_bytes: int | None = None
    device: str | None = None


class Progress(msgspec.Struct, frozen=True):
    """How far a download is."""

    done_bytes: int
    total_bytes: int


class ModelStatus(msgspec.Struct, frozen=True):
    """One model of this node.

    Attributes:
        id: what the API calls it; until that is known, what the user wrote.
        memory: the sentence with the whole arithmetic, empty before the file was read.
        reason: why it is in this state, empty if there is nothing to say.
        context_tokens: of one request.
        device: where it runs, None for the CPU or while unknown.
    """

    id: str
    state: ModelState
    role: str = "solo"
    nodes: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    reason: str = ""
    memory: str = ""
    progress: Progress | None = None
    need_bytes: int = 0
    have_bytes: int = 0
    size_bytes: int = 0
    context_tokens: int = 0
    slots: int = 0
    capabilities: tuple[str, ...] = ()
    pid: int | None = None
    flavour: str = ""
    device: str | None = None


class DoesNotFit(AgentMeshError):
    """The model does not fit this machine's memory."""

    http_status = 409


class AlreadyServed(InvalidInput):
    """A model with this id is served here already."""

    http_status = 409


class NotServed(NotFound):
    """This node serves no such model."""


class ServesNothing(InvalidInput):
    """This node was started as a client and serves no models. Run: agentmesh stop, then agentmesh --model NAME."""

    http_status = 409


class TooManyModels(AgentMeshError):
    """This node serves as many models as it can keep apart; unload one first."""

    http_status = 409
