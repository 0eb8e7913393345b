"""The clock that timers and record times share."""

from __future__ import annotations

from agentmesh.core.clock import SteadyClock


class FakeTime:
    def __init__(self) -> None:
        self.wall = 1_000_000
        self.monotonic = 50

    def pass_ms(self, ms: int) -> None:
        self.wall += ms
        self.monotonic += ms


def test_it_follows_the_wall_clock_forward() -> None:
    t = FakeTime()
    clock = SteadyClock(lambda: t.wall, lambda: t.monotonic)
    t.pass_ms(500)
    assert clock.now_ms() == 1_000_500
    t.wall += 3_600_000
    assert clock.now_ms() == 4_600_500


def test_set_back_it_runs_at_half_speed_until_the_wall_clock_has_caught_up() -> None:
    t = FakeTime()
    clock = SteadyClock(lambda: t.wall, lambda: t.monotonic)
    t.wall -= 10_000
    readings = []
    for _ in range(30):
        t.pass_ms(1_000)
        readings.append(clock.now_ms())
    assert readings[:3] == [1_000_500, 1_001_000, 1_001_500]
    assert readings == sorted(readings)
    assert readings[-1] == t.wall


def test_many_readings_within_a_millisecond_lose_no_time() -> None:
    t = FakeTime()
    clock = SteadyClock(lambda: t.wall, lambda: t.monotonic)
    t.wall -= 1_000
    for _ in range(100):
        t.pass_ms(1)
        clock.now_ms()
    assert clock.now_ms() == 1_000_050
