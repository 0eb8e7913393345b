"""The life of one engine: each transition, with a clock of the test's."""

from __future__ import annotations

import pytest

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

LIMITS = LifecycleLimits(
    stall_ms=60_000,
    loading_ms=3_600_000,
    probe_loading_ms=100,
    probe_ready_ms=5_000,
    backoff_ms=1_000,
    backoff_max_ms=60_000,
    restarts=3,
    stable_ms=300_000,
    grace_ms=5_000,
    abandon_ms=10_000,
)
TERM = SignalGroup(GroupSignal.TERM, 5_000)
KILL = SignalGroup(GroupSignal.KILL)


class Life:
    """A lifecycle and its clock."""

    def __init__(self) -> None:
        self.machine = Lifecycle(LIMITS)
        self.now_ms = 1_000_000

    def after(self, ms: int, event: Event) -> list[Effect]:
        self.now_ms += ms
        return self.machine.handle(event, self.now_ms)

    def silent(self, ms: int) -> list[Effect]:
        """No answer, and none after so long."""
        self.on(HealthFailed())
        return self.after(ms, HealthFailed())

    def on(self, event: Event) -> list[Effect]:
        return self.after(0, event)

    @property
    def state(self) -> State:
        return self.machine.state

    def until(self, state: State) -> Life:
        """Take the shortest way to that state."""
        ways: dict[State, list[Event]] = {
            State.STOPPED: [],
            State.STARTING: [StartRequested()],
            State.LOADING: [StartRequested(), SpawnSucceeded(7)],
            State.READY: [StartRequested(), SpawnSucceeded(7), HealthAnswered()],
            State.BACKOFF: [StartRequested(), SpawnSucceeded(7), HealthAnswered(), Exited("crash")],
            State.FAILED: [StartRequested(), SpawnFailed("no such program")],
            State.STOPPING: [StartRequested(), SpawnSucceeded(7), HealthAnswered(), StopRequested()],
        }
        for event in ways[state]:
            self.on(event)
        assert self.state is state
        return self


def test_a_start_spawns_once() -> None:
    life = Life()
    assert life.on(StartRequested()) == [Report(State.STARTING, ""), Spawn()]
    assert life.on(StartRequested()) == []


def test_it_is_probed_as_soon_as_it_runs_and_then_at_the_pace_of_loading() -> None:
    life = Life().until(State.STARTING)
    assert life.on(SpawnSucceeded(7)) == [Report(State.LOADING, ""), Probe()]
    assert life.machine.pid == 7
    assert life.after(50, TimePassed()) == []
    assert life.machine.next_wake_ms() == life.now_ms + 50
    assert life.after(50, TimePassed()) == [Probe()]


def test_health_makes_it_ready_and_the_probes_slow() -> None:
    life = Life().until(State.LOADING)
    assert life.on(HealthAnswered()) == [Report(State.READY, "")]
    assert life.after(4_999, TimePassed()) == []
    assert life.after(1, TimePassed()) == [Probe()]


def test_an_end_at_the_first_start_is_final() -> None:
    life = Life().until(State.LOADING)
    assert life.on(Exited("not a model")) == [Report(State.FAILED, "not a model")]
    assert life.after(10_000_000, TimePassed()) == []
    assert life.machine.next_wake_ms() is None
    assert life.machine.pid is None


def test_a_program_that_cannot_be_started_is_final() -> None:
    life = Life().until(State.STARTING)
    assert life.on(SpawnFailed("no such file")) == [Report(State.FAILED, "no such file")]


def test_a_failed_engine_can_be_started_anew_and_is_again_failed_at_once() -> None:
    life = Life().until(State.FAILED)
    assert life.on(StartRequested()) == [Report(State.STARTING, ""), Spawn()]
    assert life.on(SpawnFailed("still none")) == [Report(State.FAILED, "still none")]


