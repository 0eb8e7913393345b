"""Whether a target may be asked: opened by connect errors, time-outs and 5xx, never by 4xx.

Owns one target's history of failures. Closed: asked. Open: not asked for a back-off that doubles up to a bound. After it,
half open: one request finds out (the probe), all others go elsewhere. What a request begun before the last opening says is
out of date and not counted, so that ten requests failing together open it once and not for ten times as long.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from agentmesh.inference.logic.route_limits import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    FAILURES_TO_OPEN,
    FORGET_FAILURES_S,
)


class Phase(StrEnum):
    """As shown in metrics."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Ticket(NamedTuple):
    """What a request is given when it begins, and gives back when it ends."""

    epoch: int
    is_probe: bool


FIRST_TICKET = Ticket(0, False)


class Breaker:
    """See the module. Times are of any one monotonic clock, in seconds."""

    __slots__ = (
        "_epoch", "_failed_s", "_failures", "_is_hard", "_openings", "_plain", "_probing", "_until_s", "is_open",
    )  # fmt: skip

    def __init__(self) -> None:
        self._epoch = 0
        self._plain = FIRST_TICKET  # of this epoch: what all requests but probes get
        self._failures = 0
        self._failed_s = 0.0
        self._openings = 0
        self.is_open = False  # only to be read from outside
        self._is_hard = False
        self._until_s = 0.0
        self._probing = False

    # ------------------------------------------------------------------ questions

    def phase(self, now_s: float) -> Phase:
        if not self.is_open:
            return Phase.CLOSED
        return Phase.OPEN if now_s < self._until_s else Phase.HALF_OPEN

    def admits(self, now_s: float) -> bool:
        """Whether a request may begin."""
        return not self.is_open or (now_s >= self._until_s and not self._probing)

    def is_due(self, now_s: float) -> bool:
        """Whether a request that begins now is the probe."""
        return self.is_open and now_s >= self._until_s and not self._probing

    def answers_at_all(self) -> bool:
        """Whether what opened it were answers: such a target may be asked when there is no other, as its 5xx may be the
        client's doing and says more than a refusal of ours."""
        return not self._is_hard

    def is_shaky(self, now_s: float) -> bool:
        """Whether it failed lately: others are preferred, or one that fails fast would look idle and attract load."""
        return self._failures > 0 and now_s - self._failed_s <= FORGET_FAILURES_S

    def open_until_s(self) -> float:
        """When the back-off ends; only while open."""
        return self._until_s

    # ------------------------------------------------------------------ events

    def begin(self, now_s: float) -> Ticket:
        """A request begins. Ask `admits` (or `answers_at_all`) first."""
        if not self.is_open:
            return self._plain
        is_probe = self.is_due(now_s)
        self._probing = self._probing or is_probe
        return Ticket(self._epoch, is_probe)

    def reached(self, ticket: Ticket, now_s: float) -> None:
        """The target began to answer, or said that it is busy: it is there. Proven it is only by a whole answer, so one
        more failure opens it again."""
        if ticket.epoch == self._epoch and self.is_open:
            self._close()
            self._failures = FAILURES_TO_OPEN - 1
            self._failed_s = now_s

    def succeeded(self, ticket: Ticket) -> None:
        """A whole answer below 500."""
        if ticket.epoch == self._epoch:
            if self.is_open:
                self._close()
            self._failures = self._openings = 0

    def failed(self, ticket: Ticket, now_s: float, *, reached: bool) -> None:
        """A 5xx or an answer cut off (`reached`), or no answer at all, which opens it at once."""
        if ticket.epoch != self._epoch:
            return
        if not self.is_shaky(now_s):
            self._failures = 0
        self._failures += 1
        self._failed_s = now_s
        if self.is_open or not reached or self._failures >= FAILURES_TO_OPEN:
            self._open(now_s, is_hard=not reached)

    def undecided(self, ticket: Ticket) -> None:
        """The client left before anything could be learned: the next request may probe."""
        if ticket.epoch == self._epoch and ticket.is_probe:
            self._probing = False

    def start_anew(self) -> None:
        """The target was started anew: its past, and what still comes from there, says nothing."""
        self._close()
        self._epoch += 1
        self._plain = Ticket(self._epoch, False)
        self._failures = self._openings = 0

    def _open(self, now_s: float, *, is_hard: bool) -> None:
        self._until_s = now_s + min(BACKOFF_FIRST_S * 2 ** min(self._openings, 16), BACKOFF_MAX_S)
        self._openings += 1
        self._epoch += 1
        self._plain = Ticket(self._epoch, False)
        self.is_open, self._is_hard, self._probing = True, is_hard, False

    def _close(self) -> None:
        self.is_open = self._is_hard = self._probing = False
