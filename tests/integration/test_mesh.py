"""Whole nodes on real QUIC and in memory: joining, spreading, repairing, revoking."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agentmesh.core.errors import InvalidInput, QuotaExceeded, StorageError
from agentmesh.mesh.identity import NodeKey, encode_id
from agentmesh.mesh.logic.handshake_messages import InviteRefused
from agentmesh.mesh.logic.policy import Policy
from agentmesh.mesh.memory import MemoryNetwork, MemoryTransport
from agentmesh.mesh.quic import QuicTransport
from agentmesh.mesh.transport import Transport
from tests.fakes.mesh_nodes import PUSHED_S, TestNode, eventually

MakeNode = Callable[[str], TestNode]


@pytest.fixture(params=["memory", "quic"])
async def make_node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeNode]:
    """Nodes by name, stopped at the end."""
    network = MemoryNetwork()
    made: list[TestNode] = []

    def transport(key: NodeKey) -> Transport:
        return MemoryTransport(network, key.public) if request.param == "memory" else QuicTransport(key)

    def make(name: str) -> TestNode:
        made.append(TestNode(tmp_path, name, transport))
        return made[-1]

    yield make
    for node in made:
        if hasattr(node, "mesh"):
            await node.mesh.stop()


async def _three(make_node: MakeNode) -> tuple[TestNode, TestNode, TestNode]:
    a = await make_node("a").found().start()
    token = await a.token()
    b = await (await make_node("b").join(token)).start()
    c = await (await make_node("c").join(token)).start()
    return a, b, c


async def test_a_post_on_any_node_reaches_all_others(make_node: MakeNode) -> None:
    a, b, c = await _three(make_node)
    for node in (a, b, c):
        await node.post(f"from {node.name}")
    await eventually(lambda: all(n.texts() == ["from a", "from b", "from c"] for n in (a, b, c)), PUSHED_S)


async def test_a_node_that_was_away_gets_what_it_missed(make_node: MakeNode) -> None:
    a, b, c = await _three(make_node)
    await eventually(lambda: len(c.mesh.peers()) == 2)
    await c.stop()
    await a.post("while c was away")
    await b.post("this too")
    await c.start()
    await eventually(lambda: c.texts() == ["this too", "while c was away"])


async def test_a_late_joiner_gets_the_whole_window_and_nothing_twice(make_node: MakeNode) -> None:
    a, b, c = await _three(make_node)
    for number in range(60):
        await a.post(f"{number:03}")
    d = await (await make_node("d").join(await b.token())).start()
    await eventually(lambda: len(d.texts()) == 60)
    assert len(d.delivered) == len(set(d.delivered)) == 60
    assert c.mesh.mesh == d.mesh.mesh


async def test_a_revoked_node_is_disconnected_and_its_posts_go_everywhere(make_node: MakeNode) -> None:
    a, b, c = await _three(make_node)
    await c.post("from the bad one")
    await eventually(lambda: a.texts() == b.texts() == ["from the bad one"], PUSHED_S)
    await a.mesh.revoke(encode_id(c.key.public)[:12])
    await eventually(lambda: a.texts() == b.texts() == [], PUSHED_S)
    await eventually(
        lambda: all(p.node != c.key.public or p.state != "alive" for n in (a, b) for p in n.mesh.peers()), PUSHED_S
    )
    await a.post("still works")
    await eventually(lambda: b.texts() == ["still works"], PUSHED_S)
    assert c.texts() != b.texts()


async def test_an_invite_for_one_admits_one(make_node: MakeNode) -> None:
    a = await make_node("a").found().start()
    token = await a.token(uses=1)
    await make_node("b").join(token)
    with pytest.raises(InviteRefused, match="used up"):
        await make_node("c").join(token)


async def test_a_revoked_invite_admits_nobody(make_node: MakeNode) -> None:
    a = await make_node("a").found().start()
    invite = await a.mesh.invite(60_000, None)
    await a.mesh.revoke(invite.serial.hex())
    with pytest.raises(InviteRefused, match="revoked"):
        await make_node("b").join(invite.token)


async def test_tokens_of_two_meshes_are_refused(make_node: MakeNode) -> None:
    a = await make_node("a").found().start()
    b = await make_node("b").found().start()
    with pytest.raises(InvalidInput, match="different meshes"):
        await make_node("c").join(await a.token(), await b.token())


async def test_a_full_disk_refuses_the_post_and_the_node_goes_on(make_node: MakeNode) -> None:
    a, b, _ = await _three(make_node)
    b.store.full = True
    with pytest.raises(StorageError):
        await b.post("lost")
    await a.post("kept")
    await eventually(lambda: a.texts() == ["kept"], PUSHED_S)
    b.store.full = False
    await b.post("after")
    await eventually(lambda: a.texts() == ["after", "kept"], PUSHED_S)


async def test_a_revoked_node_says_so_in_its_status(make_node: MakeNode) -> None:
    a, b, _ = await _three(make_node)
    await b.post("hello")
    await eventually(lambda: a.texts() == ["hello"], PUSHED_S)
    await a.mesh.revoke(encode_id(b.key.public))
    await eventually(lambda: "revoked" in b.mesh.state())  # when it dials again


async def test_a_post_is_counted_in_the_minute_of_its_own_date(make_node: MakeNode) -> None:
    node = await make_node("a").found(Policy.from_overrides({"posts_per_minute": 5, "posts_per_day": 5_000})).start()
    posted = 0
    with pytest.raises(QuotaExceeded):
        for number in range(12):  # at most one minute boundary can lie within
            await node.post(str(number))
            posted += 1
    assert len(node.texts()) == posted