def test_a_crash_after_ready_is_answered_with_a_start_after_a_while() -> None:
    life = Life().until(State.READY)
    assert life.on(Exited("signal 11")) == [Report(State.BACKOFF, "signal 11")]
    assert life.machine.next_wake_ms() == life.now_ms + 1_000
    assert life.after(999, TimePassed()) == []
    assert life.after(1, TimePassed()) == [Report(State.STARTING, "signal 11"), Spawn()]
    assert life.machine.restarts == 1


def test_restarts_wait_twice_as_long_each_and_end_at_their_limit() -> None:
    life = Life().until(State.READY)
    for delay_ms in (1_000, 2_000, 4_000):
        life.on(Exited("crash"))
        assert life.machine.next_wake_ms() == life.now_ms + delay_ms
        assert Spawn() in life.after(delay_ms, TimePassed())
        life.on(SpawnSucceeded(8))
        life.on(HealthAnswered())
    assert life.on(Exited("crash")) == [
        Report(State.FAILED, "It ended 4 times in a row, the last time so: crash"),
    ]


def test_the_wait_for_a_restart_has_a_limit() -> None:
    life = Life()
    life.machine.limits = LifecycleLimits(backoff_ms=1_000, backoff_max_ms=3_000, restarts=20)
    life.until(State.READY)
    delays: list[int] = []
    for _ in range(5):
        life.on(Exited("crash"))
        wake_ms = life.machine.next_wake_ms()
        assert wake_ms is not None
        delays.append(wake_ms - life.now_ms)
        life.after(delays[-1], TimePassed())
        life.on(SpawnSucceeded(8))
    assert delays == [1_000, 2_000, 3_000, 3_000, 3_000]


def test_a_restart_that_does_not_come_up_counts_as_one_of_them() -> None:
    life = Life().until(State.BACKOFF)
    life.after(1_000, TimePassed())
    assert life.on(SpawnFailed("busy")) == [Report(State.BACKOFF, "busy")]
    life.after(2_000, TimePassed())
    life.on(SpawnSucceeded(9))
    assert life.on(Exited("no memory")) == [Report(State.BACKOFF, "no memory")]
    assert life.machine.restarts == 3


def test_being_ready_for_long_clears_the_count() -> None:
    life = Life().until(State.BACKOFF)
    life.after(1_000, TimePassed())
    life.on(SpawnSucceeded(8))
    life.on(HealthAnswered())
    for _ in range(60):
        life.after(5_000, HealthAnswered())
    assert life.machine.restarts == 0


def test_loading_goes_on_as_long_as_there_is_progress() -> None:
    life = Life().until(State.LOADING)
    for _ in range(50):
        life.silent(59_000)
        life.on(ProgressSeen())
    assert life.state is State.LOADING


def test_loading_without_progress_is_given_up() -> None:
    life = Life().until(State.LOADING)
    reason = "It never became ready: for 60 s it used no CPU time and wrote no log."
    assert life.silent(60_000) == [Report(State.STOPPING, reason), TERM]
    assert life.on(Exited("signal 15")) == [Report(State.FAILED, reason)]


def test_loading_has_an_end_even_with_progress() -> None:
    life = Life().until(State.LOADING)
    effects: list[Effect] = []
    for _ in range(61):
        life.machine.handle(ProgressSeen(), life.now_ms + 59_999)
        effects += life.after(60_000, ProgressSeen())
    assert Report(State.STOPPING, "It was still loading after 60 minutes.") in effects


def test_a_ready_engine_that_hangs_is_ended_and_started_again() -> None:
    life = Life().until(State.READY)
    reason = "It never answered: for 60 s it used no CPU time and wrote no log."
    assert life.silent(60_000) == [Report(State.STOPPING, reason), TERM]
    assert life.on(Exited("signal 15")) == [Report(State.BACKOFF, reason)]


def test_time_alone_is_no_silence() -> None:
    life = Life().until(State.READY)
    assert life.after(10_000_000, TimePassed()) == [Probe()]
    assert life.state is State.READY


