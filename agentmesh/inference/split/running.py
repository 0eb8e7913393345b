"""Runs one plan on this node until it ends: the whole model, the host's part of a split, or a shard of its experts.

    reason = await runner.run(plan, term, ready)       # raises AgentMeshError; cancelled: nothing of it is left either

Owns what a run takes (engine, leases, memory) from its beginning to its end. Decides nothing: split/driver.py does. docs/splits.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet, to_its_end
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine_questions import is_busy
from agentmesh.inference.fetching import ModelFiles, check
from agentmesh.inference.logic.fit import NO_DEVICE, Wanted, fit_model, size
from agentmesh.inference.logic.split_offer import MACHINE
from agentmesh.inference.logic.split_values import Shards, Solo, Split
from agentmesh.inference.memory import MemoryBook
from agentmesh.inference.model_run import ModelRun
from agentmesh.inference.server_plan import host_plan, whole_plan
from agentmesh.inference.serving_types import DoesNotFit, ModelState, SpreadView, WorkerRow
from agentmesh.inference.split.host import CLOSE_S, HostJob, HostParts, SplitHost, WorkerStatus
from agentmesh.inference.split.shards import ShardMaker
from agentmesh.inference.threads import in_daemon_thread
from agentmesh.mesh.identity import encode_id

_log = logging.getLogger(__name__)

Held = tuple[tuple[str, int], ...]
HOST_GRACE_S: Final = 1.0  # a split's engine has nothing to save, and one that waits for a worker does not heed SIGTERM
HURRIED_S: Final = 1.5  # for workers' ends when the node stops: they end by themselves, too
MEMORY_S: Final = 12.0  # until what this node computes for a host that has gone is given back, at the latest
LOOK_S: Final = 1.0
DRAIN_S: Final = 60.0  # for answers that a shard gives when it is to end; longer ones are cut
DRAIN_LOOK_S: Final = 0.25


class PlanRunner:
    """See the module.

    Args:
        run: the model; its engine is started and ended here.
        view: what status shows.
        hold: told what this node's part takes, by device, for its record; nothing when it is over.
        make_way: ends what this node computes for an older host of the model (content, term).
        rpc_version: of this node's engine, as its record says.
        min_experts: as the plan was made with.
    """

    def __init__(
        self,
        run: ModelRun,
        view: SpreadView,
        content: str,
        *,
        me: bytes,
        parts: HostParts,
        memory: MemoryBook,
        shards: ShardMaker,
        hold: Callable[[Held], None],
        make_way: Callable[[str, int], None],
        rpc_version: Callable[[], tuple[int, int, int]],
        min_experts: Callable[[], int],
    ) -> None:
        self._run = run
        self._view = view
        self._content = content
        self._me = me
        self._parts = parts
        self._memory = memory
        self._shards = shards
        self._hold = hold
        self._make_way = make_way
        self._rpc_version = rpc_version
        self._min_experts = min_experts
        self._tasks = TaskSet("run plan")
        self._host: SplitHost | None = None
        self.blamed = b""  # the worker whose fault it is that the last run ended

    def workers(self) -> tuple[WorkerStatus, ...]:
        """Of the split that is hosted now."""
        return self._host.status() if self._host is not None else ()

    async def drain(self) -> None:
        """Take no new requests, and let the engine finish those that it has; at most DRAIN_S."""
        run = self._run
        run.set_state(ModelState.LOADING, "It changes to another plan; it answers what it was asked before.")
        idle = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while idle < 2 and run.process is not None and run.process.address is not None:
                    await asyncio.sleep(DRAIN_LOOK_S)  # first: what was on its way is there then
                    idle = 0 if await is_busy(run.process.address) else idle + 1

    async def run(self, plan: Solo | Split | Shards, term: int, ready: Callable[[], None]) -> str:
        """See the module. `ready` is called when the engine answers."""
        self._make_way(self._content, term)
        view = self._view
        view.role = {Solo: "alone", Split: "host", Shards: "shard"}[type(plan)]
        view.sentence = " ".join(plan.common.reasons)
        self.blamed = b""
        try:
            match plan:
                case Solo():
                    view.nodes = (self._me,)
                    return await self._alone(ready)
                case Split():
                    view.nodes = plan.nodes
                    return await self._split(plan, term, ready)
                case Shards():
                    view.nodes = tuple(room.node for room in plan.nodes)
                    return await self._shard(plan, ready)
        finally:
            self._hold(())
            view.role, view.nodes, view.workers, view.shard = "waiting", (), tuple, ""
            view.context_tokens = view.slots = 0

    # ------------------------------------------------------------------ the whole model

    async def _alone(self, ready: Callable[[], None]) -> str:
        run = self._run
        if not await run.take_memory():
            raise DoesNotFit(run.refusal())
        fit = run.fit
        if fit is None:
            raise RuntimeError("memory was taken for nothing")
        names = (fit.room.device or MACHINE).split(",")
        self._hold(tuple((_device(name), fit.need.total // len(names)) for name in names))
        self._view.context_tokens, self._view.slots = fit.need.context_tokens, fit.need.slots
        try:
            await run.run_engine(run.plan_alone())
            ready()
            return await _gone(run)
        finally:
            await to_its_end(self._end_alone(), name="whole model")

    async def _end_alone(self) -> None:
        """Of an engine with the whole model, or a shard."""
        run = self._run
        await run.stop_engine(HOST_GRACE_S if run.hurried else None)
        self._memory.release((run, "shard"))
        run.fit = None

    # ------------------------------------------------------------------ layers

    async def _split(self, plan: Split, term: int, ready: Callable[[], None]) -> str:
        run = self._run
        files, engine = run.files, run.engine
        if files is None or engine is None:
            raise RuntimeError("a plan was made for a model without files")
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_lost(sentence: str) -> None:
            if not lost.done():
                lost.set_result(sentence)

        def progress(sentence: str) -> None:
            run.set_state(ModelState.LOADING, sentence)

        job = HostJob(self._content, run.id, term, tuple(files.model.files), engine, self._rpc_version())
        host = SplitHost(self._parts, plan, job, on_lost=on_lost, say_progress=progress)
        run.set_state(ModelState.LOADING, "Its workers are being asked.")
        self._host = host
        self._view.workers = lambda: tuple(_row(status) for status in host.status())
        keys: list[object] = []
        try:
            await self._promise(plan, engine, keys)
            words = await host.open()
            server = host_plan(
                run.id,
                files.model.files[0],
                files.projector,
                context_tokens=plan.context_tokens,
                slots=plan.slots,
                words=words.extra,
                engine=engine,
                memory=self._memory,
                draft=run.draft,
                draft_device=_last_of_host(plan),
            )
            # A worker may read its part from a slow disk for minutes, in which the host's engine does nothing.
            server = replace(server, is_owed=lambda: host.overdue_s > 0)
            self._view.context_tokens, self._view.slots = plan.context_tokens, plan.slots
            try:
                if (why := await self._unless(lost, run.run_engine(server))) is not None:
                    return why
            except EngineFailed:
                # What a worker answers can end the engine, and nobody sees which one's it was: each has its turn.
                host.blamed = host.blamed or plan.workers[term % len(plan.workers)]
                raise
            for key in keys:
                self._memory.settle(key, run.process.status.pid if run.process is not None else None)
            ready()
            await asyncio.wait([lost, _gone_future(run)], return_when=asyncio.FIRST_COMPLETED)
            return lost.result() if lost.done() else await _gone(run)
        finally:
            self.blamed = host.blamed
            await to_its_end(self._end_split(host, keys), name="split")

    async def _end_split(self, host: SplitHost, keys: list[object]) -> None:
        await self._run.stop_engine(HOST_GRACE_S)
        self._host = None
        await host.close(HURRIED_S if self._run.hurried else CLOSE_S)
        for key in keys:
            self._memory.release(key)

    async def _unless(self, lost: asyncio.Future[str], work: Awaitable[None]) -> str | None:
        """Do the work, unless a worker is lost meanwhile: then why."""
        doing = self._tasks.spawn(_outcome(work), name="start host")
        try:
            await asyncio.wait([lost, doing], return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                return lost.result()
            if (error := doing.result()) is not None:
                raise error
            return None
        finally:
            if not doing.done():
                doing.cancel()
                await asyncio.wait([doing])

    async def _promise(self, plan: Split, engine: Engine, keys: list[object]) -> None:
        """Count what the host's part takes, here and in this node's record; what is to be released is added to `keys`.

        Raises:
            DoesNotFit: another model has taken it since the plan was made, and keeps it.
        """
        held: dict[str, int] = {MACHINE: plan.host_memory_bytes}
        for share in plan.shares:
            if share.place.is_host:
                device = _device(share.place.device)
                held[device] = held.get(device, 0) + share.need_bytes
        tries = int(MEMORY_S / LOOK_S)
        while (short := await self._take(held, engine, keys)) and tries:
            tries -= 1
            self._run.set_state(ModelState.LOADING, short)
            await self._memory.wait_freed(LOOK_S)
        if short:
            raise DoesNotFit(short)
        self._hold(tuple(held.items()))

    async def _take(self, held: dict[str, int], engine: Engine, keys: list[object]) -> str:
        """Promise all of it, or say what is missing."""
        async with self._memory.lock:
            left = await self._memory.left(engine, ",".join(device for device in held if device) or NO_DEVICE)
            free = {MACHINE: left.machine.free_bytes, **{_device(r.device): r.free_bytes for r in left.devices}}
            for device, need in held.items():
                if need > (have := free.get(device, 0)):
                    where = f"on {device}" if device else "of this machine's memory"
                    return f"The host's part needs {size(need)}; {size(have)} {where} are free."
            for device, need_bytes in held.items():
                key = (self._run, device)
                self._memory.promise_bytes(key, device or None, need_bytes)
                keys.append(key)
        return ""

    # ------------------------------------------------------------------ experts

    async def _shard(self, plan: Shards, ready: Callable[[], None]) -> str:
        run = self._run
        files, engine = run.files, run.engine
        if files is None or engine is None:
            raise RuntimeError("a plan was made for a model without files")
        run.set_state(ModelState.LOADING, "Its part of the experts is being written.")
        made = await self._shards.make(
            plan,
            self._me,
            tuple(files.model.files),
            run.id,
            min_experts=self._min_experts(),
            say=lambda sentence: run.set_state(ModelState.LOADING, sentence),
        )
        self._view.sentence = f"{self._view.sentence} {made.sentence}".strip()
        part = await in_daemon_thread(lambda: check(made.path, files.projector), name="check shard")
        await self._take_part_memory(part, plan)
        self._view.shard = str(made.name)
        try:
            if run.fit is None:
                raise RuntimeError("memory was taken for nothing")
            await run.run_engine(whole_plan(run.id, part, run.fit, engine, self._memory, run.draft))
            ready()
            return await _gone(run)
        finally:
            await to_its_end(self._end_alone(), name="shard")

    async def _take_part_memory(self, part: ModelFiles, plan: Shards) -> None:
        """Raises: DoesNotFit."""
        run = self._run
        wanted = Wanted(run.request.context_tokens or plan.context_tokens, plan.slots, part.projector_bytes)
        async with self._memory.lock:
            rooms = await run.rooms()
            run.fit = fit_model(run.id, part.model.facts, wanted, rooms)
            if not run.fit.fits:
                raise DoesNotFit(run.refusal())
            self._memory.promise((run, "shard"), run.fit)
        names = (run.fit.room.device or MACHINE).split(",")
        self._hold(tuple((_device(name), run.fit.need.total // len(names)) for name in names))
        self._view.context_tokens, self._view.slots = run.fit.need.context_tokens, run.fit.need.slots


def _device(name: str | None) -> str:
    """As a record names it: the machine's memory is MACHINE."""
    return MACHINE if name in (None, NO_DEVICE) else name


