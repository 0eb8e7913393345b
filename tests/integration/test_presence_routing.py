"""What a member offers can be asked for as long as its word is good: 503 while it is away, 404 once the word has expired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.inference.logic.presence import OFFER_VERSION, NodeOffer, encode_offer
from agentmesh.inference.logic.target import ServedModel
from agentmesh.inference.proxy.directory import Directory
from agentmesh.inference.proxy.dispatch import Dispatcher
from agentmesh.inference.proxy.metrics import Metrics
from agentmesh.inference.proxy.ports import Outcome, Refused, Wanted
from agentmesh.mesh.logic.record import Record
from tests.fakes.mesh_nodes import LateClock, TestNode, eventually

WANTED = Wanted("alpha", "/v1/chat/completions")
LIFETIME_MS = 60_000
OFFER = NodeOffer(OFFER_VERSION, "0", "", 0, (ServedModel("alpha", ready=True, context_tokens=4096),))


class Follower(TestNode):
    """A node whose directory follows the mesh, in which expired records are looked for every 0.2 s."""

    __test__ = False
    directory: Directory

    async def start(self) -> Follower:
        self.directory = Directory(self.key.public, lambda: self.mesh.peer_states(), asyncio.get_running_loop().time)
        await super().start()
        machine = self.mesh._machine
        machine._config = replace(machine._config, expire_every_ms=200)
        machine._expire_ms = 0
        return self

    async def _on_records(self, records: Sequence[Record]) -> None:
        await self.directory.on_records(records)

    async def _on_dropped(self, ids: Sequence[bytes], reason: str) -> None:
        await self.directory.on_dropped(ids, reason)


@pytest.fixture
def clock() -> LateClock:
    """Of both nodes."""
    return LateClock()


@pytest.fixture
async def pair(tmp_path: Path, clock: LateClock) -> AsyncIterator[tuple[TestNode, Follower]]:
    """A host and a client of one mesh."""
    host = await TestNode(tmp_path, "host", clock=clock).found().start()
    client = Follower(tmp_path, "client", clock=clock)
    await (await client.join(await host.token())).start()
    await eventually(lambda: bool(client.mesh.peers()))
    yield host, client
    await client.mesh.stop()
    await host.mesh.stop()


async def test_a_model_is_asked_for_refused_while_its_host_failed_and_unknown_once_its_presence_expired(
    pair: tuple[TestNode, Follower], clock: LateClock
) -> None:
    host, client = pair
    loop, directory = asyncio.get_running_loop(), client.directory
    now_s = loop.time()  # and remains so: a host that failed is left alone for a second
    dispatcher = Dispatcher(directory, Metrics(), lambda: now_s, loop.call_later)
    await host.mesh.publish("node", b"", encode_offer(OFFER), LIFETIME_MS)
    await eventually(lambda: bool(directory.models()))
    lease = dispatcher.try_acquire(WANTED)
    assert lease is not None
    assert lease.target.node == host.key.public
    lease.release(Outcome.UNREACHABLE)
    with pytest.raises(Refused) as away:
        dispatcher.try_acquire(WANTED)
    assert (away.value.status, away.value.retry_after_s is not None) == (503, True)
    clock.ahead_ms = LIFETIME_MS
    await eventually(lambda: not directory.models())
    with pytest.raises(Refused) as gone:
        dispatcher.try_acquire(WANTED)
    assert gone.value.status == 404
