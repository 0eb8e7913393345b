"""Whether a chain of certificates is valid by itself: signatures, rights, ancestry, depth and times.

    basis        issuer                        rests on                                     `via`
    founding     the mesh's root key           nothing                                      (root,)
    invitation   a member with may_invite      issuer's certificate                         issuer's via + issuer
    admission    a member with may_invite      issuer's certificate, the invitation         issuer's via + issuer
                                                                                            + invitation's via + its serial
    renewal      any other member              issuer's certificate, the older certificate  as the older certificate
    voucher      a member with may_invite      issuer's certificate, the older certificate  older via without `spared`

`via` keeps the first occurrence of each element, outermost first; a voucher adds its issuer's lineage and its issuer to
`vouched_by` instead. A certificate is *out* when its subject or anything in `via` or `vouched_by` is revoked (trust.py);
only those in `via` may revoke it, because only to them the subject consented: by its signature in the join proof.

A renewal shows the older certificate, so that who may not invite cannot pass off a stranger as a member. A founder's
renewal of somebody below it needs no such proof: it keeps chains from growing with each year (two members renewing each
other would double them), and a founder could admit that stranger anyway. The founder stays in the lineage, so that revoking
it reaches these too.

What is revoked, and who asks, is not known here.
"""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import MIB
from agentmesh.mesh.logic.certificate import (
    CERTIFICATE_PREFIX,
    JOIN_CONSENT_PREFIX,
    JOIN_INVITE_PREFIX,
    Basis,
    CapabilityError,
    Certificate,
    Chain,
    EarlyChain,
    ExpiredChain,
    ForeignChain,
    MalformedChain,
    NewerChain,
    Node,
    Role,
    SignedCertificate,
    assemble,
    beside,
    decode_chain,
    digest_of,
    encode_chain,
    join_statement,
    merge,
    parse_nodes,
    walk,
)
from agentmesh.mesh.logic.limits import MAX_CERTIFICATE_LIFETIME_MS, MAX_CHAIN_DEPTH, MAX_CLOCK_SKEW_MS
from agentmesh.mesh.logic.record import Verify

__all__ = [
    "Basis",
    "CapabilityError",
    "Certificate",
    "CertificateCache",
    "Chain",
    "EarlyChain",
    "ExpiredChain",
    "ForeignChain",
    "InvalidChain",
    "MalformedChain",
    "NewerChain",
    "Role",
    "SignedCertificate",
    "assemble",
    "decode_chain",
    "encode_chain",
    "verify_chain",
    "verify_lineage",
]

CACHED_CERTIFICATE_BYTES: Final = (
    64 * MIB
)  # unknown elements may swell a certificate to 32 KiB; common ones have 600 bytes
CACHED_CERTIFICATES: Final = 32_768  # verified certificates remembered: 10,000 members with theirs and their inviters'


class InvalidChain(CapabilityError):
    """The membership chain breaks a rule or carries a wrong signature."""


