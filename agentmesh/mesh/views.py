"""What `status` shows of peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentmesh.mesh.links import Link
from agentmesh.mesh.logic.events import NodeId, PeerState
from agentmesh.mesh.peers import PeerFacts


@dataclass(frozen=True, slots=True)
class PeerView:
    """One peer as `status` shows it."""

    node: NodeId
    name: str
    state: PeerState
    address: str | None
    rtt_ms: float | None


def peer_views(
    links: Mapping[NodeId, Link], states: Mapping[NodeId, PeerState], facts: Mapping[NodeId, PeerFacts]
) -> list[PeerView]:
    """Connected peers and those lately lost, connected ones first."""
    lost = [node for node in states if node not in links]
    return [
        _view(node, links.get(node), states.get(node, PeerState.ALIVE), facts.get(node)) for node in (*links, *lost)
    ]


def _view(node: NodeId, link: Link | None, state: PeerState, facts: PeerFacts | None) -> PeerView:
    address = link.connection.remote_address if link else facts.seen_at if facts else None
    return PeerView(node, facts.name if facts else "", state, address, link.connection.rtt_ms if link else None)
