"""Drives the gossip machine on real connections: feeds it events, performs its effects. Decides nothing itself.

State: the links by node id. Owner: the event loop. `feed` runs the machine and performs every effect without waiting;
what takes time (dialling, disk, set reconciliation, signature checks of large batches) happens in tasks and threads and
comes back as events.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from agentmesh.core.clock import Clock
from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.links import Link
from agentmesh.mesh.logic.events import (
    ClosePeer,
    DialFailed,
    DialPeer,
    DropRecords,
    Effect,
    EndReconcile,
    Event,
    MessageReceived,
    NodeId,
    PeerConnected,
    PeerLost,
    PeerState,
    ReconcileStepped,
    ReportPeer,
    SendMessage,
    SendRecords,
    StepReconcile,
    StoreRecords,
    TimePassed,
)
from agentmesh.mesh.logic.gossip import GossipMachine
from agentmesh.mesh.logic.messages import AnyMessage, Gossip, RecordBatch
from agentmesh.mesh.logic.overlay import keeps_new_connection
from agentmesh.mesh.logic.record import Record
from agentmesh.mesh.reconciler import Reconciler
from agentmesh.mesh.store import RecordStore
from agentmesh.mesh.store_queue import OnDropped, OnRecords, Stored, StoreQueue
from agentmesh.mesh.verifier import CachingVerifier

_log = logging.getLogger(__name__)

DialNode = Callable[[NodeId, tuple[str, ...]], Awaitable[None]]

# A machine that asks to be woken later than this is looked at anyway: a wall clock may have jumped.
_MAX_SLEEP_S: Final = 5.0
_AFTER_FAILURE_S: Final = 1.0  # a machine that breaks each time must not take the processor with it


class GossipDriver:
    """One node's gossip machine, its links and its store."""

    def __init__(
        self,
        machine: GossipMachine,
        *,
        store: RecordStore,
        verifier: CachingVerifier,
        reconciler: Reconciler,
        clock: Clock,
        dial: DialNode,
    ) -> None:
        self._machine = machine
        self._disk = StoreQueue(store)
        self._verifier = verifier
        self._reconciler = reconciler
        self._clock = clock
        self._dial = dial
        self._links: dict[NodeId, Link] = {}
        self._tasks = TaskSet("gossip")
        self._stopping = False
        self._wake = asyncio.Event()
        self.on_peer_state: Callable[[NodeId, PeerState], None] | None = None

    @property
    def links(self) -> dict[NodeId, Link]:
        """The live links by peer; for reading."""
        return self._links

    def watch(self, on_records: OnRecords, on_dropped: OnDropped) -> None:
        """Be told of records once they are durable, and of ids once they are gone."""
        self._disk.watch(on_records, on_dropped)

    def watch_failures(self, on_not_stored: Callable[[Sequence[Record]], None]) -> None:
        """Be told of accepted records that the disk did not take."""
        self._disk.on_not_stored = on_not_stored

    def start(self) -> None:
        """Begin to keep time and to write."""
        self._tasks.spawn(self._keep_time(), name="time")
        self._tasks.spawn(self._disk.run(), name="store")

    async def stop(self, reason: str) -> None:
        """Say goodbye to every peer, close the links, finish what is queued for the store. Nothing new begins from here on."""
        self._stopping = True
        links = list(self._links.values())
        self._perform(self._machine.farewell(reason))
        await asyncio.gather(*(link.flush(1.0) for link in links))
        for link in links:
            link.close(reason)
        if not await self._disk.settle(5.0):
            _log.error("the store did not take the last records within 5 s")
        await self._tasks.close()

    def created(self, record: Record) -> None:
        """A record of this node's own is durable: those who watch hear of it in their turn."""
        self._disk.add(Stored((record,)))

    def drop(self, ids: tuple[bytes, ...], reason: str) -> None:
        """Delete records that the index has let go, after what is queued before."""
        self._perform([DropRecords(ids, reason)])

    # ------------------------------------------------------------------ events in

    def feed(self, event: Event) -> None:
        """Run the machine on one event and perform its effects. Never waits."""
        self._perform(self._machine.handle(event, self._clock.now_ms()))
        self._wake.set()

    async def on_message(self, peer: NodeId, message: AnyMessage) -> None:
        """A link's message; batches have their signatures checked off the loop first, which holds up that peer only."""
        if isinstance(message, Gossip | RecordBatch):
            await self._verifier.prepare(message.records)
            await self._disk.wait_for_room()  # the disk is slower than this peer: it waits, nobody else does
        if peer in self._links:
            self.feed(MessageReceived(peer, message))

    async def run_link(self, link: Link, addresses: tuple[str, ...], dialable: bool) -> None:
        """Serve an admitted link until it ends. A second connection to one peer: see `_replaces`."""
        if self._stopping:
            link.close("the node stops")
            return
        outbound = link.connection.dialled
        old = self._links.get(link.peer)
        if old is not None:
            if not self._replaces(old, outbound):
                link.close("already connected")
                return
            self._end_link(old, "replaced by a newer connection")
        self._links[link.peer] = link
        reason = "the connection broke"
        try:
            self.feed(PeerConnected(link.peer, addresses, dialable, outbound))
            reason = await link.run()
        finally:
            self._end_link(link, reason)

    def _replaces(self, old: Link, new_outbound: bool) -> bool:
        """Whether a new connection takes over: by the rule that both ends share, or because the old one is silent."""
        return self._machine.peer_states().get(old.peer) is not PeerState.ALIVE or keeps_new_connection(
            self._machine.self_id,
            old.peer,
            existing_outbound=old.connection.dialled,
            existing_age_ms=round((asyncio.get_running_loop().time() - old.since_s) * 1000),
            new_outbound=new_outbound,
        )

    def _end_link(self, link: Link, reason: str) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            link.close(reason)
            self._reconciler.forget(link.peer)
            self.feed(PeerLost(link.peer, reason))

    # ------------------------------------------------------------------ effects out

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if not (self._stopping and isinstance(effect, StepReconcile | DialPeer)):
                self._perform_one(effect)

    def _perform_one(self, effect: Effect) -> None:
        match effect:
            case SendMessage(peer, message):
                if link := self._links.get(peer):
                    link.send(message)
            case SendRecords(peer, ids, hop):
                if link := self._links.get(peer):
                    link.send_records(ids, hop)
            case StoreRecords() | DropRecords():
                self._disk.add(effect)
            case StepReconcile(peer, session, body):
                self._tasks.spawn(
                    self._step_reconcile(peer, session, self._reconciler.step(peer, session, body)), name="reconcile"
                )
            case EndReconcile(peer, session):
                self._reconciler.end(peer, session)
            case DialPeer(peer, addresses):
                self._tasks.spawn(self._dial_peer(peer, addresses), name="dial")
            case ClosePeer(peer, reason):
                if link := self._links.get(peer):
                    link.close(reason)
            case ReportPeer(peer, state):
                if self.on_peer_state is not None:
                    self.on_peer_state(peer, state)

    async def _dial_peer(self, peer: NodeId, addresses: tuple[str, ...]) -> None:
        try:
            await self._dial(peer, addresses)
        except Exception as error:  # noqa: BLE001 - a task's root: the machine must hear of every dial's end
            if isinstance(error, AgentMeshError):
                _log.debug("dialling %s: %s", peer.hex()[:8], error)
            else:
                _log.exception("dialling %s broke", peer.hex()[:8])
            self.feed(DialFailed(peer))

    async def _step_reconcile(self, peer: NodeId, session: int, step: Awaitable[ReconcileStepped]) -> None:
        try:
            stepped = await step
        except Exception:  # noqa: BLE001 - a task's root: the machine must hear of every step's end
            _log.exception("a reconciliation step with %s broke", peer.hex()[:8])
            stepped = ReconcileStepped(peer, session, None, (), (), done=True)
        if peer in self._links:
            self.feed(stepped)

    # ------------------------------------------------------------------ time

    async def _keep_time(self) -> None:
        while True:
            now = self._clock.now_ms()
            deadline = self._machine.next_deadline_ms()
            wait_s = _MAX_SLEEP_S if deadline is None else min((deadline - now) / 1000, _MAX_SLEEP_S)
            if wait_s > 0:
                self._wake.clear()
                try:
                    async with asyncio.timeout(wait_s):  # wait_for may lose a cancellation
                        await self._wake.wait()
                    continue  # an event came in between: the deadline may have moved
                except TimeoutError:
                    pass
            try:
                self.feed(TimePassed())
            except Exception:  # noqa: BLE001 - a task's root: without the time no peer is probed and no record expires
                _log.exception("the gossip machine broke; going on")
                await asyncio.sleep(_AFTER_FAILURE_S)
            await asyncio.sleep(0)


def seeded_random() -> random.Random:
    """The machine's randomness on a real node: unpredictable to peers."""
    return random.Random(random.SystemRandom().getrandbits(128))  # noqa: S311 - seeded by the system
