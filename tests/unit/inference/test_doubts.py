"""Nodes that let others down: plans do without them where they can, for a while, and ever longer."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from agentmesh.core.units import HOUR_MS, MINUTE_MS
from agentmesh.inference.logic.doubts import MAX_WHY_CHARS, Doubted, Doubts, doubt_line, doubt_text, with_doubts
from agentmesh.inference.logic.keeping import better, broken
from agentmesh.inference.logic.plan import make_plan, plan_digest
from agentmesh.inference.logic.replan import (
    Effect,
    Event,
    HostEnded,
    HostReady,
    Nodes,
    NodesChanged,
    Replan,
    Report,
    StartHost,
    State,
    TimePassed,
)
from agentmesh.inference.logic.split_limits import (
    CLAIM_WAIT_MS,
    DEBOUNCE_MS,
    DOUBT_MS,
    MAX_BACKOFF_MS,
    MAX_DOUBT_MS,
    MAX_DOUBTED,
    SILENT_MS,
)
from agentmesh.inference.logic.split_values import Claim, NodeFacts, Outcome, Solo, Split, Wish
from tests.fakes.split_world import a_model, a_node, node_id

ME, BAD, GOOD = node_id(1), node_id(2), node_id(3)


class Plans:
    """The real plans of one model."""

    def plan(self, nodes: Nodes) -> Outcome:
        return make_plan(a_model(), Wish(), nodes)

    def digest(self, plan: Outcome) -> str:
        return plan_digest(plan)

    def broken(self, plan: Solo | Split, nodes: Nodes) -> str | None:
        return broken(plan, nodes)

    def better(self, plan: Solo | Split, outcome: Outcome) -> str | None:
        return better(plan, outcome, Wish())


@dataclass
class Bench:
    """One node's machine, its clock, and what it was told to start."""

    nodes: list[NodeFacts]
    now_ms: int = 1_000
    started: list[Solo | Split] = field(default_factory=list[Solo | Split])

    def __post_init__(self) -> None:
        self.replan = Replan(ME, Plans())
        self.do(NodesChanged(tuple(self.nodes)))

    def do(self, event: Event) -> list[Effect]:
        effects = self.replan.handle(event, self.now_ms)
        self.started += [effect.plan for effect in effects if isinstance(effect, StartHost)]
        return [one for one in effects if not isinstance(one, Report)]

    def until(self, end_ms: int) -> None:
        """Let time pass as the machine asks for it."""
        while (wake_ms := self.replan.next_wake_ms()) is not None and wake_ms <= end_ms:
            self.now_ms = max(self.now_ms, wake_ms)
            self.do(TimePassed())
        self.now_ms = end_ms

    def start(self) -> Solo | Split:
        """What it starts next."""
        before = len(self.started)
        while len(self.started) == before:
            self.until(self.now_ms + 1_000)
            assert self.now_ms < 100 * MAX_BACKOFF_MS
        return self.started[-1]


def three(me_gb: float = 18, worker_gb: float = 17) -> list[NodeFacts]:
    """This node has most memory, the bad worker is nearer than the good one; any two can hold the model."""
    mine = a_node(1, me_gb, rtts={2: 1.0, 3: 5.0}, files=("aa",))
    lenders = [a_node(number, worker_gb) for number in (2, 3)]
    return [mine, *(msgspec.structs.replace(node, may_host=False) for node in lenders)]


def workers(plan: Solo | Split) -> tuple[bytes, ...]:
    assert isinstance(plan, Split)
    return plan.workers


def test_a_worker_that_refuses_twice_is_done_without_and_another_is_used() -> None:
    bench = Bench(three())
    for _ in range(2):
        assert workers(bench.start()) == (BAD,)
        bench.do(HostEnded("It refused.", BAD))
    assert bench.replan.passed_over == frozenset()
    assert workers(bench.start()) == (GOOD,)
    assert bench.replan.passed_over == {BAD}
    [doubted] = bench.replan.doubts.now(bench.now_ms)
    assert (doubted.node, doubted.as_host, doubted.times, doubted.why) == (BAD, False, 2, "It refused.")
    assert 0 < doubted.left_ms <= DOUBT_MS


