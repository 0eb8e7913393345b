"""When a node says anew what it offers: soon after a change, and from time to time, seldom in a large mesh. Pure.

A record of some 600 bytes every 60 s is 10 bytes a second; times 100 nodes it is the 1 kB/s that presence may cost a node.
"""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import MINUTE_MS, SECOND_MS

MIN_INTERVAL_MS: Final = 60 * SECOND_MS
MAX_INTERVAL_MS: Final = 10 * MINUTE_MS
MAX_RECEIVED_BYTES_PER_S: Final = 1000  # from all nodes together, each record arriving about once
LIFETIMES: Final = 3  # an offer outlives two lost renewals
DEBOUNCE_MS: Final = 200  # a model's start changes several things at once
MIN_SPACING_MS: Final = 2 * SECOND_MS  # between two changes told: a model that crashes again and again floods nobody
# Whose clock is behind by more is taken for one whose word has expired; admission compares clocks, but not so closely.
CLOCKS_APART_MS: Final = 5 * MINUTE_MS
RETRY_MS: Final = 5 * SECOND_MS


def interval_ms(node_count: int, payload_bytes: int) -> int:
    """Between two renewals: longer the more nodes there are, and the more each of them says."""
    wanted = node_count * max(payload_bytes, 1) * SECOND_MS // MAX_RECEIVED_BYTES_PER_S
    return min(max(wanted, MIN_INTERVAL_MS), MAX_INTERVAL_MS)


def lifetime_ms(node_count: int, payload_bytes: int) -> int:
    """How long an offer is good, and the goodbye that takes it back: one that ended sooner would let the offer come back."""
    return LIFETIMES * interval_ms(node_count, payload_bytes) + CLOCKS_APART_MS


def due_ms(now_ms: int, *, changed_ms: int | None, published_ms: int | None, every_ms: int) -> int:
    """When to publish next: after a change (noticed at `changed_ms`), or when the last one grows old."""
    last = published_ms
    if last is None:
        return (changed_ms if changed_ms is not None else now_ms) + DEBOUNCE_MS
    renewal = last + every_ms
    if changed_ms is None:
        return renewal
    return min(renewal, max(changed_ms + DEBOUNCE_MS, last + MIN_SPACING_MS))
