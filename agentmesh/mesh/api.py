"""The mesh as the layers above use it: start and stop, publish, watch, invite, revoke, status.

Wires trust, index, gossip machine, driver, admission and transport of one node on one mesh. State: none of its own but the
wiring. What a payload means is its kind's business; where records are kept is the store's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agentmesh.core.clock import Clock
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.admission import Admission, Surroundings
from agentmesh.mesh.authority import Authority, Draft, NewInvite
from agentmesh.mesh.bulk_wiring import MeshBulk
from agentmesh.mesh.driver import GossipDriver, seeded_random
from agentmesh.mesh.held_stream import holding
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.interfaces import interface_addresses
from agentmesh.mesh.links import LinkHandlers, OnStream
from agentmesh.mesh.logic.addresses import advertised
from agentmesh.mesh.logic.events import LinkUsed, NodeId, PeersLearned, PeerState, RecordCreated
from agentmesh.mesh.logic.gossip import GossipMachine
from agentmesh.mesh.logic.handshake_common import Introduction
from agentmesh.mesh.logic.kinds import KindRule
from agentmesh.mesh.logic.limits import (
    CONTROL_REQUESTS,
    CONTROL_REQUESTS_PER_MS,
    MAX_BOOTSTRAP_ADDRESSES,
    MAX_CLOCK_SKEW_MS,
    MAX_STORE_BYTES,
)
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.policy import Policy
from agentmesh.mesh.logic.record import Record, parse_record
from agentmesh.mesh.logic.request_rate import RequestRate
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.membership_file import MembershipFile
from agentmesh.mesh.own_records import OwnRecords
from agentmesh.mesh.peers import Peers
from agentmesh.mesh.reconciler import Reconciler
from agentmesh.mesh.state import load_state
from agentmesh.mesh.store import RecordStore
from agentmesh.mesh.store_queue import OnDropped, OnRecords
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.tls import TlsTransport
from agentmesh.mesh.transport import Connection, Stream, Transport
from agentmesh.mesh.upkeep import Upkeep
from agentmesh.mesh.verifier import CachingVerifier
from agentmesh.mesh.views import PeerView, peer_views

OnPeerState = Callable[[NodeId, PeerState], None]

_CLOCKS_AGREE_MS = MAX_CLOCK_SKEW_MS // 2
_BOOTSTRAP_ENTRIES = 4  # nodes named in an invite, this one first


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """How this node takes part. `bind_host` empty or a wildcard: on every interface; `bind_port` 0: any."""

    name: str
    bind_host: str = ""
    bind_port: int = 0


class Mesh:
    """One node on one mesh. `start` once, `stop` once."""

    _peers: Peers
    _bulk: MeshBulk
    _driver: GossipDriver
    _own: OwnRecords
    _upkeep: Upkeep
    _authority: Authority
    _machine: GossipMachine

    def __init__(
        self,
        *,
        key: NodeKey,
        membership: MembershipFile,
        transport: Transport,
        store: RecordStore,
        rules: dict[str, KindRule],
        clock: Clock,
        settings: MeshSettings,
        bulk: TlsTransport | None = None,
    ) -> None:
        self._key = key
        self._membership = membership
        self._transport = transport
        self._store = store
        self._rules = rules
        self._clock = clock
        self._settings = settings
        self._bulk_transport = bulk
        self._tasks = TaskSet("mesh")
        self._watchers: list[tuple[OnRecords, OnDropped]] = []
        self._on_peer_state: OnPeerState | None = None
        self._services: dict[StreamKind, OnStream] = {StreamKind.CONTROL: self._serve_control}
        self._control = RequestRate(CONTROL_REQUESTS, CONTROL_REQUESTS_PER_MS)
        self._dialable = True
        self._started = asyncio.Event()
        self.bind_port = 0
        self.bulk_port = 0  # TCP, of the fast path; 0 if there is none

    # ------------------------------------------------------------------ life

    async def start(self, first: Sequence[Draft] = (), bootstrap: Sequence[PeerEntry] = ()) -> None:
        """Load what is stored, listen, and begin to gossip.

        Args:
            first: records to publish at once (those of founding or joining).
            bootstrap: members to dial, beside those known from before.

        Raises:
            PortInUse: the bind port is taken.
            StorageError: the store cannot be read or written.
        """
        try:
            await self._start(first, bootstrap)
        except BaseException:
            await self.stop("the node could not start")
            raise

    async def _start(self, first: Sequence[Draft], bootstrap: Sequence[PeerEntry]) -> None:
        verifier = CachingVerifier(self._membership.mesh)
        now_ms = self._clock.now_ms()
        state = await load_state(self._membership.mesh, self._store, self._rules, verifier, now_ms)
        self._trust, self._index = state.trust, state.index
        self._authority = Authority(self._key, self._membership, self._trust, self._clock)
        self._admission = Admission(self._authority, self._trust, self._clock, self._surroundings())
        self._peers = Peers(
            self._transport,
            self._admission,
            self._clock,
            on_dialable=self._set_dialable,
            publish=self._spawn_publish,
        )
        self.bind_port = await self._transport.listen(
            self._settings.bind_host, self._settings.bind_port, self._on_connection
        )
        self._machine = GossipMachine(self._entry(), self._index, self._trust, verifier, rng=seeded_random())
        self._driver = GossipDriver(
            self._machine,
            store=self._store,
            verifier=verifier,
            reconciler=Reconciler(self._machine.snapshot, self._clock),
            clock=self._clock,
            dial=self._peers.dial,
        )
        self._peers.driver = self._driver
        self._peers.handlers = LinkHandlers(self._driver.on_message, self._store.load, self._services)
        self._driver.on_peer_state = self._on_peer_state
        self._own = self._own_records()
        for on_records, on_dropped in self._watchers:
            self._driver.watch(on_records, on_dropped)
        self._driver.watch(self._make_room, _ignore_dropped)
        self._driver.watch_failures(self._not_stored)
        self._driver.start()
        self._bulk = MeshBulk(
            self._bulk_transport,
            self._admission,
            self._services,
            self._peers,
            self._trust,
            self._clock,
            self._spawn_publish,
        )
        self._driver.watch(self._bulk.on_records, _ignore_dropped)
        self.bulk_port = await self._bulk.listen(self._settings.bind_host, self.bind_port)
        for draft in first:
            await self.publish_draft(draft)
        self._upkeep = Upkeep(self._authority, self._admission, self._trust, self._peers, self.publish_draft)
        self._driver.watch(self._upkeep.on_records, _ignore_dropped)
        self._tasks.spawn(self._upkeep.run(), name="upkeep")
        self._driver.feed(PeersLearned((*bootstrap, *self._remembered())))
        self._started.set()

    async def stop(self, reason: str = "the node stops") -> None:
        """Say goodbye, close every connection, remember the peers. The store stays open. Also after a start that failed."""
        await self._tasks.close()
        if hasattr(self, "_bulk"):
            await self._bulk.close()
        if self._started.is_set():
            self._upkeep.save_peers()
        if hasattr(self, "_own"):
            await self._own.close()
            await self._driver.stop(reason)
        await self._transport.close()
        if hasattr(self, "_peers"):
            await self._peers.close()

    def is_known_source(self, host: str) -> bool:
        """Whether a member was seen at this IP address (for the transport's handshake limits)."""
        return self._started.is_set() and self._peers.is_known_source(host)

    # ------------------------------------------------------------------ streams

    def serve(self, kind: StreamKind, service: OnStream) -> None:
        """Have `service` answer the peers' streams of one kind, whichever way they come. It ends or aborts each."""
        self._services[kind] = holding(service, self._feed)

    def _feed(self, event: LinkUsed) -> None:
        self._driver.feed(event)  # the driver is there before the first stream is

    async def open_stream(self, node: NodeId, kind: StreamKind) -> Stream:
        """A stream of bulk to a peer, over TLS where that works, else over QUIC; write what its service reads first.

        Raises:
            Unreachable: the peer cannot be reached.
            StreamClosed: the connection broke meanwhile.
        """
        return await self._bulk.open_stream(node, kind)

    def hint(self, node: NodeId, addresses: Sequence[str], bulk_port: int) -> None:
        """Where a member says that it can be reached, for streams to one that was never connected to this node."""
        self._bulk.hint(node, addresses, bulk_port)

    def addresses(self) -> tuple[str, ...]:
        """Where other members reach this node; none if it cannot be dialled."""
        return self._entry().addresses

    # ------------------------------------------------------------------ records

    def watch(self, on_records: OnRecords, on_dropped: OnDropped) -> None:
        """Be told of records once they are durable, and of ids once they are gone. Before `start`."""
        self._watchers.append((on_records, on_dropped))

    async def stored(self, kind: str) -> list[Record]:
        """What is kept of one kind now: what `watch` told before, and what an earlier run left. Raises: StorageError."""
        records = [parse_record(signed, mesh=self.mesh) for signed in await self._store.load_kind(kind)]
        return [record for record in records if record.id in self._index]

    async def publish(self, kind: str, subkey: bytes, payload: bytes, lifetime_ms: int) -> Record:
        """Sign, store durably and spread a record of this node; it is on disk when this returns.

        Raises:
            QuotaExceeded, NotFound, InvalidInput, StorageError: see OwnRecords.publish.
        """
        return await self._own.publish(kind, subkey, payload, lifetime_ms)

    def quota_retry_at_ms(self, kind: str, now_ms: int) -> int | None:
        """None while another record of the kind fits this node's quota, else when one fits again."""
        return self._own.quota_retry_at_ms(kind, now_ms)

    async def publish_draft(self, draft: Draft) -> None:
        """Publish a certificate, policy or revocation, perhaps signed by another key than this node's. Raises: StorageError."""
        latest_ms = self._index.next_timestamp(draft.key.public, self._clock.now_ms())
        if draft.key is self._key:
            latest_ms = self._membership.next_timestamp(latest_ms)
        record = draft.build(self._membership.mesh, latest_ms)
        await self._own.keep(record)

    def _created(self, record: Record) -> None:
        self._driver.created(record)
        self._driver.feed(RecordCreated(record))

    def _spawn_publish(self, draft: Draft) -> None:
        self._tasks.spawn(self.publish_draft(draft), name=f"publish {draft.kind}")

    def _not_stored(self, records: Sequence[Record]) -> None:
        """The disk did not take them: as if they had never come. They are fetched again after REFUSED_MEMORY_MS."""
        self._index.unkeep([record.id for record in records], self._clock.now_ms())

    async def _make_room(self, records: Sequence[Record]) -> None:
        """Keep the store within its cap. Local and not convergent; see docs/limits.md."""
        over_bytes = self._index.size_bytes() - MAX_STORE_BYTES
        if over_bytes > 0 and (gone := self._index.evict_largest_author(over_bytes, self._key.public)):
            self._driver.drop(gone, "the store is full")

    def _own_records(self) -> OwnRecords:
        return OwnRecords(
            self._key,
            self._membership,
            self._index,
            self._store,
            self._rules,
            self._clock,
            policy=self.policy,
            created=self._created,
        )

    # ------------------------------------------------------------------ members

    async def invite(self, lifetime_ms: int, uses: int | None) -> NewInvite:
        """A new invite that names this node, and a few others, as the way in.

        Raises:
            CannotIssue, InvalidInput, StorageError
        """
        own = self._entry()
        first = (own,) if own.dialable else ()
        bootstrap = (*first, *self._peers.entries(_BOOTSTRAP_ENTRIES - len(first)))
        bootstrap = bootstrap or (PeerEntry(own.node, self._addresses(), True),)
        return await self._authority.create_invite(lifetime_ms=lifetime_ms, uses=uses, bootstrap=bootstrap)

    async def revoke(self, target: str) -> bytes:
        """Revoke a node or an invite by its id or the beginning of one; returns the whole one.

        Raises:
            NotFound, Ambiguous, InvalidInput, CannotIssue, StorageError
        """
        found = self._authority.resolve_target(target)
        for draft in self._authority.plan_revocation(found):
            await self.publish_draft(draft)
        return found

    # ------------------------------------------------------------------ status

    @property
    def mesh(self) -> bytes:
        """The mesh's id (its root public key)."""
        return self._membership.mesh

    @property
    def name(self) -> str:
        """The mesh's name, as this home first learned it."""
        return self._membership.name

    def policy(self) -> Policy:
        """The mesh's policy as far as it is known here."""
        return self._trust.policy()

    def name_of(self, node: NodeId) -> str | None:
        """What a peer called itself when it was last here."""
        facts = self._peers.facts.get(node)
        return facts.name if facts else None

    def state(self) -> str:
        """One word for `status`, or the sentence with which the mesh refuses this node."""
        if self._trust.standing(self._key.public, self._clock.now_ms()) is Standing.OUT:
            return "revoked: this node is no longer a member; join again with a new home and a new invite"
        if self._driver.links:
            return "connected"
        return self._peers.refusal or "alone"

    def peers(self) -> list[PeerView]:
        """Connected peers and those lately lost, connected ones first."""
        return peer_views(self._driver.links, self._machine.peer_states(), self._peers.facts)

    def peer_states(self) -> Mapping[NodeId, PeerState]:
        """What failure detection says of connected peers and of those lately lost; others are not known either way."""
        return self._machine.peer_states() if self._started.is_set() else {}

    def watch_peers(self, on_state: OnPeerState) -> None:
        """Be told when a peer becomes alive, suspect or dead. Before `start`."""
        self._on_peer_state = on_state

    # ------------------------------------------------------------------ wiring

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            introduction=lambda: Introduction(
                self._settings.name, self._entry().addresses, self._dialable, self.bulk_port
            ),
            peers=lambda: self._peers.entries(MAX_BOOTSTRAP_ADDRESSES),
            reach=self._reach,
            publish=self.publish_draft,
            clock_agrees=lambda: bool(self._driver.links) and abs(self._machine.clock_offset_ms()) < _CLOCKS_AGREE_MS,
        )

    async def _reach(self, node: NodeId) -> Stream | None:
        return await self._peers.reach(node)

    async def _on_connection(self, connection: Connection) -> None:
        await self._started.wait()
        await self._peers.on_connection(connection)

    async def _serve_control(self, peer: NodeId, stream: Stream) -> None:
        if not self._control.take(peer, self._clock.now_ms()):
            stream.abort()
            return
        await self._admission.serve_control(peer, stream)

    def _addresses(self) -> tuple[str, ...]:
        return advertised(interface_addresses(), self._settings.bind_host, self.bind_port)

    def _entry(self) -> PeerEntry:
        return PeerEntry(self._key.public, self._addresses() if self._dialable else (), self._dialable)

    def _set_dialable(self, dialable: bool) -> None:
        if dialable != self._dialable:
            self._dialable = dialable
            self._machine.set_entry(self._entry())

    def _remembered(self) -> tuple[PeerEntry, ...]:
        known = self._membership.peers()
        return tuple(PeerEntry(p.node, p.addresses, p.dialable) for p in known if p.addresses)


async def _ignore_dropped(ids: Sequence[bytes], reason: str) -> None:
    """Upkeep needs to know what came only."""
