"""Who is in: the evaluated set of chains and revocations of one mesh, grown by records only.

State: the newest member record of each (author, subject), every revocation, the policy. Owner: the gossip machine; others
read. Every answer is a function of the set of records that are held, whatever order they came in.

- A key is a MEMBER while one held chain for it is within its time and untouched by revocations. Its own record comes first,
  then vouchers.
- A member record whose chain is touched is not held, whether the revocation came before it or after. Its chain is
  remembered apart, so that members who knew the subject can vouch for it.
- A revocation stays whatever becomes of its author: who counts is decided anew each time (revocation.py).

The records of the three kinds are judged here; their signatures, sizes and registers were checked before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.capability import CertificateCache, check_time, verify_chain, verify_lineage
from agentmesh.mesh.logic.certificate import (
    Basis,
    CapabilityError,
    Certificate,
    Chain,
    EarlyChain,
    ExpiredChain,
    NewerChain,
    Role,
    decode_chain,
)
from agentmesh.mesh.logic.chainbook import ChainBook, Held
from agentmesh.mesh.logic.policy import Policy, decode_policy
from agentmesh.mesh.logic.record import KEY_BYTES, Record, Verify
from agentmesh.mesh.logic.revocation import Revocation, decode_revocation, revoked_targets
from agentmesh.mesh.logic.revocation_book import RevocationBook
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.logic.subtree_room import path_of_author

TRUST_KINDS: Final = ("policy", "revocation", "member")
"""The kinds that Trust judges, in the order in which a stored set is best considered."""


class RevokedChain(CapabilityError):
    """This membership has been revoked."""


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    NOT_YET = "not yet"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class TrustVerdict:
    """What became of a record. `blame`: no honest node could have sent it."""

    outcome: Outcome
    reason: str = ""
    blame: bool = False


@dataclass(frozen=True, slots=True)
class TrustChanges:
    """What changed since the last report. All sorted."""

    members: tuple[bytes, ...]
    """Keys that are MEMBER now and were not: their pending records may be tried again."""
    out: tuple[bytes, ...]
    """Keys that are OUT now and were not: their records go (but those of kinds that outlive their author), their peers too."""
    dropped: tuple[bytes, ...]
    """Ids of records that are no longer held: their chain is touched, or their subtree has too many."""
    moved: tuple[bytes, ...]
    """Members whose `scopes` may have changed: their quota slots are to be placed anew."""
    policy: bool
    """The policy changed: all quota slots are to be placed anew."""

    def __bool__(self) -> bool:
        return bool(self.members or self.out or self.dropped or self.moved or self.policy)


@dataclass(frozen=True, slots=True)
class VouchCandidate:
    """A member known from before a node revocation, who needs a voucher to stay."""

    subject: bytes
    chain: Chain
    spared: tuple[bytes, ...]


_ACCEPTED: Final = TrustVerdict(Outcome.ACCEPTED)


class Trust:
    """See the module. `verify` is Ed25519 (identity.verify)."""

    def __init__(self, mesh: bytes, verify: Verify) -> None:
        self.mesh = mesh
        self._verify = verify
        self._cache = CertificateCache()
        self._book = ChainBook(mesh)
        self._revocations = RevocationBook()
        self._revoked: frozenset[bytes] = frozenset()
        self._policy = Policy()
        self._policy_order: tuple[int, bytes] = (0, b"")
        self._policy_changed = False
        self._newly_revoked: dict[bytes, None] = {}

    # -------------------------------------------------------------- records in

    def consider(self, record: Record, now_ms: int, *, from_store: bool = False) -> TrustVerdict:
        """Judge one record of kind member, revocation or policy, and hold it if it is accepted.

        Args:
            from_store: it was verified when it was stored, so signatures inside it are not checked again.
        """
        if record.expires_ms <= now_ms:
            return TrustVerdict(Outcome.REFUSED, "expired")
        verify = _already_verified if from_store else self._verify
        if record.kind == "member":
            return self._consider_member(record, now_ms, verify)
        if record.kind == "revocation":
            return self._consider_revocation(record, verify)
        if record.kind == "policy":
            return self._consider_policy(record)
        return TrustVerdict(Outcome.REFUSED, f"kind {record.kind} is not trust's")

    def _consider_member(self, record: Record, now_ms: int, verify: Verify) -> TrustVerdict:
        subject = record.subkey or record.author
        try:
            chain = decode_chain(record.payload)
            leaf = verify_lineage(chain, self.mesh, verify, cache=self._cache)
        except NewerChain as error:
            return TrustVerdict(Outcome.REFUSED, error.message)
        except CapabilityError as error:
            return _blame(error.message)
        if not _belongs(leaf, subject, record):
            return _blame("a member record does not belong to its author and subject")
        try:
            check_time(leaf, now_ms)
        except ExpiredChain as error:
            return TrustVerdict(Outcome.REFUSED, error.message)
        except EarlyChain as error:
            return TrustVerdict(Outcome.NOT_YET, error.message)
        shared = self._cache.share(chain)
        held = Held(record.id, record.author, subject, record.timestamp_ms, record.expires_ms, leaf, shared)
        if not self._book.is_newer(held):
            return TrustVerdict(Outcome.REFUSED, "a newer record is known")
        self._settle()
        if self._is_touched(leaf):
            return TrustVerdict(Outcome.REFUSED, "the membership has been revoked")
        changed = self._book.hold(held)
        if not changed:
            return TrustVerdict(Outcome.REFUSED, "its subtree has as many members as count")
        self._note_chains(changed)
        return _ACCEPTED

    def _consider_revocation(self, record: Record, verify: Verify) -> TrustVerdict:
        try:
            payload = decode_revocation(record.payload)
            target = verify_lineage(payload.target_chain, self.mesh, verify, cache=self._cache)
            chains = [payload.target_chain]
            if payload.author_chain:
                verify_lineage(payload.author_chain, self.mesh, verify, cache=self._cache)
                chains.append(payload.author_chain)
        except NewerChain as error:
            return TrustVerdict(Outcome.REFUSED, error.message)
        except (CapabilityError, ProtocolError) as error:
            return _blame(error.message)
        if record.subkey != (target.subject if target.role is Role.MEMBER else target.serial):
            return _blame("a revocation shows another target's chain")
        if record.author not in (self.mesh, target.subject, *target.via):
            return _blame("a revocation's author stands nowhere above its target")
        revocation = Revocation(
            record.author,
            record.subkey,
            record.timestamp_ms,
            record.id,
            record.expires_ms,
            record.author in (self.mesh, record.subkey),
            self._book.lineages_within(record.author, chains),
        )
        if not self._revocations.is_newer(revocation):
            return TrustVerdict(Outcome.REFUSED, "a newer record is known")
        path = () if revocation.author == self.mesh else path_of_author(record.author, *chains)
        if not self._revocations.hold(revocation, path):
            return TrustVerdict(Outcome.REFUSED, "its author's subtree has as many revocations as count")
        return _ACCEPTED

    def _consider_policy(self, record: Record) -> TrustVerdict:
        if record.author != self.mesh or record.subkey:
            return _blame("a policy was not made by the mesh's root key")
        try:
            policy = decode_policy(record.payload)
        except ProtocolError as error:
            return _blame(error.message)
        order = (record.timestamp_ms, record.id)
        if order <= self._policy_order:
            return TrustVerdict(Outcome.REFUSED, "a newer record is known")
        self._policy_changed |= policy != self._policy
        self._policy, self._policy_order = policy, order
        return _ACCEPTED

    def expire(self, now_ms: int) -> None:
        """Forget what has ended by its own time. Cheap when nothing has."""
        self._note_chains(self._book.expire(now_ms))
        self._revocations.expire(now_ms)

    def _note_chains(self, subjects: Iterable[bytes]) -> None:
        """The chains of these keys changed; what its author's chains are decides whether a revocation counts."""
        self._revocations.changed |= any(self._revocations.has_author(subject) for subject in subjects)

    def take_changes(self) -> TrustChanges:
        """What changed since this was last called, for the owner of the records and the connections."""
        self._settle()
        members, lost, dropped, moved = self._book.take_changes()
        gone = {*(key for key in self._newly_revoked if len(key) == KEY_BYTES and key in self._revoked), *lost}
        # Who has no room is nobody's member any more: else some would keep its records and others never take them.
        out = tuple(sorted({*(key for key in gone if self._is_out(key)), *self._book.take_crowded_out()}))
        dropped = tuple(sorted((*dropped, *self._revocations.take_crowded_out())))
        changes = TrustChanges(members, out, dropped, moved, self._policy_changed)
        self._newly_revoked = {}
        self._policy_changed = False
        return changes

    def _settle(self) -> None:
        """Bring what is revoked up to date with the records that are held."""
        while self._revocations.changed:
            self._revocations.changed = False
            revoked = revoked_targets(self._revocations.all(), self._book.lineages_of)
            fresh = revoked - self._revoked
            self._newly_revoked.update(dict.fromkeys(sorted(fresh)))
            self._revoked = revoked
            self._note_chains(self._book.drop_touched(sorted(fresh)))

    def _is_touched(self, leaf: Certificate) -> bool:
        return leaf.subject in self._revoked or not self._revoked.isdisjoint(leaf.lineage)

    def _is_out(self, key: bytes) -> bool:
        if self._book.best(key) is not None:
            return False
        lapsed = self._book.lapsed(key)
        return key in self._revoked or (lapsed is not None and self._is_touched(lapsed.certificate))

    # -------------------------------------------------------------- answers

    def standing(self, author: bytes, now_ms: int) -> Standing:
        """What a key is now. The root key is a MEMBER: it writes policies and revocations, no other kind."""
        self._settle()
        best = self._book.best(author)
        if author == self.mesh or (best and (now_ms < best.expires_ms or self._book.best_at(author, now_ms))):
            return Standing.MEMBER
        return Standing.OUT if self._is_out(author) else Standing.UNKNOWN

    def is_revoked(self, element: bytes) -> bool:
        """Whether this node key or invite serial is itself revoked by a revocation that counts."""
        self._settle()
        return element in self._revoked

    def revoked(self) -> tuple[bytes, ...]:
        """Every node key and invite serial that is itself revoked, sorted."""
        self._settle()
        return tuple(sorted(self._revoked))

    def check_presented(self, chain: Chain, now_ms: int, *, role: Role = Role.MEMBER) -> Certificate:
        """The leaf of a chain that somebody shows, if it is good now.

        Raises:
            CapabilityError: as verify_chain, or RevokedChain.
        """
        leaf = verify_chain(chain, self.mesh, now_ms, self._verify, role=role, cache=self._cache)
        self._settle()
        if self._is_touched(leaf) or leaf.serial in self._revoked:
            raise RevokedChain(
                "This invite has been revoked; ask a member for a new one." if role is Role.INVITE else None
            )
        return leaf

    def scopes(self, author: bytes) -> tuple[bytes, ...]:
        """The subtrees that an author's posts count in, innermost first: invite serials and inviters, without founders.

        Each is a child of the next wherever it appears, so that the quotas of subtrees nest.
        """
        self._settle()
        return self._book.scopes(author)

    def may_invite(self, author: bytes) -> bool:
        self._settle()
        best = self._book.best(author)
        return best is not None and best.certificate.may_invite

    def chain_of(self, author: bytes) -> Chain | None:
        """The chain by which the key is a member."""
        self._settle()
        best = self._book.best(author)
        return best.chain if best else None

    def known_chain(self, subject: bytes) -> Chain | None:
        """A chain of the key, be it a member's or one that was touched since."""
        return self._book.known_chain(subject)

    def known_keys(self) -> tuple[bytes, ...]:
        """Members and keys that are out, as far as known."""
        return (*self._book.members(), *self._book.lapsed_keys())

    def invite_serials(self) -> tuple[bytes, ...]:
        """Every invite that a member joined by, sorted."""
        return self._book.invite_serials()

    def invite_chain(self, serial: bytes) -> Chain | None:
        """The chain of an invite that somebody joined by, found in the members' chains."""
        return self._book.invite_chain(serial)

    def members(self) -> tuple[bytes, ...]:
        """Every member's key, sorted."""
        self._settle()
        return self._book.members()

    def out(self) -> tuple[bytes, ...]:
        """Every key that is known to be out, sorted."""
        self._settle()
        revoked = (key for key in self._revoked if len(key) == KEY_BYTES)
        return tuple(sorted({key for key in (*revoked, *self._book.lapsed_keys()) if self._is_out(key)}))

    def policy(self) -> Policy:
        return self._policy

    def has_policy(self) -> bool:
        """Whether the root key's policy has arrived; until then the default holds."""
        return bool(self._policy_order[0])

    def vouch_candidates(self, self_key: bytes, target: bytes, now_ms: int) -> tuple[VouchCandidate, ...]:
        """Whom this node can keep in when node `target` is revoked, or was: everybody below it that was a member before.

        Empty when the target is an invite, when this node may not invite, or is touched itself. To be asked before the
        revocation is considered, so that the vouchers travel ahead of it and nobody's posts are dropped in between.
        """
        self._settle()
        own = self._book.best(self_key)
        if own is None or len(target) != KEY_BYTES or not own.certificate.may_invite:
            return ()
        above = (*own.certificate.lineage, self_key)
        if target in above:
            return ()
        found = (self._candidate(held, target, above, now_ms) for held in self._book.below(target))
        return tuple(candidate for candidate in found if candidate)

    def vouch_candidate(self, self_key: bytes, subject: bytes, now_ms: int) -> VouchCandidate | None:
        """The same for one key that is out now, whatever put it out: None unless this node knew it before and may vouch."""
        self._settle()
        own, lapsed = self._book.best(self_key), self._book.lapsed(subject)
        if own is None or lapsed is None or not own.certificate.may_invite or self._book.best(subject):
            return None
        return self._candidate(lapsed, None, (*own.certificate.lineage, self_key), now_ms)

    def _candidate(
        self, held: Held, target: bytes | None, above: tuple[bytes, ...], now_ms: int
    ) -> VouchCandidate | None:
        spared = tuple(e for e in held.certificate.lineage if e == target or e in self._revoked)
        spares_invite = any(len(element) != KEY_BYTES for element in spared)
        barred = spares_invite or held.subject in self._revoked or held.subject in above or held.subject == target
        if barred or not spared or held.expires_ms <= now_ms:
            return None
        return VouchCandidate(held.subject, held.chain, spared)


def _already_verified(public_key: bytes, signature: bytes, message: bytes) -> bool:
    return True


def _blame(reason: str) -> TrustVerdict:
    return TrustVerdict(Outcome.REFUSED, reason, blame=True)


def _belongs(leaf: Certificate, subject: bytes, record: Record) -> bool:
    """Whether a chain may stand in this record: one's own, or a voucher that the author gave to somebody else."""
    own = not record.subkey
    vouched = record.subkey != record.author and leaf.basis is Basis.VOUCHER and leaf.issuer == record.author
    return (
        leaf.role is Role.MEMBER
        and leaf.subject == subject
        and record.expires_ms <= leaf.expires_ms
        and (own or vouched)
    )
