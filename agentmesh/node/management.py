"""What the management API can see and do of this node: the other side of console/http.py's protocol.

Turns bytes into the ids that people read, and the mesh's answers into the API's shapes. Starts and ends nothing itself.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

import agentmesh
from agentmesh.blackboard.service import BlackboardService
from agentmesh.console.models import (
    BoardStatus,
    Done,
    Invite,
    LentPart,
    ModelView,
    NodeProcess,
    PeerStatus,
    Status,
)
from agentmesh.core.errors import InvalidInput, NodeRunning
from agentmesh.inference.http import SplitDoubt, SplitWorker
from agentmesh.inference.logic.target import ServedModel
from agentmesh.inference.serving_types import ModelStatus
from agentmesh.inference.split.worker import WorkStatus
from agentmesh.mesh.api import Mesh
from agentmesh.mesh.identity import NodeKey, encode_id
from agentmesh.mesh.logic.limits import INVITE_LIFETIME_MS
from agentmesh.mesh.views import PeerView
from agentmesh.node.inference import NodeInference

AWAY: Final = "Its nodes cannot be reached now."


class Stoppable(Protocol):
    """The running node, as far as its management may touch it."""

    stopping: asyncio.Event
    console_port: int
    api_port: int

    def request_stop(self, reason: str) -> None: ...

    def client_came(self) -> None: ...

    def clients(self) -> int: ...

    def request_leave(self) -> None: ...

    async def join(self, tokens: list[str]) -> str: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What a started node consists of."""

    key: NodeKey
    name: str
    mesh: Mesh
    board: BlackboardService
    inference: NodeInference


class Management:
    """Implements console.http.ManagedNode."""

    def __init__(self, node: Stoppable, parts: Parts, started_at: int, *, background: bool) -> None:
        self._node = node
        self._parts = parts
        self._background = background
        self._started_at = started_at

    @property
    def stopping(self) -> asyncio.Event:
        return self._node.stopping

    def process(self) -> NodeProcess:
        self._node.client_came()  # clients ask this first
        return NodeProcess(
            pid=os.getpid(),
            version=agentmesh.__version__,
            background=self._background,
            started_at=self._started_at,
            clients=self._node.clients() - 1,
        )

    async def status(self) -> Status:
        mesh, inference = self._parts.mesh, self._parts.inference
        await inference.service.look()
        return Status(
            node_id=encode_id(self._parts.key.public),
            name=self._parts.name,
            version=agentmesh.__version__,
            mesh_id=encode_id(mesh.mesh),
            mesh_name=mesh.name,
            state=mesh.state(),
            api_port=self._node.api_port,
            console_port=self._node.console_port,
            bind_port=mesh.bind_port,
            peers=[_peer_status(peer) for peer in mesh.peers()],
            models=model_views(inference.service.status(), inference.directory.models(), inference.directory.out()),
            lent=[_lent(work) for work in inference.splits.lent()],
            blackboard=BoardStatus(posts=await self._parts.board.count()),
            policy=mesh.policy().quotas(),
        )

    def stop(self) -> Done:
        self._node.request_stop("asked to stop")
        return Done(message="The node stops; its mesh and its board stay for the next start.")

    def hand_over(self) -> Done:
        if not self._background:
            raise NodeRunning(f"The node of this home was started by hand (process {os.getpid()}) and stays.")
        self._node.request_stop("handed over to another node")
        return Done(message="The node hands over.")

    async def leave(self) -> Done:
        self._node.request_leave()
        name = self._parts.mesh.name
        return Done(message=f"Left the mesh '{name}'; the node stops. Its board stays in this home.")

    async def invite(self, expires_ms: int | None, uses: int | None) -> Invite:
        lifetime_ms = expires_ms if expires_ms is not None else INVITE_LIFETIME_MS
        made = await self._parts.mesh.invite(lifetime_ms, uses)
        return Invite(token=made.token, invite_id=made.serial.hex(), expires_at=made.expires_ms, uses=made.uses)

    async def revoke(self, target: str) -> Done:
        if not (target.isascii() and target.isalnum()):
            raise InvalidInput("A node id or an invite id is letters and digits; its beginning is enough.")
        found = await self._parts.mesh.revoke(target.lower())
        return Done(message=f"Revoked the {_named(found)}.")

    async def join(self, tokens: list[str]) -> Done:
        return Done(message=await self._node.join(tokens))


def model_views(
    own: Sequence[ModelStatus], offered: Sequence[tuple[ServedModel, Sequence[bytes]]], away: Collection[bytes] = ()
) -> list[ModelView]:
    """This node's models as it knows them, with the peers that serve them too, then the peers' other models.

    Args:
        away: peers that cannot be reached now.
    """
    hosts = {model.id: [encode_id(node) for node in nodes] for model, nodes in offered}
    views = [_own_view(status, hosts.get(status.id, [])) for status in own]
    ours = {view.id for view in views}
    return views + [
        ModelView(
            id=model.id,
            state=_state(model, nodes, away),
            role="solo",
            nodes=hosts[model.id],
            aliases=list(model.aliases),
            reason=AWAY if _state(model, nodes, away) == "away" else "",
            context_tokens=model.context_tokens,
            slots=model.slots,
            size_bytes=model.size_bytes,
        )
        for model, nodes in offered
        if model.id not in ours
    ]


def _state(model: ServedModel, nodes: Sequence[bytes], away: Collection[bytes]) -> str:
    if model.ready:
        return "ready"
    return "away" if all(node in away for node in nodes) else "loading"


def _own_view(status: ModelStatus, hosts: Sequence[str]) -> ModelView:
    return ModelView(
        id=status.id,
        state=str(status.state),
        role=status.role,
        nodes=list(dict.fromkeys((*status.nodes, *hosts))),
        aliases=list(status.aliases),
        reason=status.reason,
        context_tokens=status.context_tokens,
        slots=status.slots,
        size_bytes=status.size_bytes,
        plan=status.plan,
        advice=list(status.advice),
        workers=[SplitWorker.model_validate(msgspec.structs.asdict(worker)) for worker in status.workers],
        doubts=[SplitDoubt.model_validate(msgspec.structs.asdict(doubt)) for doubt in status.doubts],
        draft=status.draft,
    )


def _lent(work: WorkStatus) -> LentPart:
    counters = work.counters
    return LentPart(
        model=work.model,
        host=encode_id(bytes.fromhex(work.host)),
        state=str(work.state),
        reason=work.sentence,
        pid=work.pid,
        held_bytes=work.held_bytes,
        confinement=work.confinement,
        sent_bytes=counters.reply_bytes if counters is not None else 0,
        received_bytes=counters.in_bytes + counters.blind_bytes if counters is not None else 0,
    )


def _named(found: bytes) -> str:
    """A revocation's target: nodes have 32 bytes, invites 16."""
    return f"node {encode_id(found)[:12]}" if len(found) == 32 else f"invite {found.hex()[:8]}"


def _peer_status(peer: PeerView) -> PeerStatus:
    return PeerStatus(
        node_id=encode_id(peer.node), name=peer.name, state=str(peer.state), address=peer.address, rtt_ms=peer.rtt_ms
    )
