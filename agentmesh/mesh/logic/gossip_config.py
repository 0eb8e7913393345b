"""The gossip machine's intervals and sizes in one value, so that a simulation of a thousand nodes can run them coarser.

Every default is a limit of limits.py; nothing here decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agentmesh.mesh.logic import limits

# What a peer is told when its link is closed.
FORGED: Final = "it sent records that no honest node could have sent"
FLOOD: Final = "it sends more than any honest node would"
OUT: Final = "it is no longer a member"


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """Times in ms. A real node uses the defaults."""

    # failure detection
    probe_every_ms: int = limits.PROBE_EVERY_MS
    suspect_after_ms: int = limits.SUSPECT_AFTER_MS
    dead_after_ms: int = limits.DEAD_AFTER_MS
    indirect_probes: int = limits.INDIRECT_PROBES
    # overlay
    active_view: int = limits.ACTIVE_VIEW
    passive_view: int = limits.PASSIVE_VIEW
    full_mesh_below: int = limits.FULL_MESH_BELOW
    undialable_neighbours: int = limits.UNDIALABLE_NEIGHBOURS
    shuffle_every_ms: int = limits.SHUFFLE_EVERY_MS
    shuffle_every_max_ms: int = limits.SHUFFLE_EVERY_MAX_MS
    reach_every_ms: int = limits.REACH_EVERY_MS
    linger_ms: int = limits.LINGER_MS
    # broadcast
    ihave_every_ms: int = limits.IHAVE_EVERY_MS
    graft_timeout_ms: int = limits.GRAFT_TIMEOUT_MS
    graft_retry_ms: int = limits.GRAFT_RETRY_MS
    # reconciliation
    reconcile_every_ms: int = limits.RECONCILE_EVERY_MS
    reconcile_timeout_ms: int = limits.RECONCILE_TIMEOUT_MS
    # housekeeping
    expire_every_ms: int = limits.EXPIRE_EVERY_MS
