"""When to plan again, and who may run what was planned: one machine for each model and node. Pure.

    effects = replan.handle(event, now_ms)      # and again with TimePassed at next_wake_ms()

Owns debounce, claims and terms, and the patience between starts. What a plan is, it is told by `Planner`. Rules and their reasons:
docs/split-plan.md, "Planning again, and two hosts".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import msgspec

from agentmesh.inference.logic.doubts import Doubts
from agentmesh.inference.logic.split_limits import (
    BACKOFF_MS,
    CLAIM_WAIT_MS,
    DEBOUNCE_MS,
    MAX_BACKOFF_MS,
    MAX_DEBOUNCE_MS,
    MAX_TERM,
    RESTART_MS,
    SILENT_MS,
    VOLUNTARY_MS,
)
from agentmesh.inference.logic.split_values import Claim, NodeFacts, Outcome, Shards, Solo, Split, Wait, short_id_text

Nodes = tuple[NodeFacts, ...]


class Planner(Protocol):
    """What this machine asks: pure functions of the nodes."""

    def plan(self, nodes: Nodes) -> Outcome: ...
    def digest(self, plan: Outcome) -> str: ...
    def broken(self, plan: Solo | Split, nodes: Nodes) -> str | None: ...
    def better(self, plan: Solo | Split, outcome: Outcome) -> str | None: ...


class State(StrEnum):
    """What this node does about the model."""

    FOLLOWING = "following"
    CLAIMING = "claiming"
    RUNNING = "running"
    STOPPING = "stopping"


# ------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class NodesChanged:
    """All nodes that this one sees now, itself included, each with its newest record."""

    nodes: Nodes


@dataclass(frozen=True, slots=True)
class HostReady:
    """The engine that this node was told to start answers requests."""


@dataclass(frozen=True, slots=True)
class HostEnded:
    """That engine is gone, and all that belonged to it; also if it could not be started. `worker`: who ended it, if one did."""

    reason: str
    worker: bytes = b""


@dataclass(frozen=True, slots=True)
class WishChanged:
    """The model or the flags are others now: the planner would answer differently for the same nodes."""


@dataclass(frozen=True, slots=True)
class TermSeen:
    """A worker refused this node's term, since it has served this higher one."""

    term: int


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Timers are looked at."""


Event = NodesChanged | WishChanged | HostReady | HostEnded | TermSeen | TimePassed

# ------------------------------------------------------------------ effects


@dataclass(frozen=True, slots=True)
class PublishClaim:
    """Put this into the node's own record. None: it claims nothing any more."""

    claim: Claim | None


@dataclass(frozen=True, slots=True)
class StartHost:
    """Run this, with this term towards the workers; answer with HostReady and HostEnded."""

    plan: Solo | Split
    term: int


