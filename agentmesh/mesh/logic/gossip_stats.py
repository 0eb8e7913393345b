"""What the gossip machine counts, for status and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class GossipStats:
    """Counters since the machine was made. A payload is a record in a Gossip message, pushed along the tree."""

    payloads: int = 0
    duplicates: int = 0
    """Payloads of records that were here already."""
    batched: int = 0
    """Records that came by reconciliation or were asked for by id."""
    accepted: int = 0
    refused: int = 0
    blamed: int = 0
    first_payloads: int = 0
    """Payloads of records that were new here."""
    hops: int = 0
    """The hops that these had travelled, in all."""
    last_hop: int = 0
    """The most that one of them had travelled."""
