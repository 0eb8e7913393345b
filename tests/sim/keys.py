"""Keys and certificates for simulated nodes: real chains, and signatures that are cheap unless asked to be Ed25519."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

from agentmesh.core.units import DAY_MS, HOUR_MS, KIB
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.identity import verify as ed25519_verify
from agentmesh.mesh.logic.certificate import (
    JOIN_CONSENT_PREFIX,
    JOIN_INVITE_PREFIX,
    NONCE_BYTES,
    Chain,
    JoinProof,
    encode_chain,
    join_statement,
    leaf_of,
)
from agentmesh.mesh.logic.issuing import issue_admission, issue_founding, issue_invitation
from agentmesh.mesh.logic.kinds import KindRule, mesh_rules
from agentmesh.mesh.logic.record import Record, RecordBody, Verify, build_record
from agentmesh.mesh.logic.revocation import RevocationPayload, encode_revocation

START_MS = 1_800_000_000_000
POST = KindRule(name="post", max_payload_bytes=16 * KIB, max_lifetime_ms=48 * HOUR_MS, register="id", quota=True)
RETRACTION = KindRule(
    name="retraction", max_payload_bytes=KIB, max_lifetime_ms=96 * HOUR_MS, quota=True, retracts="post"
)
RULES = mesh_rules(POST, RETRACTION)


class Key(Protocol):
    @property
    def public(self) -> bytes: ...

    def sign(self, message: bytes) -> bytes: ...


@dataclass(frozen=True)
class CheapKey:
    """Signs with a keyed hash of its *public* key: deterministic, fast, and forgeable by whoever cares to."""

    public: bytes

    def sign(self, message: bytes) -> bytes:
        return hashlib.blake2b(message, key=self.public).digest()


def cheap_verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    return hashlib.blake2b(message, key=public_key).digest() == signature


@dataclass
class Mint:
    """One mesh's root, founder and members. Member 0 is the founder; others join by its invite or another member's."""

    seed: int = 0
    real: bool = False
    keys: list[Key] = field(default_factory=list[Key])
    chains: list[Chain] = field(default_factory=list[Chain])

    def __post_init__(self) -> None:
        self.root = self._key("root")
        founder = self._key("member 0")
        self.keys.append(founder)
        self.chains.append(issue_founding(self.root.public, self.root.sign, founder.public, START_MS - DAY_MS))

    @property
    def mesh(self) -> bytes:
        return self.root.public

    @property
    def verify(self) -> Verify:
        return ed25519_verify if self.real else cheap_verify

    def _key(self, name: str) -> Key:
        if self.real:
            return NodeKey.generate()
        return CheapKey(hashlib.sha256(f"{self.seed} {name}".encode()).digest())

    def member(self, number: int, inviter: int = 0) -> tuple[Key, Chain]:
        """The key and chain of a member, made on first use."""
        while len(self.keys) <= number:
            self._admit(self._key(f"member {len(self.keys)}"), inviter)
        return self.keys[number], self.chains[number]

    def _admit(self, joiner: Key, inviter: int) -> None:
        key, chain = self.keys[inviter], self.chains[inviter]
        now_ms = START_MS - HOUR_MS + len(self.keys)
        invite = self._key(f"invite {len(self.keys)}")
        invitation = issue_invitation(chain, key.sign, invite.public, now_ms, expires_ms=now_ms + DAY_MS)
        proof = JoinProof(key.public, bytes(NONCE_BYTES), bytes(NONCE_BYTES), b"", b"")
        statement = join_statement(self.mesh, leaf_of(invitation).serial, joiner.public, proof)
        proof = JoinProof(
            key.public,
            bytes(NONCE_BYTES),
            bytes(NONCE_BYTES),
            invite.sign(JOIN_INVITE_PREFIX + statement),
            joiner.sign(JOIN_CONSENT_PREFIX + statement),
        )
        self.keys.append(joiner)
        self.chains.append(
            issue_admission(invitation, chain, key.sign, joiner=joiner.public, proof=proof, now_ms=now_ms + 1)
        )

    # ------------------------------------------------------------------ records

    def record(
        self, key: Key, kind: str, payload: bytes, timestamp_ms: int, lifetime_ms: int, subkey: bytes = b""
    ) -> Record:
        body = RecordBody(1, self.mesh, kind, key.public, subkey, timestamp_ms, timestamp_ms + lifetime_ms, payload)
        return build_record(body, key.sign)

    def member_record(self, number: int) -> Record:
        key, chain = self.member(number)
        leaf = leaf_of(chain)
        return self.record(key, "member", encode_chain(chain), leaf.issued_ms, leaf.expires_ms - leaf.issued_ms)

    def post(self, number: int, text: str, timestamp_ms: int) -> Record:
        return self.record(self.keys[number], "post", text.encode(), timestamp_ms, POST.max_lifetime_ms)

    def revocation(self, number: int, now_ms: int) -> Record:
        """By the root key."""
        key, chain = self.member(number)
        payload = encode_revocation(RevocationPayload("because", chain))
        return self.record(self.root, "revocation", payload, now_ms, 400 * DAY_MS, key.public)