def _last_of_host(plan: Split) -> str | None:
    """Where the plan has counted the draft: the host's last device, or its machine's memory."""
    return next((share.place.device for share in reversed(plan.shares) if share.place.is_host), None)


def _gone_future(run: ModelRun) -> asyncio.Future[str]:
    if run.engine_gone is None:
        raise RuntimeError("no engine was started")
    return run.engine_gone


async def _gone(run: ModelRun) -> str:
    """Why the engine ended, when it has."""
    return await asyncio.shield(_gone_future(run))


async def _outcome(work: Awaitable[None]) -> AgentMeshError | None:
    """How it went; what failed is a result, since nobody may be waiting for it any more."""
    try:
        await work
    except AgentMeshError as error:
        return error
    return None


def _row(status: WorkerStatus) -> WorkerRow:
    return WorkerRow(
        node=encode_id(status.worker),
        name=status.name,
        layers=status.layers,
        share_bytes=status.need_bytes,
        state=status.sentence,
        has_files=bool(status.same_files),
        round_trips=status.round_trips,
        sent_bytes=status.out_bytes,
        received_bytes=status.reply_bytes,
        referenced_bytes=status.referenced_bytes,
        overdue_s=round(status.overdue_s, 1),
        commands={
            name: (count.requests, count.round_trips, count.out_bytes, count.reply_bytes)
            for name, count in status.counts.items()
        },
    )