def test_a_worker_that_is_lost_each_time_is_done_without_too() -> None:
    bench = Bench(three())
    for _ in range(2):
        assert workers(bench.start()) == (BAD,)
        bench.do(HostReady())
        bench.do(HostEnded("It was lost.", BAD))
    assert workers(bench.start()) == (GOOD,)


def test_a_worker_without_whom_it_cannot_be_is_tried_for_ever() -> None:
    bench = Bench(three()[:2])
    for _ in range(12):
        assert workers(bench.start()) == (BAD,)
        bench.do(HostEnded("It refused.", BAD))
        assert bench.replan.passed_over == frozenset()  # whoever waits does not because of a doubt


def test_a_worker_that_is_doubted_does_not_end_what_runs() -> None:
    bench = Bench(three())
    bench.start()
    bench.do(HostEnded("It refused.", BAD))
    bench.start()
    bench.do(HostReady())
    bench.replan.doubts.worker_failed(BAD, bench.now_ms)
    bench.do(NodesChanged((*bench.nodes, a_node(9, 1))))
    bench.until(bench.now_ms + 10 * DOUBT_MS)
    assert bench.replan.state is State.RUNNING


def test_a_host_that_promises_all_memory_and_never_begins_is_done_without() -> None:
    liar = a_node(2, 500, files=("aa",))
    mine, _, good = three()
    bench = Bench([mine, liar, good])
    bench.until(bench.now_ms + SILENT_MS)
    assert bench.started == []
    bench.until(bench.now_ms + DEBOUNCE_MS + CLAIM_WAIT_MS + DEBOUNCE_MS)
    [plan] = bench.started
    assert plan.host == ME
    assert bench.replan.passed_over == {BAD}
    assert [(one.node, one.as_host) for one in bench.replan.doubts.now(bench.now_ms)] == [(BAD, True)]
    bench.do(HostReady())
    bench.until(bench.now_ms + 3 * MAX_DOUBT_MS)
    assert bench.replan.state is State.RUNNING


def test_a_member_that_promises_all_memory_again_and_again_stops_a_split_now_and_then_only() -> None:
    """One node that holds a model alone is better than a split, so what runs is stopped for it."""
    mine, _, good = three()
    bench = Bench([mine, good])
    bench.start()
    bench.do(HostReady())
    stopped = 0
    for step in range(24 * 6):
        liar = a_node(2, 500 + step, files=("aa",))
        before = len(bench.started)
        bench.do(NodesChanged((mine, liar, good)))
        bench.until(bench.now_ms + 10 * MINUTE_MS)
        if bench.replan.state is State.STOPPING:
            stopped += 1
            bench.do(HostEnded("It was stopped."))
            bench.until(bench.now_ms + SILENT_MS + 2 * (DEBOUNCE_MS + CLAIM_WAIT_MS))
            assert len(bench.started) == before + 1
            bench.do(HostReady())
    assert 1 <= stopped <= 6  # in a day


def test_while_a_host_claims_the_model_nobody_loses_patience() -> None:
    slow = msgspec.structs.replace(a_node(2, 500, files=("aa",)), claim=Claim(1, "d", False))
    mine, _, good = three()
    bench = Bench([mine, slow, good])
    bench.until(bench.now_ms + 10 * SILENT_MS)
    assert bench.started == []
    # From when it takes the claim back, it has its time anew.
    bench.do(NodesChanged((mine, msgspec.structs.replace(slow, claim=None), good)))
    bench.until(bench.now_ms + SILENT_MS - 1)
    assert bench.started == []
    assert bench.start().host == ME


def test_a_host_that_is_the_only_one_is_waited_for() -> None:
    mine = msgspec.structs.replace(a_node(1, 1), may_host=False)
    bench = Bench([mine, a_node(2, 500, files=("aa",))])
    bench.until(bench.now_ms + 10 * SILENT_MS)
    assert bench.started == []
    assert isinstance(bench.replan.outcome, Solo)
    assert bench.replan.outcome.host == BAD


