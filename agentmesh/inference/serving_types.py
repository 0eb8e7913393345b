"""What is said about served models: requests to load one, its status, and what can be wrong with a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from agentmesh.core.errors import AgentMeshError, InvalidInput, NotFound
from agentmesh.inference.logic.drafting import DraftFlags

MAX_SERVED: Final = 64  # models of one node; logic/presence.py: MAX_MODELS


class ModelState(StrEnum):
    """Where a model is on its way. docs/serving.md has the table."""

    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    WAITING = "waiting"
    LOADING = "loading"
    READY = "ready"
    STANDBY = "standby"  # spread over the mesh, and another node hosts it
    STOPPING = "stopping"
    FAILED = "failed"


class SplitFlags(msgspec.Struct, frozen=True, omit_defaults=True):
    """`--split` and what goes with it; the fields are those of split_values.Wish. `host`: a node's id as people write it."""

    way: str = "any"
    tensor_split: tuple[float, ...] = ()
    host: str = ""
    min_peers: int = 0


class LoadRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model to serve, and how. Also what is remembered across restarts.

    Attributes:
        model: a reference, or a path when `is_path`.
        context_tokens: of each request; slots: requests at once; max_vram_bytes: cap for all models together; device: see
            ServeSettings. None: the node's own setting, or what fits.
        split: spread it over the mesh if no node can hold it; None: this node alone.
        draft: which model drafts; None: as logic/drafting.py decides.
    """

    model: str
    is_path: bool = False
    context_tokens: int | None = None
    slots: int | None = None
    max_vram_bytes: int | None = None
    device: str | None = None
    split: SplitFlags | None = None
    draft: DraftFlags | None = None


class Progress(msgspec.Struct, frozen=True):
    """How far a download is."""

    done_bytes: int
    total_bytes: int


class WorkerRow(msgspec.Struct, frozen=True):
    """One worker of a split that this node hosts. Bytes and round trips since its run began; `commands`: of each RPC command the
    requests, round trips, bytes sent, bytes received."""

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


class DoubtRow(msgspec.Struct, frozen=True):
    """A node that let this one down: plans for the model do without it, as `role` (worker or host), for `left_s` more where they
    can (logic/doubts.py). `why`: how the last run that it ended did."""

    node: str
    name: str
    role: str
    times: int
    left_s: float
    why: str
    sentence: str


@dataclass(slots=True)
class SpreadView:
    """How a model is spread, as this node sees it; written by whoever follows the plans.

    Attributes:
        role: host, shard, alone (this node has the whole model), standby, or waiting.
        nodes: ids of those that share it, the host first.
        sentence: the plan, or what is missing; advice: other ways, and what nodes differ about.
        context_tokens, slots: of what runs; 0 if this node runs nothing.
    """

    role: str = "waiting"
    nodes: tuple[bytes, ...] = ()
    sentence: str = ""
    advice: tuple[str, ...] = ()
    context_tokens: int = 0
    slots: int = 0
    shard: str = ""
    workers: Callable[[], tuple[WorkerRow, ...]] = tuple
    doubts: Callable[[], tuple[DoubtRow, ...]] = tuple


class ModelStatus(msgspec.Struct, frozen=True):
    """One model of this node.

    Attributes:
        id: what the API calls it; until that is known, what the user wrote.
        memory: the sentence with the whole arithmetic, empty before the file was read.
        reason: why it is in this state, empty if there is nothing to say.
        context_tokens: of one request.
        device: where it runs, None for the CPU or while unknown.
        role: "solo"; or how a spread model is run here (SpreadView).
        nodes: who shares it, the host first; workers: what the host knows of them; plan, advice: in sentences.
        doubts: nodes that this one's plans do without for a while, and why.
        draft: which model drafts and how well.
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
    plan: str = ""
    advice: tuple[str, ...] = ()
    workers: tuple[WorkerRow, ...] = ()
    doubts: tuple[DoubtRow, ...] = ()
    draft: str = ""


class Unready(msgspec.Struct, frozen=True):
    """A model that was asked for on this node and does not answer here.

    Attributes:
        reason: as clients of the API may read it (logic/reasons.py); empty if there is nothing to say.
        again: what `agentmesh load` takes to try it again; empty: its file, wherever that is.
    """

    id: str
    state: ModelState
    reason: str = ""
    again: str = ""


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