class CertificateCache:
    """Certificates already verified, by digest. A digest covers what a certificate rests on, so one look-up settles all.

    Only valid certificates enter it, so only members can fill it; beyond its bounds the oldest half is forgotten.
    """

    def __init__(self, limit: int = CACHED_CERTIFICATES, limit_bytes: int = CACHED_CERTIFICATE_BYTES) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._known: dict[bytes, SignedCertificate] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    def add(self, digest: bytes, signed: SignedCertificate) -> None:
        if len(self._known) >= self._limit or self._bytes + len(signed.body) > self._limit_bytes:
            for old in list(self._known)[: (len(self._known) + 1) // 2]:
                self._bytes -= len(self._known.pop(old).body)
        self._bytes += len(signed.body)
        self._known[digest] = signed

    def share(self, chain: Chain) -> Chain:
        """An equal chain whose certificates are those remembered here: thousands of chains hold their inviters' once."""
        return tuple(self._known.get(digest_of(signed), signed) for signed in chain)


def verify_chain(
    chain: Chain,
    mesh: bytes,
    now_ms: int,
    verify: Verify,
    *,
    role: Role = Role.MEMBER,
    cache: CertificateCache | None = None,
) -> Certificate:
    """The leaf of a chain that is valid now, apart from revocations.

    Raises:
        CapabilityError: InvalidChain, MalformedChain, ForeignChain, NewerChain, ExpiredChain, EarlyChain.
    """
    leaf = verify_lineage(chain, mesh, verify, cache=cache)
    if leaf.role is not role:
        raise InvalidChain(f"This is a certificate for the role '{leaf.role}', not '{role}'.")
    check_time(leaf, now_ms)
    return leaf


def check_time(leaf: Certificate, now_ms: int) -> None:
    """Raises: ExpiredChain, EarlyChain."""
    if now_ms >= leaf.expires_ms:
        raise ExpiredChain("This invite has expired; ask a member for a new one." if leaf.role is Role.INVITE else None)
    if leaf.issued_ms > now_ms + MAX_CLOCK_SKEW_MS:
        raise EarlyChain


def verify_lineage(chain: Chain, mesh: bytes, verify: Verify, *, cache: CertificateCache | None = None) -> Certificate:
    """The leaf of a chain that was valid when it was issued; whether it still is, is not looked at.

    Raises:
        CapabilityError: as verify_chain, without ExpiredChain and EarlyChain.
    """
    nodes = parse_nodes(chain)
    leaf = next(iter(nodes))
    order = list(walk(nodes, leaf))
    if tuple(node.signed for node in order) != chain:
        raise MalformedChain("A membership chain holds certificates that do not belong, or in another order.")
    cache = cache or CertificateCache()
    # Reversed, because what a certificate rests on must be verified before it.
    for node in _bottom_up(nodes, leaf):
        if node.digest not in cache:
            _check(node, nodes, mesh, verify)
            cache.add(node.digest, node.signed)
        elif node.certificate.mesh != mesh:
            raise ForeignChain
    return nodes[leaf].certificate


def _bottom_up(nodes: dict[bytes, Node], leaf: bytes) -> list[Node]:
    """Every certificate after all that it rests on. Digests cannot form a loop: that would take a SHA-256 collision."""
    order: dict[bytes, Node] = {}
    stack: list[tuple[bytes, bool]] = [(leaf, False)]
    while stack:
        digest, ready = stack.pop()
        if digest in order:
            continue
        if ready:
            order[digest] = nodes[digest]
        else:
            stack.append((digest, True))
            stack.extend((below, False) for below in nodes[digest].rests_on)
    return list(order.values())


# ------------------------------------------------------------------ one certificate


def _check(node: Node, nodes: dict[bytes, Node], mesh: bytes, verify: Verify) -> None:
    c = node.certificate
    if c.mesh != mesh:
        raise ForeignChain
    issuer = nodes[c.issuer_digest].certificate if c.issuer_digest else None
    basis = nodes[c.basis_digest].certificate if c.basis_digest else None
    _check_common(c)
    if c.basis is Basis.FOUNDING:
        _check_founding(c, issuer, basis)
    elif issuer is None:
        raise InvalidChain("A certificate does not say by what right it was issued.")
    else:
        _check_issuer(c, issuer)
        if c.basis is Basis.INVITATION:
            _check_invitation(c, issuer, basis)
        elif c.basis is Basis.ADMISSION:
            _check_admission(c, issuer, basis, verify)
        elif c.basis is Basis.RENEWAL:
            _check_renewal(c, issuer, basis)
        else:
            _check_voucher(c, issuer, basis)
    if not verify(c.issuer, node.signed.signature, CERTIFICATE_PREFIX + node.signed.body):
        raise InvalidChain("A certificate carries a wrong signature.")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvalidChain(message)


def _check_common(c: Certificate) -> None:
    _require(c.subject != c.issuer, "A certificate was issued by its own subject.")
    _require(c.subject != c.mesh, "A certificate was issued to the mesh's root key.")
    _require(c.subject not in c.lineage, "A certificate's subject is among its own ancestors.")
    _require(0 < c.depth <= MAX_CHAIN_DEPTH, f"A membership chain is deeper than {MAX_CHAIN_DEPTH}.")
    _require(c.expires_ms - c.issued_ms <= MAX_CERTIFICATE_LIFETIME_MS, "A certificate lasts longer than is allowed.")
    _require((c.role is Role.INVITE) == (c.basis is Basis.INVITATION), "A certificate's role does not fit its basis.")
    _require(c.uses is None or c.role is Role.INVITE, "A membership cannot be counted.")
    _require(c.proof is None or c.basis is Basis.ADMISSION, "A join proof where none belongs.")
    _require(not c.spared or c.basis is Basis.VOUCHER, "Only a voucher spares.")


def _check_founding(c: Certificate, issuer: Certificate | None, basis: Certificate | None) -> None:
    _require(c.issuer == c.mesh, "A founder's certificate was not issued by the mesh's root key.")
    _require(issuer is None and basis is None, "A founder's certificate rests on nothing but the root key.")
    _require(c.via == (c.mesh,) and not c.vouched_by and not c.line, "A founder has no ancestor but the root key.")
    _require(c.depth == 1, "A founder's depth is one.")


def _check_issuer(c: Certificate, issuer: Certificate) -> None:
    _require(issuer.role is Role.MEMBER and issuer.subject == c.issuer, "A certificate's issuer is not a member.")
    _check_valid_then(c, issuer, "issuer's certificate")
    if c.basis is not Basis.RENEWAL:
        _require(issuer.may_invite, "A certificate was issued by a member that may not invite.")


def _check_valid_then(c: Certificate, other: Certificate, what: str) -> None:
    # Issuer and subject may read two clocks, which differ by MAX_CLOCK_SKEW_MS at most when they talk.
    started = other.issued_ms - MAX_CLOCK_SKEW_MS <= c.issued_ms
    _require(started and c.issued_ms < other.expires_ms, f"The {what} was not valid when a certificate was issued.")


def _check_invitation(c: Certificate, issuer: Certificate, basis: Certificate | None) -> None:
    _require(basis is None and not c.line, "An invitation rests on its issuer alone.")
    _require(c.via == merge(issuer.via, (issuer.subject,)), "An invitation hides its ancestry.")
    _require(c.vouched_by == beside(c.via, issuer.vouched_by), "An invitation hides who vouched.")
    _require(c.depth == issuer.depth + 1, "An invitation states a wrong depth.")


def _check_admission(c: Certificate, issuer: Certificate, invite: Certificate | None, verify: Verify) -> None:
    if invite is None or invite.role is not Role.INVITE or c.proof is None:
        raise InvalidChain("A member was admitted without an invite.")
    _check_valid_then(c, invite, "invite")
    _require(invite.uses is None or c.issuer == invite.issuer, "A counted invite was used by another than its issuer.")
    _require(c.issuer in (c.proof.server, invite.issuer), "The joiner did not consent to this issuer.")
    _require(invite.may_invite or not c.may_invite, "A member was given more rights than its invite gives.")
    _require(c.depth == max(issuer.depth + 1, invite.depth), "An admission states a wrong depth.")
    _require(c.via == merge(issuer.via, (issuer.subject,), invite.via, (invite.serial,)), "Ancestry is hidden.")
    _require(c.vouched_by == beside(c.via, issuer.vouched_by, invite.vouched_by), "An admission hides who vouched.")
    _require(c.line == (invite.serial, invite.issuer), "An admission names another inviter.")
    statement = join_statement(c.mesh, invite.serial, c.subject, c.proof)
    signed = verify(invite.subject, c.proof.invite_signature, JOIN_INVITE_PREFIX + statement) and verify(
        c.subject, c.proof.joiner_signature, JOIN_CONSENT_PREFIX + statement
    )
    _require(signed, "A join proof carries a wrong signature.")


def _check_renewal(c: Certificate, issuer: Certificate, older: Certificate | None) -> None:
    if older is None:
        _require(issuer.is_founder, "A renewal does not show the older certificate.")
        _require(c.via[:1] == (c.mesh,) and c.depth > 1, "A founder's renewal states an impossible ancestry.")
        # Else whoever took a founder's key could go on making members that its revocation does not reach.
        _require(issuer.subject in c.lineage, "A founder's renewal leaves the founder out of the ancestry.")
        return
    _require(older.role is Role.MEMBER and older.subject == c.subject, "A renewal shows somebody else's certificate.")
    _check_valid_then(c, older, "older certificate")
    _require(c.issued_ms >= renewable_from_ms(older) - MAX_CLOCK_SKEW_MS, "A certificate was renewed too early.")
    same = (c.via, c.vouched_by, c.line, c.depth, c.may_invite) == (
        older.via,
        older.vouched_by,
        older.line,
        older.depth,
        older.may_invite,
    )
    _require(same, "A renewal changes what it renews.")


def _check_voucher(c: Certificate, issuer: Certificate, older: Certificate | None) -> None:
    if older is None or older.role is not Role.MEMBER or older.subject != c.subject:
        raise InvalidChain("A voucher does not show its subject's certificate.")
    _check_valid_then(c, older, "older certificate")
    spared = frozenset(c.spared)
    # Serials are 16 bytes and stay: revoking an invite spares nobody whom it admitted.
    _require(all(key in older.lineage and len(key) == len(c.mesh) for key in c.spared), "A voucher spares a stranger.")
    _require(c.mesh not in spared and bool(spared), "A voucher spares the root key, or nobody.")
    _require(c.via == tuple(e for e in older.via if e not in spared), "A voucher hides more than it spares.")
    kept = tuple(e for e in older.vouched_by if e not in spared)
    vouched_by = beside(c.via, kept, issuer.lineage, (issuer.subject,))
    _require(c.vouched_by == vouched_by, "A voucher hides who vouches.")
    _require(c.line == (issuer.subject,), "A voucher counts against another than its issuer.")
    _require(c.depth == max(older.depth, min(issuer.depth + 1, MAX_CHAIN_DEPTH)), "A voucher states a wrong depth.")
    _require(older.may_invite or not c.may_invite, "A voucher gives more rights than there were.")


def renewable_from_ms(certificate: Certificate) -> int:
    """The middle of a certificate's life: from here on any member renews it."""
    return certificate.issued_ms + (certificate.expires_ms - certificate.issued_ms) // 2


def is_renewable_by(issuer: Certificate, older: Certificate) -> bool:
    """Whether the issuer renews without showing the older certificate: a founder, for those in its own tree."""
    return issuer.is_founder and not older.is_founder and issuer.subject in older.lineage
