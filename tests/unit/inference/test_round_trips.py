"""Round trips: told by the connection or measured over a stream, steady, bounded, and silent nodes noticed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec
import pytest

from agentmesh.core.errors import StreamClosed, Unreachable
from agentmesh.inference.logic.job_wire import JobPing, JobPong
from agentmesh.inference.split import rtt
from agentmesh.inference.split.rtt import AGAIN_S, AT_ONCE, LOST_AFTER, MAX_PINGED, PINGS, RoundTrips
from agentmesh.mesh.logic.frames import encode_frame
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.mesh_nodes import eventually
from tests.fakes.split_world import node_id
from tests.fakes.virtual_time import virtually

NEAR, FAR, THIRD = node_id(1), node_id(2), node_id(3)


@dataclass(frozen=True)
class View:
    node: bytes
    rtt_ms: float | None


class FakeStream:
    """Answers a ping after so long by the test's clock, or does something else."""

    def __init__(self, world: World, node: bytes) -> None:
        self.world, self.node = world, node
        self.written = b""

    async def write(self, data: bytes) -> None:
        self.written += data

    async def read(self, max_bytes: int) -> bytes:
        del max_bytes
        assert self.written == encode_frame(msgspec.msgpack.encode(JobPing()))
        answer = self.world.answers.pop(0) if self.world.answers else self.world.always
        if isinstance(answer, bytes):
            return answer
        if isinstance(answer, Exception):
            raise answer
        self.world.now_s += answer / 1000
        return encode_frame(msgspec.msgpack.encode(JobPong()))

    async def end(self) -> None: ...

    def abort(self) -> None:
        self.world.open -= 1


class World:
    """Peers and a clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.peers: list[View] = []
        self.wanted: list[bytes] = []
        self.answers: list[float | bytes | Exception] = []  # in order
        self.always: float | bytes | Exception = 1.0  # then
        self.gone: set[bytes] = set()
        self.opened: list[bytes] = []
        self.open = self.most_open = self.changes = 0
        self.trips = RoundTrips(lambda: self.peers, self._open, now_s=lambda: self.now_s)
        self.trips.follow(lambda: self.wanted, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    async def _open(self, node: bytes, kind: StreamKind) -> Stream:
        assert kind is StreamKind.JOB
        self.opened.append(node)
        await asyncio.sleep(0)
        if node in self.gone:
            raise Unreachable("It is not there.")
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        return FakeStream(self, node)

    async def later(self) -> None:
        self.now_s += AGAIN_S
        await self.trips.measure()


@virtually
async def test_a_connected_peer_s_round_trip_is_what_the_connection_says() -> None:
    world = World()
    world.peers, world.wanted = [View(NEAR, 3.2), View(FAR, 7.0), View(THIRD, None)], [NEAR]
    await world.trips.measure()
    assert world.trips.nearest() == ((NEAR, 5),)
    assert (world.opened, world.changes) == ([], 1)


@virtually
async def test_of_another_the_smallest_of_three_counts_and_every_stream_is_closed() -> None:
    world = World()
    world.wanted, world.answers = [FAR], [19.0, 7.0, 150.0]
    await world.trips.measure()
    assert world.trips.nearest() == ((FAR, 10),)
    assert (world.opened, world.open) == ([FAR] * PINGS, 0)


@virtually
async def test_the_nearest_come_first() -> None:
    world = World()
    world.wanted, world.peers = [NEAR, FAR], [View(FAR, 70.0), View(NEAR, 0.2)]
    await world.trips.measure()
    assert world.trips.nearest() == ((NEAR, 0.5), (FAR, 80))


@virtually
async def test_noise_changes_nothing() -> None:
    world = World()
    world.wanted, world.peers = [NEAR], [View(NEAR, 3.0)]
    await world.trips.measure()
    world.peers = [View(NEAR, 5.9)]
    await world.later()
    assert world.changes == 1
    world.peers = [View(NEAR, 9.0)]
    await world.later()
    await world.later()
    assert (world.changes, world.trips.nearest()) == (2, ((NEAR, 10),))


@virtually
async def test_a_long_round_trip_counts_when_it_is_long_twice() -> None:
    """A machine that was busy for some seconds is not far away; a split that runs would end because of it."""
    world = World()
    world.wanted, world.peers = [NEAR], [View(NEAR, 3.0)]
    await world.trips.measure()
    for rtt_ms in (400.0, 3.0, 400.0):
        world.peers = [View(NEAR, rtt_ms)]
        await world.later()
        assert world.trips.nearest() == ((NEAR, 5),)
    await world.later()
    assert world.trips.nearest() == ((NEAR, 500),)
    world.peers = [View(NEAR, 3.0)]
    await world.later()
    assert world.trips.nearest() == ((NEAR, 5),)


@virtually
async def test_nobody_is_pinged_again_too_soon_and_the_longest_waiting_first() -> None:
    world = World()
    world.wanted = [node_id(n) for n in range(MAX_PINGED + 5)]
    await world.trips.measure()
    assert len(set(world.opened)) == MAX_PINGED
    assert world.most_open <= AT_ONCE
    first = set(world.opened)
    world.opened.clear()
    await world.trips.measure()
    assert len(set(world.opened)) == 5
    assert not first & set(world.opened)


@virtually
async def test_a_node_that_is_of_no_use_any_more_is_forgotten() -> None:
    world = World()
    world.wanted = [FAR]
    await world.trips.measure()
    world.wanted = []
    await world.trips.measure()
    assert (world.trips.nearest(), world.changes) == ((), 2)


@virtually
async def test_a_node_that_does_not_answer_again_and_again_is_lost_until_it_does() -> None:
    world = World()
    world.wanted, world.gone = [FAR], {FAR}
    await world.trips.measure()
    assert not world.trips.is_lost(FAR)
    for _ in range(LOST_AFTER - 1):
        await world.later()
    assert world.trips.is_lost(FAR)
    assert world.changes == 1
    world.gone = set()
    await world.later()
    assert not world.trips.is_lost(FAR)
    assert world.changes == 2


@virtually
async def test_a_lost_node_that_connects_is_there() -> None:
    world = World()
    world.wanted, world.gone = [FAR], {FAR}
    for _ in range(LOST_AFTER):
        await world.later()
    world.peers = [View(FAR, 3.0)]
    await world.later()
    assert not world.trips.is_lost(FAR)


@virtually
async def test_an_answer_that_is_none_is_no_round_trip() -> None:
    for nonsense in (b"", b"\0\0\0\0", b"\xff\xff\xff\xff", encode_frame(b"\xc1"), StreamClosed("It broke.")):
        world = World()
        world.wanted, world.always = [FAR], nonsense
        await world.trips.measure()
        assert (world.trips.nearest(), world.open) == ((), 0)


@virtually
async def test_new_nodes_are_measured_soon_and_known_ones_do_not_hurry() -> None:
    world = World()
    woken = world.trips._woken  # pyright: ignore[reportPrivateUsage]
    world.wanted = [FAR]
    world.trips.look()
    assert woken.is_set()
    await world.trips.measure()
    woken.clear()
    world.trips.look()
    assert not woken.is_set()


@virtually
async def test_a_connected_peer_that_is_too_far_away_is_looked_at_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake on a busy machine takes long: who was measured then would be left out of plans until the next round."""
    monkeypatch.setattr(rtt, "FAR_LOOK_S", 0.001)
    world = World()
    world.wanted, world.peers = [NEAR, FAR], [View(NEAR, 7.0), View(FAR, 120.0)]
    world.trips.start()
    try:
        await eventually(lambda: world.trips.nearest() == ((NEAR, 10), (FAR, 150)))
        world.peers = [View(NEAR, 90.0), View(FAR, 30.0)]
        await eventually(lambda: world.trips.nearest() == ((NEAR, 10), (FAR, 40)))  # only who was too far
        assert world.opened == []
    finally:
        await world.trips.stop()


