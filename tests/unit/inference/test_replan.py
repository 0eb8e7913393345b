"""One node's machine, step by step: debounce, claims, terms, stopping before giving way, patience."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest

from agentmesh.inference.logic.fit import Fit, Need, Room
from agentmesh.inference.logic.replan import (
    Effect,
    Event,
    HostEnded,
    HostReady,
    Nodes,
    NodesChanged,
    PublishClaim,
    Replan,
    Report,
    StartHost,
    State,
    StopHost,
    TermSeen,
    TimePassed,
    WishChanged,
)
from agentmesh.inference.logic.split_limits import (
    BACKOFF_MS,
    CLAIM_WAIT_MS,
    DEBOUNCE_MS,
    MAX_BACKOFF_MS,
    MAX_DEBOUNCE_MS,
    MAX_TERM,
    SILENT_MS,
    VOLUNTARY_MS,
)
from agentmesh.inference.logic.split_values import Claim, NodeFacts, Outcome, Solo, Split, Wait, WaitCode, short_id_text
from tests.fakes.split_world import a_node, node_id

ME, OTHER, LATER = node_id(2), node_id(1), node_id(3)
A_FIT = Fit(Room(None, 1, 1), Need(1, 0, 0, 1, 1), True, "")


@dataclass
class Said:
    """A planner that says what it is told to."""

    outcome: Outcome
    why_broken: str | None = None
    why_better: str | None = None
    asked: int = 0

    def plan(self, nodes: Nodes) -> Outcome:
        self.asked += 1
        return self.outcome

    def digest(self, plan: Outcome) -> str:
        return str(plan)

    def broken(self, plan: Solo | Split, nodes: Nodes) -> str | None:
        return self.why_broken

    def better(self, plan: Solo | Split, outcome: Outcome) -> str | None:
        return self.why_better


@dataclass
class Bench:
    """The machine with a clock. `do` gives what was done, without reports."""

    said: Said = field(default_factory=lambda: Said(Solo(ME, A_FIT)))
    now_ms: int = 1_000
    claims: dict[bytes, Claim] = field(default_factory=dict[bytes, Claim])
    free_gb: float = 9
    reported: str = ""  # the last sentence for status

    def __post_init__(self) -> None:
        self.replan = Replan(ME, self.said)

    def do(self, event: Event) -> list[Effect]:
        effects = self.replan.handle(event, self.now_ms)
        self.reported = next((one.sentence for one in reversed(effects) if isinstance(one, Report)), self.reported)
        return [one for one in effects if not isinstance(one, Report)]

    def nodes(self, **own: object) -> list[Effect]:
        me = msgspec.structs.replace(a_node(2, self.free_gb), **own)
        others = [a_node(int.from_bytes(n, "big"), 9) for n in (OTHER, LATER)]
        all_nodes: list[NodeFacts] = [me]
        all_nodes += [msgspec.structs.replace(n, claim=self.claims.get(n.node)) for n in others]
        return self.do(NodesChanged(tuple(all_nodes)))

    def after(self, duration_ms: int) -> list[Effect]:
        self.now_ms += duration_ms
        return self.do(TimePassed())

    def run(self) -> None:
        self.nodes()
        self.after(DEBOUNCE_MS)
        assert any(isinstance(one, StartHost) for one in self.after(CLAIM_WAIT_MS))
        self.do(HostReady())


def test_it_plans_three_seconds_after_the_last_change_and_claims_before_it_starts() -> None:
    bench = Bench()
    assert bench.nodes() == []
    assert bench.after(DEBOUNCE_MS - 1) == []
    assert bench.after(1) == [PublishClaim(Claim(1, str(bench.said.outcome), False))]
    assert bench.after(CLAIM_WAIT_MS - 1) == []
    assert bench.after(1) == [
        PublishClaim(Claim(1, str(bench.said.outcome), True)),
        StartHost(Solo(ME, A_FIT), 1),
    ]


def test_changes_in_a_row_are_planned_once_and_not_put_off_for_ever() -> None:
    bench = Bench()
    for step in range(20):
        bench.free_gb = 5 + step
        bench.nodes()
        bench.after(1_000)
    assert bench.said.asked == 20_000 // MAX_DEBOUNCE_MS


def test_a_change_that_does_not_matter_is_not_planned() -> None:
    bench = Bench()
    bench.run()
    asked = bench.said.asked
    bench.nodes()
    bench.claims[OTHER] = Claim(9, "", False)
    bench.nodes()
    bench.after(MAX_DEBOUNCE_MS)
    assert bench.said.asked == asked


def test_other_flags_are_planned_like_other_nodes() -> None:
    bench = Bench()
    bench.run()
    bench.said.why_broken = "The flags are others."
    assert bench.do(WishChanged()) == []
    assert bench.after(DEBOUNCE_MS) == [StopHost("The flags are others.")]


@pytest.mark.parametrize("own", [{"takes_part": False}, {"is_client": True}])
def test_a_node_that_takes_no_part_never_plans(own: dict[str, bool]) -> None:
    bench = Bench()
    bench.nodes(**own)
    assert bench.replan.next_wake_ms() is None
    assert bench.after(MAX_DEBOUNCE_MS) == []
    assert bench.said.asked == 0


def test_a_node_that_leaves_the_split_stops_its_engine() -> None:
    bench = Bench()
    bench.run()
    assert [type(one) for one in bench.nodes(takes_part=False)] == [StopHost]
    assert bench.do(HostEnded("stopped")) == [PublishClaim(None)]
    assert bench.after(MAX_DEBOUNCE_MS) == []


def test_a_term_is_above_every_one_that_was_seen() -> None:
    bench = Bench()
    bench.claims[OTHER] = Claim(7, "", True)
    bench.nodes()
    bench.after(DEBOUNCE_MS)
    assert bench.replan.state is State.FOLLOWING
    bench.claims.clear()
    bench.nodes(seen_term=8)
    assert bench.after(DEBOUNCE_MS) == [PublishClaim(Claim(9, str(bench.said.outcome), False))]


def test_a_term_that_no_host_can_have_is_ignored() -> None:
    bench = Bench()
    bench.claims[OTHER] = Claim(MAX_TERM + 1, "", True)
    bench.run()
    assert bench.replan.term == 1


@pytest.mark.parametrize(
    ("node", "claim", "goes_before"),
    [
        (OTHER, Claim(2, "", True), True),
        (LATER, Claim(2, "", True), True),
        (OTHER, Claim(1, "", True), True),
        (LATER, Claim(1, "", True), False),
        (OTHER, Claim(9, "", False), False),
    ],
    ids=["higher term", "higher term of a larger id", "equal term, smaller id", "equal term, larger id", "only claims"],
)
def test_of_two_hosts_the_higher_term_stays_then_the_smaller_id(node: bytes, claim: Claim, goes_before: bool) -> None:
    bench = Bench()
    bench.run()
    bench.claims[node] = claim
    assert [type(one) for one in bench.nodes()] == ([StopHost] if goes_before else [])


def test_the_loser_says_that_it_runs_until_nothing_is_left() -> None:
    bench = Bench()
    bench.run()
    bench.claims[OTHER] = Claim(5, "", True)
    assert PublishClaim(None) not in bench.nodes()
    assert PublishClaim(None) not in bench.after(10_000)
    assert bench.do(HostEnded("stopped")) == [PublishClaim(None)]
    assert bench.after(MAX_DEBOUNCE_MS) == []
    assert bench.replan.state is State.FOLLOWING


@pytest.mark.parametrize(
    ("claim", "withdraws"), [(Claim(1, "", True), True), (Claim(2, "", False), True), (Claim(0, "", False), False)]
)
def test_who_claims_withdraws_before_who_runs_or_has_the_higher_term(claim: Claim, withdraws: bool) -> None:
    bench = Bench()
    bench.nodes()
    bench.after(DEBOUNCE_MS)
    bench.claims[LATER] = claim
    assert bench.nodes() == ([PublishClaim(None)] if withdraws else [])
    started = any(isinstance(one, StartHost) for one in bench.after(CLAIM_WAIT_MS))
    assert started is not withdraws


def test_it_takes_over_when_the_other_host_is_gone() -> None:
    bench = Bench()
    bench.claims[OTHER] = Claim(4, "", True)
    bench.nodes()
    assert bench.after(DEBOUNCE_MS) == []
    bench.claims.clear()
    bench.nodes()
    bench.after(DEBOUNCE_MS)
    assert StartHost(Solo(ME, A_FIT), 5) in bench.after(CLAIM_WAIT_MS)


def test_a_plan_for_another_host_is_not_started_here() -> None:
    bench = Bench(Said(Solo(OTHER, A_FIT)))
    bench.nodes()
    assert bench.after(DEBOUNCE_MS) == []


def test_who_waits_for_a_claim_says_whose_it_is() -> None:
    bench = Bench()
    bench.claims[LATER] = Claim(7, "", False)
    bench.nodes()
    assert bench.after(DEBOUNCE_MS) == []
    assert short_id_text(LATER) in bench.reported


def test_a_wait_is_reported_with_its_sentence() -> None:
    bench = Bench(Said(Wait(WaitCode.MEMORY, "12 GB are missing.")))
    bench.nodes()
    bench.now_ms += DEBOUNCE_MS
    assert bench.replan.handle(TimePassed(), bench.now_ms) == [Report(State.FOLLOWING, "12 GB are missing.")]


def test_what_runs_is_stopped_when_it_is_not_possible_any_more_and_planned_again() -> None:
    bench = Bench()
    bench.run()
    bench.said.why_broken = "Its worker is gone."
    bench.free_gb = 8
    bench.nodes()
    assert bench.after(DEBOUNCE_MS) == [StopHost("Its worker is gone.")]
    bench.do(HostEnded("stopped"))
    assert bench.after(DEBOUNCE_MS) == [PublishClaim(Claim(2, str(bench.said.outcome), False))]


def test_another_plan_alone_does_not_stop_what_runs() -> None:
    bench = Bench()
    bench.run()
    bench.said.outcome = Solo(OTHER, A_FIT)
    bench.free_gb = 8
    bench.nodes()
    assert bench.after(DEBOUNCE_MS) == []
    assert bench.after(10 * VOLUNTARY_MS) == []


def test_a_better_plan_is_taken_after_it_has_stood_for_a_minute() -> None:
    bench = Bench()
    bench.run()
    bench.said.why_better = "One node can hold it alone now."
    bench.free_gb = 8
    bench.nodes()
    assert bench.after(DEBOUNCE_MS) == []
    assert bench.after(VOLUNTARY_MS - 1) == []
    assert bench.after(1) == [StopHost("One node can hold it alone now.", gently=True)]


def test_who_gave_way_to_a_better_host_gives_it_its_time_to_begin() -> None:
    """It could not begin before: it is not silent, and the one that gave way does not start again in its place."""
    bench = Bench()
    bench.run()
    bench.said.outcome, bench.said.why_better = Solo(OTHER, A_FIT), "One node can hold it alone now."
    bench.free_gb = 8
    bench.nodes()
    bench.after(DEBOUNCE_MS)
    assert bench.after(VOLUNTARY_MS) == [StopHost("One node can hold it alone now.", gently=True)]
    assert bench.do(HostEnded("stopped")) == [PublishClaim(None)]
    assert bench.after(SILENT_MS - 1) == []
    assert not bench.replan.doubts.now(bench.now_ms)
    bench.after(1)
    assert bench.replan.doubts.now(bench.now_ms)


def test_a_better_plan_that_passes_changes_nothing() -> None:
    bench = Bench()
    bench.run()
    for why, free in (("better", 8), (None, 9)):
        bench.said.why_better, bench.free_gb = why, free
        bench.nodes()
        bench.after(DEBOUNCE_MS)
    assert bench.after(2 * VOLUNTARY_MS) == []


def test_starts_that_never_became_ready_are_tried_ever_later() -> None:
    bench = Bench()
    bench.nodes()
    bench.after(DEBOUNCE_MS)
    bench.after(CLAIM_WAIT_MS)
    for failures in range(1, 10):
        bench.do(HostEnded("It failed."))
        bench.after(DEBOUNCE_MS)
        wait_ms = max(CLAIM_WAIT_MS, min(BACKOFF_MS << (failures - 1), MAX_BACKOFF_MS))
        backoff_s = min(BACKOFF_MS << (failures - 1), MAX_BACKOFF_MS) // 1000
        assert bench.replan.failure == "It failed."
        assert f"is tried again in {backoff_s} s. It failed." in bench.reported
        assert bench.after(wait_ms - 1) == []
        assert any(isinstance(one, StartHost) for one in bench.after(1))


def test_one_that_became_ready_after_failures_has_its_patience_back() -> None:
    bench = Bench()
    bench.nodes()
    bench.after(DEBOUNCE_MS)
    bench.after(CLAIM_WAIT_MS)
    for _ in range(6):
        bench.do(HostEnded("It failed."))
        bench.after(DEBOUNCE_MS)
        bench.after(MAX_BACKOFF_MS)
    bench.do(HostReady())
    bench.do(HostEnded("killed"))
    bench.after(DEBOUNCE_MS)
    assert any(isinstance(one, StartHost) for one in bench.after(CLAIM_WAIT_MS))


def test_one_that_was_ready_is_started_again_at_once_however_often_it_ends() -> None:
    bench = Bench()
    bench.run()
    for _ in range(20):
        assert bench.do(HostEnded("killed")) == [PublishClaim(None)]
        bench.after(DEBOUNCE_MS)
        assert any(isinstance(one, StartHost) for one in bench.after(CLAIM_WAIT_MS))
        bench.do(HostReady())


def test_a_worker_s_higher_term_is_passed_at_the_next_start() -> None:
    bench = Bench()
    bench.run()
    bench.do(TermSeen(41))
    bench.do(HostEnded("refused"))
    assert bench.after(DEBOUNCE_MS) == [PublishClaim(Claim(42, str(bench.said.outcome), False))]


def test_late_words_of_an_engine_change_nothing() -> None:
    bench = Bench()
    assert bench.do(HostEnded("late")) == []
    assert bench.do(HostReady()) == []
    assert bench.replan.state is State.FOLLOWING
