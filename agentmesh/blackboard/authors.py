"""How much each author's name has posted at this node within a minute.

Names are chosen by whoever posts, so this keeps honest agents from flooding a board; what holds against peers is the quota
of the node's key, which every receiver checks.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from agentmesh.blackboard.logic.limits import AUTHOR_WINDOW_MS, MAX_AUTHOR_NAMES
from agentmesh.core.errors import QuotaExceeded


class AuthorMinutes:
    """The times of each name's posts in the last minute; the names longest silent are forgotten beyond a limit."""

    def __init__(self, per_minute: Callable[[], int]) -> None:
        self._per_minute = per_minute
        self._times: OrderedDict[str, deque[int]] = OrderedDict()

    def remember(self, author: str, posted_ms: int) -> None:
        """A post that was made."""
        times = self._times.setdefault(author.casefold(), deque())
        times.append(posted_ms)
        self._times.move_to_end(author.casefold())
        while len(self._times) > MAX_AUTHOR_NAMES:
            self._times.popitem(last=False)

    def reserve(self, author: str, now_ms: int) -> None:
        """Take one place in the author's minute.

        Raises:
            QuotaExceeded: there is none; says when there is.
        """
        times = self._times.get(author.casefold(), deque[int]())
        while times and not now_ms - AUTHOR_WINDOW_MS < times[0] <= now_ms:  # also when the clock was set back
            times.popleft()
        limit = self._per_minute()
        if len(times) >= limit:
            seconds = -(-(times[-limit] + AUTHOR_WINDOW_MS - now_ms) // 1000)
            raise QuotaExceeded(
                f"{author} has posted {len(times)} times within a minute, and {limit} are allowed; try again in {seconds} s."
            )
        self.remember(author, now_ms)

    def give_back(self, author: str, reserved_ms: int) -> None:
        """The post was not made after all."""
        times = self._times.get(author.casefold())
        if times is not None and reserved_ms in times:
            times.remove(reserved_ms)
