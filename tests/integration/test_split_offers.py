"""What nodes say of themselves for splits, over a real mesh: seen, kept current, and gone with its node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agentmesh.core.errors import StorageError
from agentmesh.core.units import MINUTE_MS
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.probe import devices_now
from agentmesh.inference.logic.job_wire import JobPing, JobPong
from agentmesh.inference.logic.split_offer import MACHINE, WantedModel, WorkedModel
from agentmesh.inference.logic.split_values import Claim, NodeFacts, Wish
from agentmesh.inference.memory import MemoryBook
from agentmesh.inference.settings import Lending
from agentmesh.inference.split import rtt, telling
from agentmesh.inference.split.facts import Measured, NodeMeasure
from agentmesh.inference.split.offers import SplitOffers
from agentmesh.inference.split.rtt import EVERY_S, LOST_AFTER, RoundTrips
from agentmesh.mesh.logic.kinds import SPLIT
from agentmesh.mesh.streams import FrameStream, StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.mesh_nodes import PUSHED_S, TestNode, eventually
from tests.fakes.split_world import GB

CONTENT = "c" * 32
WAIT_S = 120.0  # a round trip that could not be measured is measured again after half a minute
pytestmark = pytest.mark.timeout(300)


class Says(TestNode):
    """A node with a record for splits."""

    __test__ = False

    def __init__(self, root: Path, name: str, lending: Lending) -> None:
        super().__init__(root, name)
        self.lending = lending
        self.free_bytes = 8 * GB
        self.skip_s = 0.0  # of the clock of round trips
        self.is_mute = False
        self.trips: RoundTrips
        self.offers: SplitOffers

    def before_start(self) -> None:
        mesh, loop = self.mesh, asyncio.get_running_loop()
        self.trips = RoundTrips(mesh.peers, mesh.open_stream, now_s=lambda: loop.time() + self.skip_s)
        self.offers = SplitOffers(
            self.key.public,
            self._publish,
            mesh.peer_states,
            self._measure,
            self.trips,
            self.lending,
            lambda: self.name,
            lambda: len(mesh.peers()) + 1,
            is_client=False,
        )
        mesh.watch(self.offers.on_records, self.offers.on_dropped)
        mesh.watch_peers(self.offers.on_peer_state)
        mesh.serve(StreamKind.JOB, self._answer)

    async def start(self) -> Says:
        await super().start()
        await self.offers.on_records(await self.mesh.stored(SPLIT.name))
        await self.offers.start()
        return self

    async def _publish(self, kind: str, subkey: bytes, payload: bytes, lifetime_ms: int) -> object:
        if self.is_mute:
            raise StorageError("The disk is full.")
        return await self.mesh.publish(kind, subkey, payload, lifetime_ms)

    async def _measure(self) -> Measured:
        return Measured((), self.free_bytes, 16 * GB, "0c1e570", (7, 0, 0), has_rpc=True)

    async def _answer(self, _peer: bytes, stream: Stream) -> None:
        frames = FrameStream(stream)
        if await frames.read_struct(msgspec.msgpack.Decoder(JobPing)) is not None:
            await frames.write_struct(JobPong())
            await frames.end()

    def sees(self, other: TestNode) -> NodeFacts | None:
        return next((facts for facts in self.offers.nodes(CONTENT) if facts.node == other.key.public), None)


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Says, Says]]:
    """A host that wants a model, and one that lends to it. Neither is hurried by a machine that stands still for a second."""
    monkeypatch.setattr(rtt, "PING_TIMEOUT_S", 30.0)
    monkeypatch.setattr(telling, "GOODBYE_TIMEOUT_S", 30.0)
    host = Says(tmp_path, "host", Lending())
    await host.found().start()
    worker = Says(tmp_path, "worker", Lending(peers=frozenset({host.key.public})))
    await (await worker.join(await host.token())).start()
    yield host, worker
    for node in (worker, host):
        await node.offers.stop()
        await node.mesh.stop()


async def test_each_sees_the_other_as_it_is_with_the_round_trip_between_them(two: tuple[Says, Says]) -> None:
    host, worker = two
    host.offers.want(WantedModel(CONTENT, "big", Wish(min_peers=1)))
    await eventually(
        lambda: (seen := worker.sees(host)) is not None and seen.rtt_to(worker.key.public) is not None, WAIT_S
    )
    await eventually(
        lambda: (seen := host.sees(worker)) is not None and seen.rtt_to(host.key.public) is not None, WAIT_S
    )
    seen = host.sees(worker)
    assert seen is not None
    assert (seen.name, seen.may_host, seen.has_rpc, seen.lends(host.key.public)) == ("worker", False, True, True)
    assert seen.free_bytes == worker.offers.nodes(CONTENT)[0].free_bytes <= 8 * GB
    assert worker.offers.wishes(CONTENT) == {host.key.public: Wish(min_peers=1)}
    assert [said.split()[0] for said in worker.offers.same_name("BIG", "d" * 32)] == ["host"]


async def test_claims_and_terms_arrive_and_are_taken_back(two: tuple[Says, Says]) -> None:
    host, worker = two
    for claim in (Claim(1, "d", False), Claim(1, "d", True), None):
        host.offers.want(WantedModel(CONTENT, "big", claim=claim))
        await eventually(lambda claim=claim: (seen := worker.sees(host)) is not None and seen.claim == claim, WAIT_S)
    worker.offers.work(WorkedModel(CONTENT, 7))
    await eventually(lambda: (seen := host.sees(worker)) is not None and seen.seen_term == 7, WAIT_S)


async def test_memory_that_its_own_part_takes_is_free_for_that_model(two: tuple[Says, Says]) -> None:
    host, worker = two
    host.offers.want(WantedModel(CONTENT, "big"))
    await eventually(lambda: host.sees(worker) is not None, WAIT_S)
    worker.free_bytes = 2 * GB
    worker.offers.work(WorkedModel(CONTENT, 1, ((MACHINE, 6 * GB),)))

    def for_another() -> list[int]:
        return [facts.free_bytes for facts in host.offers.nodes("e" * 32) if facts.node == worker.key.public]

    await eventually(lambda: len(others := for_another()) == 1 and others[0] < 2.1 * GB, WAIT_S)
    seen = host.sees(worker)
    assert seen is not None
    assert seen.seen_term == 1
    assert 7.5 * GB < seen.free_bytes <= 8 * GB


async def test_a_node_that_stops_is_gone_at_once(two: tuple[Says, Says]) -> None:
    host, worker = two
    host.offers.want(WantedModel(CONTENT, "big"))
    await eventually(lambda: host.sees(worker) is not None, WAIT_S)
    await worker.offers.stop()
    await eventually(lambda: host.sees(worker) is None, PUSHED_S)


async def test_one_that_cannot_be_reached_any_more_does_not_count_although_its_record_lives(
    two: tuple[Says, Says],
) -> None:
    host, worker = two
    host.offers.want(WantedModel(CONTENT, "big"))
    await eventually(lambda: host.sees(worker) is not None, WAIT_S)
    told = asyncio.Event()
    host.offers.on_change(told.set)
    worker.is_mute = True
    await worker.mesh.stop()
    await eventually(lambda: not [peer for peer in host.mesh.peers() if peer.rtt_ms is not None], WAIT_S)
    for _ in range(LOST_AFTER):
        host.skip_s += EVERY_S
        await host.trips.measure()
    assert host.sees(worker) is None
    assert told.is_set()
    assert [record.author for record in await host.mesh.stored(SPLIT.name)].count(worker.key.public) == 1


async def test_what_a_killed_run_said_is_taken_back_by_the_next(two: tuple[Says, Says]) -> None:
    host, worker = two
    host.offers.want(WantedModel(CONTENT, "big", claim=Claim(1, "d", True)))
    await eventually(lambda: (seen := worker.sees(host)) is not None and seen.claim is not None, WAIT_S)
    host.is_mute = True
    await host.offers.stop()
    await host.stop()
    host.is_mute = False

    async def says_so() -> bool:
        said = [record for record in await worker.mesh.stored(SPLIT.name) if record.author == host.key.public]
        return any(CONTENT.encode() in record.payload for record in said)

    assert await says_so()
    await host.start()
    async with asyncio.timeout(WAIT_S):
        while await says_so():
            await asyncio.sleep(0.02)
    await eventually(lambda: worker.sees(host) is None, WAIT_S)


async def test_bytes_that_a_member_publishes_as_its_record_make_it_take_no_part(two: tuple[Says, Says]) -> None:
    host, worker = two
    host.offers.want(WantedModel(CONTENT, "big"))
    await eventually(lambda: worker.sees(host) is not None, WAIT_S)
    host.is_mute = True  # else its next word, on a round trip, takes the place of those bytes
    await host.mesh.publish(SPLIT.name, b"", b"\xff" * 8_000, MINUTE_MS * 10)
    await eventually(lambda: worker.sees(host) is None, WAIT_S)


async def test_round_trips_to_one_that_is_no_neighbour_are_measured_over_a_stream(two: tuple[Says, Says]) -> None:
    host, worker = two
    trips = RoundTrips(lambda: (), host.mesh.open_stream)
    changes: list[int] = []
    trips.follow(lambda: [worker.key.public], lambda: changes.append(1))
    await eventually(lambda: bool(host.mesh.peers()), WAIT_S)
    await trips.measure()
    assert [node for node, _ in trips.nearest()] == [worker.key.public]
    assert len(changes) == 1


async def test_the_pinned_engine_says_its_rpc_version_without_serving_anybody(real_engine: Engine) -> None:
    async def engine() -> Engine:
        return real_engine

    measured = await NodeMeasure(MemoryBook(devices_now), engine, None)()
    assert measured.rpc_version == (7, 0, 0)
    assert measured.has_rpc
    assert measured.engine_commit == real_engine.commit
    assert 0 < measured.machine_free_bytes <= measured.machine_total_bytes
