"""Nodes that plan splits, in virtual time: records that come late and out of order, partitions, losses, engines that fail.

Owns the world around `Replan` and `WorkerFence`: clocks, the way of records, who notices a loss when, engines. A seed decides all.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import msgspec

from agentmesh.inference.logic.keeping import better, broken
from agentmesh.inference.logic.plan import make_plan, plan_digest
from agentmesh.inference.logic.replan import Event as ReplanEvent
from agentmesh.inference.logic.replan import (
    HostEnded,
    HostReady,
    Nodes,
    NodesChanged,
    PublishClaim,
    Replan,
    Report,
    StartHost,
    StopHost,
    TermSeen,
    TimePassed,
)
from agentmesh.inference.logic.split_values import NodeFacts, Outcome, PlanModel, Solo, Split, Wish
from agentmesh.inference.logic.worker_fence import (
    Admit,
    EndServer,
    Job,
    JobAsked,
    JobLeft,
    Refuse,
    ServerEnded,
    WorkerFence,
)
from agentmesh.inference.logic.worker_fence import Event as FenceEvent


@dataclass
class Rules:
    """The planner of all nodes; it remembers, since many ask the same."""

    model: PlanModel
    wish: Wish
    _known: dict[Nodes, Outcome] = field(default_factory=dict[Nodes, Outcome])

    def plan(self, nodes: Nodes) -> Outcome:
        bare = tuple(msgspec.structs.replace(node, claim=None, seen_term=0) for node in nodes)
        if bare not in self._known:
            self._known[bare] = make_plan(self.model, self.wish, bare)
        return self._known[bare]

    def digest(self, plan: Outcome) -> str:
        return plan_digest(plan)

    def broken(self, plan: Solo | Split, nodes: Nodes) -> str | None:
        return broken(plan, nodes)

    def better(self, plan: Solo | Split, outcome: Outcome) -> str | None:
        return better(plan, outcome, self.wish)


@dataclass
class Member:
    """One node: its own record, what it sees of others, its machines, its engine."""

    facts: NodeFacts
    replan: Replan
    version: int = 0
    view: dict[bytes, tuple[int, NodeFacts]] = field(default_factory=dict[bytes, tuple[int, NodeFacts]])
    fence: WorkerFence = field(default_factory=WorkerFence)
    running: Solo | Split | None = None
    run: int = 0  # counts engines, so that late events are not of another one
    servers: set[Job] = field(default_factory=set[Job])  # RPC servers that exist on it
    waiting: set[bytes] = field(default_factory=set[bytes])  # workers that have not answered yet
    starts: int = 0
    wake: int = 0


class SplitMesh:
    """See the module. `side` of a node says in which part of a partition it is."""

    def __init__(self, seed: int, nodes: list[NodeFacts], rules: Rules, *, fail_percent: int = 0) -> None:
        self.random = random.Random(seed)
        self.rules = rules
        self.fail_percent = fail_percent
        self.now_ms = 0
        self.max_delay_ms = 1_500
        self.side: dict[bytes, int] = {}
        self.members: dict[bytes, Member] = {}
        self.disturbances = 0
        self.disturbed_ms = 0
        self.overlaps_ms = 0  # the last moment at which two hosts ran in one part
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = count()
        for node in nodes:
            self.join(node)

    # ------------------------------------------------------------------ disturbances

    def join(self, facts: NodeFacts) -> None:
        self._disturb()
        member = Member(facts, Replan(facts.node, self.rules))
        self.members[facts.node] = member
        self.side.setdefault(facts.node, 0)
        self._publish(member)
        for other in list(self.members.values()):
            self._send(other, member)

    def crash(self, node: bytes) -> None:
        """Gone without a word; its engine and RPC servers, too. Others notice after a while."""
        self._disturb()
        self.members.pop(node)
        self._lost(node, list(self.members.values()))

    def partition(self, sides: dict[bytes, int]) -> None:
        self._disturb()
        before, self.side = self.side, sides
        for member in list(self.members.values()):
            for other in list(self.members.values()):
                apart = sides[member.facts.node] != sides[other.facts.node]
                if apart and before[member.facts.node] == before[other.facts.node]:
                    self._lost(other.facts.node, [member])
                elif not apart and before[member.facts.node] != before[other.facts.node]:
                    self._send(other, member)

    def change(self, facts: NodeFacts) -> None:
        """A node says something else of itself."""
        self._disturb()
        member = self.members[facts.node]
        member.facts = msgspec.structs.replace(facts, claim=member.facts.claim, seen_term=member.facts.seen_term)
        self._publish(member)

    def kill_engine(self, node: bytes) -> None:
        """As when a worker's RPC server dies: llama-server aborts at once."""
        self._disturb()
        member = self.members[node]
        self._engine_ended(member, member.run, "killed")

    # ------------------------------------------------------------------ time

    def run_for(self, duration_ms: int) -> None:
        end = self.now_ms + duration_ms
        while self._queue and self._queue[0][0] <= end:
            self.now_ms, _, act = heapq.heappop(self._queue)
            act()
            self._check()
        self.now_ms = end

    def parts(self) -> list[list[Member]]:
        found: dict[int, list[Member]] = {}
        for member in self.members.values():
            found.setdefault(self.side[member.facts.node], []).append(member)
        return list(found.values())

    def together(self, a: bytes, b: bytes) -> bool:
        return a in self.members and b in self.members and self.side[a] == self.side[b]

    def _at(self, delay_ms: int, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now_ms + delay_ms, next(self._numbers), act))

    def _disturb(self) -> None:
        self.disturbances += 1
        self.disturbed_ms = self.now_ms

    def _check(self) -> None:
        for part in self.parts():
            if sum(member.running is not None for member in part) > 1:
                self.overlaps_ms = self.now_ms

    # ------------------------------------------------------------------ records

    def _publish(self, member: Member) -> None:
        member.version += 1
        member.view[member.facts.node] = (member.version, member.facts)
        self._handle(member, NodesChanged(self._seen(member)))
        for other in list(self.members.values()):
            if other is not member:
                self._send(member, other)

    def _seen(self, member: Member) -> Nodes:
        return tuple(facts for _, facts in member.view.values())

    def _send(self, sender: Member, receiver: Member) -> None:
        """The newest record, once it has been under way; lost if a partition comes in between."""

        def arrive() -> None:
            node = sender.facts.node
            if self.members.get(node) is not sender or not self.together(node, receiver.facts.node):
                return
            if self.members[receiver.facts.node] is not receiver or receiver.view.get(node, (0,))[0] >= version:
                return
            receiver.view[node] = (version, facts)
            self._handle(receiver, NodesChanged(self._seen(receiver)))

        version, facts = sender.version, sender.facts
        if sender is not receiver:
            self._at(self.random.randint(5, self.max_delay_ms), arrive)

    def _lost(self, node: bytes, who: list[Member]) -> None:
        gone = self.members.get(node)

        def notice(member: Member) -> None:
            back = self.members.get(node)
            if self.together(node, member.facts.node) and back is gone:
                return
            if member.view.pop(node, None) is not None:
                self._handle(member, NodesChanged(self._seen(member)))
            if back is not None and self.together(node, member.facts.node):
                self._send(back, member)  # it came back as a new one meanwhile

        def cut(member: Member) -> None:
            plan, run = member.running, member.run
            if (
                isinstance(plan, Split)
                and node in plan.workers
                and not (self.together(node, member.facts.node) and self.members.get(node) is gone)
            ):
                self._engine_ended(member, run, "a worker is gone")
            job = member.fence.current
            if job is not None and job.host == node and not self.together(node, member.facts.node):
                self._fence(member, JobLeft(job))

        for member in who:
            self._at(self.random.randint(2_000, 12_000), lambda member=member: notice(member))
            self._at(self.random.randint(10, 15_000), lambda member=member: cut(member))

    # ------------------------------------------------------------------ machines

    def _handle(self, member: Member, event: ReplanEvent) -> None:
        if self.members.get(member.facts.node) is not member:
            return
        for effect in member.replan.handle(event, self.now_ms):
            match effect:
                case PublishClaim():
                    member.facts = msgspec.structs.replace(member.facts, claim=effect.claim)
                    self._at(0, lambda: self._publish(member))
                case StartHost():
                    self._start(member, effect)
                case StopHost():
                    self._end_later(member, member.run)
                case Report():
                    assert effect.sentence
        wake = member.replan.next_wake_ms()
        if wake is not None:
            member.wake += 1
            number = member.wake
            self._at(max(wake - self.now_ms, 0), lambda: self._wake(member, number))

    def _wake(self, member: Member, number: int) -> None:
        if member.wake == number:
            self._handle(member, TimePassed())

    def _start(self, member: Member, effect: StartHost) -> None:
        assert member.running is None, "two engines on one node"
        assert effect.plan.host == member.facts.node, "a plan of another host"
        member.running = effect.plan
        member.run += 1
        member.starts += 1
        run, plan = member.run, effect.plan
        job = Job(effect.term, member.facts.node)
        workers = plan.workers if isinstance(plan, Split) else ()
        member.waiting = set(workers)
        for worker in workers:
            self._at(self.random.randint(5, 100), lambda worker=worker: self._ask(member, run, worker, job))
        if self.random.randrange(100) < self.fail_percent:
            self._at(300, lambda: self._engine_ended(member, run, "it failed"))
        else:
            self._ready_later(member, run)

    def _end_later(self, member: Member, run: int) -> None:
        self._at(self.random.randint(50, 3_000), lambda: self._engine_ended(member, run, "stopped"))

    def _ready_later(self, member: Member, run: int) -> None:
        def ready() -> None:
            if member.run != run or member.running is None:
                return
            if member.waiting:
                self._ready_later(member, run)
                return
            self._handle(member, HostReady())

        self._at(self.random.randint(500, 3_000), ready)

    def _ask(self, host: Member, run: int, worker: bytes, job: Job) -> None:
        if host.run != run or host.running is None:
            return
        if not self.together(worker, host.facts.node):
            self._at(5_000, lambda: self._engine_ended(host, run, "a worker does not answer"))
            return
        self._fence(self.members[worker], JobAsked(job))

    def _fence(self, worker: Member, event: FenceEvent) -> None:
        for effect in worker.fence.handle(event):
            host = self.members.get(effect.job.host)
            match effect:
                case Admit():
                    assert not worker.servers, "two hosts use one worker"
                    worker.servers.add(effect.job)
                    if host is not None:
                        host.waiting.discard(worker.facts.node)
                    worker.facts = msgspec.structs.replace(worker.facts, seen_term=effect.job.term)
                    self._publish(worker)
                case Refuse():
                    if host is not None and worker.fence.highest is not None:
                        self._handle(host, TermSeen(worker.fence.highest.term))
                        self._engine_ended(host, host.run, effect.sentence)
                case EndServer():
                    job = effect.job
                    self._at(self.random.randint(10, 1_000), lambda job=job: self._server_ended(worker, job))

    def _server_ended(self, worker: Member, job: Job) -> None:
        if self.members.get(worker.facts.node) is not worker:
            return
        worker.servers.discard(job)
        host = self.members.get(job.host)
        if host is not None and host.replan.term == job.term:
            soon = self.together(job.host, worker.facts.node)
            self._at(20 if soon else 15_000, lambda run=host.run: self._engine_ended(host, run, "its worker left"))
        self._fence(worker, ServerEnded(job))

    def _engine_ended(self, member: Member, run: int, reason: str) -> None:
        if self.members.get(member.facts.node) is not member or member.run != run or member.running is None:
            return
        plan, member.running = member.running, None
        job = Job(member.replan.term, member.facts.node)
        for worker in plan.workers if isinstance(plan, Split) else ():
            if self.together(worker, member.facts.node):
                self._fence(self.members[worker], JobLeft(job))
        self._handle(member, HostEnded(reason))
