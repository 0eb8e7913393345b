"""What this node may do with its keys: found, invite, admit, renew, vouch, revoke. No network.

State: the membership file. Owner: the event loop; files are written in threads, one at a time. Records are returned as
drafts: who publishes them gives them their timestamp. A limited invite's use is on disk before a certificate exists.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from agentmesh.core.clock import Clock
from agentmesh.core.errors import Ambiguous, InvalidInput, NotFound, TokenError
from agentmesh.core.paths import Home
from agentmesh.mesh.identity import MIN_SHORT_ID_CHARS, NodeKey, encode_id, verify
from agentmesh.mesh.logic.capability import CapabilityError, renewable_from_ms
from agentmesh.mesh.logic.certificate import (
    MAX_USES,
    SERIAL_BYTES,
    Chain,
    JoinProof,
    decode_chain,
    encode_chain,
    leaf_of,
    parse_nodes,
)
from agentmesh.mesh.logic.issuing import (
    CannotIssue,
    issue_admission,
    issue_founding,
    issue_invitation,
    issue_renewal,
    issue_voucher,
)
from agentmesh.mesh.logic.kinds import POLICY
from agentmesh.mesh.logic.limits import MAX_CERTIFICATE_LIFETIME_MS, REVOCATION_LIFETIME_MS, VOUCHERS_PER_REVOCATION
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.names import check_name
from agentmesh.mesh.logic.policy import Policy, encode_policy
from agentmesh.mesh.logic.record import RECORD_VERSION, Record, RecordBody, build_record
from agentmesh.mesh.logic.revocation import RevocationPayload, encode_revocation
from agentmesh.mesh.logic.token import InviteToken, check_token, encode_token
from agentmesh.mesh.logic.trust import Trust, VouchCandidate
from agentmesh.mesh.membership_file import IssuedInvite, MembershipFile

POLICY_LIFETIME_MS = POLICY.max_lifetime_ms // 2  # whoever's clock is ahead must not find it over the limit


@dataclass(frozen=True, slots=True)
class Draft:
    """A record to be signed by `key` and published. It ends at `expires_ms`, whenever it is stamped."""

    key: NodeKey
    kind: str
    subkey: bytes
    payload: bytes
    expires_ms: int

    def build(self, mesh: bytes, timestamp_ms: int) -> Record:
        """The signed record."""
        body = RecordBody(
            RECORD_VERSION, mesh, self.kind, self.key.public, self.subkey, timestamp_ms, self.expires_ms, self.payload
        )
        return build_record(body, self.key.sign)


@dataclass(frozen=True, slots=True)
class NewInvite:
    """What `agentmesh invite` answers. The token is a secret."""

    token: str
    serial: bytes
    expires_ms: int
    uses: int | None

    def __repr__(self) -> str:
        return f"NewInvite({self.serial.hex()})"


def found_mesh(home: Home, key: NodeKey, name: str, policy: Policy, now_ms: int) -> tuple[MembershipFile, list[Draft]]:
    """Make a new mesh with this node as its founder, and its first records: policy and membership.

    Raises:
        InvalidInput: the name does not do.
        IdentityKeyError, StorageError: the root key or the membership could not be written.
    """
    root = NodeKey.generate()
    label = check_name(name, "mesh name")
    membership = MembershipFile(home, root.public)
    # The key first: a membership without it would be a mesh that cannot be governed.
    root.save(membership.root_key_path)
    chain = issue_founding(root.public, root.sign, key.public, now_ms)
    membership.adopt(chain, label, founding_policy=encode_policy(policy))
    return membership, [policy_draft(root, encode_policy(policy), now_ms), membership_draft(key, chain)]


def policy_draft(root: NodeKey, policy: bytes, now_ms: int) -> Draft:
    """The record by which the root key sets the mesh's policy (encoded)."""
    return Draft(root, "policy", b"", policy, now_ms + POLICY_LIFETIME_MS)


def membership_draft(key: NodeKey, chain: Chain) -> Draft:
    """The record by which a node shows its own chain to everybody."""
    return Draft(key, "member", b"", encode_chain(chain), leaf_of(chain).expires_ms)


def export_root(membership: MembershipFile, path: Path) -> None:
    """Copy the mesh's root key into a new file, mode 0600.

    Raises:
        NotFound: it is not kept here.
        InvalidInput: the file exists.
        IdentityKeyError: it cannot be written.
    """
    root = membership.root_key()
    if root is None:
        raise NotFound("This home does not hold the mesh's root key; only the founder's does.")
    try:
        root.save(path)
    except FileExistsError as error:
        raise InvalidInput(f"{path} exists already; name a new file.") from error