def test_a_doubt_passes_comes_back_longer_and_is_forgotten_in_the_end() -> None:
    doubts, nodes = Doubts(), tuple(three())

    def lends(now_ms: int) -> bool:
        believed = doubts.believed(nodes, now_ms, workers=True)
        assert doubts.believed(nodes, now_ms, workers=False) == nodes
        return all(node.lends(ME) for node in believed)

    doubts.worker_failed(BAD, 0)
    assert lends(0)
    doubts.worker_failed(BAD, 10)
    assert [node.lends(ME) for node in doubts.believed(nodes, 10, workers=True)] == [True, False, True]
    assert lends(10 + DOUBT_MS)
    doubts.worker_failed(BAD, DOUBT_MS + 20)
    assert not lends(3 * DOUBT_MS)
    for _ in range(40):
        doubts.worker_failed(BAD, 4 * DOUBT_MS)
    assert lends(4 * DOUBT_MS + MAX_DOUBT_MS)
    doubts.worker_failed(BAD, 4 * DOUBT_MS + 3 * MAX_DOUBT_MS)
    assert lends(4 * DOUBT_MS + 3 * MAX_DOUBT_MS)


def test_so_many_are_remembered() -> None:
    doubts = Doubts()
    for number in range(MAX_DOUBTED + 5):
        doubts.host_is_silent(node_id(number), 0)
    nodes = tuple(a_node(number, 1) for number in range(MAX_DOUBTED + 5))
    believed = doubts.believed(nodes, 1, workers=False)
    assert sum(not node.may_host for node in believed) == MAX_DOUBTED


def test_a_host_whose_only_worker_failed_stays_host_for_the_other_expects_it() -> None:
    """Both may host. Without its doubtful worker this node would make the other one host, which plans with the same records, knows of
    no doubt, and waits for this one."""
    both = [a_node(1, 18, rtts={2: 1.0}, files=("aa",)), a_node(2, 17, rtts={1: 1.0}, files=("aa",))]
    bench = Bench(both)
    for _ in range(4):
        plan = bench.start()
        assert plan.host == ME
        bench.do(HostReady())
        bench.do(HostEnded("It was lost.", BAD))


def test_who_is_doubted_is_told_with_the_reason_as_long_as_it_lasts() -> None:
    doubts = Doubts()
    doubts.worker_failed(BAD, 0, "its RPC server ended.")
    assert doubts.now(0) == ()  # one is bad luck
    doubts.worker_failed(BAD, 10, f"It ended. Its log, /home/me/log, ends with:\n{'x' * 999}")
    doubts.host_is_silent(GOOD, 20)
    worker, host = doubts.now(30)
    assert worker == Doubted(BAD, False, 2, DOUBT_MS - 20, "It ended.")
    assert (host.node, host.as_host, host.times) == (GOOD, True, 1)
    doubts.worker_failed(BAD, 40, "x" * 999)
    assert len(doubts.now(40)[0].why) == MAX_WHY_CHARS
    assert [one.node for one in doubts.now(40 + 2 * DOUBT_MS)] == [GOOD]
    assert doubts.now(40 + 24 * HOUR_MS) == ()


def test_a_doubt_in_words() -> None:
    worker = Doubted(BAD, False, 2, 110_001, "laptop was lost.")
    assert doubt_line(worker, "laptop") == (
        "laptop is passed over as a worker where another can do, for 111 s more: it ended 2 runs of this node, "
        "the last with: laptop was lost."
    )
    assert doubt_text(worker, "laptop") == (
        "laptop is passed over as a worker where another can do: it ended 2 runs of this node."
    )
    for left_ms, text in ((2 * MINUTE_MS + 1, "3 min"), (2 * HOUR_MS, "120 min"), (23 * HOUR_MS + 1, "24 h")):
        line = doubt_line(Doubted(BAD, True, 1, left_ms), "desk")
        assert line == (
            f"desk is passed over as host where another can do, for {text} more: it was to host the model, and did not begin."
        )


def test_a_reason_names_the_doubts_before_a_log_that_it_ends_with() -> None:
    said = "It could not be started. It crashed. Its log, /a/b, ends with:\nlast line"
    assert with_doubts(said, ["A.", "B."]) == (
        "It could not be started. It crashed. A. B. Its log, /a/b, ends with:\nlast line"
    )
    assert with_doubts("It waits.", []) == "It waits."
