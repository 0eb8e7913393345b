"""A node's record for splits without a mesh: what it publishes is kept, and the clock is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from agentmesh.core.errors import StorageError
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.logic.split_offer import SplitOffer, WantedModel, decode_split_offer, encode_split_offer
from agentmesh.inference.logic.split_values import Claim, NodeFacts, Wish
from agentmesh.inference.settings import Lending
from agentmesh.inference.split.facts import Measured
from agentmesh.inference.split.offers import SplitOffers
from agentmesh.mesh.logic.events import PeerState
from agentmesh.mesh.logic.record import Record
from tests.fakes.records import record
from tests.fakes.split_world import GB, node_id

A, B = "a" * 32, "b" * 32
ME, OTHER, THIRD = node_id(1), node_id(2), node_id(3)


class FakeTrips:
    """Round trips as the test says."""

    def __init__(self) -> None:
        self.known: dict[bytes, float] = {}
        self.lost: set[bytes] = set()
        self.looked = 0

    def follow(self, wanted: Callable[[], Collection[bytes]], changed: Callable[[], None]) -> None:
        self.wanted, self.changed = wanted, changed

    def start(self) -> None: ...

    def look(self) -> None:
        self.looked += 1

    def is_lost(self, node: bytes) -> bool:
        return node in self.lost

    def nearest(self) -> tuple[tuple[bytes, float], ...]:
        return tuple(sorted(self.known.items(), key=lambda pair: pair[1]))

    async def stop(self) -> None: ...


class OffersWorld:
    """One node's offers; what it publishes is kept, the clock is the test's."""

    def __init__(self, lending: Lending | None = None, *, is_client: bool = False) -> None:
        self.now_ms = 1_000_000
        self.told: list[tuple[SplitOffer, int]] = []
        self.states: dict[bytes, PeerState] = {}
        self.free_bytes = 8 * GB
        self.refuse = self.broken = False
        self.engine_fails = False
        self.trips = FakeTrips()
        self.changes = 0
        self.published = asyncio.Event()
        self.offers = SplitOffers(
            ME,
            self.publish,
            lambda: self.states,
            self.measure,
            self.trips,
            lending or Lending(),
            lambda: "anna",
            lambda: 3,
            is_client=is_client,
            now_ms=lambda: self.now_ms,
        )
        self.offers.on_change(self.count)

    def count(self) -> None:
        self.changes += 1

    async def publish(self, kind: str, subkey: bytes, payload: bytes, lifetime_ms: int) -> None:
        if self.refuse:
            raise StorageError("The disk is full.")
        if self.broken:
            raise RuntimeError("a mistake of ours")
        offer = decode_split_offer(payload)
        assert (kind, subkey) == ("split", b"")
        assert offer is not None
        self.told.append((offer, lifetime_ms))
        self.published.set()

    async def measure(self) -> Measured:
        if self.engine_fails:
            raise EngineFailed("It does not answer.")
        return Measured((), self.free_bytes, 16 * GB, "0c1e570", (7, 0, 0), has_rpc=True)

    async def tell(self) -> SplitOffer | None:
        """What is said when its time has come; None: nothing is."""
        before = len(self.told)
        self.now_ms = max(self.now_ms, self.offers.telling.next_ms())
        await self.offers.telling.publish_now()
        return self.told[-1][0] if len(self.told) > before else None

    async def hears(self, node: bytes, offer: SplitOffer, at_ms: int = 5) -> Record:
        said = record("split", node, at_ms, payload=encode_split_offer(offer))
        await self.offers.on_records([said])
        return said

    def seen(self, content: str = A) -> Sequence[bytes]:
        return [facts.node for facts in self.offers.nodes(content)]

    def own(self, content: str = A) -> NodeFacts:
        return next(facts for facts in self.offers.nodes(content) if facts.node == ME)


async def a_wanting_world(claim: Claim | None = None) -> OffersWorld:
    """It wants A, was measured, and has said so."""
    world = OffersWorld()
    world.offers.want(WantedModel(A, "big", claim=claim))
    await world.offers.measure_now()
    assert await world.tell() is not None
    return world


LENDER = SplitOffer(name="bob", machine_free_bytes=GB, machine_total_bytes=GB, lends_to_all=True)
WANTER = SplitOffer(name="carl", wants=(WantedModel(A, "big", Wish(min_peers=2)),))
