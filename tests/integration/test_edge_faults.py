"""The edge of a node when its disk, its clock or its process fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agentmesh.core.clock import Clock
from agentmesh.core.errors import StorageError
from agentmesh.core.units import HOUR_MS
from agentmesh.mesh.logic.limits import MAX_CLOCK_SKEW_MS
from agentmesh.mesh.logic.record import Record
from agentmesh.mesh.membership_file import MembershipFile
from agentmesh.mesh.memory import MemoryNetwork, MemoryTransport
from tests.fakes import mesh_nodes
from tests.fakes.mesh_nodes import TestNode, eventually

MakeNode = Callable[..., TestNode]
WAIT_S = 20.0  # below the 30 s after which a neighbour that was told nothing asks by itself


@pytest.fixture
async def make_node(tmp_path: Path) -> AsyncIterator[MakeNode]:
    network = MemoryNetwork()
    made: list[TestNode] = []

    def make(name: str, clock: Clock = mesh_nodes.CLOCK) -> TestNode:
        made.append(TestNode(tmp_path, name, lambda key: MemoryTransport(network, key.public), clock=clock))
        return made[-1]

    yield make
    for node in made:
        if hasattr(node, "mesh"):
            await node.mesh.stop()


async def test_a_node_killed_right_after_joining_finds_the_mesh_again(make_node: MakeNode) -> None:
    a = await make_node("a").found().start()
    b = await make_node("b").join(await a.token())
    membership = MembershipFile.current(b.home)  # as after SIGKILL: what is on disk is all there is
    assert membership is not None
    assert [(peer.node, peer.dialable) for peer in membership.peers()] == [(a.key.public, True)]


async def test_a_post_is_not_acknowledged_and_then_lost_after_the_clock_was_set_far_back(
    make_node: MakeNode,
) -> None:
    clock = mesh_nodes.LateClock()
    a = await make_node("a", clock).found().start()
    await a.post("before")
    clock.ahead_ms = -2 * HOUR_MS
    record = await a.post("after")
    assert record.id in a.mesh._index
    assert record.timestamp_ms <= clock.now_ms() + MAX_CLOCK_SKEW_MS


async def test_a_client_that_leaves_does_not_leave_its_post_on_disk_only(make_node: MakeNode) -> None:
    a = await make_node("a").found().start()
    b = await (await make_node("b").join(await a.token())).start()
    await eventually(lambda: len(b.mesh.peers()) == 1, WAIT_S)
    add, writing, release = a.store.add, asyncio.Event(), asyncio.Event()

    async def slow(records: list[Record]) -> None:
        writing.set()
        await add(records)
        await release.wait()

    a.store.add = slow  # type: ignore[assignment]
    posting = asyncio.create_task(a.post("the client gave up"))
    await asyncio.wait_for(writing.wait(), WAIT_S)
    posting.cancel()
    await asyncio.sleep(0)
    release.set()
    await eventually(lambda: b.texts() == ["the client gave up"], WAIT_S)


async def test_a_post_that_the_disk_did_not_take_can_come_again(make_node: MakeNode) -> None:
    a = await make_node("a").found().start()
    b = await (await make_node("b").join(await a.token())).start()
    await eventually(lambda: len(b.mesh.peers()) == 1, WAIT_S)
    b.store.full = True
    record = await a.post("while the disk was full")
    index = b.mesh._index
    await eventually(lambda: not index.wants(record.id, mesh_nodes.CLOCK.now_ms()), WAIT_S)
    await eventually(lambda: record.id not in index, WAIT_S)
    b.store.full = False
    assert type(index.offer(record, mesh_nodes.CLOCK.now_ms())).__name__ == "Accepted"


async def test_a_start_that_fails_leaves_nothing_running(make_node: MakeNode) -> None:
    a = make_node("a").found()
    a.store.full = True
    before = len(asyncio.all_tasks())
    with pytest.raises(StorageError):
        await a.start()
    assert len(asyncio.all_tasks()) == before