@virtually
async def test_who_was_not_reached_and_then_connects_is_known_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds of silence a ping may fail before the connection is back: no plan could use the node until the next round."""
    monkeypatch.setattr(rtt, "FAR_LOOK_S", 0.001)
    world = World()
    world.wanted = [FAR]
    world.gone = {FAR}
    world.trips.start()
    try:
        await eventually(lambda: world.opened == [FAR])
        assert world.trips.nearest() == ()
        world.peers = [View(FAR, 30.0)]
        await eventually(lambda: world.trips.nearest() == ((FAR, 40),))
    finally:
        await world.trips.stop()


@virtually
async def test_who_was_lost_and_connects_is_told_though_it_is_as_far_away_as_before() -> None:
    """It counts again, with what it claims, from then on."""
    world = World()
    world.wanted, world.peers = [FAR], [View(FAR, 120.0)]
    await world.trips.measure()
    world.peers, world.gone = [], {FAR}
    for _ in range(LOST_AFTER):
        await world.later()
    assert world.trips.is_lost(FAR)
    before = world.changes
    world.peers = [View(FAR, 120.0)]
    world.trips._look_at_far()  # pyright: ignore[reportPrivateUsage]
    assert not world.trips.is_lost(FAR)
    assert world.changes == before + 1


@virtually
async def test_a_listener_that_fails_ends_no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtt, "FAR_LOOK_S", 0.001)
    world = World()
    failed: list[bool] = []

    def fail() -> None:
        failed.append(True)
        raise RuntimeError("It is broken.")

    nodes = [NEAR, FAR, THIRD]
    world.wanted, world.peers = nodes, [View(node, 120.0) for node in nodes]
    await world.trips.measure()
    world.trips.follow(lambda: world.wanted, fail)
    world.trips.start()
    try:
        for nearer in (1, 2, 3):
            world.peers = [View(node, 30.0) for node in nodes[:nearer]] + [View(node, 120.0) for node in nodes[nearer:]]
            await eventually(lambda nearer=nearer: len(failed) == nearer)
    finally:
        await world.trips.stop()
