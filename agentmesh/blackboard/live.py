"""Who is waiting for new posts: long polls that are woken, and streams that are fed. Owns no post and never waits itself.

State: waiters and subscriptions, changed on the event loop only. A subscriber that does not keep up is dropped and told so;
nothing is queued without bound for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from agentmesh.blackboard.logic.limits import MAX_SUBSCRIBERS, MAX_WAITERS, SUBSCRIBER_QUEUE
from agentmesh.blackboard.logic.query import Filters, PostRow
from agentmesh.blackboard.ports import BoardEvent, PostView
from agentmesh.core.errors import AgentMeshError

View = Callable[[PostRow], PostView]


class TooBusy(AgentMeshError):
    """Too many clients wait for new posts; try again later."""

    http_status = 503
    retryable = True


class Waiter:
    """One long poll."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._event = asyncio.Event()

    def offer(self, rows: Sequence[PostRow]) -> None:
        if any(self._filters.matches(row) for row in rows):
            self._event.set()

    def clear(self) -> None:
        self._event.clear()

    async def wait(self, timeout_s: float) -> bool:
        """Whether something that may be wanted came within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class Subscription:
    """One event stream. After a `dropped` event nothing more comes."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[BoardEvent] = asyncio.Queue()
        self._last_id = "0"
        self.dropped = False

    def push(self, event: BoardEvent) -> None:
        if self.dropped:
            return
        if self._queue.qsize() < SUBSCRIBER_QUEUE:
            self._queue.put_nowait(event)
            self._last_id = event.id
        else:
            # It carries the id of the last event that can still be read, so that who resumes from it misses none.
            self.dropped = True
            self._queue.put_nowait(BoardEvent("dropped", self._last_id, None))

    async def next(self, timeout_s: float) -> BoardEvent | None:
        """The next event, or None when there was none in the time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._queue.get()
        except TimeoutError:
            return None


class Live:
    """Everyone who waits. `view` makes of a row what subscribers see."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._waiters: list[Waiter] = []
        self._subscriptions: list[Subscription] = []
        self._last_arrival = 0

    def go_on_from(self, arrival: int) -> None:
        """Events count on from those of the run before: who resumes from a later one must not be given the whole board."""
        self._last_arrival = max(self._last_arrival, arrival)

    @property
    def subscribers(self) -> int:
        return len(self._subscriptions)

    def visible(self, rows: Sequence[PostRow]) -> None:
        """Posts became visible: wake and feed."""
        for row in rows:
            self._last_arrival = max(self._last_arrival, row.arrival)
        for waiter in self._waiters:
            waiter.offer(rows)
        if self._subscriptions:
            self._push([BoardEvent("post", str(row.arrival), self._view(row)) for row in rows])

    def gone(self, rows: Sequence[PostRow], now_ms: int) -> None:
        """Posts disappeared; those that had time left were retracted, or their author was."""
        if self._subscriptions:
            live = [row for row in rows if row.expires_ms > now_ms]
            self._push([BoardEvent("retracted", str(self._last_arrival), self._view(row)) for row in live])

    def _push(self, events: Sequence[BoardEvent]) -> None:
        for subscription in self._subscriptions:
            for event in events:
                subscription.push(event)
        self._subscriptions = [s for s in self._subscriptions if not s.dropped]

    @contextmanager
    def waiter(self, filters: Filters) -> Generator[Waiter]:
        """A place among the waiting.

        Raises:
            TooBusy: too many wait.
        """
        if len(self._waiters) >= MAX_WAITERS:
            raise TooBusy
        waiter = Waiter(filters)
        self._waiters.append(waiter)
        try:
            yield waiter
        finally:
            self._waiters.remove(waiter)

    @contextmanager
    def subscription(self) -> Generator[Subscription]:
        """A stream of what happens from now on.

        Raises:
            TooBusy: there are too many.
        """
        if len(self._subscriptions) >= MAX_SUBSCRIBERS:
            raise TooBusy("Too many clients follow the board; try again later.")
        subscription = Subscription()
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
