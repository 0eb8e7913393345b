"""This node's connections: who may come in, how others are dialled, what is known of each. Feeds links to the driver.

State: what each admitted peer said of itself, and whether this node seems dialable. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from agentmesh.core.clock import Clock
from agentmesh.core.errors import NotAdmitted, PeerError, StorageError, TokenError, Unreachable
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.admission import Admission, Admitted
from agentmesh.mesh.authority import Draft
from agentmesh.mesh.datagrams import source_of_text
from agentmesh.mesh.dialing import dial_first
from agentmesh.mesh.driver import GossipDriver
from agentmesh.mesh.interfaces import interface_addresses, interface_networks
from agentmesh.mesh.links import Link, LinkHandlers
from agentmesh.mesh.logic.addresses import dial_order, split_address
from agentmesh.mesh.logic.events import NodeId, PeersLearned
from agentmesh.mesh.logic.handshake_gate import HandshakeGate
from agentmesh.mesh.logic.limits import HANDSHAKE_TIMEOUT_MS
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.transport_limits import MAX_WAITING, MAX_WAITING_PER_SOURCE
from agentmesh.mesh.membership_file import KnownPeer
from agentmesh.mesh.transport import Connection, Stream, Transport

_log = logging.getLogger(__name__)

REACH_S = 2.0  # for a peer to allow one more stream
MAX_REMEMBERED = 2_000  # peers whose name and addresses are kept for status and for the known-peers file


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What an admitted peer said of itself, and where it was seen."""

    name: str
    addresses: tuple[str, ...]
    dialable: bool
    seen_at: str
    seen_ms: int
    bulk_port: int = 0


class Peers:
    """See the module. `driver` and `handlers` are set by the mesh before the first connection."""

    driver: GossipDriver
    handlers: LinkHandlers

    def __init__(
        self,
        transport: Transport,
        admission: Admission,
        clock: Clock,
        *,
        on_dialable: Callable[[bool], None],
        publish: Callable[[Draft], None],
    ) -> None:
        self._transport = transport
        self._admission = admission
        self._clock = clock
        self._on_dialable = on_dialable
        self._publish = publish
        self._gate: HandshakeGate[None] = HandshakeGate()
        self._room = asyncio.Condition()
        self._waiting: Counter[str] = Counter()
        self._tasks = TaskSet("peers")
        self._known_hosts: set[str] = set()
        self._was_dialled = False
        self.facts: dict[NodeId, PeerFacts] = {}
        self.refusal: str | None = None  # why the mesh does not let this node in, if it does not

    async def close(self) -> None:
        await self._tasks.close()

    def is_known_source(self, host: str) -> bool:
        """Whether a member was seen at this IP address: a quarter of the handshakes is kept for those."""
        return host in self._known_hosts

    # ------------------------------------------------------------------ connections

    async def on_connection(self, connection: Connection) -> None:
        """An incoming connection, from its first byte to its end."""
        host = source_of_text(connection.remote_address)
        if not await self._enter(host):
            connection.close("too many handshakes at once")
            return
        try:
            admitted = await self._admission.admit(connection)
        except PeerError as error:
            _log.info("%s was not admitted: %s", connection.remote_address, error)
            raise
        finally:
            self._gate.leave(host)
            async with self._room:
                self._room.notify_all()
        self._was_dialled = True
        self._on_dialable(True)
        await self._run(connection, admitted)

    async def _enter(self, host: str) -> bool:
        """Wait for a place among the handshakes, if not too many wait already."""
        known = self.is_known_source(host)
        if self._waiting.total() >= MAX_WAITING or self._waiting[host] >= MAX_WAITING_PER_SOURCE:
            return False
        self._waiting[host] += 1
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_MS / 1000), self._room:
                return await self._room.wait_for(lambda: self._gate.enter(host, known=known))
        except TimeoutError:
            return False
        finally:
            self._waiting[host] -= 1
            if not self._waiting[host]:
                del self._waiting[host]

    async def dial(self, node: NodeId, addresses: tuple[str, ...]) -> None:
        """Connect to a member and be admitted; its link then runs by itself. Raises: PeerError."""
        connection = await dial_first(self._transport, node, dial_order(addresses, interface_networks()))
        try:
            admitted = await self._admission.introduce(connection)
        except (TokenError, StorageError) as error:  # a better chain that the disk did not take; no token was shown
            connection.close("not now")
            raise Unreachable(error.message) from error
        except PeerError as error:
            connection.close("not admitted")
            if isinstance(error, NotAdmitted):  # one that merely fell silent has refused nothing
                self.refusal = error.message
            raise
        except BaseException:
            connection.close("the dial was given up")
            raise
        self.refusal = None
        if admitted.publish is not None:
            self._publish(admitted.publish)
        self._note_observed(admitted.observed_address)
        if admitted.peers:
            self.driver.feed(PeersLearned(admitted.peers))
        self._tasks.spawn(self._run(connection, admitted), name=f"link {connection.remote_address}")

    async def _run(self, connection: Connection, admitted: Admitted) -> None:
        self._remember(connection, admitted)
        link = Link(admitted.node, connection, self.handlers)
        await self.driver.run_link(link, admitted.addresses, admitted.dialable)

    async def reach(self, node: NodeId) -> Stream | None:
        """A fresh stream to a connected member, or None."""
        link = self.driver.links.get(node)
        if link is None:
            return None
        try:
            async with asyncio.timeout(REACH_S):  # a peer may allow us no more streams
                return await link.connection.open_stream()
        except (PeerError, TimeoutError):
            return None

    # ------------------------------------------------------------------ what is known

    def _remember(self, connection: Connection, admitted: Admitted) -> None:
        if len(self.facts) >= MAX_REMEMBERED and admitted.node not in self.facts:
            del self.facts[next(iter(self.facts))]
        seen = connection.remote_address
        self._known_hosts.add(source_of_text(connection.remote_address))
        if len(self._known_hosts) > MAX_REMEMBERED:
            self._known_hosts.clear()
        self.facts[admitted.node] = PeerFacts(
            admitted.name, admitted.addresses, admitted.dialable, seen, self._clock.now_ms(), admitted.bulk_port
        )

    def _note_observed(self, address: str) -> None:
        """A peer saw this node at an address that is none of its own: there is a NAT between, until somebody gets in."""
        try:
            host, _ = split_address(address)
        except ValueError:
            return
        if not self._was_dialled and host not in {ip.partition("%")[0] for _, ip in interface_addresses()}:
            self._on_dialable(False)

    def entries(self, limit: int) -> tuple[PeerEntry, ...]:
        """Connected members that can be dialled, for newcomers and invites."""
        found = [
            PeerEntry(node, facts.addresses, True)
            for node in self.driver.links
            if (facts := self.facts.get(node)) is not None and facts.dialable and facts.addresses
        ]
        return tuple(found[:limit])

    def known(self) -> tuple[KnownPeer, ...]:
        """Everybody who was admitted lately, for the known-peers file."""
        return tuple(
            KnownPeer(node, facts.name, facts.addresses, facts.dialable, facts.seen_ms)
            for node, facts in self.facts.items()
        )
