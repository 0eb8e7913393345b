"""The API's server: clients' connections on one side, this node's engines and its peers on the other.

Owns the listening socket, the set of clients, and the sweep that looks at every deadline. What happens on a connection is
client.py's, what happens to a request exchange.py's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final

from agentmesh.core.errors import InvalidInput
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.proxy.body import BodyBudget
from agentmesh.inference.proxy.client import ClientConnection
from agentmesh.inference.proxy.engine_pool import EnginePools
from agentmesh.inference.proxy.gate import Gate
from agentmesh.inference.proxy.metrics import Metrics
from agentmesh.inference.proxy.parts import OpenPeer, Outbox, OwnAnswers, Parts
from agentmesh.inference.proxy.peer_server import PeerServer
from agentmesh.inference.proxy.ports import Dispatch
from agentmesh.inference.proxy.settings import ApiSettings
from agentmesh.mesh.transport import Stream

_log = logging.getLogger(__name__)

_LISTEN_BACKLOG: Final = 512
_FLUSH_S: Final = 1.0  # for the last answers to go out when the node stops
_DRAIN_LOOK_S: Final = 0.02
STOPPING: Final = "This node is stopping."


class ApiServer:
    """See the module. Made inside the running loop; `listen` once, `close` once; `serve_peer` also without `listen`.

    Args:
        open_peer: the mesh's `open_stream`.

    Raises:
        InvalidInput: it would listen for other machines without asking for a key.
    """

    def __init__(
        self, dispatch: Dispatch, own: OwnAnswers, settings: ApiSettings, open_peer: OpenPeer, metrics: Metrics
    ) -> None:
        if settings.listen_all and not settings.api_keys:
            raise InvalidInput("An API that other machines can reach needs a key: create one, then start again.")
        self.gate = Gate(settings)
        self._tasks = TaskSet("api")
        budget = BodyBudget(settings.max_bodies_bytes)
        loop = asyncio.get_running_loop()
        self.parts = Parts(dispatch, own, settings, open_peer, metrics, budget, self._tasks, Outbox(loop), loop.time)
        self.parts.engines = EnginePools(self.parts)
        self._peers = PeerServer(self.parts)
        self._clients: set[ClientConnection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def clients(self) -> int:
        """Connections of clients that are open."""
        return len(self._clients)

    @property
    def exchanges(self) -> int:
        """Requests in progress, those of peers included."""
        return len(self.parts.exchanges)

    async def listen(self, sock: socket.socket) -> None:
        """Serve clients on a bound TCP socket, which this server then owns."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ClientConnection(self), sock=sock, backlog=_LISTEN_BACKLOG)
        self._start_sweep()

    async def serve_peer(self, peer: bytes, stream: Stream) -> None:
        """Answer the request of a peer's `http` stream from this node's own engines. For `Mesh.serve`."""
        self._start_sweep()
        await self._peers.serve(peer, stream)

    def peer_lost(self, node: bytes) -> None:
        """A peer is suspected or gone: what waits for it goes elsewhere, what it was answering ends."""
        for exchange in list(self.parts.exchanges):
            exchange.peer_lost(node)

    async def close(self, drain_s: float = 0.0) -> None:
        """Take nothing more, let what is in progress end for at most `drain_s`, then end it with an answer that says so."""
        self.parts.draining = True
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.drain()
        await self._until(lambda: not self.parts.exchanges, drain_s)
        for exchange in list(self.parts.exchanges):
            exchange.give_up(STOPPING)
        await self._until(lambda: not self._clients, _FLUSH_S)
        for client in list(self._clients):
            client.abort()
        self.parts.engines.close()
        await self._tasks.close()

    async def _until(self, is_so: Callable[[], bool], within_s: float) -> None:
        """Looked at again and again: only at the end of a node's life, so that no request has to tell."""
        for _ in range(int(within_s / _DRAIN_LOOK_S)):
            if is_so():
                return
            await asyncio.sleep(_DRAIN_LOOK_S)

    # ------------------------------------------------------------------ what connections tell

    def joined(self, client: ClientConnection) -> bool:
        """A client came; returns whether there is room for it."""
        self._clients.add(client)
        return len(self._clients) <= self.parts.settings.max_connections

    def left(self, client: ClientConnection) -> None:
        """A client is gone."""
        self._clients.discard(client)

    # ------------------------------------------------------------------ deadlines

    def _start_sweep(self) -> None:
        if self._sweeper is None:
            self._sweeper = self._tasks.spawn(self._sweep(), name="sweep")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.parts.settings.sweep_s)
            now_s = self.parts.now()
            for one in (*self._clients, *self.parts.exchanges, self.parts.engines):
                try:
                    one.sweep(now_s)
                except Exception:  # noqa: BLE001 - one bad connection must not end the deadlines of all others
                    _log.exception("looking at a deadline failed")
