"""The life of one engine: when it is started, given up, restarted and ended. Pure; engine/process.py drives it.

    effects = lifecycle.handle(event, now_ms)      # events: what happened; effects: what is to be done

Owns the state of one engine; knows no process, no file and no clock. States and rules: docs/engine-processes.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from agentmesh.core.units import HOUR_MS, MINUTE_MS, SECOND_MS


class State(StrEnum):
    """Where an engine is in its life."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


class GroupSignal(StrEnum):
    """What a process group is sent."""

    TERM = "term"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class LifecycleLimits:
    """The bounds of an engine's life.

    Attributes:
        stall_ms: without an answer or any sign of progress, until an engine is given up.
        loading_ms: of loading in all, progress or not.
        probe_loading_ms: between questions for health while it loads; how late "ready" is noticed at most.
        probe_ready_ms: the same while it is ready.
        backoff_ms: before the first restart; it doubles.
        backoff_max_ms: between restarts.
        restarts: in a row.
        stable_ms: ready for so long clears the count of restarts.
        grace_ms: between SIGTERM and SIGKILL.
        abandon_ms: after SIGKILL, until a process that is still there is given up.
    """

    stall_ms: int = 60 * SECOND_MS
    loading_ms: int = 6 * HOUR_MS
    probe_loading_ms: int = 100
    probe_ready_ms: int = 5 * SECOND_MS
    backoff_ms: int = 1 * SECOND_MS
    backoff_max_ms: int = 60 * SECOND_MS
    restarts: int = 5
    stable_ms: int = 5 * MINUTE_MS
    grace_ms: int = 5 * SECOND_MS
    abandon_ms: int = 10 * SECOND_MS


DEFAULT_LIMITS: Final = LifecycleLimits()

# ------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class StartRequested:
    """The owner wants the engine to run."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The owner wants it to end; a second one may shorten the grace."""

    grace_ms: int | None = None  # None: the limits'


@dataclass(frozen=True, slots=True)
class SpawnSucceeded:
    """The engine's process runs."""

    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """No process could be started, and none is there."""

    reason: str


@dataclass(frozen=True, slots=True)
class HealthAnswered:
    """It said that it can take requests."""


@dataclass(frozen=True, slots=True)
class HealthFailed:
    """It did not answer, or said that it is not ready."""


@dataclass(frozen=True, slots=True)
class ProgressSeen:
    """It used CPU time or wrote to its log since the last look."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The process has ended, and all that it left behind."""

    reason: str


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened; timers are looked at."""


Event = (
    StartRequested
    | StopRequested
    | SpawnSucceeded
    | SpawnFailed
    | HealthAnswered
    | HealthFailed
    | ProgressSeen
    | Exited
    | TimePassed
)

# ------------------------------------------------------------------ effects


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process; answer with SpawnSucceeded or SpawnFailed."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask for its health and look for progress; answer with events."""


@dataclass(frozen=True, slots=True)
class SignalGroup:
    """Send this to the process and all that it started."""

    signal: GroupSignal
    grace_ms: int = 0  # with TERM: when KILL will follow; for whoever can do that without being told again


@dataclass(frozen=True, slots=True)
class Abandon:
    """It cannot be ended: let go of it. No Exited is needed any more."""


@dataclass(frozen=True, slots=True)
class Report:
    """The state or its reason changed."""

    state: State
    reason: str


Effect = Spawn | Probe | SignalGroup | Abandon | Report