def open_token(token: InviteToken, now_ms: int) -> NodeKey:
    """The invite's own key, if the token is genuine and in time. Raises: TokenError."""
    leaf = check_token(token, now_ms, verify)
    key = NodeKey(token.seed)
    if leaf.subject != key.public:
        raise TokenError("The invite token is not genuine: its key is not the one that was invited.")
    return key


class Authority:
    """See the module."""

    def __init__(self, key: NodeKey, membership: MembershipFile, trust: Trust, clock: Clock) -> None:
        self.key = key
        self.membership = membership
        self._trust = trust
        self._clock = clock
        self._writing = asyncio.Lock()

    @property
    def chain(self) -> Chain:
        """This node's chain. Empty before it joined."""
        return self.membership.chain

    # -------------------------------------------------------------- invites

    async def create_invite(
        self, *, lifetime_ms: int, uses: int | None, bootstrap: tuple[PeerEntry, ...], may_invite: bool = True
    ) -> NewInvite:
        """A new invite. Counted ones (`uses`) are admitted by this node alone.

        Raises:
            CannotIssue: this member may not invite, or is too deep.
            InvalidInput: a lifetime over a year, a number of uses out of range, too many invites.
            StorageError, TokenError
        """
        now_ms = self._clock.now_ms()
        if not 0 < lifetime_ms <= MAX_CERTIFICATE_LIFETIME_MS:
            raise InvalidInput("An invite lasts a year at most.")
        if uses is not None and not 0 < uses <= MAX_USES:
            raise InvalidInput(f"An invite can be limited to 1 to {MAX_USES} uses.")
        invite_key = NodeKey.generate()
        chain = issue_invitation(
            self.chain,
            self.key.sign,
            invite_key.public,
            now_ms,
            expires_ms=now_ms + lifetime_ms,
            uses=uses,
            may_invite=may_invite,
        )
        serial = leaf_of(chain).serial
        token = encode_token(InviteToken(chain, invite_key.seed, self.membership.name, bootstrap))
        kept = IssuedInvite(encode_chain(chain), now_ms + lifetime_ms, uses)
        async with self._writing:
            await asyncio.to_thread(self.membership.add_invite, serial, kept, now_ms)
        return NewInvite(token, serial, now_ms + lifetime_ms, uses)

    async def grant(self, invite_chain: Chain, joiner: bytes, proof: JoinProof) -> Chain:
        """A membership for a joiner whose invite and proof were checked. A counted use is on disk before it is made.

        Raises:
            CannotIssue: this member cannot; another may.
            InviteRefused: the invite is used up.
            StorageError
        """
        now_ms = self._clock.now_ms()
        granted = issue_admission(invite_chain, self.chain, self.key.sign, joiner=joiner, proof=proof, now_ms=now_ms)
        # Issued first because that may fail; handed out only after the count is safe.
        invite = leaf_of(invite_chain)
        if invite.uses is not None:
            async with self._writing:
                await asyncio.to_thread(self.membership.count_use, invite.serial, joiner)
        return granted

    # -------------------------------------------------------------- keeping memberships alive

    def renew(self, older_chain: Chain) -> Chain:
        """Another year for another member. Raises: CannotIssue."""
        return issue_renewal(older_chain, self.chain, self.key.sign, self._clock.now_ms())

    def renewal_is_due(self) -> bool:
        """Whether this node's certificate is in the second half of its life (or over)."""
        return bool(self.chain) and self._clock.now_ms() >= renewable_from_ms(leaf_of(self.chain))

    async def maintain(self) -> Draft | None:
        """Mend what this node can mend without any peer; returns a record to publish, one at a time.

        Its own chain, by the root key if that is here or by a voucher that came in; its member record or the founding policy,
        if the node ended after the membership was written and before they were.
        """
        now_ms, own = self._clock.now_ms(), leaf_of(self.chain)
        held = self._trust.chain_of(self.key.public)
        if own.is_founder and self.renewal_is_due() and (root := self.membership.root_key()):
            return await self.adopt(issue_founding(self.membership.mesh, root.sign, self.key.public, now_ms))
        if not self.chain_is_good():
            return await self.adopt(held) if held and self._is_good(held, now_ms) else None
        if held is None:
            return membership_draft(self.key, self.chain)
        policy = self.membership.founding_policy
        if policy and not self._trust.has_policy() and (root := self.membership.root_key()):
            return policy_draft(root, policy, now_ms)
        return None

    async def adopt(self, chain: Chain, mesh_name: str = "") -> Draft:
        """Keep a verified chain as this node's own; returns the record to publish. Raises: StorageError."""
        async with self._writing:
            await asyncio.to_thread(self.membership.adopt, chain, mesh_name)
        return membership_draft(self.key, chain)

    def chain_is_good(self) -> bool:
        """Whether this node's own chain is within its time and untouched by the revocations known here."""
        return bool(self.chain) and self._is_good(self.chain, self._clock.now_ms())

    def _is_good(self, chain: Chain, now_ms: int) -> bool:
        try:
            self._trust.check_presented(chain, now_ms)
        except CapabilityError:
            return False
        return True

    # -------------------------------------------------------------- vouching

    def vouch(self, candidate: VouchCandidate) -> Draft | None:
        """The record that keeps `candidate` in, or None when this node cannot vouch for it."""
        try:
            chain = issue_voucher(candidate.chain, self.chain, self.key.sign, candidate.spared, self._clock.now_ms())
        except CannotIssue:
            return None
        return Draft(self.key, "member", candidate.subject, encode_chain(chain), leaf_of(chain).expires_ms)

    def vouchers(self, target: bytes) -> list[Draft]:
        """Vouchers for whom this node knew and whom the revocation of node `target` would put, or has put, out: the first ones."""
        candidates = self._trust.vouch_candidates(self.key.public, target, self._clock.now_ms())
        nearest = sorted(candidates, key=_nearness)[:VOUCHERS_PER_REVOCATION]
        return [draft for candidate in nearest if (draft := self.vouch(candidate))]

    # -------------------------------------------------------------- revoking

    def plan_revocation(self, target: bytes, reason: str = "") -> list[Draft]:
        """The records that revoke a node or an invite, in the order to publish them in: vouchers before the revocation.

        Raises:
            NotFound: no certificate of the target is known.
            CannotIssue: neither this node nor a root key held here stands above the target.
        """
        now_ms = self._clock.now_ms()
        chain = self._chain_of_target(target)
        author = self._author_for(target, chain)
        payload = RevocationPayload(reason, chain, self._own_proof(author, chain))
        revocation = Draft(author, "revocation", target, encode_revocation(payload), now_ms + REVOCATION_LIFETIME_MS)
        vouchers = [] if target == self.key.public else self.vouchers(target)
        return [*vouchers, revocation]

    def _author_for(self, target: bytes, chain: Chain) -> NodeKey:
        if self.key.public in (target, *leaf_of(chain).via):
            return self.key
        root = self.membership.root_key()
        if root is None:
            raise CannotIssue(
                "Only the mesh's root key, the target itself and those who invited it, directly or through others, can revoke it."
            )
        return root

    def _own_proof(self, author: NodeKey, target_chain: Chain) -> Chain:
        """The author's own chain, unless the target's already shows it or none is needed."""
        if author is not self.key:
            return ()
        shown = any(node.certificate.subject == author.public for node in parse_nodes(target_chain).values())
        return () if shown else self.chain

    def _chain_of_target(self, target: bytes) -> Chain:
        if len(target) == SERIAL_BYTES:
            own = self.membership.invites().get(target)
            chain = decode_chain(own.chain) if own else self._trust.invite_chain(target)
        else:
            chain = self.chain if target == self.key.public else self._trust.known_chain(target)
        if chain is None:
            raise NotFound("No node and no invite with that id is known here.")
        return chain

    def resolve_target(self, text: str) -> bytes:
        """The node key or invite serial that a user means: a whole id, or a beginning of 8 characters or more.

        Raises:
            InvalidInput, NotFound, Ambiguous
        """
        wanted = text.strip().lower()
        if len(wanted) < MIN_SHORT_ID_CHARS:
            raise InvalidInput(f"An id takes at least {MIN_SHORT_ID_CHARS} characters.")
        nodes = dict.fromkeys((self.key.public, *self._trust.known_keys()))
        serials = dict.fromkeys((*self.membership.invites(), *self._trust.invite_serials()))
        found = [key for key in nodes if encode_id(key).startswith(wanted)]
        found += [serial for serial in serials if serial.hex().startswith(wanted)]
        if len(found) > 1:
            raise Ambiguous
        if not found:
            raise NotFound("No node and no invite with that id is known here.")
        return found[0]


def _nearness(candidate: VouchCandidate) -> tuple[int, int, bytes]:
    leaf = leaf_of(candidate.chain)
    return leaf.depth, leaf.issued_ms, candidate.subject
