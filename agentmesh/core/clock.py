"""The wall clock in integer milliseconds, as a value that can be handed in.

Drivers take a `Clock`; pure logic takes the number. Durations inside one process use the event loop's monotonic time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Gives the time in milliseconds UTC since 1970."""

    def now_ms(self) -> int: ...


class SystemClock:
    """The machine's wall clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class SteadyClock:
    """The wall clock without backward jumps, for a loop whose timers and record times share one clock.

    When the wall clock is set back, this one goes on at half speed until the wall clock has caught up: timers keep
    firing, and no two readings are out of order. A jump forward is followed at once.
    """

    def __init__(
        self,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._wall_ms = wall_ms
        self._monotonic_ms = monotonic_ms
        self._last_ms = wall_ms()
        self._last_monotonic_ms = monotonic_ms()

    def now_ms(self) -> int:
        wall = self._wall_ms()
        elapsed = self._monotonic_ms() - self._last_monotonic_ms
        if wall >= self._last_ms:
            self._last_ms = wall
            self._last_monotonic_ms += elapsed
        elif elapsed >= 2:
            self._last_ms += elapsed // 2
            self._last_monotonic_ms += elapsed // 2 * 2
        return self._last_ms