@dataclass
class Lifecycle:
    """One engine's state; see the module."""

    limits: LifecycleLimits = DEFAULT_LIMITS
    state: State = State.STOPPED
    reason: str = ""
    pid: int | None = None
    since_ms: int = 0  # when this state began
    restarts: int = 0  # in a row
    _was_ready: bool = False  # since StartRequested
    _silent_ms: int | None = None  # the first question without an answer since the last sign of life
    _probe_ms: int = 0  # the next question for health
    _again_ms: int = 0  # BACKOFF: the next start
    _kill_ms: int | None = None  # STOPPING: when SIGKILL is due; None: it was sent
    _abandon_ms: int = 0  # STOPPING, after SIGKILL
    _stop_wanted: bool = False  # STARTING: stop as soon as there is something to stop; STOPPING: not to fail or restart
    _grace_ms: int = 0
    _ending_reason: str = ""  # STOPPING without _stop_wanted: why we ended it
    _abandoned: bool = False
    _effects: list[Effect] = field(default_factory=list[Effect])

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Take one event in; what is to be done about it, in order. `now_ms` never goes back."""
        self._effects = []
        match event:
            case StartRequested():
                self._on_start(now_ms)
            case StopRequested():
                self._on_stop(event, now_ms)
            case SpawnSucceeded():
                self._on_spawned(event, now_ms)
            case SpawnFailed():
                self._on_spawn_failed(event, now_ms)
            case HealthAnswered():
                self._on_healthy(now_ms)
            case HealthFailed() if self._silent_ms is None:
                self._silent_ms = now_ms
            case ProgressSeen():
                self._silent_ms = None
            case Exited():
                self._on_exit(event, now_ms)
            case HealthFailed() | TimePassed():
                pass
        self._on_time(now_ms)
        effects, self._effects = self._effects, []
        return effects

    def next_wake_ms(self) -> int | None:
        """When TimePassed is due, if nothing else happens; None: not at all."""
        match self.state:
            case State.LOADING | State.READY:
                return self._probe_ms
            case State.BACKOFF:
                return self._again_ms
            case State.STOPPING:
                return self._abandon_ms if self._kill_ms is None else self._kill_ms
            case _:
                return None

    @property
    def has_process(self) -> bool:
        """Whether there may be a process now."""
        return self.state in (State.STARTING, State.LOADING, State.READY, State.STOPPING)

    # ------------------------------------------------------------------ events

    def _on_start(self, now_ms: int) -> None:
        if self._abandoned or self.state not in (State.STOPPED, State.FAILED):
            return
        self._was_ready = self._stop_wanted = False
        self.restarts = 0
        self._spawn("", now_ms)

    def _on_stop(self, event: StopRequested, now_ms: int) -> None:
        self._grace_ms = self.limits.grace_ms if event.grace_ms is None else event.grace_ms
        match self.state:
            case State.STARTING:
                self._stop_wanted = True
            case State.LOADING | State.READY:
                self._stop_wanted = True
                self._end(self._grace_ms, "", now_ms)
            case State.STOPPING:
                self._stop_wanted = True
                if self._kill_ms is not None:
                    self._kill_ms = min(self._kill_ms, now_ms + self._grace_ms)
            case State.BACKOFF | State.FAILED:
                self._become(State.STOPPED, "", now_ms)
            case State.STOPPED:
                pass

    def _on_spawned(self, event: SpawnSucceeded, now_ms: int) -> None:
        if self.state is not State.STARTING:
            return
        self.pid = event.pid
        self._silent_ms = None
        if self._stop_wanted:
            self._end(self._grace_ms, "", now_ms)
            return
        self._probe_ms = now_ms
        self._become(State.LOADING, "", now_ms)

    def _on_spawn_failed(self, event: SpawnFailed, now_ms: int) -> None:
        if self.state is State.STARTING:
            self._ended(event.reason, now_ms)

    def _on_healthy(self, now_ms: int) -> None:
        self._silent_ms = None
        if self.state is State.LOADING:
            self._was_ready = True
            self._probe_ms = now_ms + self.limits.probe_ready_ms
            self._become(State.READY, "", now_ms)

    def _on_exit(self, event: Exited, now_ms: int) -> None:
        if self.has_process:
            self._ended(self._ending_reason or event.reason, now_ms)

    def _on_time(self, now_ms: int) -> None:
        match self.state:
            case State.LOADING | State.READY:
                self._look_after(now_ms)
            case State.BACKOFF if now_ms >= self._again_ms:
                self._spawn(self.reason, now_ms)
            case State.STOPPING:
                self._press_on(now_ms)
            case _:
                pass

    # ------------------------------------------------------------------ what follows

    def _look_after(self, now_ms: int) -> None:
        """Of an engine that runs: probes, and patience that ends."""
        if self.state is State.READY and now_ms - self.since_ms >= self.limits.stable_ms:
            self.restarts = 0
        silent_ms = 0 if self._silent_ms is None else now_ms - self._silent_ms
        if silent_ms >= self.limits.stall_ms:
            what = "became ready" if self.state is State.LOADING else "answered"
            reason = f"It never {what}: for {silent_ms // SECOND_MS} s it used no CPU time and wrote no log."
            self._end(self.limits.grace_ms, reason, now_ms)
        elif self.state is State.LOADING and now_ms - self.since_ms >= self.limits.loading_ms:
            reason = f"It was still loading after {self.limits.loading_ms // MINUTE_MS} minutes."
            self._end(self.limits.grace_ms, reason, now_ms)
        elif now_ms >= self._probe_ms:
            loading = self.state is State.LOADING
            self._probe_ms = now_ms + (self.limits.probe_loading_ms if loading else self.limits.probe_ready_ms)
            self._effects.append(Probe())

    def _press_on(self, now_ms: int) -> None:
        """Of an engine that is to end: SIGKILL when its grace is over, and giving it up."""
        if self._kill_ms is not None and now_ms >= self._kill_ms:
            self._kill_ms = None
            self._abandon_ms = now_ms + self.limits.abandon_ms
            self._effects.append(SignalGroup(GroupSignal.KILL))
        elif self._kill_ms is None and now_ms >= self._abandon_ms:
            self._abandoned = True
            self._effects.append(Abandon())
            reason = (
                f"Process {self.pid} cannot be ended, not even by SIGKILL; it hangs in the kernel. Restart the machine."
            )
            self._become(State.FAILED, reason, now_ms)

    def _spawn(self, reason: str, now_ms: int) -> None:
        self._ending_reason = ""
        self._become(State.STARTING, reason, now_ms)
        self._effects.append(Spawn())

    def _end(self, grace_ms: int, reason: str, now_ms: int) -> None:
        self._ending_reason = reason
        self._kill_ms = now_ms + grace_ms
        self._become(State.STOPPING, reason, now_ms)
        self._effects.append(SignalGroup(GroupSignal.TERM, grace_ms))

    def _ended(self, reason: str, now_ms: int) -> None:
        """There is no process any more: what now?"""
        self.pid = None
        if self._stop_wanted:
            self._become(State.STOPPED, "", now_ms)
        elif not self._was_ready:
            self._become(State.FAILED, reason, now_ms)
        elif self.restarts >= self.limits.restarts:
            again = f"It ended {self.restarts + 1} times in a row, the last time so: {reason}"
            self._become(State.FAILED, again, now_ms)
        else:
            delay_ms = min(self.limits.backoff_ms << self.restarts, self.limits.backoff_max_ms)
            self.restarts += 1
            self._again_ms = now_ms + delay_ms
            self._become(State.BACKOFF, reason, now_ms)

    def _become(self, state: State, reason: str, now_ms: int) -> None:
        self.state, self.reason, self.since_ms = state, reason, now_ms
        self._effects.append(Report(state, reason))
