"""What only the in-memory transport can do: links that are cut, held and healed, and nodes that refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentmesh.core.errors import StreamClosed, Unreachable
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.memory import MemoryNetwork, MemoryTransport
from tests.integration.transport_pairs import Nodes, open_pair, read_exactly, within


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def nodes(network: MemoryNetwork) -> AsyncIterator[Nodes]:
    keys = NodeKey.generate(), NodeKey.generate()
    server, client = (MemoryTransport(network, key.public) for key in keys)
    pair = Nodes(server, client, *keys)
    pair.address = f"node:{await server.listen('node', 0, pair.on_connection)}"
    yield pair
    await within(client.close())
    await within(server.close())


def ids(nodes: Nodes) -> tuple[bytes, bytes]:
    return nodes.server_key.public, nodes.client_key.public


async def test_a_cut_link_holds_what_is_written_until_it_heals(nodes: Nodes, network: MemoryNetwork) -> None:
    near, far = await nodes.connect()
    stream, other = await open_pair(near, far)
    network.cut(*ids(nodes))
    await stream.write(b"late")
    with pytest.raises(TimeoutError):
        await within(other.read(1), 0.05)
    assert not far.is_closed
    network.heal(*ids(nodes))
    assert await within(read_exactly(other, 4)) == b"late"


async def test_a_close_over_a_cut_link_is_heard_when_it_heals(nodes: Nodes, network: MemoryNetwork) -> None:
    near, far = await nodes.connect()
    network.cut(*ids(nodes))
    near.close("bye")
    assert near.is_closed
    assert not far.is_closed
    network.heal(*ids(nodes))
    assert await within(far.wait_closed()) == "bye"


async def test_a_link_that_is_cut_for_good_ends_connections_on_both_sides(nodes: Nodes, network: MemoryNetwork) -> None:
    near, far = await nodes.connect()
    stream, _ = await open_pair(near, far)
    network.cut(*ids(nodes), drop=True)
    assert await within(near.wait_closed()) == await within(far.wait_closed()) == "the connection timed out"
    with pytest.raises(StreamClosed):
        await within(stream.read(1))


async def test_a_dial_over_a_cut_link_times_out_and_works_again_after_healing(
    nodes: Nodes, network: MemoryNetwork
) -> None:
    network.cut(*ids(nodes))
    with pytest.raises(Unreachable, match="did not answer"):
        await within(nodes.client.dial(nodes.server_key.public, nodes.address, 0.05))
    network.heal(*ids(nodes))
    await nodes.connect()


async def test_a_node_that_refuses_cannot_be_dialled_until_it_stops(nodes: Nodes, network: MemoryNetwork) -> None:
    network.refuse(nodes.server_key.public)
    with pytest.raises(Unreachable, match="Nobody"):
        await within(nodes.client.dial(nodes.server_key.public, nodes.address, 1.0))
    network.refuse(nodes.server_key.public, refusing=False)
    await nodes.connect()


async def test_a_closed_transport_gives_its_address_back(nodes: Nodes, network: MemoryNetwork) -> None:
    await nodes.connect()
    await within(nodes.server.close())
    port = int(nodes.address.rpartition(":")[2])
    again = MemoryTransport(network, NodeKey.generate().public)
    assert await again.listen("node", port, nodes.on_connection) == port
    await within(again.close())


async def test_other_links_are_untouched_by_a_cut(nodes: Nodes, network: MemoryNetwork) -> None:
    third = MemoryTransport(network, NodeKey.generate().public)
    network.cut(*ids(nodes), drop=True)
    near = await within(third.dial(nodes.server_key.public, nodes.address, 1.0))
    far = await within(nodes.accepted.get())
    stream, other = await open_pair(near, far)
    await stream.write(b"x")
    assert await within(other.read(1)) == b"x"
    await asyncio.sleep(0)
    await within(third.close())
