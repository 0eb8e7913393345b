"""A member that turns against the nodes it is connected to, over real QUIC."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agentmesh.mesh.logic import reconcile
from agentmesh.mesh.logic.messages import Reconcile
from agentmesh.mesh.logic.snapshot import Snapshot
from tests.fakes.mesh_nodes import CLOCK, TestNode, eventually

WAIT_S = 20.0  # below the 30 s after which a neighbour that was told nothing asks by itself


async def test_a_member_that_floods_openings_and_silent_streams_starves_nobody(tmp_path: Path) -> None:
    a = await TestNode(tmp_path, "a").found().start()
    token = await a.token()
    bad = await (await TestNode(tmp_path, "bad").join(token)).start()
    c = await (await TestNode(tmp_path, "c").join(token)).start()
    try:
        await eventually(lambda: len(a.mesh.peers()) == 2, WAIT_S)
        link = bad.mesh._driver.links[a.key.public]
        body = reconcile.begin(Snapshot([], []), b"s" * 16, CLOCK.now_ms()).reply
        assert body is not None
        parity = int(bad.key.public > a.key.public)
        for number in range(2_000):
            link.send(Reconcile(2 * number + parity, body))
        for _ in range(100):
            await asyncio.wait_for(link.connection.open_stream(), WAIT_S)
        await a.post("still here")
        await eventually(lambda: c.texts() == ["still here"], WAIT_S)
        assert a.mesh._driver._reconciler.sessions <= 2
        await eventually(
            lambda: any(peer.node == c.key.public and peer.state == "alive" for peer in a.mesh.peers()), WAIT_S
        )
    finally:
        for node in (bad, c, a):
            await asyncio.wait_for(node.mesh.stop(), WAIT_S)
