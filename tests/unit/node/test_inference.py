"""What the node's parts hear of the mesh."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

from agentmesh.core.paths import Home
from agentmesh.inference.logic.split_offer import encode_split_offer
from agentmesh.mesh.api import Mesh
from agentmesh.mesh.logic.events import PeerState
from agentmesh.node.inference import NodeInference
from agentmesh.node.options import NodeOptions
from tests.fakes.records import record
from tests.fakes.split_offers import LENDER, ME, OTHER


async def test_plans_hear_of_a_peer_that_is_back_though_its_record_is_the_same(tmp_path: Path) -> None:
    """A plan that was made in the seconds in which it was silent would else stand until something else changed."""
    mesh = Mock(spec=Mesh)
    mesh.peers.return_value = []
    mesh.peer_states.return_value = states = {OTHER: PeerState.SUSPECT}
    home = Home(tmp_path)
    home.prepare()
    node = NodeInference(home, ME, mesh, NodeOptions(), say=Mock(), on_ready=Mock(), name=lambda: "anna", port=0)
    offers = node.splits.offers
    seen: list[list[bytes]] = []
    offers.on_change(lambda: seen.append([facts.node for facts in offers.nodes("c")]))
    await offers.on_records([record("split", OTHER, 5, payload=encode_split_offer(LENDER))])
    [told] = mesh.watch_peers.call_args.args
    states[OTHER] = PeerState.ALIVE
    told(OTHER, PeerState.ALIVE)
    assert seen == [[], [OTHER]]
    await offers.stop()
