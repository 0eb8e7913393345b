"""A mesh's members with any ancestry, and their records, for tests of certificates and trust. Signatures are cheap."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentmesh.core.units import DAY_MS, HOUR_MS, MINUTE_MS
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
from agentmesh.mesh.logic.issuing import (
    issue_admission,
    issue_founding,
    issue_invitation,
    issue_renewal,
    issue_voucher,
)
from agentmesh.mesh.logic.policy import Policy, encode_policy
from agentmesh.mesh.logic.record import Record, RecordBody, build_record
from agentmesh.mesh.logic.revocation import RevocationPayload, encode_revocation
from agentmesh.mesh.logic.trust import Trust
from tests.sim.keys import CheapKey, Key, cheap_verify

NOW_MS = 1_800_000_000_000


def cheap_key(name: str) -> CheapKey:
    return CheapKey(name.encode().ljust(32, b"."))


def join_proof(
    mesh: bytes, invite_key: Key, invite_chain: Chain, joiner: Key, server: bytes, nonce: bytes = bytes(NONCE_BYTES)
) -> JoinProof:
    """What a handshake between `joiner` and `server` leaves behind."""
    draft = JoinProof(server, nonce, nonce, b"", b"")
    statement = join_statement(mesh, leaf_of(invite_chain).serial, joiner.public, draft)
    return JoinProof(
        server,
        nonce,
        nonce,
        invite_key.sign(JOIN_INVITE_PREFIX + statement),
        joiner.sign(JOIN_CONSENT_PREFIX + statement),
    )


@dataclass
class Family:
    """Members by name; "founder" is there from the start."""

    now_ms: int = NOW_MS
    keys: dict[str, Key] = field(default_factory=dict[str, Key])
    chains: dict[str, Chain] = field(default_factory=dict[str, Chain])
    invites: dict[str, tuple[Key, Chain]] = field(default_factory=dict[str, tuple[Key, Chain]])

    def __post_init__(self) -> None:
        self.root = cheap_key("root")
        self._past_ms = self.now_ms - 12 * HOUR_MS
        self.keys["founder"] = cheap_key("founder")
        self.chains["founder"] = issue_founding(self.mesh, self.root.sign, self.key("founder"), self.now_ms - DAY_MS)

    def _tick(self) -> int:
        """A minute later than the last thing that happened; everything happens in the day before `now_ms`."""
        self._past_ms += MINUTE_MS
        return self._past_ms

    @property
    def mesh(self) -> bytes:
        return self.root.public

    def key(self, name: str) -> bytes:
        return self.root.public if name == "root" else self.keys[name].public

    def trust(self) -> Trust:
        return Trust(self.mesh, cheap_verify)

    def invite(self, name: str, issuer: str, *, uses: int | None = None, may_invite: bool = True) -> Chain:
        """An invite called `name`."""
        key = cheap_key(f"invite {name}")
        chain = issue_invitation(
            self.chains[issuer],
            self.keys[issuer].sign,
            key.public,
            self._tick(),
            expires_ms=self.now_ms + DAY_MS,
            uses=uses,
            may_invite=may_invite,
        )
        self.invites[name] = (key, chain)
        return chain

    def serial(self, invite: str) -> bytes:
        return leaf_of(self.invites[invite][1]).serial

    def join(self, name: str, inviter: str = "founder", *, admitter: str | None = None, invite: str = "") -> Chain:
        """Admit `name` by an invite of `inviter` (made when it has no name), through `admitter`."""
        server = admitter or inviter
        invite = invite or f"of {inviter}"
        if invite not in self.invites:
            self.invite(invite, inviter)
        invite_key, invite_chain = self.invites[invite]
        joiner = self.keys.setdefault(name, cheap_key(name))
        proof = join_proof(self.mesh, invite_key, invite_chain, joiner, self.key(server))
        chain = issue_admission(
            invite_chain,
            self.chains[server],
            self.keys[server].sign,
            joiner=joiner.public,
            proof=proof,
            now_ms=self._tick(),
        )
        self.chains[name] = chain
        return chain

    def renew(self, name: str, renewer: str, now_ms: int) -> Chain:
        return issue_renewal(self.chains[name], self.chains[renewer], self.keys[renewer].sign, now_ms)

    def vouch(self, name: str, voucher: str, spared: tuple[str, ...]) -> Chain:
        keys = [self.key(spare) for spare in spared]
        return issue_voucher(self.chains[name], self.chains[voucher], self.keys[voucher].sign, keys, self.now_ms)

    # ------------------------------------------------------------------ records

    def record(
        self, author: str, kind: str, subkey: bytes, payload: bytes, timestamp_ms: int, expires_ms: int
    ) -> Record:
        key = self.root if author == "root" else self.keys[author]
        body = RecordBody(1, self.mesh, kind, key.public, subkey, timestamp_ms, expires_ms, payload)
        return build_record(body, key.sign)

    def member_record(self, name: str, chain: Chain | None = None, *, at_ms: int | None = None) -> Record:
        chain = chain or self.chains[name]
        leaf = leaf_of(chain)
        return self.record(name, "member", b"", encode_chain(chain), at_ms or leaf.issued_ms, leaf.expires_ms)

    def voucher_record(self, name: str, voucher: str, spared: tuple[str, ...]) -> Record:
        chain = self.vouch(name, voucher, spared)
        return self.record(
            voucher, "member", self.key(name), encode_chain(chain), self.now_ms, leaf_of(chain).expires_ms
        )

    def revocation(self, author: str, target: str, *, at_ms: int | None = None) -> Record:
        """Of a member, or of an invite (by its name)."""
        if target in self.chains:
            subkey, chain = self.key(target), self.chains[target]
        else:
            chain = self.invites[target][1]
            subkey = self.serial(target)
        author_chain = () if author == "root" else self.chains[author]
        payload = encode_revocation(RevocationPayload("because", chain, author_chain))
        at_ms = at_ms or self.now_ms
        return self.record(author, "revocation", subkey, payload, at_ms, at_ms + 600 * DAY_MS)

    def policy_record(self, policy: Policy, *, author: str = "root", at_ms: int | None = None) -> Record:
        at_ms = at_ms or self.now_ms
        return self.record(author, "policy", b"", encode_policy(policy), at_ms, at_ms + 600 * DAY_MS)
