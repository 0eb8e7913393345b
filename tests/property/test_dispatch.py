"""Whatever happens around the dispatcher, its promises hold.

In flight is never negative and never over the bound; the counts agree with the leases that are held; every request is
answered or refused in bounded time; nobody waits while there is room for them.
"""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentmesh.inference.logic.route import most_in_flight
from agentmesh.inference.logic.route_limits import MAX_WAIT_S, TICK_S
from agentmesh.inference.logic.target import ServedModel
from agentmesh.inference.proxy.directory import STATES_AGE_S
from agentmesh.inference.proxy.lease import HeldLease
from agentmesh.inference.proxy.ports import Outcome, Refused, TargetKey, Wanted
from agentmesh.mesh.logic.events import PeerState
from tests.fakes.routing import ME, World, model, own, peer

NAMES = ("a", "b")
ASKED = ("a", "a", "b", "A", "both", "auto")
PEERS = (1, 2)
# Mostly good ones: else all breakers are open and nobody waits.
OUTCOMES = (*Outcome, *[Outcome.ANSWERED] * 6)
NODES = (ME, peer(1), peer(2))

offers = st.lists(
    st.builds(
        lambda name, ready, slots: model(name, ready=ready, slots=slots, aliases=("both",)),
        st.sampled_from(NAMES),
        st.sampled_from([True, True, True, False]),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda offered: offered.id,
)


class DispatcherMachine(RuleBasedStateMachine):
    """Requests come, wait, end and leave while hosts come and go."""

    @initialize(offered=offers)
    def start(self, offered: list[ServedModel]) -> None:
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.held: list[HeldLease] = []
        self.waiting: list[tuple[asyncio.Task[HeldLease], float]] = []
        self.records: dict[int, bytes] = {}
        self.largest: dict[TargetKey, int] = {}
        self.set_own(offered)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        for task, _ in self.waiting:
            task.cancel()
        self.settle()
        self.loop.close()

    # ------------------------------------------------------------------ helpers

    def settle(self) -> None:
        """Let tasks run, and take what those who waited got."""

        async def turns() -> None:
            for _ in range(4):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        for task, began_s in list(self.waiting):
            if task.done():
                self.waiting.remove((task, began_s))
                if not task.cancelled() and not isinstance(task.exception(), Refused):
                    self.held.append(task.result())

    def look_again(self) -> None:
        self.world.dispatcher._queues.serve()
        self.settle()

    def remember_slots(self, node: bytes, offered: list[ServedModel]) -> None:
        for served in offered:
            key = (node, served.id)
            self.largest[key] = max(self.largest.get(key, 0), most_in_flight(served))

    # ------------------------------------------------------------------ around

    @rule(offered=offers)
    def set_own(self, offered: list[ServedModel]) -> None:
        self.remember_slots(self.world.directory.me, offered)
        self.world.directory.set_own([own(served, number) for number, served in enumerate(offered)])
        self.settle()

    @rule(number=st.sampled_from(PEERS), offered=offers)
    def peer_publishes(self, number: int, offered: list[ServedModel]) -> None:
        self.remember_slots(peer(number), offered)
        self.records[number] = self.loop.run_until_complete(self.world.offer(number, *offered)).id
        self.settle()

    @rule(number=st.sampled_from(PEERS))
    def record_expires(self, number: int) -> None:
        if (id_ := self.records.pop(number, None)) is not None:
            self.loop.run_until_complete(self.world.directory.on_dropped([id_], "expired"))
            self.settle()

    @rule(
        number=st.sampled_from(PEERS),
        state=st.sampled_from([*PeerState, *[PeerState.ALIVE] * 2]),
        is_told=st.booleans(),
    )
    def peer_changes(self, number: int, state: PeerState, is_told: bool) -> None:
        self.world.states[peer(number)] = state
        if is_told:
            self.world.directory.on_peer_state(peer(number), state)
            self.settle()
        else:
            self.time_passes(2 * STATES_AGE_S)

    @rule(seconds=st.sampled_from([0.1, TICK_S, 1.0, 1.0, 5.0, 40.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        """What no event tells is noticed at the next tick."""
        self.world.time.advance(seconds)
        self.look_again()

    # ------------------------------------------------------------------ requests

    @rule(name=st.sampled_from(ASKED), count=st.integers(1, 8))
    def many_ask(self, name: str, count: int) -> None:
        for _ in range(count):
            self.ask(name, frozenset())

    @rule(name=st.sampled_from(ASKED), avoid=st.sets(st.tuples(st.sampled_from(NODES), st.sampled_from(NAMES))))
    def picky_one_asks(self, name: str, avoid: set[TargetKey]) -> None:
        self.ask(name, frozenset(avoid))

    def ask(self, name: str, avoid: frozenset[TargetKey]) -> None:
        wanted = Wanted(name, "/v1/chat/completions")
        task = self.loop.create_task(self.world.dispatcher.acquire(wanted, avoid))
        self.waiting.append((task, self.world.time.now))
        self.settle()

    @rule(name=st.sampled_from(ASKED))
    def peer_asks(self, name: str) -> None:
        wanted = Wanted(name, "/v1/chat/completions", local_only=True)
        try:
            lease = self.world.dispatcher.try_acquire(wanted)
        except Refused as refused:
            assert refused.status in {429, 503}
            return
        assert lease is not None and lease.target.node == self.world.directory.me
        self.held.append(lease)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES), has_begun=st.booleans(), twice=st.booleans())
    def request_ends(self, data: st.DataObject, outcome: Outcome, has_begun: bool, twice: bool) -> None:
        lease = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if has_begun:
            lease.first_byte()
        lease.release(outcome, retry_after_s=3.0 if outcome is Outcome.BUSY else None)
        if twice:
            lease.release(Outcome.FAILED)
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), release_first=st.booleans())
    def client_leaves(self, data: st.DataObject, release_first: bool) -> None:
        """Perhaps in the very turn of the loop in which it is served."""
        if release_first and self.held:
            self.held.pop().release(Outcome.ANSWERED)
        task, _ = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        task.cancel()
        self.settle()
        if not task.cancelled() and not isinstance(task.exception(), Refused):
            self.held.append(task.result())

    # ------------------------------------------------------------------ promises

    @invariant()
    def counts_agree_with_leases_and_stay_within_bounds(self) -> None:
        counted = {key: place.in_flight for key, place in self.world.dispatcher._places.items() if place.in_flight}
        held: dict[TargetKey, int] = {}
        for lease in self.held:
            held[lease.target.key] = held.get(lease.target.key, 0) + 1
        assert counted == held
        assert all(count <= self.largest[key] for key, count in counted.items())

    @invariant()
    def nobody_waits_longer_than_the_bound(self) -> None:
        assert all(self.world.time.now - began_s <= MAX_WAIT_S + TICK_S for _, began_s in self.waiting)
        assert sum(self.world.dispatcher._queues.lengths().values()) == len(self.waiting)

    @invariant()
    def a_timer_runs_exactly_while_somebody_waits(self) -> None:
        assert len(self.world.time.waiting_timers()) == (1 if self.waiting else 0)

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        before = len(self.waiting)
        self.look_again()
        assert len(self.waiting) == before


TestDispatcher = DispatcherMachine.TestCase
TestDispatcher.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
