"""Records without signatures, and an index whose trust and policy a test holds in its hands."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from agentmesh.core.units import HOUR_MS
from agentmesh.mesh.logic.kinds import KindRule, Register, mesh_rules
from agentmesh.mesh.logic.record import Record, SignedRecord
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.logic.standing import Standing

NOON_MS = 1_800_014_400_000  # 12:00 UTC of some day
LIFETIME_MS = 48 * HOUR_MS

POST = KindRule("post", 100, LIFETIME_MS, register=Register.ID, quota=True)
RETRACTION = KindRule("retraction", 0, LIFETIME_MS, quota=True, retracts="post")
DEMAND = KindRule("demand", 100, HOUR_MS)
NOTE = KindRule("note", 100, LIFETIME_MS, register=Register.ID)


@dataclass
class Policy:
    posts_per_minute: int = 120
    posts_per_day: int = 2_500


@dataclass
class World:
    """What Trust would say; everyone is a member unless told otherwise."""

    standings: dict[bytes, Standing] = field(default_factory=dict[bytes, Standing])
    scopes: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict[bytes, tuple[bytes, ...]])
    policy: Policy = field(default_factory=Policy)

    def index(self) -> RecordIndex:
        return RecordIndex(
            mesh_rules(POST, RETRACTION, DEMAND, NOTE),
            lambda author, now_ms: self.standings.get(author, Standing.MEMBER),
            lambda author: self.scopes.get(author, ()),
            lambda: self.policy,
        )


def author(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def record(
    kind: str, by: bytes, at_ms: int, *, subkey: bytes = b"", lifetime_ms: int = LIFETIME_MS, payload: bytes = b""
) -> Record:
    body = repr((kind, by, at_ms, subkey, lifetime_ms, payload)).encode()
    id_ = hashlib.sha256(body).digest()[:16]
    return Record(id_, kind, by, subkey, at_ms, at_ms + lifetime_ms, payload, SignedRecord(body, bytes(64)))


def post(by: bytes, at_ms: int, text: str = "", lifetime_ms: int = LIFETIME_MS) -> Record:
    return record("post", by, at_ms, payload=text.encode(), lifetime_ms=lifetime_ms)


def retraction(of: Record, *, by: bytes | None = None, at_ms: int | None = None) -> Record:
    return record("retraction", by or of.author, of.timestamp_ms if at_ms is None else at_ms, subkey=of.id)


def kept(index: RecordIndex) -> list[bytes]:
    return sorted(entry.id for entry in index)
