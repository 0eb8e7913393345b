"""The driver against a broken disk, broken watchers, a broken machine, and its own end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import pytest

from agentmesh.core.clock import SystemClock
from agentmesh.core.errors import StorageError
from agentmesh.mesh.driver import GossipDriver
from agentmesh.mesh.links import Link, LinkHandlers
from agentmesh.mesh.logic.events import (
    DialPeer,
    DropRecords,
    Effect,
    Event,
    PeerConnected,
    PeerState,
    ReconcileStepped,
    StepReconcile,
    StoreRecords,
    TimePassed,
)
from agentmesh.mesh.logic.gossip import GossipMachine
from agentmesh.mesh.logic.record import Record, SignedRecord
from agentmesh.mesh.logic.snapshot import Snapshot
from agentmesh.mesh.memory import MemoryConnection, MemoryNetwork, MemoryTransport
from agentmesh.mesh.reconciler import Reconciler
from agentmesh.mesh.verifier import CachingVerifier
from tests.fakes.mesh_nodes import MemoryStore
from tests.fakes.records import NOON_MS, author, post

PEER = author("peer")


class ScriptedMachine:
    """Answers events as a test says; remembers them."""

    self_id = author("self")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.answer: Callable[[Event], list[Effect]] = lambda event: []
        self.deadline_ms: int | None = None

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        self.events.append(event)
        return self.answer(event)

    def next_deadline_ms(self) -> int | None:
        return self.deadline_ms

    def peer_states(self) -> dict[bytes, PeerState]:
        return {}

    def farewell(self, reason: str) -> list[Effect]:
        return []


class World:
    """A driver whose machine is scripted and whose store is in memory."""

    def __init__(self) -> None:
        self.machine = ScriptedMachine()
        self.store = MemoryStore()
        self.dialled: list[bytes] = []
        clock = SystemClock()
        self.driver = GossipDriver(
            cast(GossipMachine, self.machine),
            store=self.store,
            verifier=CachingVerifier(b"m" * 32),
            reconciler=Reconciler(lambda now_ms: Snapshot([], []), clock),
            clock=clock,
            dial=self._dial,
        )
        self.seen: list[bytes] = []

    async def _dial(self, node: bytes, addresses: tuple[str, ...]) -> None:
        self.dialled.append(node)

    async def remember(self, records: Sequence[Record]) -> None:
        self.seen += [record.id for record in records]

    def do(self, *effects: Effect) -> None:
        """Have the machine order this now."""
        self.machine.answer = lambda event: list(effects) if isinstance(event, TimePassed) else []
        self.driver.feed(TimePassed())
        self.machine.answer = lambda event: []


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.driver.stop("test over")


async def _ignore(ids: Sequence[bytes], reason: str) -> None:
    pass


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_watcher_that_breaks_stops_neither_the_store_nor_the_other_watchers(world: World) -> None:
    async def broken(records: Sequence[Record]) -> None:
        raise ValueError("a bug in a layer above")

    world.driver.watch(broken, _ignore)
    world.driver.watch(world.remember, _ignore)
    world.driver.start()
    first, second = post(author("a"), NOON_MS), post(author("a"), NOON_MS + 1)
    world.do(StoreRecords((first,)))
    await _until(lambda: world.seen == [first.id])
    world.do(StoreRecords((second,)))
    await _until(lambda: world.seen == [first.id, second.id])
    assert set(world.store.records) == {first.id, second.id}


async def test_a_store_that_breaks_in_an_unknown_way_counts_as_not_stored_and_is_used_again(world: World) -> None:
    lost: list[bytes] = []
    world.driver.watch_failures(lambda records: lost.extend(record.id for record in records))
    first, second = post(author("a"), NOON_MS), post(author("a"), NOON_MS + 1)
    add = world.store.add

    async def broken(records: Sequence[Record]) -> None:
        raise OSError("input/output error")

    world.store.add = broken  # type: ignore[method-assign]
    world.driver.start()
    world.do(StoreRecords((first,)))
    await _until(lambda: lost == [first.id])
    world.store.add = add  # type: ignore[method-assign]
    world.do(StoreRecords((second,)))
    await _until(lambda: second.id in world.store.records)


async def test_records_on_disk_stay_known_when_a_watcher_cannot_write(world: World) -> None:
    lost: list[bytes] = []
    world.driver.watch_failures(lambda records: lost.extend(record.id for record in records))

    async def full(records: Sequence[Record]) -> None:
        raise StorageError("The disk is full.")

    world.driver.watch(full, _ignore)
    world.driver.watch(world.remember, _ignore)
    world.driver.start()
    record = post(author("a"), NOON_MS)
    world.do(StoreRecords((record,)))
    await _until(lambda: world.seen == [record.id])
    assert lost == []


async def test_what_could_not_be_deleted_is_deleted_with_the_next_write(world: World) -> None:
    first, second = post(author("a"), NOON_MS), post(author("a"), NOON_MS + 1)
    world.driver.start()
    world.do(StoreRecords((first,)))
    await _until(lambda: first.id in world.store.records)
    drop = world.store.drop
    failed = asyncio.Event()

    async def full(ids: Sequence[bytes]) -> None:
        failed.set()
        raise StorageError("The disk is full.")

    world.store.drop = full  # type: ignore[method-assign]
    world.do(DropRecords((first.id,), "retracted"))
    await asyncio.wait_for(failed.wait(), 60)
    world.store.drop = drop  # type: ignore[method-assign]
    world.do(StoreRecords((second,)))
    await _until(lambda: set(world.store.records) == {second.id})


async def test_time_goes_on_after_a_machine_that_broke_once(world: World) -> None:
    def break_once(event: Event) -> list[Effect]:
        world.machine.deadline_ms = None if len(world.machine.events) > 1 else 0
        if len(world.machine.events) == 1:
            raise KeyError("a bug")
        return []

    world.machine.deadline_ms = 0
    world.machine.answer = break_once
    world.driver.start()
    await _until(lambda: len(world.machine.events) >= 2)


async def test_a_reconciliation_step_that_breaks_still_ends_its_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise IndexError("a body that nobody thought of")

    monkeypatch.setattr("agentmesh.mesh.reconciler._compute", broken)
    near, _ = await _pair()
    link = Link(PEER, near, _no_handlers())
    world.driver.start()
    running = asyncio.create_task(world.driver.run_link(link, (), False))
    await _until(lambda: PEER in world.driver.links)
    world.do(StepReconcile(PEER, 7, b"x"))
    await _until(lambda: ReconcileStepped(PEER, 7, None, (), (), done=True) in world.machine.events)
    near.close("test over")
    await running


async def test_a_link_whose_beginning_breaks_the_machine_is_not_kept_as_connected(world: World) -> None:
    def break_on_connect(event: Event) -> list[Effect]:
        if isinstance(event, PeerConnected):
            raise KeyError("a bug")
        return []

    world.machine.answer = break_on_connect
    near, _ = await _pair()
    with pytest.raises(KeyError):
        await world.driver.run_link(Link(PEER, near, _no_handlers()), (), False)
    assert PEER not in world.driver.links
    assert near.is_closed


async def test_a_stopping_driver_begins_nothing_and_takes_no_link(world: World) -> None:
    world.driver.start()
    await world.driver.stop("the node stops")
    world.do(DialPeer(PEER, ("127.0.0.1:9",)), StepReconcile(PEER, 1, None))
    near, _ = await _pair()
    await asyncio.wait_for(world.driver.run_link(Link(PEER, near, _no_handlers()), (), False), 60)
    assert near.is_closed
    assert world.dialled == []
    assert world.driver.links == {}


def _no_handlers() -> LinkHandlers:
    async def nothing(peer: bytes, message: object) -> None:
        pass

    async def load(ids: Sequence[bytes]) -> list[SignedRecord]:
        return []

    return LinkHandlers(nothing, load, {})


async def _pair() -> tuple[MemoryConnection, MemoryConnection]:
    network = MemoryNetwork()
    server, client = MemoryTransport(network, b"s" * 32), MemoryTransport(network, PEER)
    came: asyncio.Future[MemoryConnection] = asyncio.get_running_loop().create_future()

    async def hold(connection: object) -> None:
        came.set_result(cast(MemoryConnection, connection))
        await cast(MemoryConnection, connection).wait_closed()

    port = await server.listen("127.0.0.1", 0, hold)
    near = await client.dial(b"s" * 32, f"127.0.0.1:{port}", 30)
    return near, await asyncio.wait_for(came, 30)


async def test_a_cancellation_that_comes_with_an_event_ends_the_keeping_of_time(world: World) -> None:
    """asyncio.wait_for of Python 3.11 loses one that comes together with what it waits for; stops then took their whole grace now and again."""
    world.driver.start()
    for _ in range(5):
        await asyncio.sleep(0)  # until it waits
    world.driver.feed(TimePassed())
    async with asyncio.timeout(30):
        await world.driver._tasks.close(60)
