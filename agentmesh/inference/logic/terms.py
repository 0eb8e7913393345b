"""How high a host's term can be now.

Terms count hosts, one after the other, so honest ones stay small. A member can publish any; were the highest one allowed at all times, one
record would leave no term above it, and models without a host until every node was started anew. So it grows with time: whatever was
published, a millisecond later there is a term above it.
"""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import MINUTE_MS
from agentmesh.inference.logic.split_limits import MAX_TERM

EPOCH_MS: Final = 1_767_225_600_000  # 2026-01-01
SKEW_MS: Final = 15 * MINUTE_MS  # by which clocks of members differ, as for posts
MIN_HIGHEST_TERM: Final = 1 << 20  # for a machine that does not know what day it is


def highest_term(unix_ms: int) -> int:
    """Terms above this are nobody's."""
    return min(max(unix_ms - EPOCH_MS + SKEW_MS, MIN_HIGHEST_TERM), MAX_TERM)
