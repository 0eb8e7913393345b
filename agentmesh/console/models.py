"""The shapes of the management API's requests and answers: what `agentmesh status --json` and its siblings print."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from agentmesh.inference.http import SplitDoubt, SplitWorker

MAX_TOKENS = 16  # join tokens in one request


class Strict(BaseModel):
    """A request: what it does not know is a mistake of the caller, not something to ignore."""

    model_config = ConfigDict(extra="forbid")


class PeerStatus(BaseModel):
    """A node that this one is, or lately was, connected to."""

    node_id: str
    name: str
    state: str
    address: str | None
    rtt_ms: float | None


class ModelView(BaseModel):
    """A model that some node of the mesh offers; `reason` is this node's own word, if it serves the model. `plan` to `draft`: how
    this node has it spread over the mesh; see docs/splits.md."""

    id: str
    state: str
    role: str
    nodes: list[str]
    aliases: list[str]
    reason: str
    context_tokens: int
    slots: int
    size_bytes: int
    plan: str = ""
    advice: list[str] = Field(default_factory=list[str])
    workers: list[SplitWorker] = Field(default_factory=list[SplitWorker])
    doubts: list[SplitDoubt] = Field(default_factory=list[SplitDoubt])
    draft: str = ""


class LentPart(BaseModel):
    """A part of a model that this node computes for a host."""

    model: str
    host: str
    state: str
    reason: str
    pid: int | None
    held_bytes: int
    confinement: str
    sent_bytes: int
    received_bytes: int


class BoardStatus(BaseModel):
    """Counts of the board's content."""

    posts: int


class Status(BaseModel):
    """Everything a user may want to know of a node at a glance."""

    node_id: str
    name: str
    version: str
    mesh_id: str
    mesh_name: str
    state: str
    api_port: int | None
    console_port: int | None
    bind_port: int | None
    peers: list[PeerStatus]
    models: list[ModelView]
    lent: list[LentPart]
    blackboard: BoardStatus
    policy: dict[str, int]


class NodeProcess(BaseModel):
    """The process that answers: what a client needs to decide whether it must be replaced, or may be ended.

    `clients` are requests in progress beside this one: open event streams, MCP servers, requests to models.
    """

    pid: int
    version: str
    background: bool
    started_at: int
    clients: int


class Done(BaseModel):
    """The request was carried out."""

    message: str


class InviteRequest(Strict):
    """How long an invite is good, and how many nodes it may admit (None: any number)."""

    expires_ms: int | None = Field(default=None, gt=0)
    uses: int | None = Field(default=None, ge=1, le=1_000_000)


class Invite(BaseModel):
    """A fresh invite."""

    token: str
    invite_id: str
    expires_at: int
    uses: int | None


class RevokeRequest(Strict):
    """A node id or an invite id, or the beginning of one."""

    target: str = Field(min_length=1, max_length=128)


class JoinRequest(Strict):
    """Tokens of one mesh."""

    tokens: list[str] = Field(min_length=1, max_length=MAX_TOKENS)
