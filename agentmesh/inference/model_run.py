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
from typing import Final, Protocol, TypeVar

from agentmesh.inference.engine.arguments import DEFAULT_POOLING, ServerPlan
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.process import EngineStatus
from agentmesh.inference.engine_questions import EngineSays
from agentmesh.inference.fetching import DownloadStopped, Fetcher, Located, ModelFiles, check
from agentmesh.inference.logic.capabilities import capabilities_of
from agentmesh.inference.logic.fit import Fit, Room, Wanted, batch_tokens, embeds, fit_model, size
from agentmesh.inference.logic.lifecycle import State
from agentmesh.inference.logic.target import EngineAddress, ServedModel
from agentmesh.inference.memory import MemoryBook
from agentmesh.inference.serving_types import DoesNotFit, LoadRequest, ModelState, ModelStatus, NotServed, Progress
from agentmesh.inference.threads import in_daemon_thread

_log = logging.getLogger(__name__)

T = TypeVar("T")

RECHECK_S: Final = 10.0  # how soon memory that another program freed is noticed
_MIB: Final = 1024 * 1024
MAX_PROMPT_CACHE_BYTES: Final = 8192 * _MIB  # llama-server's default, whatever the machine has
PROMPT_CACHE_SHARE: Final = (
    8  # of the machine's free memory, an eighth: a prompt that comes again is not computed again
)


class RunningEngine(Protocol):
    """An engine process; engine/process.py: EngineProcess."""

    @property
    def address(self) -> EngineAddress | None: ...

    @property
    def status(self) -> EngineStatus: ...

    async def start(self) -> None: ...

    async def wait_ready(self) -> None: ...

    async def stop(self, grace_s: float | None = None) -> None: ...


