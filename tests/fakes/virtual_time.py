"""An event loop whose clock jumps to what is due next: minutes of waiting take no time. For code without threads and sockets.

in_virtual_time(scenario())          # `asyncio.get_running_loop().time()` begins at 0 there

@virtually
async def test_...                   # the same for a test with fixtures that are not asynchronous
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")


class _Jumping(selectors.DefaultSelector):
    """Does not wait; says how long it would have."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        assert found or timeout is not None, "nothing will ever happen"
        if not found:
            self.now_s += timeout or 0.0
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def in_virtual_time(scenario: Coroutine[Any, Any, None]) -> None:
    """Run it to its end."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(scenario)


def virtually(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """The test, in virtual time: how fast the machine is changes nothing."""

    @functools.wraps(test)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        in_virtual_time(test(*arguments, **named))

    return run
