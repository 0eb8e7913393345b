"""An engine's life against a machine that does anything: never two processes, always an end, restarts within their bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentmesh.inference.logic.lifecycle import (
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
    SignalGroup,
    Spawn,
    SpawnFailed,
    SpawnSucceeded,
    StartRequested,
    State,
    StopRequested,
    TimePassed,
)

LIMITS = LifecycleLimits(
    stall_ms=500, loading_ms=5_000, backoff_ms=50, backoff_max_ms=400, restarts=3, stable_ms=10**9, grace_ms=200
)
STEPS = st.sampled_from(
    ("start", "stop", "spawned", "spawn fails", "healthy", "unhealthy", "progress", "exits", "ignores term", "time")
)
MAX_QUIET_WAKES = 2_000


class Machine:
    """The world that effects act on: at most one process, a spawn under way, a will of its own."""

    def __init__(self, obeys_kill: bool) -> None:
        self.life = Lifecycle(LIMITS)
        self.now_ms = 0
        self.pending = self.alive = self.killed = self.asked = False
        self.obeys_kill = obeys_kill
        self.spawns = self.pids = 0

    def send(self, event: Event) -> None:
        for effect in self.life.handle(event, self.now_ms):
            self.act(effect)

    def act(self, effect: Effect) -> None:
        match effect:
            case Spawn():
                assert not self.pending and not self.alive, "a second process"
                self.pending = True
                self.spawns += 1
            case SignalGroup(signal=GroupSignal.KILL):
                assert self.alive
                self.killed = True
            case SignalGroup():
                assert self.alive
            case Abandon():
                assert self.alive and self.killed
            case Probe():
                assert self.alive
                self.asked = True
            case _:
                pass

    def step(self, what: str, ms: int) -> None:
        self.now_ms += ms
        match what:
            case "start":
                self.send(StartRequested())
            case "stop":
                self.send(StopRequested(ms))
            case "spawned" if self.pending:
                self.pending, self.alive, self.killed = False, True, False
                self.pids += 1
                self.send(SpawnSucceeded(self.pids))
            case "spawn fails" if self.pending:
                self.pending = False
                self.send(SpawnFailed("no"))
            case "healthy":
                self.send(HealthAnswered())
            case "unhealthy":
                self.send(HealthFailed())
            case "progress":
                self.send(ProgressSeen())
            case "exits" if self.alive:
                self.alive = False
                self.send(Exited("gone"))
            case _:
                self.send(TimePassed())
        assert self.life.has_process or not (self.pending or (self.alive and self.obeys_kill)), "a process forgotten"

    def run_out(self) -> None:
        """Nothing happens any more but time, and what the kernel does to a killed process."""
        if self.pending:
            self.step("spawned", 1)
        for _ in range(MAX_QUIET_WAKES):
            if self.killed and self.alive and self.obeys_kill:
                self.step("exits", 1)
            if self.asked:
                self.asked = False
                self.step("unhealthy", 1)
            wake_ms = self.life.next_wake_ms()
            if wake_ms is None:
                return
            self.step("time", max(0, wake_ms - self.now_ms))
            if self.pending:
                self.step("spawned", 1)
        raise AssertionError(f"still {self.life.state} after {MAX_QUIET_WAKES} wake-ups")


HISTORIES = st.lists(st.tuples(STEPS, st.integers(0, 300)), max_size=60)


@given(HISTORIES, st.booleans())
def test_there_are_never_two_processes_and_a_stop_is_always_the_end(
    history: list[tuple[str, int]], obeys_kill: bool
) -> None:
    machine = Machine(obeys_kill)
    for what, ms in history:
        machine.step(what, ms)
    machine.step("stop", 0)
    spawns = machine.spawns
    machine.run_out()
    assert machine.spawns == spawns, "started after a stop"
    assert machine.life.state in (State.STOPPED, State.FAILED)
    if obeys_kill:
        assert not machine.alive
        assert machine.life.state is State.STOPPED


@given(HISTORIES)
def test_without_new_requests_an_engine_that_does_nothing_comes_to_rest(history: list[tuple[str, int]]) -> None:
    machine = Machine(obeys_kill=True)
    machine.step("start", 0)
    for what, ms in history:
        if what not in ("start", "stop"):
            machine.step(what, ms)
    machine.run_out()
    assert machine.life.state is State.FAILED
    assert machine.spawns <= 1 + LIMITS.restarts
