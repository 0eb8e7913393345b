"""One model of this node, from its name to a running engine and back: the stages that docs/serving.md names.

    run = ModelRun(request, parts, changed)
    await run.locate(); await run.admit()      # what can be refused is refused here
    await run.serve(wait=False)                # download, check, make room, start; returns when it is ready
    await run.end()                            # nothing of it is left

Owns this model's state. The service owns which models there are; memory is memory.py's, processes are engine/process.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from agentmesh.inference.acceptance import Acceptance, acceptance
from agentmesh.inference.draft import NO_DRAFT, DraftChoice, Drafter, fit_with_draft
from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.process import EngineStatus
from agentmesh.inference.engine_questions import EngineSays
from agentmesh.inference.fetching import DownloadStopped, Fetcher, Located, ModelFiles, check
from agentmesh.inference.logic.drafting import DraftFlags
from agentmesh.inference.logic.fit import Fit, Room, Wanted, size
from agentmesh.inference.logic.lifecycle import State
from agentmesh.inference.logic.target import EngineAddress, ServedModel
from agentmesh.inference.memory import MemoryBook
from agentmesh.inference.run_types import MakeEngine, RunningEngine
from agentmesh.inference.run_views import offer_of, status_of
from agentmesh.inference.server_plan import whole_plan
from agentmesh.inference.serving_types import (
    DoesNotFit,
    LoadRequest,
    ModelState,
    ModelStatus,
    NotServed,
    Progress,
    ServesNothing,
    SplitFlags,
    SpreadView,
)
from agentmesh.inference.threads import in_daemon_thread

_log = logging.getLogger(__name__)

T = TypeVar("T")

RECHECK_S: Final = 10.0  # how soon memory that another program freed is noticed


@dataclass(frozen=True, slots=True)
class RunParts:
    """What a run works with; the same for all models of a node."""

    fetcher: Fetcher
    memory: MemoryBook
    find_engine: Callable[[], Awaitable[Engine]]
    make_engine: MakeEngine
    ask_engine: Callable[[EngineAddress], Awaitable[EngineSays]]
    say: Callable[[str], None]  # one line for the user
    recheck_s: float = RECHECK_S
    drafter: Drafter | None = None
    spread: Spread | None = None


class ModelRun:
    """See the module. `changed` is called after each change of what `status` and `offer` tell."""

    def __init__(self, request: LoadRequest, parts: RunParts, changed: Callable[[ModelRun], None]) -> None:
        self.request = request
        self.state = ModelState.RESOLVING
        self.reason = ""
        self.sha256 = ""
        self.process: RunningEngine | None = None
        self.engine: Engine | None = None
        self.located: Located | None = None
        self.files: ModelFiles | None = None
        self.fit: Fit | None = None
        self.draft: DraftChoice = NO_DRAFT
        self.accepted: Acceptance | None = None  # of what was drafted, when it was last looked
        self.spread: SpreadView | None = None  # while the mesh decides who runs it
        self.engine_gone: asyncio.Future[str] | None = None  # of the engine that was started last: why it ended
        self.hurried = False  # the node stops: what it runs ends soon, whatever others do
        self.says: EngineSays | None = None
        self.progress: Progress | None = None
        self._parts = parts
        self._changed = changed
        self._stop = threading.Event()
        self._is_holding = False
        self._was_ready = False

    # ------------------------------------------------------------------ what it is

    @property
    def id(self) -> str:
        """What the API calls it; until that is known, what the user wrote."""
        return self.located.id if self.located is not None else self.request.model

    def answers_to(self, name: str) -> bool:
        """Whether `name` is its id, one of its other names, or what the user wrote to load it."""
        written = str(Path(self.request.model).absolute())  # commands make paths whole
        names = (self.id, self.request.model, written, *(self.located.aliases if self.located is not None else ()))
        return name in names or name.lower() in (one.lower() for one in names)

    def status(self, node: str) -> ModelStatus:
        """For people and the management API. `node` is this node's id as they read it."""
        return status_of(self, node)

    def offer(self) -> ServedModel:
        """For the mesh and for routing."""
        return offer_of(self)

    # ------------------------------------------------------------------ stages

    async def locate(self) -> Located:
        """Find out which model is meant. Raises: see Fetcher.locate."""
        work = lambda: self._parts.fetcher.locate(self.request, self._stop)  # noqa: E731 - for a thread
        self.located = await self._unless_stopped(in_daemon_thread(work, name="locate model"))
        self._changed(self)
        return self.located

    async def admit(self) -> None:
        """Refuse what is sure not to work before anything is fetched or started; a model that is here gets its memory.

        Raises:
            DoesNotFit, ModelFileUnusable, EngineMissing and its kin.
        """
        self.engine = await self._parts.find_engine()
        located = _sure(self.located)
        if located.plan is None:
            await self._check()
            if self.request.split is not None:
                return
            if not await self.take_memory():
                raise DoesNotFit(self.refusal())
            return
        if self.request.split is not None:
            return
        rooms = await self.rooms()
        most = max(rooms, key=lambda room: room.free_bytes)
        if located.plan.size_bytes > most.free_bytes:
            raise DoesNotFit(
                f"{self.id} needs {size(located.plan.size_bytes)} for its weights alone; {size(most.free_bytes)} are free of "
                f"{size(most.total_bytes)}. Nothing was downloaded."
            )

    def begin(self) -> None:
        """Show, before `serve` runs, what it does first."""
        is_here = self.files is not None
        self.set_state(ModelState.LOADING if is_here else ModelState.DOWNLOADING)

    async def serve(self, *, wait: bool) -> None:
        """Bring the model to `ready`. `wait`: for memory, as long as it takes, instead of failing.

        Raises:
            AgentMeshError: what went wrong; what was started is ended by `end`.
        """
        self.engine = self.engine or await self._parts.find_engine()
        if self.files is None:
            await self._fetch()
            await self._check()
        if self.request.split is not None:
            await self._spread(self.request.split)
            return
        await self.find_draft()
        if not self._is_holding and not await self.take_memory():
            if not wait:
                raise DoesNotFit(self.refusal())
            await self._wait_for_memory()
        await self.run_engine(self.plan_alone())

    async def run_engine(self, plan: ServerPlan) -> None:
        """Start an engine; returns when it answers. Raises: EngineFailed: it will not."""
        self._was_ready = False
        self.engine_gone = asyncio.get_running_loop().create_future()
        self.set_state(ModelState.LOADING)
        self.process = process = self._parts.make_engine(_sure(self.engine), plan, self._engine_changed)
        self._changed(self)
        await process.start()
        await process.wait_ready()
        await self._became_ready()

    async def stop_engine(self, grace_s: float | None = None) -> None:
        """End the engine, if there is one, and give the memory back once it is gone. May be called again."""
        if self.process is not None:
            await self.process.stop(grace_s)
            self.process = None
        self._is_holding = False
        self.says = self.accepted = None
        self._parts.memory.release(self)
        self._changed(self)

    async def end(self, grace_s: float | None = None) -> None:
        """Stop the download and the engine, and give the memory back once the engine is gone. May be called again."""
        self._stop.set()
        await self.stop_engine(grace_s)

    def plan_alone(self) -> ServerPlan:
        """How the engine is started that has the whole model, by `fit`."""
        files, fit, engine = _sure(self.files), _sure(self.fit), _sure(self.engine)
        return whole_plan(self.id, files, fit, engine, self._parts.memory, self.draft)

    async def look(self) -> None:
        """Ask the engine how well the draft does, for status."""
        if self.draft.path is not None and self.state == ModelState.READY and self.process is not None:
            self.accepted = await acceptance(_sure(self.process.address))

    def set_state(self, state: ModelState, reason: str = "") -> None:
        """Enter a state and tell."""
        self.state, self.reason = state, reason
        self._changed(self)

    # ------------------------------------------------------------------ inside

    async def _fetch(self) -> None:
        located = _sure(self.located)
        what = located.plan
        if what is None:
            return
        self.progress = Progress(0, what.size_bytes)
        self.set_state(ModelState.DOWNLOADING)
        loop = asyncio.get_running_loop()

        def seen(done_bytes: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._downloaded, Progress(done_bytes, what.size_bytes))

        work = lambda: self._parts.fetcher.fetch(what, seen, self._stop)  # noqa: E731 - for a thread
        file, projector = await self._unless_stopped(in_daemon_thread(work, name="download model"))
        self.located = Located(located.id, file, projector, None, located.aliases, located.entry)

    async def _unless_stopped(self, work: Awaitable[T]) -> T:
        """The thread's result. One that is left behind because the caller was cancelled ends at its next step."""
        try:
            return await work
        except DownloadStopped:
            raise NotServed(f"{self.id} was unloaded meanwhile.") from None
        except asyncio.CancelledError:
            self._stop.set()
            raise

    def _downloaded(self, progress: Progress) -> None:
        self.progress = progress

    async def _check(self) -> None:
        located = _sure(self.located)
        file = _sure(located.file)
        self.files = await in_daemon_thread(lambda: check(file, located.projector), name="check model")
        self._changed(self)

    async def rooms(self) -> list[Room]:
        return await self._parts.memory.rooms(_sure(self.engine), self.request.device, self.request.max_vram_bytes)

    async def _spread(self, flags: SplitFlags) -> None:
        """Follow what the mesh plans for the model, for as long as it is loaded."""
        if self._parts.spread is None:
            raise ServesNothing()
        try:
            await self._parts.spread(self, flags)
        finally:
            self.spread = None

    async def find_draft(self) -> None:
        """Look for the model that drafts for this one. Raises: the user named one, and it cannot be had or does not match."""
        if self._parts.drafter is None:
            return
        located, files, request = _sure(self.located), _sure(self.files), self.request
        try:
            self.draft = await self._parts.drafter.find(
                request.draft or DraftFlags(),
                self.id,
                located.entry,
                files.model.files[0],
                engine=_sure(self.engine),
                is_split=request.split is not None,
                stop=self._stop,
                seen=self._downloaded,
                has_projector=files.projector is not None,
                context_tokens=request.context_tokens,
                slots=request.slots,
            )
        except DownloadStopped:
            raise NotServed(f"{self.id} was unloaded meanwhile.") from None
        if self.draft.model is not None and self._is_holding:  # its memory comes on top
            self._is_holding = False
            self._parts.memory.release(self)

    async def take_memory(self) -> bool:
        """Whether there is room; then it is promised to this model."""
        files = _sure(self.files)
        wanted = Wanted(self.request.context_tokens, self.request.slots, files.projector_bytes)
        async with self._parts.memory.lock:
            rooms = await self.rooms()
            self.fit, self.draft = fit_with_draft(self.draft, self.id, files.model.facts, wanted, rooms)
            if self.fit.fits:
                self._parts.memory.promise(self, self.fit)
                self._is_holding = True
        self._changed(self)
        return self.fit.fits

    async def _wait_for_memory(self) -> None:
        self.set_state(ModelState.WAITING, self.refusal())
        self._parts.say(f"{self.refusal()} It is loaded as soon as there is room.")
        while True:
            await self._parts.memory.wait_freed(self._parts.recheck_s)
            if await self.take_memory():
                return
            self.reason = self.refusal()

    def refusal(self) -> str:
        """Why there is no room for it."""
        fit = _sure(self.fit)
        asked = self.request.context_tokens is not None or self.request.slots is not None
        advice = " Ask for a smaller context, or none." if asked else ""
        return f"{fit.sentence}.{advice} A smaller quantisation needs less; agentmesh unload NAME frees memory."

    async def _became_ready(self) -> None:
        process = _sure(self.process)
        self._parts.memory.settle(self, process.status.pid)
        try:
            self.says = await self._parts.ask_engine(_sure(process.address))
        except EngineFailed as error:  # it answers health; what it was told to do is believed then
            _log.warning("%s: %s", self.id, error.message)
        says, self._was_ready = self.says, True
        planned = self.fit.need.context_tokens if self.fit is not None else 0
        if says is not None and 0 < says.context_tokens < planned:
            # llama-server gives a request no more than the model was trained for, whatever was asked for.
            self._parts.say(
                f"{self.id}: the engine gives {says.context_tokens:,} tokens of context a request, no more."
            )
        if process.status.state == State.READY:
            self.set_state(ModelState.READY)

    def _engine_changed(self, status: EngineStatus) -> None:
        """Called by the process at each change of its state, on the loop."""
        if self.process is None or self.state not in (ModelState.LOADING, ModelState.READY):
            return
        gone = self.engine_gone
        if gone is not None and not gone.done() and status.state in (State.BACKOFF, State.FAILED):
            gone.set_result(status.reason or "The engine ended.")
        if not self._was_ready:  # `serve` waits for it and says what went wrong
            self._changed(self)
        elif status.state == State.READY:
            self._parts.memory.settle(self, status.pid)
            self.set_state(ModelState.READY)
        elif status.state == State.FAILED:
            self._is_holding = False
            self._parts.memory.release(self)
            self.set_state(ModelState.FAILED, status.reason)
            self._parts.say(f"{self.id} failed: {status.reason}")
        elif status.state is State.BACKOFF and self.spread is not None:
            pass  # whoever runs the split was told, and starts it anew with workers that are there
        elif status.state in (State.BACKOFF, State.STARTING, State.LOADING):
            self._parts.memory.unsettle(self)
            self.set_state(ModelState.LOADING, status.reason or self.reason)


Spread = Callable[[ModelRun, SplitFlags], Awaitable[None]]
"""Follows what the mesh plans for a model, until it is cancelled. split/spread.py."""


def _sure(value: T | None) -> T:
    """What an earlier stage has set."""
    if value is None:
        raise RuntimeError("a stage was left out")
    return value
