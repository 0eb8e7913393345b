"""The wall clock in integer milliseconds, as a value that can be handed in.

Drivers take a `Clock`; pure logic takes the number. Durations inside one process use the event loop's monotonic time.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Gives the time in milliseconds UTC since 1970."""

    def now_ms(self) -> int: ...


class SystemClock:
    """The machine's wall clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000
