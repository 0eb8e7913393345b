"""One link of the overlay, and which of two links to the same peer stays."""

from __future__ import annotations

from dataclasses import dataclass

from agentmesh.mesh.logic.events import NodeId
from agentmesh.mesh.logic.limits import SIMULTANEOUS_MS
from agentmesh.mesh.logic.messages import PeerEntry


def keeps_new_connection(
    self_id: NodeId, peer: NodeId, *, existing_outbound: bool, existing_age_ms: int, new_outbound: bool
) -> bool:
    """Two connections to one peer: whether the new one replaces the existing one. Both ends come to the same answer.

    Both having dialled at once, the connection dialled by the smaller id stays. Otherwise the new one does: nobody dials a
    peer that it is connected to, so the existing one is dead at the other end (it restarted, its address changed).
    """
    if existing_outbound == new_outbound or existing_age_ms > SIMULTANEOUS_MS:
        return True
    return new_outbound == (self_id < peer)


@dataclass(slots=True)
class Link:
    entry: PeerEntry
    outbound: bool
    changed_ms: int  # since when it is a neighbour's, or nobody's
    active: bool = False
    asked_ms: int = 0  # deadline of our unanswered Neighbour or Join; 0: none
    attempts: int = 0
    high_priority: bool = False
    streams: int = 0  # of higher layers, in progress
    told_ms: int = 0  # when we last told it that it is not our neighbour
