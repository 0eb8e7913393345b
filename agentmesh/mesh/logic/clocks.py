"""Two clocks that disagree: whether they do, and which of them is wrong as far as one side can know."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from agentmesh.core.units import DAY_MS, HOUR_MS, MINUTE_MS
from agentmesh.mesh.logic.limits import MAX_CLOCK_SKEW_MS


@dataclass(frozen=True, slots=True)
class ClockView:
    """What one side knows when it compares clocks.

    `passed_ms` is the latest moment that has certainly passed: when the newest certificate at hand was issued.
    `agreed` says that other members' clocks lately agreed with this side's.
    """

    passed_ms: int
    agreed: bool = False


def clock_complaint(own_ms: int, other_ms: int, view: ClockView, *, own: str, other: str) -> str | None:
    """None while two clocks differ by MAX_CLOCK_SKEW_MS at most, else a sentence that says who is off and by how much.

    Args:
        own, other: what the reader of the sentence calls the two clocks, such as "this machine's clock".
    """
    apart_ms = abs(own_ms - other_ms)
    if apart_ms <= MAX_CLOCK_SKEW_MS:
        return None
    apart = _duration(apart_ms)
    own_behind = own_ms < view.passed_ms - MAX_CLOCK_SKEW_MS
    other_behind = other_ms < view.passed_ms - MAX_CLOCK_SKEW_MS
    if own_behind and not other_behind:
        return f"{own.capitalize()} is {apart} behind (it says {_date(own_ms)}); set it and try again."
    if (other_behind or view.agreed) and not own_behind:
        way = "behind" if other_ms < own_ms else "ahead"
        return f"{other.capitalize()} is {apart} {way} (it says {_date(other_ms)}); it must be set."
    return (
        f"{own.capitalize()} says {_date(own_ms)} and {other} says {_date(other_ms)}: they are {apart} apart. "
        "One of them is wrong; set it and try again."
    )


def _duration(length_ms: int) -> str:
    for unit_ms, name in ((DAY_MS, "days"), (HOUR_MS, "hours"), (MINUTE_MS, "minutes")):
        if length_ms >= 2 * unit_ms:
            return f"{length_ms // unit_ms} {name}"
    return f"{length_ms // 1000} seconds"


def _date(time_ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return "a time out of range"
