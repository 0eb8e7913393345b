"""Joins bulk streams to the mesh around them: where a peer is, how QUIC reaches it, who was put out.

State: where members say that they are, and how many streams of the fast path lead to each peer. Decides nothing about paths
(logic/bulk_paths.py) and knows no bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from agentmesh.core.clock import Clock
from agentmesh.core.errors import AgentMeshError, Unreachable
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.admission import Admission
from agentmesh.mesh.authority import Draft
from agentmesh.mesh.bulk import BulkStreams, BulkSurroundings
from agentmesh.mesh.held_stream import HeldStream
from agentmesh.mesh.interfaces import interface_networks
from agentmesh.mesh.links import OnStream
from agentmesh.mesh.logic.addresses import dial_order, join_address, split_address
from agentmesh.mesh.logic.bulk_limits import BULK_ADDRESSES
from agentmesh.mesh.logic.bulk_paths import BulkTarget
from agentmesh.mesh.logic.events import LinkUsed
from agentmesh.mesh.logic.record import Record
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.logic.trust import Trust
from agentmesh.mesh.peers import PeerFacts, Peers
from agentmesh.mesh.quic_link import QuicLink
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.tls import TlsTransport
from agentmesh.mesh.transport import Stream

_log = logging.getLogger(__name__)

MAX_HINTS: Final = 4_096  # serving nodes whose address is remembered, the newest ones; some 300 bytes each
ANSWER_S: Final = 0.7  # the far side acknowledges within a round trip and its 25 ms of delay
LINK_S: Final = 1.0  # for a link that was just admitted to be taken into use
_LOOK_S: Final = 0.005


class MeshBulk:
    """Bulk streams of one node on one mesh. `transport` None: everything goes over QUIC."""

    def __init__(
        self,
        transport: TlsTransport | None,
        admission: Admission,
        services: Mapping[StreamKind, OnStream],
        peers: Peers,
        trust: Trust,
        clock: Clock,
        publish: Callable[[Draft], None],
    ) -> None:
        self._peers = peers
        self._trust = trust
        self._clock = clock
        self._hints: dict[bytes, PeerFacts] = {}
        self._used: Counter[bytes] = Counter()  # streams on the fast path, by peer
        self._linking: set[bytes] = set()  # peers that are dialled so that they are watched
        self._tasks = TaskSet("bulk links")
        around = BulkSurroundings(
            where=self._where,
            over_quic=self._over_quic,
            answers=self._answers,
            is_out=self._is_out,
            publish=publish,
            known_source=peers.is_known_source,
        )
        self.streams = BulkStreams(transport, admission, services, around)

    async def listen(self, host: str, port: int) -> int:
        """Take bulk streams on TCP port `port` or any other; 0 if there is none to be had, which only costs speed."""
        try:
            return await self.streams.listen(host, port)
        except AgentMeshError as error:
            _log.warning("no fast path to this node: %s", error)
            return 0

    async def open_stream(self, node: bytes, kind: StreamKind) -> Stream:
        """See BulkStreams.open_stream. While the stream lasts, failure detection watches the peer: TCP does not tell of one that froze."""
        stream = await self.streams.open_stream(node, kind)
        if isinstance(stream, HeldStream):  # on the link itself
            return stream
        self._used[node] += 1
        if node in self._peers.driver.links and node not in self._linking:
            self._peers.driver.feed(LinkUsed(node, 1))
        elif node not in self._linking:
            self._linking.add(node)
            self._tasks.spawn(self._link(node), name=node.hex()[:8])
        return HeldStream(stream, lambda: self._over(node))

    async def close(self) -> None:
        """End all streams and connections."""
        await self._tasks.close()
        await self.streams.close()

    def _over(self, node: bytes) -> None:
        self._used[node] -= 1
        if not self._used[node]:
            del self._used[node]
        if node not in self._linking:
            self._peers.driver.feed(LinkUsed(node, -1))

    async def _link(self, node: bytes) -> None:
        """Connect to a peer that is no neighbour; the link stays while streams lead there."""
        try:
            (await self._reach(node)).abort()
        except AgentMeshError as error:
            _log.debug("%s is asked over the fast path and cannot be watched: %s", node.hex()[:8], error)
        finally:
            self._linking.discard(node)
        if self._used[node]:
            self._peers.driver.feed(LinkUsed(node, self._used[node]))

    async def on_records(self, records: Sequence[Record]) -> None:
        """Revocations may have put somebody out whose connections are still here."""
        if any(record.kind == "revocation" for record in records):
            self.streams.close_revoked()

    def _is_out(self, node: bytes) -> bool:
        return self._trust.standing(node, self._clock.now_ms()) is Standing.OUT

    def hint(self, node: bytes, addresses: Sequence[str], bulk_port: int) -> None:
        """Where a member says that it is now, for streams to one that is no neighbour."""
        before = self._hints.pop(node, None)
        while len(self._hints) >= MAX_HINTS:
            del self._hints[next(iter(self._hints))]
        hint = PeerFacts("", tuple(addresses), True, "", self._clock.now_ms(), bulk_port)
        if before is not None and (before.addresses, before.bulk_port) == (hint.addresses, bulk_port):
            hint = before  # a repeated word is no reason to try a failed path again
        self._hints[node] = hint

    def _facts(self, node: bytes) -> PeerFacts | None:
        """What admission saw, with what the peer said since: it may have been started anew, on other ports."""
        seen, hint = self._peers.facts.get(node), self._hints.get(node)
        if seen is None or hint is None or node in self._peers.driver.links or hint.seen_ms < seen.seen_ms:
            return seen or hint
        addresses = tuple(dict.fromkeys((*hint.addresses, *seen.addresses)))
        return replace(seen, addresses=addresses, bulk_port=hint.bulk_port or seen.bulk_port)

    def _where(self, node: bytes) -> BulkTarget | None:
        facts = self._facts(node)
        return bulk_target(facts, interface_networks()) if facts is not None and facts.bulk_port else None

    async def _over_quic(self, node: bytes) -> Stream:
        """A stream on the connection to `node`, which stays while it is used. Raises: Unreachable."""
        stream = await self._reach(node)
        self._peers.driver.feed(LinkUsed(node, 1))
        return HeldStream(stream, lambda: self._peers.driver.feed(LinkUsed(node, -1)))

    async def _answers(self, node: bytes) -> bool:
        """Whether anything arrives from `node` over QUIC within ANSWER_S of something that was just sent to it."""
        link = self._peers.driver.links.get(node)
        connection = link.connection if link is not None else None
        if not isinstance(connection, QuicLink):
            return connection is not None
        before = connection.arrivals
        until_s = asyncio.get_running_loop().time() + ANSWER_S
        while connection.arrivals == before and not connection.is_closed:
            if asyncio.get_running_loop().time() > until_s:
                return False
            await asyncio.sleep(_LOOK_S)
        return not connection.is_closed

    async def _reach(self, node: bytes) -> Stream:
        """A stream on the connection to `node`, which is dialled if there is none. Raises: Unreachable."""
        if (stream := await self._peers.reach(node)) is not None:
            return stream
        facts = self._facts(node)
        if facts is None or not facts.addresses:
            raise Unreachable("The peer is not connected, and no address of it is known.")
        try:
            await self._peers.dial(node, facts.addresses)
        except AgentMeshError as error:
            raise Unreachable(error.message) from error
        until_s = asyncio.get_running_loop().time() + LINK_S
        while (stream := await self._peers.reach(node)) is None:
            if asyncio.get_running_loop().time() > until_s:
                raise Unreachable("The peer took no stream.")
            await asyncio.sleep(_LOOK_S)
        return stream


def bulk_target(facts: PeerFacts, networks: Sequence[str]) -> BulkTarget:
    """The TCP addresses to try: where the peer was seen and where it says that it listens, with its bulk port."""
    hosts: list[str] = []
    for address in (facts.seen_at, *facts.addresses):
        try:
            hosts.append(split_address(address)[0])
        except ValueError:
            continue
    addresses = [join_address(host, facts.bulk_port) for host in dict.fromkeys(hosts)]
    return BulkTarget(dial_order(addresses, networks)[:BULK_ADDRESSES], facts.seen_ms)
