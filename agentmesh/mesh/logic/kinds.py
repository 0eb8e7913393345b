"""What a kind of record is: its limits and how its records relate to each other. Also the mesh's own kinds.

The blackboard and others add their kinds beside these; the mesh never learns what their payloads mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from agentmesh.core.units import DAY_MS, HOUR_MS, KIB, YEAR_MS
from agentmesh.mesh.logic.limits import (
    MAX_CERTIFICATE_LIFETIME_MS,
    MAX_CHAIN_BYTES,
    MAX_PAYLOAD_BYTES,
    REVOCATION_LIFETIME_MS,
)
from agentmesh.mesh.logic.record import Record

Validate = Callable[[Record], str | None]
"""Why the record is not one of its kind, or None. Must depend on the record alone: its answer is held against the sender."""

TRUST_FIRST: Final = 0  # order class of what must be known before anything else can be judged
CONTENT: Final = 1


class Register(StrEnum):
    """What (kind, author, ...) names one last-writer-wins register."""

    SUBKEY = "subkey"
    ID = "id"  # every record is its own register and replaces nothing


def _anything(record: Record) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class KindRule:
    """The rules of one kind. Records of a kind that a node has no rule for are neither kept nor held against the sender."""

    name: str
    max_payload_bytes: int
    max_lifetime_ms: int
    lasting: bool = True
    """Reconciled. What is not lasting is only broadcast, and fetched whole on joining."""
    order_class: int = CONTENT
    """Records of a lower class travel first."""
    register: Register | Literal["subkey", "id"] = Register.SUBKEY
    quota: bool = False
    """Counts against its author's quota; every record of it is its own register."""
    retracts: str | None = None
    """The quota kind that a record of this kind takes the place of: subkey = the other's id, timestamp = the other's timestamp."""
    self_certifying: bool = False
    """Trust judges each record by itself: its author need not be a known member when it arrives, and it stays when its
    author is out, unless Trust says otherwise. Who left by their own word must stay out; a voucher may outlast its author."""
    validate: Validate = _anything

    def __post_init__(self) -> None:
        if self.quota and (self.register != Register.ID) != (self.retracts is not None):
            raise ValueError("a quota kind's register is its id; a retracting kind's is its subkey")
        if self.retracts is not None and not self.quota:
            raise ValueError("a retracting kind takes the quota slot of what it retracts")
        if self.quota and not self.lasting:
            raise ValueError("a quota that is not reconciled would differ from node to node")
        if self.max_payload_bytes > MAX_PAYLOAD_BYTES:
            raise ValueError("no payload may exceed MAX_PAYLOAD_BYTES")


Rules = Mapping[str, KindRule]

MEMBER: Final = KindRule(
    name="member",
    max_payload_bytes=MAX_CHAIN_BYTES,
    max_lifetime_ms=MAX_CERTIFICATE_LIFETIME_MS,
    order_class=TRUST_FIRST,
    self_certifying=True,
)
REVOCATION: Final = KindRule(
    name="revocation",
    max_payload_bytes=MAX_CHAIN_BYTES + KIB,  # a reason and the target's chain
    max_lifetime_ms=REVOCATION_LIFETIME_MS,
    order_class=TRUST_FIRST,
    self_certifying=True,
)
POLICY: Final = KindRule(
    name="policy",
    max_payload_bytes=4 * KIB,
    max_lifetime_ms=100 * YEAR_MS,  # root may be offline for good; a mesh outlives neither its policy nor its users
    order_class=TRUST_FIRST,
    self_certifying=True,
)
NODE: Final = KindRule(
    name="node",
    max_payload_bytes=8 * KIB,
    max_lifetime_ms=HOUR_MS,  # presence grows to one every ten minutes; a ghost is gone after six missed ones
    lasting=False,
)
SPLIT: Final = KindRule(
    name="split",
    max_payload_bytes=8 * KIB,
    max_lifetime_ms=HOUR_MS,
    lasting=False,
)

TOMBSTONE: Final = KindRule(name="", max_payload_bytes=0, max_lifetime_ms=0, lasting=False, register=Register.ID)
"""Stands in a quota slot whose record was gone before the node started. No record can have an empty kind."""


def mesh_rules(*more: KindRule) -> dict[str, KindRule]:
    """The rules of the mesh's own kinds and of `more`, by name."""
    rules = {rule.name: rule for rule in (MEMBER, REVOCATION, POLICY, NODE, SPLIT, *more)}
    for rule in rules.values():
        if rule.retracts is not None and not (rule.retracts in rules and rules[rule.retracts].quota):
            raise ValueError(f"kind {rule.name} retracts {rule.retracts}, which is no quota kind here")
    return rules


def quota_memory_ms(rules: Rules) -> int:
    """How long after a UTC day's end its quota slots still count: until no record of that day can live."""
    return max((rule.max_lifetime_ms for rule in rules.values() if rule.quota), default=DAY_MS)
