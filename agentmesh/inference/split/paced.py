"""Does something now while it is seldom asked for, and a few times a second however often: what others can ask for costs us little.

    paced = Paced("look at records", act)
    paced.soon(); await paced.stop()

Owns at most one task. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from agentmesh.core.tasks import TaskSet

BURST: Final = 32  # at once: a mesh that starts says much in a second
PER_S: Final = 8


class Paced:
    """See the module. `act` must not raise."""

    def __init__(self, name: str, act: Callable[[], None], now_ms: Callable[[], int]) -> None:
        self._act = act
        self._now_ms = now_ms
        self._left = float(BURST)
        self._counted_ms = 0
        self._waits = self._stopped = False
        self._tasks = TaskSet(name)

    def soon(self) -> None:
        """Do it now, or with all others that are asked for until its turn comes."""
        if self._waits or self._stopped:
            return
        now_ms = self._now_ms()
        self._left = min(float(BURST), self._left + (now_ms - self._counted_ms) * PER_S / 1000)
        self._counted_ms = now_ms
        if self._left >= 1:
            self._left -= 1
            self._act()
        else:
            self._waits = True
            self._tasks.spawn(self._later((1 - self._left) / PER_S), name="later")

    async def _later(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        self._waits = False
        self._left, self._counted_ms = 0.0, self._now_ms()
        self._act()

    async def stop(self) -> None:
        """Nothing is done any more."""
        self._stopped = True
        await self._tasks.close()
