"""Looking inside the QUIC transport, for tests of what only it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentmesh.mesh.quic import QuicTransport
from agentmesh.mesh.quic_endpoint import QuicEndpoint
from agentmesh.mesh.quic_link import QuicLink
from tests.integration.transport_pairs import WAIT_S, Nodes


def endpoint_of(transport: object) -> QuicEndpoint:
    assert isinstance(transport, QuicTransport)
    endpoint = transport._endpoint
    assert endpoint is not None
    return endpoint


def target_of(nodes: Nodes) -> tuple[str, int]:
    host, _, port = nodes.address.rpartition(":")
    return host, int(port)


async def until(condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """Wait until `condition()` holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def link_pair(nodes: Nodes) -> tuple[QuicLink, QuicLink]:
    near, far = await nodes.connect()
    assert isinstance(near, QuicLink)
    assert isinstance(far, QuicLink)
    return near, far
