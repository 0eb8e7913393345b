"""Units as names, and the durations that users type (`30s` `15m` `12h` `7d`)."""

from __future__ import annotations

import re

from agentmesh.core.errors import InvalidInput

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
YEAR_MS = 365 * DAY_MS

KIB = 1024
MIB = 1024 * KIB

_UNITS_MS = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")


def parse_duration_ms(text: str) -> int:
    """Milliseconds of a duration such as `30s`, `15m`, `12h`, `7d`.

    Raises:
        InvalidInput: the text is not one number followed by one of s, m, h, d, or it is zero.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise InvalidInput(f"'{text}' is not a duration; write a number and a unit, such as 30s, 15m, 12h or 7d.")
    return int(match[1]) * _UNITS_MS[match[2]]
