"""Nodes with real keys, files and handshakes on the in-memory network, without gossip: trust is fed by hand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.paths import Home
from agentmesh.core.units import DAY_MS
from agentmesh.mesh.admission import Admission, Admitted, Surroundings
from agentmesh.mesh.authority import Authority, Draft, found_mesh, membership_draft
from agentmesh.mesh.identity import NodeKey, verify
from agentmesh.mesh.logic.handshake import Introduction
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.policy import Policy
from agentmesh.mesh.logic.token import InviteToken, decode_token
from agentmesh.mesh.logic.trust import Trust
from agentmesh.mesh.membership_file import MembershipFile
from agentmesh.mesh.memory import MemoryNetwork, MemoryTransport
from agentmesh.mesh.streams import read_header
from agentmesh.mesh.transport import Connection, Stream

NOW_MS = 1_800_000_000_000
WAIT_S = 30.0


@dataclass
class FakeClock:
    """Stands still until it is set."""

    ms: int = NOW_MS

    def now_ms(self) -> int:
        return self.ms


@dataclass
class Node:
    """One node. `links` are its admitted connections, by peer."""

    name: str
    home: Home
    key: NodeKey
    membership: MembershipFile
    trust: Trust
    transport: MemoryTransport
    clock: FakeClock
    world: World
    address: str = ""
    links: dict[bytes, Connection] = field(default_factory=dict[bytes, Connection])
    admitted: list[Admitted] = field(default_factory=list[Admitted])
    errors: list[AgentMeshError] = field(default_factory=list[AgentMeshError])
    published: list[Draft] = field(default_factory=list[Draft])
    admit_s: float = WAIT_S  # for the handshake of who connects here; a slow disk is asked within it

    def __post_init__(self) -> None:
        self.authority = Authority(self.key, self.membership, self.trust, self.clock)
        around = Surroundings(
            introduction=lambda: Introduction(self.name, (self.address,) if self.address else (), bool(self.address)),
            peers=lambda: [PeerEntry(peer, (), False) for peer in self.links],
            reach=self.reach,
            publish=self.publish,
        )
        self.admission = Admission(self.authority, self.trust, self.clock, around)

    @property
    def public(self) -> bytes:
        return self.key.public

    async def listen(self) -> None:
        port = await self.transport.listen("192.0.2.1", 0, self.on_connection)
        self.address = f"192.0.2.1:{port}"

    async def on_connection(self, connection: Connection) -> None:
        try:
            admitted = await self.admission.admit(connection, timeout_s=self.admit_s)
        except AgentMeshError as error:
            self.errors.append(error)
            return
        self.admitted.append(admitted)
        self.links[admitted.node] = connection
        await self.serve(admitted.node, connection)

    async def serve(self, peer: bytes, connection: Connection) -> None:
        try:
            while True:
                stream = await connection.accept_stream()
                await read_header(stream)
                await self.admission.serve_control(peer, stream)
        except AgentMeshError as error:
            self.errors.append(error)

    async def reach(self, peer: bytes) -> Stream | None:
        link = self.links.get(peer)
        return None if link is None or link.is_closed else await link.open_stream()

    async def publish(self, draft: Draft) -> None:
        self.published.append(draft)
        self.world.spread(draft)

    async def dial(self, other: Node, token: str = "") -> Admitted:
        """Connect and introduce; the link stays open and both sides serve it."""
        connection = await self.transport.dial(other.public, other.address, WAIT_S)
        try:
            admitted = await self.admission.introduce(
                connection, decode_token(token) if token else None, timeout_s=2 * WAIT_S
            )
        except AgentMeshError:
            connection.close("refused")
            raise
        self.links[other.public] = connection
        self.world.tasks.append(asyncio.create_task(self.serve(other.public, connection)))
        if admitted.publish:
            self.world.spread(admitted.publish)
        return admitted

    async def invite(self, *, uses: int | None = None, lifetime_ms: int = 7 * DAY_MS, may_invite: bool = True) -> str:
        entries = (PeerEntry(self.public, (self.address,), True),)
        made = await self.authority.create_invite(
            lifetime_ms=lifetime_ms, uses=uses, bootstrap=entries, may_invite=may_invite
        )
        return made.token


class World:
    """Everybody's trust hears of every record at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = MemoryNetwork()
        self.clock = FakeClock()
        self.nodes: dict[str, Node] = {}
        self.drafts: list[Draft] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._stamp_ms = NOW_MS

    async def found(self, name: str = "founder") -> Node:
        home, key = Home(self.folder / name), NodeKey.generate()
        membership, drafts = found_mesh(home, key, "home", Policy(), self.clock.ms)
        node = self._add(name, home, key, membership)
        for draft in drafts:
            self.spread(draft)
        await node.listen()
        return node

    async def newcomer(self, name: str, token: InviteToken | str, *, clock: FakeClock | None = None) -> Node:
        """A node that has not joined yet, ready to."""
        parsed = decode_token(token) if isinstance(token, str) else token
        home = Home(self.folder / name)
        node = self._add(name, home, NodeKey.generate(), MembershipFile.open(home, parsed.mesh), clock)
        await node.listen()
        return node

    async def member(self, name: str, inviter: Node) -> Node:
        """A node that joined by an invite of `inviter`, through it."""
        token = await inviter.invite()
        node = await self.newcomer(name, token)
        await node.dial(inviter, token)
        return node

    def _add(
        self, name: str, home: Home, key: NodeKey, membership: MembershipFile, clock: FakeClock | None = None
    ) -> Node:
        transport = MemoryTransport(self.network, key.public)
        trust = Trust(membership.mesh, verify)
        node = Node(name, home, key, membership, trust, transport, clock or self.clock, self)
        self.nodes[name] = node
        for draft in self.drafts:
            self._tell(node, draft)
        return node

    def spread(self, draft: Draft) -> None:
        self.drafts.append(draft)
        for node in self.nodes.values():
            self._tell(node, draft)

    def _tell(self, node: Node, draft: Draft) -> None:
        self._stamp_ms += 1
        node.trust.consider(draft.build(node.membership.mesh, self._stamp_ms), self.clock.ms)

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.transport.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def own_record(node: Node) -> Draft:
    return membership_draft(node.key, node.membership.chain)
