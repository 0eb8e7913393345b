"""One request's place at one target, and one request's place in a queue.

Owns that a place is given back exactly once, whatever happens to the request. Decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from agentmesh.inference.logic.breaker import Ticket
from agentmesh.inference.logic.route import Place
from agentmesh.inference.logic.target import Target
from agentmesh.inference.proxy.ports import Outcome, TargetKey, Wanted

Reached = Callable[["HeldLease"], None]
Released = Callable[["HeldLease", Outcome, float | None], None]


class HeldLease:
    """Implements ports.Lease. The dispatcher is told of the first byte and of the release, each once."""

    __slots__ = ("_is_over", "_is_reached", "_reached", "_released", "began_s", "place", "target", "ticket")

    def __init__(
        self, target: Target, place: Place, ticket: Ticket, began_s: float, reached: Reached, released: Released
    ) -> None:
        self.target = target
        self.place = place
        self.ticket = ticket
        self.began_s = began_s
        self._reached = reached
        self._released = released
        self._is_reached = False
        self._is_over = False

    def first_byte(self) -> None:
        """The answer began, with a status below 500."""
        if not self._is_reached and not self._is_over:
            self._is_reached = True
            if self.place.breaker.is_open:  # to any other it is no news
                self._reached(self)

    def release(self, outcome: Outcome, *, retry_after_s: float | None = None) -> None:
        """Give the place back. A second release does nothing."""
        if not self._is_over:
            self._is_over = True
            self._released(self, outcome, retry_after_s)


@dataclass(eq=False, slots=True)
class Waiter:
    """A request in a queue. `number` counts all requests that ever waited: lower ones came first."""

    number: int
    queue: str
    wanted: Wanted
    avoid: frozenset[TargetKey]
    deadline_s: float
    future: asyncio.Future[HeldLease]
    nobody_since_s: float | None = None