MakeEngine = Callable[[Engine, ServerPlan, Callable[[EngineStatus], None]], RunningEngine]


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
        self._says: EngineSays | None = None
        self._progress: Progress | None = None
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
        fit, offer = self.fit, self.offer()
        return ModelStatus(
            id=self.id,
            state=self.state,
            nodes=(node,),
            aliases=offer.aliases,
            reason=self.reason,
            memory=fit.sentence if fit is not None else "",
            progress=self._progress if self.state == ModelState.DOWNLOADING else None,
            need_bytes=fit.need.total if fit is not None else 0,
            have_bytes=fit.room.free_bytes if fit is not None else 0,
            size_bytes=offer.size_bytes,
            context_tokens=offer.context_tokens,
            slots=fit.need.slots if fit is not None else 0,
            capabilities=offer.capabilities,
            pid=self.process.status.pid if self.process is not None else None,
            flavour=self.engine.flavor if self.engine is not None else "",
            device=fit.room.device if fit is not None and fit.room.on_device else None,
        )

    def offer(self) -> ServedModel:
        """For the mesh and for routing."""
        located, files, fit, says = self.located, self.files, self.fit, self._says
        entry = located.entry if located is not None else None
        known = entry.capabilities if entry is not None else ()
        facts = files.model.facts if files is not None else None
        plan = located.plan if located is not None else None
        context = fit.need.context_tokens if fit is not None else 0
        slots = fit.need.slots if fit is not None else 1
        return ServedModel(
            id=self.id,
            aliases=located.aliases if located is not None else (),
            ready=self.state == ModelState.READY,
            context_tokens=says.context_tokens if says is not None and says.context_tokens else context,
            slots=says.slots if says is not None and says.slots else slots,
            capabilities=capabilities_of(
                facts, known, projector=files.projector is not None, embeddings=fit is not None and fit.need.embeddings
            )
            if facts is not None and files is not None
            else tuple(sorted(known)),
            parameters=facts.parameter_count if facts is not None else 0,
            size_bytes=facts.weight_bytes if facts is not None else plan.size_bytes if plan is not None else 0,
            sha256=self.sha256,
        )

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
            if not await self._take_memory():
                raise DoesNotFit(self._refusal())
            return
        rooms = await self._rooms()
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
        if not self._is_holding and not await self._take_memory():
            if not wait:
                raise DoesNotFit(self._refusal())
            await self._wait_for_memory()
        self.set_state(ModelState.LOADING)
        self.process = process = self._parts.make_engine(_sure(self.engine), self._plan(), self._engine_changed)
        self._changed(self)
        await process.start()
        await process.wait_ready()
        await self._became_ready()

    async def end(self, grace_s: float | None = None) -> None:
        """Stop the download and the engine, and give the memory back once the engine is gone. May be called again."""
        self._stop.set()
        if self.process is not None:
            await self.process.stop(grace_s)
            self.process = None
        self._is_holding = False
        self._parts.memory.release(self)
        self._changed(self)

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
        self._progress = Progress(0, what.size_bytes)
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
        self._progress = progress

    async def _check(self) -> None:
        located = _sure(self.located)
        file = _sure(located.file)
        self.files = await in_daemon_thread(lambda: check(file, located.projector), name="check model")
        self._changed(self)

    async def _rooms(self) -> list[Room]:
        return await self._parts.memory.rooms(_sure(self.engine), self.request.device, self.request.max_vram_bytes)

    async def _take_memory(self) -> bool:
        """Whether there is room; then it is promised to this model."""
        files = _sure(self.files)
        wanted = Wanted(self.request.context_tokens, self.request.slots, files.projector_bytes)
        async with self._parts.memory.lock:
            self.fit = fit_model(self.id, files.model.facts, wanted, await self._rooms())
            if self.fit.fits:
                self._parts.memory.promise(self, self.fit)
                self._is_holding = True
        self._changed(self)
        return self.fit.fits

    async def _wait_for_memory(self) -> None:
        self.set_state(ModelState.WAITING, self._refusal())
        self._parts.say(f"{self._refusal()} It is loaded as soon as there is room.")
        while True:
            await self._parts.memory.wait_freed(self._parts.recheck_s)
            if await self._take_memory():
                return
            self.reason = self._refusal()

    def _refusal(self) -> str:
        fit = _sure(self.fit)
        asked = self.request.context_tokens is not None or self.request.slots is not None
        advice = " Ask for a smaller context, or none." if asked else ""
        return f"{fit.sentence}.{advice} A smaller quantisation needs less; agentmesh unload NAME frees memory."

    def _plan(self) -> ServerPlan:
        files, fit, engine = _sure(self.files), _sure(self.fit), _sure(self.engine)
        facts, need = files.model.facts, fit.need
        is_embedding = embeds(facts)
        return ServerPlan(
            model=files.model.files[0],
            model_id=self.id,
            context_tokens=need.context_tokens * need.slots,
            slots=need.slots,
            device=fit.room.device,
            projector=files.projector,
            embeddings=need.embeddings,
            extra=self._extra(engine, fit, batch_tokens(facts, need.context_tokens) if is_embedding else None),
            # BERT-like files without a word on it mean the mean (llama.cpp's own default for them is none at all).
            pooling=None if facts.pooling_type else "mean" if is_embedding else DEFAULT_POOLING,
        )

    def _extra(self, engine: Engine, fit: Fit, batch: int | None) -> tuple[str, ...]:
        words: list[str] = []
        if batch is not None and {"--batch-size", "--ubatch-size"} <= engine.flags:
            words += ["--batch-size", str(batch), "--ubatch-size", str(batch)]
        if "--cache-ram" in engine.flags:
            share = self._parts.memory.machine_free_bytes() // PROMPT_CACHE_SHARE
            words += ["--cache-ram", str(min(share, MAX_PROMPT_CACHE_BYTES) // _MIB)]
        return tuple(words)

    async def _became_ready(self) -> None:
        process, fit = _sure(self.process), _sure(self.fit)
        self._parts.memory.settle(self, process.status.pid)
        try:
            self._says = await self._parts.ask_engine(_sure(process.address))
        except EngineFailed as error:  # it answers health; what it was told to do is believed then
            _log.warning("%s: %s", self.id, error.message)
        says, self._was_ready = self._says, True
        if says is not None and 0 < says.context_tokens < fit.need.context_tokens:
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
        elif status.state in (State.BACKOFF, State.STARTING, State.LOADING):
            self._parts.memory.unsettle(self)
            self.set_state(ModelState.LOADING, status.reason or self.reason)


def _sure(value: T | None) -> T:
    """What an earlier stage has set."""
    if value is None:
        raise RuntimeError("a stage was left out")
    return value
