"""The models that this node serves: loading, unloading, remembering them, and what others are told of them.

    service = ModelService(home, node, settings, ...)
    await service.start()              # what --model names and what was loaded before, in the background
    status = await service.load(LoadRequest("7b"))
    await service.unload("7b")         # returns when its engine is gone
    await service.stop()

Owns which models there are; each one's own state is model_run.py's. Owner: the event loop. States and events: docs/serving.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agentmesh.core.errors import AgentMeshError, StorageError
from agentmesh.core.paths import Home
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.draft import Drafter
from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.engine import Engine, EngineSearch
from agentmesh.inference.engine.leftovers import cleanup_leftovers
from agentmesh.inference.engine.probe import devices_now, resolve_engine
from agentmesh.inference.engine.process import EngineProcess, EngineStatus
from agentmesh.inference.engine_questions import EngineSays, ask_serving
from agentmesh.inference.fetching import Fetcher, ModelSources, catalog_names
from agentmesh.inference.logic.model_files import log_name
from agentmesh.inference.logic.target import EngineAddress, ServedModel, Target
from agentmesh.inference.memory import DevicesNow, Machine, MemoryBook
from agentmesh.inference.model_run import RECHECK_S, ModelRun, RunParts, Spread
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.models.identity import FileIdentities, Stopped
from agentmesh.inference.remembered import FILE_NAME, Remembered
from agentmesh.inference.run_types import MakeEngine, RunningEngine
from agentmesh.inference.serving_types import (
    MAX_SERVED,
    AlreadyServed,
    LoadRequest,
    ModelState,
    ModelStatus,
    NotServed,
    ServesNothing,
    TooManyModels,
)
from agentmesh.inference.settings import ServeSettings
from agentmesh.inference.threads import in_daemon_thread
from agentmesh.mesh.identity import encode_id

_log = logging.getLogger(__name__)

UNEXPECTED: Final = "It failed in a way that nobody expected; the node's log says more."
# Told to the mesh and to routing: whatever is, or will be, served.
_OFFERED: Final = (ModelState.DOWNLOADING, ModelState.WAITING, ModelState.LOADING, ModelState.READY)


class ModelService:
    """See the module.

    Args:
        node: this node's key.
        sources: who tells and gives models; None: the hub only.
        say: told one line for the user when a model waits or fails.
        on_ready: told of each model that became ready, e.g. to print how agents use it.
        spread: follows the mesh's plans for a model that is to be spread; None: every model is this node's alone.
        find_engine, make_engine, ask, devices, machine, recheck_s: replaced in tests.
    """

    def __init__(
        self,
        home: Home,
        node: bytes,
        settings: ServeSettings,
        *,
        sources: ModelSources | None = None,
        say: Callable[[str], None] = _log.info,
        on_ready: Callable[[ServedModel], None] = lambda _model: None,
        spread: Spread | None = None,
        find_engine: Callable[[], Awaitable[Engine]] | None = None,
        make_engine: MakeEngine | None = None,
        ask: Callable[[EngineAddress], Awaitable[EngineSays]] = ask_serving,
        devices: DevicesNow = devices_now,
        machine: Machine | None = None,
        recheck_s: float = RECHECK_S,
    ) -> None:
        self._home = home
        self._node = node
        self._settings = settings
        self._say = say
        self._on_ready = on_ready
        self._find_engine = find_engine or self._resolve_engine
        self.memory = MemoryBook(devices, machine, settings.max_vram_bytes)
        fetcher = Fetcher(sources)
        self._drafter = Drafter(fetcher)
        self._parts = RunParts(
            fetcher=fetcher,
            memory=self.memory,
            find_engine=self._find_engine,
            make_engine=make_engine or self._make_engine,
            ask_engine=ask,
            say=say,
            recheck_s=recheck_s,
            drafter=self._drafter,
            spread=spread,
        )
        self._remembered = Remembered(home.root / FILE_NAME)
        self._identities = FileIdentities.of_home(home)
        self._hashing = asyncio.Lock()  # one file at a time: a disk has one head, or as good as
        self._runs: list[ModelRun] = []
        self._again: set[ModelRun] = set()  # brought back by this start: the command line goes before them
        self._work: dict[ModelRun, asyncio.Task[None]] = {}
        self._tasks = TaskSet("models")
        self._listeners: list[Callable[[], None]] = []
        self._last_states: dict[ModelRun, ModelState] = {}
        self._is_stopping = False

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """End what a killed node left behind, then begin with what the command line names and what was loaded before."""
        if self._settings.no_engine:
            return
        await in_daemon_thread(lambda: cleanup_leftovers(self._engine_folder), name="engines left behind")
        how, written = self._settings, [(one, False) for one in self._settings.models]
        written += [(one, True) for one in self._settings.ggufs]
        named = [LoadRequest(name, is_path=is_path, split=how.split, draft=how.draft) for name, is_path in written]
        seen = {(request.model, request.is_path) for request in named}
        remembered = self._remembered.load()
        again = [one for one in remembered if self._settings.again and (one.model, one.is_path) not in seen]
        if remembered and not self._settings.again:
            _log.info("not loaded again, for nobody asked: %s", ", ".join(one.model for one in remembered))
        for number, request in enumerate((*named, *again)[:MAX_SERVED]):
            run = self._new_run(request)
            if number >= len(named):
                self._again.add(run)
            self._work[run] = self._tasks.spawn(
                self._serve_from_start(run, is_named=number < len(named)), name=f"serve {request.model}"
            )

    async def stop(self, grace_s: float | None = None) -> None:
        """End every engine, each within `grace_s` of being asked to (None: the engines' own grace). What is remembered stays."""
        self._is_stopping = True
        await asyncio.gather(*(self._end(run, grace_s) for run in list(self._runs)), return_exceptions=True)
        await self._tasks.close()
        await self._drafter.close()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change of what the methods below tell."""
        self._listeners.append(listener)

    # ------------------------------------------------------------------ what users ask

    async def load(self, request: LoadRequest) -> ModelStatus:
        """Serve a model and remember it. Returns when it is admitted: it is being fetched or loaded then.

        Raises:
            ServesNothing, AlreadyServed, TooManyModels, DoesNotFit, ModelFileUnusable, EngineMissing, UnknownModel, HubError…:
                it is refused; nothing was changed.
        """
        if self._settings.no_engine or self._is_stopping:
            raise ServesNothing()
        run = self._new_run(request)
        try:
            await run.locate()
            await self._make_way(run)
            await run.admit()
            if run not in self._runs:
                raise NotServed(f"{run.id} was unloaded while it was looked at.")
        except BaseException:
            await self._remove(run)
            raise
        run.begin()
        self._work[run] = self._tasks.spawn(self._serve(run), name=f"serve {run.id}")
        status = run.status(encode_id(self._node))
        try:
            self._remembered.remember(run.id, request)
        except StorageError as error:
            _log.warning("%s", error.message)
            self._say(error.message)
        return status

    async def unload(self, name: str) -> str:
        """End a model and free its memory; returns its id when its engine is gone. It is loaded again at the next start.

        Raises:
            NotServed: there is no such model here.
        """
        run = self._find(name)
        await self._end(run)
        return run.id

    async def drop(self, name: str) -> str:
        """Unload a model and forget it across restarts.

        Raises:
            NotServed: it is neither served nor remembered. StorageError: it is unloaded, but could not be forgotten.
        """
        try:
            found = await self.unload(name)
        except NotServed:
            forgotten = [self._remembered.forget(one) for one in (name, *catalog_names(name))]
            if True not in forgotten:
                raise
            return name
        for one in dict.fromkeys((found, name)):
            self._remembered.forget(one)
        return found

    async def look(self) -> None:
        """Ask the engines what only they know, before `status`. Bounded by a second; what does not answer stays as it was."""
        await asyncio.gather(*(run.look() for run in self._runs))

    def status(self) -> list[ModelStatus]:
        """Every model of this node, in the order in which they came."""
        node = encode_id(self._node)
        return [run.status(node) for run in self._runs]

    def processes(self) -> list[tuple[str, EngineStatus, EngineAddress | None]]:
        """(model, state, address) of every engine."""
        return [(run.id, run.process.status, run.process.address) for run in self._runs if run.process is not None]

    # ------------------------------------------------------------------ what other parts ask

    def targets(self) -> list[Target]:
        """This node's own engines for routing, ready or not."""
        return [
            Target(self._node, run.offer(), run.process.address if run.process is not None else EngineAddress())
            for run in self._runs
            if run.state in _OFFERED
        ]

    def offers(self) -> tuple[ServedModel, ...]:
        """What this node serves or is about to, for the mesh."""
        return tuple(run.offer() for run in self._runs if run.state in _OFFERED)

    @property
    def runs(self) -> Sequence[ModelRun]:
        """Every model, in whatever state, for unready.py."""
        return self._runs

    def files(self) -> list[Path]:
        """The files of every model here, with which members may be helped out."""
        here = [run.files for run in self._runs if run.files is not None]
        return [file for files in here for file in (*files.model.files, files.projector) if file is not None]

    @property
    def identities(self) -> FileIdentities:
        """What is in files, remembered."""
        return self._identities

    async def engine(self) -> Engine | None:
        """The engine that models run on, None when there is none."""
        if self._settings.no_engine:
            return None
        try:
            return await self._find_engine()
        except AgentMeshError:
            return None

    # ------------------------------------------------------------------ inside

    @property
    def _engine_folder(self) -> Path:
        return self._home.run / "engines"

    async def _resolve_engine(self) -> Engine:
        settings = self._settings
        return await resolve_engine(EngineSearch(settings.bin_dir, self._home, settings.llama_flavor, os.environ))

    def _make_engine(
        self, engine: Engine, plan: ServerPlan, on_change: Callable[[EngineStatus], None]
    ) -> RunningEngine:
        log = self._home.logs / f"engine-{log_name(plan.model_id)}.log"
        return EngineProcess(engine, plan, folder=self._engine_folder, log=log, on_change=on_change)

    def _new_run(self, request: LoadRequest) -> ModelRun:
        if len(self._runs) >= MAX_SERVED:
            raise TooManyModels()
        settings = self._settings
        run = ModelRun(
            msgspec.structs.replace(
                request,
                context_tokens=request.context_tokens or settings.context_tokens,
                device=request.device or settings.device,
            ),
            self._parts,
            self._run_changed,
        )
        self._runs.append(run)
        return run

    def _find(self, name: str) -> ModelRun:
        candidates = [run for run in self._runs if run.answers_to(name)]
        candidates += [run for key in catalog_names(name) for run in self._runs if run.id == key]
        if not candidates:
            there = ", ".join(run.id for run in self._runs)
            raise NotServed(f"This node serves no '{name}'. It serves: {there or 'nothing'}.")
        return min(candidates, key=lambda run: run.state == ModelState.FAILED)

    async def _make_way(self, run: ModelRun, *, is_named: bool = False) -> None:
        """See that no other model has this one's id. One that has failed gives way; to one that the command line names, also
        one that was only brought back.

        Raises:
            AlreadyServed
        """
        known = [one for one in self._runs if one is not run and one.located is not None]
        for other in [one for one in known if one.id.lower() == run.id.lower()]:
            if other.state == ModelState.FAILED or (is_named and other in self._again):
                await self._end(other)
                continue
            file = other.located.file if other.located is not None else None
            what = f"from {file}, " if file is not None else ""
            raise AlreadyServed(
                f"A model with the id '{other.id}' is served here already ({what}{other.state}). "
                f"To load another file or other settings under this id, first run: agentmesh unload {other.id}"
            )

    async def _serve_from_start(self, run: ModelRun, *, is_named: bool) -> None:
        """A model of the command line, or one that is remembered: it waits for memory, and its failure stays visible."""
        try:
            await run.locate()
            await self._make_way(run, is_named=is_named)
        except AgentMeshError as error:
            if not is_named and isinstance(error, AlreadyServed):  # what the user named this time counts
                await self._remove(run)
                return
            await self._failed(run, error)
            return
        except Exception:  # noqa: BLE001 - the root of a task; else it would look as if it were still coming
            _log.exception("%s: looking for it failed", run.id)
            await self._failed(run, AgentMeshError(UNEXPECTED))
            return
        await self._serve(run, wait=True)

    async def _serve(self, run: ModelRun, *, wait: bool = False) -> None:
        try:
            await run.serve(wait=wait)
        except AgentMeshError as error:
            await self._failed(run, error)
            return
        except Exception:  # noqa: BLE001 - the root of a task; else it would look as if it were still coming
            _log.exception("%s: serving it failed", run.id)
            await self._failed(run, AgentMeshError(UNEXPECTED))
            return
        _log.info("%s is ready: %s", run.id, run.fit.sentence if run.fit is not None else "")
        self._tasks.spawn(self._identify(run), name=f"hash {run.id}")

    async def _failed(self, run: ModelRun, error: AgentMeshError) -> None:
        await run.end()
        run.set_state(ModelState.FAILED, error.message)
        self._say(f"{run.id} could not be served: {error.message}")

    async def _identify(self, run: ModelRun) -> None:
        """The file's SHA-256, for peers that want to know whether they have the same."""
        file = run.files.model.files[0] if run.files is not None else None
        if file is None:
            return
        with contextlib.suppress(ModelFileUnusable, Stopped):
            async with self._hashing:
                run.sha256 = (await self._identities.identify(file)).sha256
            self._tell()

    async def _end(self, run: ModelRun, grace_s: float | None = None) -> None:
        """Whatever it is doing, it ends; returns when nothing of it is left. Safe to call twice at once."""
        run.hurried = run.hurried or grace_s is not None
        run.set_state(ModelState.STOPPING)
        work = self._work.get(run)
        if work is not None and work is not asyncio.current_task():
            work.cancel()
            await asyncio.wait([work])
        await self._remove(run, grace_s)

    async def _remove(self, run: ModelRun, grace_s: float | None = None) -> None:
        try:
            await run.end(grace_s)
        finally:
            self._work.pop(run, None)
            self._last_states.pop(run, None)
            self._again.discard(run)
            if run in self._runs:
                self._runs.remove(run)
            self._tell()

    def _run_changed(self, run: ModelRun) -> None:
        before, self._last_states[run] = self._last_states.get(run), run.state
        if run.state == ModelState.READY and before != ModelState.READY:
            self._on_ready(run.offer())
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