@dataclass(frozen=True, slots=True)
class StopHost:
    """End it; answer with HostEnded when nothing of it is left. `gently`: what it is answering is finished first, within a bound."""

    reason: str
    gently: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What status shows."""

    state: State
    sentence: str


Effect = PublishClaim | StartHost | StopHost | Report


@dataclass
class Replan:
    """See the module. `me` is this node's id."""

    me: bytes
    planner: Planner
    state: State = State.FOLLOWING
    plan: Solo | Split | None = None  # of the claim
    outcome: Outcome | None = None  # of the last planning, whoever hosts
    term: int = 0  # of the last claim
    failure: str = ""  # why the last start never became ready, if none has become since
    doubts: Doubts = field(default_factory=Doubts)
    passed_over: frozenset[bytes] = frozenset()  # doubted, and the last planning could do without them
    _nodes: Nodes = ()
    _highest_term: int = 0
    _relevant: Mapping[bytes, NodeFacts] = field(default_factory=dict[bytes, NodeFacts])
    _changed_ms: int | None = None  # the first change that was not acted on
    _due_ms: int | None = None  # when to plan
    _start_ms: int = 0  # CLAIMING: not before
    _failures: int = 0  # starts in a row that never became ready
    _was_ready: bool = False
    _better_since_ms: int | None = None
    _awaited: tuple[bytes, int] = (b"", 0)  # who is host by the plan, and since when it could have claimed the model
    _effects: list[Effect] = field(default_factory=list[Effect])

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Take one event in; what is to be done about it, in order. `now_ms` never goes back."""
        self._effects = []
        match event:
            case NodesChanged():
                self._on_nodes(event.nodes, now_ms)
            case WishChanged():
                self._plan_soon(now_ms)
            case HostReady():
                self._was_ready = True
                self._failures, self.failure = 0, ""
                if self.state is State.RUNNING:
                    self._report("It is ready.")
            case HostEnded():
                if event.worker:
                    self.doubts.worker_failed(event.worker, now_ms, event.reason)
                self._on_ended(event.reason, now_ms)
            case TermSeen():
                self._see_term(event.term)
            case TimePassed():
                pass
        self._on_time(now_ms)
        effects, self._effects = self._effects, []
        return effects

    def next_wake_ms(self) -> int | None:
        """When TimePassed is due, if nothing else happens; None: not at all."""
        waits = [self._due_ms, self._better_at(), self._silent_at()]
        if self.state is State.CLAIMING and self._rival() is None:
            waits.append(self._start_ms)
        return min((one for one in waits if one is not None), default=None)

    # ------------------------------------------------------------------ events

    def _on_nodes(self, nodes: Nodes, now_ms: int) -> None:
        if self._rival() is not None:  # until now nobody could begin
            self._awaited = self._awaited[0], now_ms
        self._nodes = tuple(sorted(nodes, key=lambda node: node.node))
        for node in self._nodes:
            self._see_term(node.seen_term)
            if node.claim is not None:
                self._see_term(node.claim.term)
        relevant = {
            node.node: msgspec.structs.replace(node, claim=None, seen_term=0) for node in self._nodes if _matters(node)
        }
        claims_ended = self.state is State.FOLLOWING and self._rival() is None
        if relevant != self._relevant or (claims_ended and self._due_ms is None and self._should_host()):
            self._relevant = relevant
            self._plan_soon(now_ms)
        self._give_way(now_ms)

    def _see_term(self, term: int) -> None:
        if term <= MAX_TERM:
            self._highest_term = max(self._highest_term, term)

    def _on_ended(self, reason: str, now_ms: int) -> None:
        if self.state not in (State.RUNNING, State.STOPPING):
            return
        unexpected = self.state is State.RUNNING
        if unexpected and not self._was_ready:
            self._failures += 1
            self.failure = reason
        self._release(reason, now_ms)
        if unexpected and self._was_ready and self._due_ms is not None:  # requests wait for what just worked
            self._due_ms = min(self._due_ms, now_ms + RESTART_MS)

    def _on_time(self, now_ms: int) -> None:
        if self._due_ms is not None and now_ms >= self._due_ms:
            self._due_ms = self._changed_ms = None
            self._replan(now_ms)
        if self.state is State.CLAIMING and now_ms >= self._start_ms and self._rival() is None:
            self._start()
        at = self._better_at()
        if at is not None and now_ms >= at:
            self._better_since_ms = None
            self._change_for_better()
        silent_at = self._silent_at()
        if silent_at is not None and now_ms >= silent_at:
            self.doubts.host_is_silent(self._awaited[0], now_ms)
            self._awaited = b"", 0
            self._plan_soon(now_ms)

    # ------------------------------------------------------------------ planning

    def _plan_soon(self, now_ms: int) -> None:
        if not self._takes_part():
            self._due_ms = self._changed_ms = None
            if self.state is not State.FOLLOWING:
                self._withdraw("This node takes no part any more.", now_ms)
            return
        self._changed_ms = now_ms if self._changed_ms is None else self._changed_ms
        self._due_ms = min(now_ms + DEBOUNCE_MS, self._changed_ms + MAX_DEBOUNCE_MS)

    def _replan(self, now_ms: int) -> None:
        self.outcome = outcome = self._plan(now_ms)
        self._await_host(outcome, now_ms)
        self._look_for_better(outcome, now_ms)
        if self.state is State.RUNNING and self.plan is not None:
            if (why := self.planner.broken(self.plan, self._nodes)) is not None:
                self._stop(why)
        elif self.state is State.CLAIMING:
            if not self._should_host():
                self._release(_about(outcome), now_ms)
            elif self._digest(outcome) != self._digest(self.plan):
                self._claim(now_ms)
        elif self.state is State.FOLLOWING:
            if not self._should_host():
                self._report(_about(outcome))
            elif (rival := self._rival()) is None:
                self._claim(now_ms)
            else:  # with its id: a claim is a word, and can be a lie
                self._report(f"{short_id_text(rival)} says that it hosts it, or is about to; this node waits for that.")

    def _plan(self, now_ms: int) -> Outcome:
        """Without those that let this node down, if that can be. Doubts about workers are this node's alone, so they choose among its
        own workers only: a host that is made by them nobody else expects, and all would wait for one another."""
        hosts = self.doubts.believed(self._nodes, now_ms, workers=False)
        outcome = self.planner.plan(hosts)
        if isinstance(outcome, Wait) and hosts != self._nodes:
            hosts, outcome = self._nodes, self.planner.plan(self._nodes)
        if isinstance(outcome, Split) and outcome.host == self.me:
            believed = self.doubts.believed(hosts, now_ms, workers=True)
            if believed != hosts and isinstance(other := self.planner.plan(believed), Split) and other.host == self.me:
                hosts, outcome = believed, other
        self.passed_over = frozenset(all_.node for all_, one in zip(self._nodes, hosts, strict=True) if all_ != one)
        return outcome

    def _await_host(self, outcome: Outcome, now_ms: int) -> None:
        host = outcome.host if isinstance(outcome, Solo | Split) else b""
        if host != self._awaited[0]:
            self._awaited = host, now_ms

    def _silent_at(self) -> int | None:
        """When the plan's host has had its time to claim the model. While anybody claims it, nobody waits for that one."""
        host, since_ms = self._awaited
        waits = self.state is State.FOLLOWING and host not in (b"", self.me) and self._rival() is None
        return since_ms + SILENT_MS if waits and self._takes_part() else None

    def _should_host(self) -> bool:
        return isinstance(self.outcome, Solo | Split) and self.outcome.host == self.me and self._takes_part()

    def _takes_part(self) -> bool:
        return any(node.node == self.me and _matters(node) for node in self._nodes)

    def _digest(self, plan: Outcome | None) -> str:
        return "" if plan is None else self.planner.digest(plan)

    def _look_for_better(self, outcome: Outcome, now_ms: int) -> None:
        running = self.state is State.RUNNING and self.plan is not None
        if not running or self.plan is None or self.planner.better(self.plan, outcome) is None:
            self._better_since_ms = None
        elif self._better_since_ms is None:
            self._better_since_ms = now_ms

    def _better_at(self) -> int | None:
        since = self._better_since_ms
        return since + VOLUNTARY_MS if since is not None and self.state is State.RUNNING else None

    def _change_for_better(self) -> None:
        if self.plan is not None and self.outcome is not None:
            self._stop(self.planner.better(self.plan, self.outcome) or "Another plan is better.", gently=True)

    # ------------------------------------------------------------------ claims

    def _rival(self) -> bytes | None:
        """A node that goes before this one. Running goes before claiming, then the higher term, then the smaller id."""
        mine = (self.state in (State.RUNNING, State.STOPPING), self.term) if self.state is not State.FOLLOWING else None
        for node in self._nodes:
            claim = node.claim
            if node.node == self.me or claim is None or not _matters(node) or claim.term > MAX_TERM:
                continue
            theirs = (claim.running, claim.term)
            if mine is None or theirs > mine or (theirs == mine and node.node < self.me):
                return node.node
        return None

    def _give_way(self, now_ms: int) -> None:
        """The lesser of two claims is taken back, the lesser of two hosts stops."""
        if self.state not in (State.CLAIMING, State.RUNNING) or (rival := self._rival()) is None:
            return
        self._withdraw(f"{short_id_text(rival)} hosts it.", now_ms)

    def _withdraw(self, why: str, now_ms: int) -> None:
        if self.state is State.RUNNING:
            self._stop(why)
        elif self.state is State.CLAIMING:
            self._release(why, now_ms)

    def _claim(self, now_ms: int) -> None:
        """Say that this node will host; it starts when nobody was seen who goes before it."""
        if not isinstance(self.outcome, Solo | Split):
            return
        self.plan = self.outcome
        self.term = self._highest_term = min(self._highest_term + 1, MAX_TERM)
        backoff_ms = min(BACKOFF_MS << (self._failures - 1), MAX_BACKOFF_MS) if self._failures else 0
        self._start_ms = now_ms + max(CLAIM_WAIT_MS, backoff_ms)
        self._publish(running=False)
        again = f"It could not be started, and is tried again in {backoff_ms // 1000} s. {self.failure}"
        self._become(State.CLAIMING, again if backoff_ms else "It is about to start.")

    def _start(self) -> None:
        if self.plan is None:
            return
        self._was_ready = False
        self._publish(running=True)
        self._become(State.RUNNING, "It is starting.")
        self._effects.append(StartHost(self.plan, self.term))

    def _stop(self, reason: str, *, gently: bool = False) -> None:
        """The claim goes on saying that it runs, until nothing is left."""
        self._better_since_ms = None
        self._become(State.STOPPING, reason)
        self._effects.append(StopHost(reason, gently))

    def _release(self, reason: str, now_ms: int) -> None:
        self.plan = self._better_since_ms = None
        self._awaited = self._awaited[0], now_ms  # until now nobody could begin
        self._effects.append(PublishClaim(None))
        self._become(State.FOLLOWING, reason)
        self._plan_soon(now_ms)

    def _publish(self, *, running: bool) -> None:
        self._effects.append(PublishClaim(Claim(self.term, self._digest(self.plan), running)))

    def _become(self, state: State, sentence: str) -> None:
        self.state = state
        self._report(sentence)

    def _report(self, sentence: str) -> None:
        self._effects.append(Report(self.state, sentence))


def _matters(node: NodeFacts) -> bool:
    return node.takes_part and not node.is_client


def _about(outcome: Outcome) -> str:
    """What somebody who does not host it says of a plan."""
    if isinstance(outcome, Wait):
        return outcome.sentence
    reasons = " ".join(outcome.common.reasons)
    return (
        reasons if isinstance(outcome, Shards) else f"Another node is to host it, and has not begun. {reasons}".strip()
    )
