"""Dialling one node over several addresses."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.core.errors import NotAdmitted, Unreachable
from agentmesh.mesh.dialing import dial_first
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.memory import MemoryConnection, MemoryNetwork, MemoryTransport
from agentmesh.mesh.quic import QuicTransport
from agentmesh.mesh.transport import Connection

NODE, OTHER, CLIENT = b"n" * 32, b"o" * 32, b"c" * 32


async def _hold(connection: Connection) -> None:
    await connection.wait_closed()


async def _listening(network: MemoryNetwork, node: bytes) -> tuple[MemoryTransport, str]:
    transport = MemoryTransport(network, node)
    port = await transport.listen("127.0.0.1", 0, _hold)
    return transport, f"127.0.0.1:{port}"


async def test_a_dead_address_does_not_hide_the_one_that_answers() -> None:
    network = MemoryNetwork()
    server, address = await _listening(network, NODE)
    client = MemoryTransport(network, CLIENT)
    connection = await dial_first(client, NODE, ["127.0.0.1:9", address])
    assert connection.server_node == NODE
    await client.close()
    await server.close()


async def test_when_only_another_node_answers_the_error_says_so() -> None:
    network = MemoryNetwork()
    other, address = await _listening(network, OTHER)
    client = MemoryTransport(network, CLIENT)
    with pytest.raises(NotAdmitted):
        await dial_first(client, NODE, [address, "127.0.0.1:9"])
    await client.close()
    await other.close()


async def test_a_node_without_addresses_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        await dial_first(MemoryTransport(MemoryNetwork(), CLIENT), NODE, [])


async def test_a_cancelled_dial_leaves_no_task_behind() -> None:
    network = MemoryNetwork()
    server, address = await _listening(network, NODE)
    network.cut(NODE, CLIENT, drop=True)
    before = len(asyncio.all_tasks())
    client = MemoryTransport(network, CLIENT)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(dial_first(client, NODE, [address]), 0.05)
    assert len(asyncio.all_tasks()) == before
    await client.close()
    await server.close()


async def test_an_address_that_breaks_the_resolver_counts_as_unreachable() -> None:
    client = QuicTransport(NodeKey.generate())
    with pytest.raises(Unreachable):
        await asyncio.wait_for(dial_first(client, NODE, [f"{'a' * 64}.example:7777"]), 60)
    await client.close()


async def test_a_machine_that_cannot_open_a_socket_does_not_hang_the_dial() -> None:
    class Broken(MemoryTransport):
        async def dial(self, node: bytes, address: str, timeout_s: float) -> MemoryConnection:
            raise OSError(24, "Too many open files")

    with pytest.raises(Unreachable):
        await asyncio.wait_for(dial_first(Broken(MemoryNetwork(), CLIENT), NODE, ["127.0.0.1:9"]), 60)