def test_a_busy_engine_that_answers_no_health_lives_on() -> None:
    life = Life().until(State.READY)
    for _ in range(100):
        life.silent(30_000)
        life.on(ProgressSeen())
    assert life.state is State.READY


def test_a_stop_sends_term_then_kill_after_the_grace() -> None:
    life = Life().until(State.READY)
    assert life.on(StopRequested()) == [Report(State.STOPPING, ""), TERM]
    assert life.after(4_999, TimePassed()) == []
    assert life.after(1, TimePassed()) == [KILL]
    assert life.on(Exited("signal 9")) == [Report(State.STOPPED, "")]


def test_a_stop_without_grace_kills_at_once() -> None:
    life = Life().until(State.READY)
    stop = StopRequested(0)
    assert life.on(stop) == [Report(State.STOPPING, ""), SignalGroup(GroupSignal.TERM, 0), KILL]


def test_a_second_stop_can_only_shorten_the_grace() -> None:
    life = Life().until(State.READY)
    life.on(StopRequested(5_000))
    assert life.on(StopRequested(60_000)) == []
    assert life.machine.next_wake_ms() == life.now_ms + 5_000
    assert life.on(StopRequested(0)) == [KILL]


def test_a_stop_while_the_process_is_being_started_ends_it_as_soon_as_it_is_there() -> None:
    life = Life().until(State.STARTING)
    assert life.on(StopRequested(100)) == []
    assert life.on(SpawnSucceeded(7)) == [Report(State.STOPPING, ""), SignalGroup(GroupSignal.TERM, 100)]
    assert life.on(Exited("x")) == [Report(State.STOPPED, "")]


def test_a_stop_while_the_process_fails_to_start_is_a_stop() -> None:
    life = Life().until(State.STARTING)
    life.on(StopRequested())
    assert life.on(SpawnFailed("no memory")) == [Report(State.STOPPED, "")]


def test_a_stop_of_one_that_is_ended_for_hanging_means_no_restart() -> None:
    life = Life().until(State.READY)
    life.silent(60_000)
    life.on(StopRequested())
    assert life.on(Exited("x")) == [Report(State.STOPPED, "")]


@pytest.mark.parametrize("state", [State.BACKOFF, State.FAILED])
def test_a_stop_without_a_process_is_done_at_once(state: State) -> None:
    assert Life().until(state).on(StopRequested()) == [Report(State.STOPPED, "")]


def test_a_stop_of_a_stopped_engine_does_nothing() -> None:
    assert Life().on(StopRequested()) == []


def test_what_not_even_kill_ends_is_abandoned_and_never_replaced() -> None:
    life = Life().until(State.STOPPING)
    assert life.after(5_000, TimePassed()) == [KILL]
    assert life.after(9_999, TimePassed()) == []
    effects = life.after(1, TimePassed())
    assert effects[0] == Abandon()
    assert life.state is State.FAILED
    assert "Process 7 cannot be ended" in life.machine.reason
    life.on(StopRequested())
    assert life.on(StartRequested()) == []


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize(
    "event",
    [
        HealthAnswered(),
        HealthFailed(),
        ProgressSeen(),
        TimePassed(),
        SpawnSucceeded(99),
        SpawnFailed("late"),
        Exited("late"),
    ],
)
def test_an_event_that_comes_late_starts_nothing_and_forgets_no_process(state: State, event: Event) -> None:
    life = Life().until(state)
    effects = life.on(event)
    assert Spawn() not in effects
    if state in (State.STOPPED, State.FAILED, State.BACKOFF):
        assert effects == []
        assert life.state is state
    if state in (State.LOADING, State.READY, State.STOPPING) and not isinstance(event, Exited):
        assert life.machine.pid == 7
        assert life.machine.has_process


@pytest.mark.parametrize("state", list(State))
def test_only_states_with_something_to_wait_for_have_a_next_wake(state: State) -> None:
    waits = state in (State.LOADING, State.READY, State.BACKOFF, State.STOPPING)
    assert (Life().until(state).machine.next_wake_ms() is not None) == waits
