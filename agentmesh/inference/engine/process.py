"""One engine of this node, kept running: drives logic/lifecycle.py with real processes.

    engine = EngineProcess(engine, plan, folder=home.run / "engines", log=home.logs / "engine-x.log", on_change=seen)
    await engine.start()
    await engine.wait_ready()          # engine.address answers now
    await engine.stop()                # nothing of it is left

Owns the task that handles the engine's events, one at a time, and the engine's address.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.engine.address import choose_address, prepare_folder, release_address, unique_name
from agentmesh.inference.engine.arguments import ServerPlan, engine_environment, server_arguments
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.guarded import SPAWN_TIMEOUT_S, Guarded
from agentmesh.inference.engine.health import Progress, is_healthy
from agentmesh.inference.engine.log_tail import last_lines
from agentmesh.inference.logic.engine_end import end_message
from agentmesh.inference.logic.lifecycle import (
    DEFAULT_LIMITS,
    Abandon,
    Effect,
    Event,
    Exited,
    GroupSignal,
    HealthAnswered,
    HealthFailed,
    Lifecycle,
    LifecycleLimits,
    Probe,
    ProgressSeen,
    Report,
    SignalGroup,
    Spawn,
    SpawnFailed,
    SpawnSucceeded,
    StartRequested,
    State,
    StopRequested,
    TimePassed,
)
from agentmesh.inference.logic.target import EngineAddress

_log = logging.getLogger(__name__)

LOG_LINES_READ: Final = 200  # looked at for why an engine ended
MAX_EVENTS: Final = 1_024  # waiting; a handful is usual, and each is answered in microseconds
STOP_MARGIN_S: Final = 5.0  # beyond what the lifecycle allows itself for an end
PROGRESS_EVERY_S: Final = 1.0  # a look at all processes costs milliseconds
_RESTING: Final = (State.STOPPED, State.FAILED)


@dataclass(frozen=True)
class EngineStatus:
    """What others see of an engine.

    Attributes:
        state: of `State`.
        pid: of the engine itself; None when there is none.
        reason: why it is in this state, in sentences for a user; of a failure with the log's last lines. May be empty.
        since: when the state began, in seconds since 1970.
        restarts: in a row, after it had been ready.
    """

    state: State
    pid: int | None
    reason: str
    since: float
    restarts: int


def _ignore(_status: EngineStatus) -> None:
    """Nobody watches."""


class EngineProcess:
    """One engine; see the module. All methods are for the loop that `start` was called on."""

    def __init__(
        self,
        engine: Engine,
        plan: ServerPlan,
        *,
        folder: Path,
        log: Path,
        limits: LifecycleLimits = DEFAULT_LIMITS,
        on_change: Callable[[EngineStatus], None] = _ignore,
    ) -> None:
        """`folder` holds the socket and the pid record; it is created with mode 0700. Neither it nor the log's may be shared."""
        self.status = EngineStatus(State.STOPPED, None, "", time.time(), 0)
        self.address: EngineAddress | None = None  # where it listens or will; set from the first start on
        self._engine = engine
        self._plan = plan
        self._folder = folder
        self._log_path = log
        self._limits = limits
        self._lifecycle = Lifecycle(limits)
        self._on_change = on_change
        self._name = unique_name()
        self._events: asyncio.Queue[Event] = asyncio.Queue(MAX_EVENTS)
        self._tasks: TaskSet | None = None
        self._guarded: Guarded | None = None
        self._progress: Progress | None = None
        self._look_s = 0.0  # when progress is looked for next
        self._is_probing = False
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Begin to run the engine, unless it does already; what comes of it is in `status`."""
        if self._lifecycle.state not in _RESTING:
            return
        if self._tasks is not None:
            await self._tasks.close()
        self._tasks = TaskSet(f"engine {self._plan.model_id}")
        self._events = asyncio.Queue(MAX_EVENTS)
        self._handle(StartRequested())
        self._tasks.spawn(self._run(), name="life")

    async def wait_ready(self) -> None:
        """Return when it answers.

        Raises:
            EngineFailed: it will not, without another `start`; the message holds the log's last lines.
        """
        while self.status.state is not State.READY:
            if self.status.state in _RESTING:
                raise EngineFailed(self.status.reason or "The engine was stopped.")
            await self._changed.wait()

    async def stop(self, grace_s: float | None = None) -> None:
        """End it: SIGTERM, SIGKILL after the grace. Returns when nothing of it is left, or the kernel does not let go of it."""
        grace_ms = self._limits.grace_ms if grace_s is None else int(grace_s * 1000)
        if self._lifecycle.state in _RESTING:
            self._handle(StopRequested(grace_ms))
        else:
            self._events.put_nowait(StopRequested(grace_ms))
            allowed_s = SPAWN_TIMEOUT_S + (grace_ms + self._limits.abandon_ms) / 1000 + STOP_MARGIN_S
            try:
                async with asyncio.timeout(allowed_s):
                    while self.status.state not in _RESTING:
                        await self._changed.wait()
            except TimeoutError:
                _log.error("engine of %s did not end within %s s", self._plan.model_id, allowed_s)
        if self._tasks is not None:
            await self._tasks.close()

    def log_lines(self, count: int) -> list[str]:
        """The last lines of its log."""
        return last_lines(self._log_path, count)

    # ------------------------------------------------------------------ the one task that decides

    async def _run(self) -> None:
        while self._lifecycle.state not in _RESTING:
            self._handle(await self._next_event())

    async def _next_event(self) -> Event:
        wake_ms = self._lifecycle.next_wake_ms()
        if wake_ms is None:
            return await self._events.get()
        try:
            async with asyncio.timeout(max(0.0, (wake_ms - _now_ms()) / 1000)):
                return await self._events.get()
        except TimeoutError:
            return TimePassed()

    def _handle(self, event: Event) -> None:
        for effect in self._lifecycle.handle(event, _now_ms()):
            self._apply(effect)

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Report():
                self._report(effect)
            case Spawn() if self._tasks is not None:
                self._tasks.spawn(self._live(), name="process")
            case Probe() if self._tasks is not None and not self._is_probing:
                self._is_probing = True
                self._tasks.spawn(self._probe(), name="probe")
            case SignalGroup() if self._guarded is not None:
                if effect.signal is GroupSignal.KILL:
                    self._guarded.kill()
                else:
                    self._guarded.terminate(effect.grace_ms)
            case Abandon() if self._tasks is not None and self._guarded is not None:
                self._guarded.let_go()
            case _:
                pass

    def _report(self, report: Report) -> None:
        life = self._lifecycle
        self.status = EngineStatus(report.state, life.pid, report.reason, time.time(), life.restarts)
        _log.info(
            "engine of %s: %s%s", self._plan.model_id, report.state, f" ({report.reason})" if report.reason else ""
        )
        self._changed.set()
        self._changed = asyncio.Event()
        self._on_change(self.status)

    # ------------------------------------------------------------------ what it has done

    async def _live(self) -> None:
        """One process, from its start to its end."""
        try:
            guarded = await self._start_process()
        except AgentMeshError as error:
            self._events.put_nowait(SpawnFailed(error.message))
            return
        self._guarded = guarded
        self._progress = Progress(guarded.pid, self._log_path)
        self._events.put_nowait(SpawnSucceeded(guarded.pid))
        end = await guarded.ended()
        self._guarded = None
        if self.address is not None:
            release_address(self.address)
        lines = last_lines(self._log_path, LOG_LINES_READ, since_bytes=guarded.log_began_bytes)
        self._events.put_nowait(Exited(end_message(end, lines, str(self._log_path))))

    async def _start_process(self) -> Guarded:
        prepare_folder(self._folder)
        prepare_folder(self._log_path.parent)
        self.address = choose_address(self._engine, self._folder, self._name)
        release_address(self.address)  # what a killed one left
        command = [*self._engine.command, *server_arguments(self._engine, self._plan, self.address)]
        environment = engine_environment(os.environ, self.address)
        return await Guarded.start(command, environment, folder=self._folder, name=self._name, log=self._log_path)

    async def _probe(self) -> None:
        guarded, progress, address = self._guarded, self._progress, self.address
        try:
            if guarded is None or progress is None or address is None:
                return
            healthy = await is_healthy(address)
            if guarded is not self._guarded:  # about a process that has ended meanwhile
                return
            now_s = _now_ms() / 1000
            if not healthy and now_s >= self._look_s:
                self._look_s = now_s + min(PROGRESS_EVERY_S, self._limits.stall_ms / 1000 / 4)
                if progress.seen() or (self._plan.is_owed is not None and self._plan.is_owed()):
                    self._events.put_nowait(ProgressSeen())
            self._events.put_nowait(HealthAnswered() if healthy else HealthFailed())
        finally:
            self._is_probing = False


def _now_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)
