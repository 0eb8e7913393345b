"""Drives logic/replan.py for one model that this node wants spread: records and time in, claims and runs out.

    driver = SplitDriver(me, content, planner, offers, publish=..., run_plan=..., reported=...)
    await driver.run()                 # until it is cancelled; nothing of what it started is left then

Owns the one task that decides, and the one that runs what was decided. Owner: the event loop. States and events: docs/split-plan.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet, to_its_end
from agentmesh.inference.logic.doubts import Doubted
from agentmesh.inference.logic.replan import (
    Effect,
    Event,
    HostEnded,
    HostReady,
    NodesChanged,
    Planner,
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
from agentmesh.inference.logic.shard_keeping import ShardKeeping, ShardMove
from agentmesh.inference.logic.split_values import Claim, NodeFacts, Outcome, Shards, Solo, Split
from agentmesh.inference.split.host_lease import WorkerTermSeen

_log = logging.getLogger(__name__)

MAX_EVENTS: Final = 1_024  # waiting; changes of records are folded into one, so a handful is usual
END_S: Final = 30.0  # an engine is ended within its own bounds; this is beyond them
STOPPED: Final = "It was stopped."
UNEXPECTED: Final = "It failed in a way that nobody expected; the node's log says more."


class Sees(Protocol):
    """What the mesh says. split/offers.py: SplitOffers."""

    def nodes(self, content: str) -> tuple[NodeFacts, ...]: ...


RunPlan = Callable[[Solo | Split | Shards, int, Callable[[], None]], Awaitable[str]]
"""Runs a plan with a term until it ends; calls the third when its engine answers. Returns why it ended; raises AgentMeshError, or
WorkerTermSeen. When it returns, raises or was cancelled, nothing of it is left."""


class SplitDriver:
    """See the module.

    Args:
        publish: puts a claim into this node's record.
        reported: told of every change that status shows.
        serving: the other nodes that answer for the model now, each with the name of its shard ("": the whole model).
        blamed: the worker whose fault it is that the last run ended; none: nobody's.
        drain: lets the engine finish what it answers, within a bound; nothing new reaches it from then on.
    """

    def __init__(
        self,
        me: bytes,
        content: str,
        planner: Planner,
        sees: Sees,
        *,
        publish: Callable[[Claim | None], None],
        run_plan: RunPlan,
        reported: Callable[[], None] = lambda: None,
        serving: Callable[[], Mapping[bytes, str]] = dict,
        drain: Callable[[], Awaitable[None]] | None = None,
        blamed: Callable[[], bytes] = bytes,
    ) -> None:
        self._me = me
        self._content = content
        self._sees = sees
        self._publish = publish
        self._run_plan = run_plan
        self._reported = reported
        self._serving = serving
        self._drain = drain
        self._blamed = blamed
        self._replan = Replan(me, planner)
        self._events: asyncio.Queue[Event] = asyncio.Queue(MAX_EVENTS)
        self._changed = False  # records did, since they were last looked at
        self._wished = False  # the same of wishes
        self._tasks = TaskSet("split")
        self._work: asyncio.Task[str] | None = None
        self._shards = ShardKeeping(me)
        self.sentence = "The mesh is being asked."
        self.is_ready = False

    # ------------------------------------------------------------------ what others see

    @property
    def state(self) -> State:
        """What this node does about the model; a shard of its own counts as running."""
        return State.RUNNING if self._shards.running is not None else self._replan.state

    @property
    def outcome(self) -> Outcome | None:
        """The last plan, whoever hosts; None before the first."""
        return self._replan.outcome

    @property
    def failure(self) -> str:
        """Why its last start here never became ready; empty if it did, or there was none."""
        return self._replan.failure

    def doubted(self) -> tuple[Doubted, ...]:
        """Nodes that let this one down, and that its plans do without where they can."""
        return self._replan.doubts.now(_now_ms())

    def passed_over(self) -> tuple[Doubted, ...]:
        """Those of them that the last plan does without."""
        return tuple(one for one in self.doubted() if one.node in self._replan.passed_over)

    @property
    def plan(self) -> Solo | Split | Shards | None:
        """What this node runs, or is about to."""
        return self._shards.running or self._replan.plan

    @property
    def hosts(self) -> tuple[bytes, ...]:
        """Who else says that it runs the model."""
        nodes = self._sees.nodes(self._content)
        return tuple(n.node for n in nodes if n.node != self._me and n.claim is not None and n.claim.running)

    # ------------------------------------------------------------------ what may happen

    def nodes_changed(self) -> None:
        """Records came, went, or this node's own changed."""
        if not self._changed:
            self._changed = True
            self._put(NodesChanged(()))  # the nodes are read when its turn comes

    def wish_changed(self) -> None:
        """The agreed wish, or the model, is another one: the planner answers differently now."""
        if not self._wished:
            self._wished = True
            self._put(WishChanged())

    def weigh(self, outcome: Outcome, *, is_wish: bool) -> Outcome:
        """For the planner: what counts of a plan while shards answer. See ShardKeeping."""
        return self._shards.weigh(outcome, _now_ms(), self._serving(), is_wish=is_wish)

    def _put(self, event: Event) -> None:
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:  # cannot be while the task below lives: each kind comes once at a time
            _log.error("an event of a split was lost: %s", event)

    # ------------------------------------------------------------------ the task that decides

    async def run(self) -> None:
        """See the module."""
        self.nodes_changed()
        try:
            while True:
                self._handle(await self._next_event())
        finally:
            try:
                await to_its_end(self._tasks.close(grace_s=END_S), name="split")
            finally:
                self._publish(None)

    async def _next_event(self) -> Event:
        wakes = [self._replan.next_wake_ms(), self._shards.next_wake_ms(_now_ms())]
        wake_ms = min((one for one in wakes if one is not None), default=None)
        if wake_ms is None:
            return await self._events.get()
        try:
            async with asyncio.timeout(max(0.0, (wake_ms - _now_ms()) / 1000)):
                return await self._events.get()
        except TimeoutError:
            return TimePassed()

    def _handle(self, event: Event) -> None:
        if isinstance(event, WishChanged):
            self._wished = False
        if isinstance(event, NodesChanged):
            self._changed = False
            event = NodesChanged(self._sees.nodes(self._content))
        for effect in self._replan.handle(event, _now_ms()):
            self._apply(effect)
        self._look_at_shards()
        try:
            self._reported()
        except Exception:  # noqa: BLE001 - it only shows what goes on; what goes on must not end by it
            _log.exception("what becomes of %s cannot be shown", self._content[:8])

    def _apply(self, effect: Effect) -> None:
        match effect:
            case PublishClaim():
                self._publish(effect.claim)
            case StartHost():
                self._begin(effect.plan, effect.term)
            case StopHost() if self._work is not None and effect.gently:
                self._tasks.spawn(self._end_gently(self._work), name="end host")
            case StopHost():
                if self._work is not None:
                    self._work.cancel()
            case Report() if self._shards.running is None:
                self.sentence = effect.sentence
            case Report():
                pass

    # ------------------------------------------------------------------ what runs

    def _begin(self, plan: Solo | Split | Shards, term: int) -> None:
        before, self._work = self._work, None
        if before is not None and not before.done():  # a shard, in whose place the whole model comes
            self._shards.gives_way()
        self.is_ready = False
        self._work = work = self._tasks.spawn(self._run(plan, term, before), name="run plan")
        # Not at the end of `_run`: a task that is cancelled before its first step never gets there.
        work.add_done_callback(lambda task: self._over(plan, task))
        if before is not None:
            work.add_done_callback(lambda _: before.cancel())

    async def _run(self, plan: Solo | Split | Shards, term: int, before: asyncio.Task[str] | None) -> str:
        if before is not None:  # also when this one is cancelled: it is over when nothing of both is left
            try:
                await self._end_gently(before)
            finally:
                await to_its_end(_until_over(before), name="shard before")
        try:
            return await self._run_plan(plan, term, self._became_ready)
        except WorkerTermSeen as error:
            self._put(TermSeen(error.seen_term))
            return error.message
        except AgentMeshError as error:
            return error.message
        except Exception:  # noqa: BLE001 - the root of a task; else the model would look as if it ran
            _log.exception("a plan could not be run")
            return UNEXPECTED

    def _became_ready(self) -> None:
        self.is_ready = True
        if self._shards.running is not None:
            self._shards.ready()
        self._put(HostReady())

    def _over(self, plan: Solo | Split | Shards, task: asyncio.Task[str]) -> None:
        reason = STOPPED if task.cancelled() else task.result()
        if task is self._work:
            self._work, self.is_ready = None, False
        self.sentence = reason
        if isinstance(plan, Shards):
            self._shards.ended(_now_ms())
            self.wish_changed()  # plan again, after the debounce
        else:
            self._put(HostEnded(reason, b"" if task.cancelled() else self._blamed()))

    def _look_at_shards(self) -> None:
        move = self._shards.look(
            self._replan.outcome,
            _now_ms(),
            self._serving(),
            is_free=self._replan.state is State.FOLLOWING,
            is_hosted=bool(self.hosts),
        )
        match move:
            case ShardMove.BEGIN if self._shards.running is not None:
                self.sentence = " ".join(self._shards.running.common.reasons)
                self._begin(self._shards.running, 0)
            case ShardMove.END if self._work is not None:
                self._tasks.spawn(self._end_gently(self._work), name="end shard")
            case ShardMove.REPLAN:
                self.wish_changed()
            case _:
                pass

    async def _end_gently(self, work: asyncio.Task[str]) -> None:
        """End what answers requests once it has answered them."""
        try:
            if self._drain is not None and not work.done():
                await self._drain()
        finally:
            work.cancel()


async def _until_over(task: asyncio.Task[str]) -> None:
    await asyncio.wait([task])


def _now_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)
