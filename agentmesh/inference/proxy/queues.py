"""Who waits for room, in order of arrival.

Owns the queues, one for each model and one for `auto`, and the timer that runs while somebody waits. Each waiter is given a
place, refused, or leaves; whether there is a place for it is asked of a function. The timer makes sure of what no event
tells: time-outs, the end of a back-off, a peer that is trusted again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from agentmesh.inference.logic.auto import AUTO
from agentmesh.inference.logic.route_limits import MAX_NOBODY_WAIT_S, MAX_WAITING, MAX_WAITING_PER_MODEL, TICK_S
from agentmesh.inference.proxy.lease import HeldLease, Waiter
from agentmesh.inference.proxy.ports import Refused, TargetKey, Wanted


class Timer(Protocol):
    """What the loop's call_later gives."""

    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Timer]
Retry = Callable[[Waiter], HeldLease | None]


class Queues:
    """See the module. `retry` gives a waiter its place, or None while all are taken, or raises Refused."""

    def __init__(self, retry: Retry, now_s: Callable[[], float], call_later: CallLater) -> None:
        self._retry = retry
        self._now_s = now_s
        self._call_later = call_later
        self._queues: dict[str, dict[int, Waiter]] = {}  # by number, which is the order of arrival
        self.count = 0  # of all who wait
        self._numbers = 0
        self._timer: Timer | None = None

    # ------------------------------------------------------------------ questions

    def length(self, queue: str) -> int:
        return len(self._queues.get(queue, ()))

    def lengths(self) -> dict[str, int]:
        return {queue: len(waiters) for queue, waiters in self._queues.items()}

    def is_full(self, queue: str) -> bool:
        return self.count >= MAX_WAITING or self.length(queue) >= MAX_WAITING_PER_MODEL

    # ------------------------------------------------------------------ coming and going

    def join(self, queue: str, wanted: Wanted, avoid: frozenset[TargetKey], deadline_s: float) -> Waiter:
        """A place at the end, which may be served at once: those before may wait for other hosts."""
        self._numbers += 1
        future = asyncio.get_running_loop().create_future()
        waiter = Waiter(self._numbers, queue, wanted, avoid, deadline_s, future)
        self._queues.setdefault(queue, {})[waiter.number] = waiter
        self.count += 1
        if self._timer is None:
            self._timer = self._call_later(TICK_S, self.tick)
        if waiter.number != next(iter(self._queues[queue])):
            self.serve()
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """It waits no more, for whatever reason. A second time does nothing."""
        waiters = self._queues.get(waiter.queue)
        if waiters is None or waiters.pop(waiter.number, None) is None:
            return
        self.count -= 1
        if not waiters:
            del self._queues[waiter.queue]
        if not self.count and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ------------------------------------------------------------------ serving

    def serve(self) -> None:
        """Something changed: give places to all who can have one, in order of arrival.

        All queues are looked at, as what a name means may have changed since somebody joined. Those behind one for whom
        there is no room are passed over without a decision of their own: 1,000 of them take some 0.2 ms.
        """
        if self.count:
            self._serve([list(waiters.values()) for waiters in self._queues.values()])

    def tick(self) -> None:
        """The timer: time passed."""
        self._timer = None
        self.serve()
        if self.count and self._timer is None:
            self._timer = self._call_later(TICK_S, self.tick)

    def _serve(self, queues: Iterable[list[Waiter]]) -> None:
        now_s = self._now_s()
        stuck: set[Hashable] = set()
        for waiter in heapq.merge(*queues, key=_number):
            if waiter.future.done():
                self.leave(waiter)
                continue
            sort = _sort(waiter)
            if sort in stuck and now_s < waiter.deadline_s:
                waiter.nobody_since_s = None
                continue
            if self._try(waiter, now_s) and not waiter.avoid:
                stuck.add(sort)

    def _try(self, waiter: Waiter, now_s: float) -> bool:
        """Whether it must wait on because all places are taken."""
        try:
            lease = self._retry(waiter)
        except Refused as refused:
            if self._is_final(waiter, refused, now_s):
                waiter.future.set_exception(refused)
                self.leave(waiter)
            return False
        if lease is None:
            waiter.nobody_since_s = None
            return True
        waiter.future.set_result(lease)
        self.leave(waiter)
        return False

    def _is_final(self, waiter: Waiter, refused: Refused, now_s: float) -> bool:
        """Hosts that are all away for a moment are waited for; a model that is gone is not."""
        if refused.status != 503 or now_s >= waiter.deadline_s:
            return True
        if waiter.nobody_since_s is None:
            waiter.nobody_since_s = now_s
        return now_s - waiter.nobody_since_s >= MAX_NOBODY_WAIT_S


def _number(waiter: Waiter) -> int:
    return waiter.number


def _sort(waiter: Waiter) -> Hashable:
    """Waiters of one sort that avoid nothing find room together or not at all; those that avoid hosts find no more."""
    wanted = waiter.wanted
    return (wanted.model, wanted.path, wanted.needs) if waiter.queue == AUTO else wanted.model
