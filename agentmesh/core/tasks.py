"""Named background tasks whose failures are never silent.

`asyncio.create_task` is used nowhere else: a task that nobody holds may be collected, and one that nobody awaits hides
its exception. A `TaskSet` holds its tasks, logs what kills them, and ends them together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

_log = logging.getLogger(__name__)

T = TypeVar("T")


class TaskSet:
    """Tasks that live and end together; owned by one object, closed by it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `coro` in the background under a name that appears in logs."""
        if self._closed:
            coro.close()
            raise RuntimeError(f"{self._name} is closed")
        task = asyncio.get_running_loop().create_task(coro, name=f"{self._name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task %s failed: %r", task.get_name(), error, exc_info=error)

    async def finish(self, within_s: float) -> None:
        """Let what runs come to its own end, at most so long; then `close`. Nothing new begins."""
        self._closed = True
        if tasks := [t for t in self._tasks if t is not asyncio.current_task()]:
            await asyncio.wait(tasks, timeout=within_s)
        await self.close()

    async def close(self, grace_s: float = 5.0) -> None:
        """Cancel every task and wait for them, at most `grace_s` seconds."""
        self._closed = True
        tasks = [t for t in self._tasks if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=grace_s)
            for task in pending:
                _log.error("task %s did not end within %s s", task.get_name(), grace_s)


async def to_its_end(coro: Coroutine[Any, Any, T], *, name: str) -> T:
    """Run what ends or gives back something to its own end, however often the caller is cancelled meanwhile; the cancellation is
    raised afterwards. `coro` must be bounded by itself."""
    task = TaskSet("end").spawn(coro, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
