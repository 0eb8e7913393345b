"""Dialling one node over several addresses: started a little apart, the first that answers wins, the rest are ended.

Staggered as in Happy Eyeballs (RFC 8305, section 5): a dead address costs a quarter of a second, not a whole time-out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from agentmesh.core.errors import NotAdmitted, PeerError, PortClosed, Unreachable
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.transport import Connection, Transport

_log = logging.getLogger(__name__)

STAGGER_S: Final = 0.25  # RFC 8305 recommends 250 ms between attempts
DIAL_TIMEOUT_S: Final = 5.0  # one address, QUIC handshake included: five lost first packets


async def dial_first(transport: Transport, node: bytes, addresses: Sequence[str]) -> Connection:
    """A connection to `node` over whichever of `addresses` answers first.

    Raises:
        NotAdmitted: an address answered with another node's key and no other address answered.
        PortClosed: all of them refused at once.
        Unreachable: none answered.
    """
    if not addresses:
        raise Unreachable("The peer has no address that could be dialled.")
    race = _Race(transport, node)
    tasks = TaskSet("dial")
    for position, address in enumerate(addresses):
        tasks.spawn(race.run(address, position * STAGGER_S, len(addresses)), name=address)
    try:
        await race.decided.wait()
    except asyncio.CancelledError:
        if race.winner is not None:
            race.winner.close("the dial was given up")
        raise
    finally:
        race.over = True  # whatever connects from here on is closed where it connects
        await tasks.close()
    if race.winner is None:
        raise max(race.errors, key=lambda e: (isinstance(e, NotAdmitted), not isinstance(e, PortClosed)))
    return race.winner


class _Race:
    """One dial: what has won, what has failed."""

    def __init__(self, transport: Transport, node: bytes) -> None:
        self.decided = asyncio.Event()
        self.winner: Connection | None = None
        self.errors: list[PeerError] = []
        self.over = False
        self._transport = transport
        self._node = node

    async def run(self, address: str, delay_s: float, runners: int) -> None:
        """Dial one address after its delay; failures are kept, a connection that comes too late is closed."""
        await asyncio.sleep(delay_s)
        try:
            connection = await self._transport.dial(self._node, address, DIAL_TIMEOUT_S)
        except PeerError as error:
            self._failed(error, runners)
            return
        except Exception as error:  # noqa: BLE001 - a task's root; addresses come from peers and may break the resolver
            _log.warning("dialling %s failed on this side: %r", address[:80], error)
            self._failed(Unreachable(f"{address[:80]} cannot be dialled from here."), runners)
            return
        if self.over or self.winner is not None:
            connection.close("another address was quicker")
            return
        self.winner = connection
        self.decided.set()

    def _failed(self, error: PeerError, runners: int) -> None:
        self.errors.append(error)
        if len(self.errors) == runners:
            self.decided.set()
