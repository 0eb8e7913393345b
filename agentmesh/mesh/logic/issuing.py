"""Making certificates. The rules that each must follow are in capability.py; here they are followed.

Callers have verified the chains that they hand in and looked up revocations. `sign` is the issuer's key; no key is held
here. What the rules do not allow is refused with a sentence instead of being issued.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from agentmesh.mesh.logic.capability import is_renewable_by, renewable_from_ms
from agentmesh.mesh.logic.certificate import (
    CERTIFICATE_PREFIX,
    CERTIFICATE_VERSION,
    Basis,
    CapabilityError,
    Certificate,
    Chain,
    JoinProof,
    MalformedChain,
    Role,
    SignedCertificate,
    assemble,
    beside,
    derive_serial,
    digest_of,
    encode_certificate,
    leaf_of,
    merge,
)
from agentmesh.mesh.logic.limits import MAX_CHAIN_DEPTH, MAX_CLOCK_SKEW_MS, MEMBER_LIFETIME_MS

Sign = Callable[[bytes], bytes]


class CannotIssue(CapabilityError):
    """This member cannot issue that certificate."""


def issue_founding(mesh: bytes, root_sign: Sign, founder: bytes, now_ms: int) -> Chain:
    """The root key's certificate for the founder of its mesh."""
    certificate = Certificate(
        version=CERTIFICATE_VERSION,
        mesh=mesh,
        role=Role.MEMBER,
        basis=Basis.FOUNDING,
        serial=derive_serial(mesh, founder, now_ms),
        issuer=mesh,
        subject=founder,
        issued_ms=now_ms,
        expires_ms=now_ms + MEMBER_LIFETIME_MS,
        may_invite=True,
        depth=1,
        via=(mesh,),
    )
    return (_sign(certificate, root_sign),)


def issue_invitation(
    issuer_chain: Chain,
    sign: Sign,
    invite_key: bytes,
    now_ms: int,
    *,
    expires_ms: int,
    uses: int | None = None,
    may_invite: bool = True,
) -> Chain:
    """An invite for the holder of `invite_key`. `may_invite` and `uses` bind who joins by it.

    Raises:
        CannotIssue: this member may not invite, or is as deep as a chain may be.
    """
    issuer = _inviting(issuer_chain, now_ms)
    certificate = _draft(issuer_chain, issuer, invite_key, now_ms, expires_ms)
    via = merge(issuer.via, (issuer.subject,))
    return _complete(
        msgspec.structs.replace(
            certificate,
            role=Role.INVITE,
            basis=Basis.INVITATION,
            may_invite=may_invite,
            depth=issuer.depth + 1,
            via=via,
            vouched_by=beside(via, issuer.vouched_by),
            uses=uses,
        ),
        sign,
        issuer_chain,
    )


def issue_admission(
    invite_chain: Chain, issuer_chain: Chain, sign: Sign, *, joiner: bytes, proof: JoinProof, now_ms: int
) -> Chain:
    """A year's membership for `joiner`, who showed the invite and both signatures of `proof`.

    Raises:
        CannotIssue: this member may not invite or is too deep, or the chain would be too long.
    """
    issuer, invite = _inviting(issuer_chain, now_ms), leaf_of(invite_chain)
    certificate = _draft(issuer_chain, issuer, joiner, now_ms, now_ms + MEMBER_LIFETIME_MS)
    via = merge(issuer.via, (issuer.subject,), invite.via, (invite.serial,))
    certificate = msgspec.structs.replace(
        certificate,
        basis=Basis.ADMISSION,
        may_invite=invite.may_invite,
        depth=max(issuer.depth + 1, invite.depth),
        via=via,
        vouched_by=beside(via, issuer.vouched_by, invite.vouched_by),
        line=(invite.serial, invite.issuer),
        basis_digest=digest_of(invite_chain[0]),
        proof=proof,
    )
    return _complete(certificate, sign, issuer_chain, invite_chain)


def issue_renewal(older_chain: Chain, issuer_chain: Chain, sign: Sign, now_ms: int) -> Chain:
    """Another year for a member whose certificate is in the second half of its life.

    Raises:
        CannotIssue: it is too early or too late, the member asks itself, or the chain would be too long.
    """
    older, issuer = leaf_of(older_chain), _valid(issuer_chain, now_ms)
    if older.subject == issuer.subject:
        raise CannotIssue("A member cannot renew its own certificate; any other member can.")
    if now_ms < renewable_from_ms(older):
        raise CannotIssue("The certificate is in the first half of its life and is not renewed yet.")
    if now_ms >= older.expires_ms:
        raise CannotIssue("The certificate has expired; its holder needs a new invite.")
    alone = is_renewable_by(issuer, older)
    certificate = msgspec.structs.replace(
        _draft(issuer_chain, issuer, older.subject, now_ms, now_ms + MEMBER_LIFETIME_MS),
        basis=Basis.RENEWAL,
        may_invite=older.may_invite,
        depth=older.depth,
        via=older.via,
        vouched_by=older.vouched_by,
        line=older.line,
        basis_digest=b"" if alone else digest_of(older_chain[0]),
    )
    return _complete(certificate, sign, issuer_chain, () if alone else older_chain)


def issue_voucher(older_chain: Chain, issuer_chain: Chain, sign: Sign, spared: Collection[bytes], now_ms: int) -> Chain:
    """A year's membership for somebody known before the `spared` keys, among its ancestors, were revoked.

    Raises:
        CannotIssue: this member may not invite, stands below the subject or a spared key, or the chain would be too long.
    """
    older, issuer = leaf_of(older_chain), _inviting(issuer_chain, now_ms)
    if now_ms >= older.expires_ms:
        raise CannotIssue("The certificate has expired; its holder needs a new invite.")
    dropped = tuple(key for key in older.lineage if key in spared)
    above = (*issuer.lineage, issuer.subject)
    if older.subject in above or any(key in above for key in dropped):
        raise CannotIssue(
            "A member cannot vouch for its own ancestors, nor when it is touched by the revocation itself."
        )
    via = tuple(e for e in older.via if e not in dropped)
    kept = tuple(e for e in older.vouched_by if e not in dropped)
    certificate = msgspec.structs.replace(
        _draft(issuer_chain, issuer, older.subject, now_ms, now_ms + MEMBER_LIFETIME_MS),
        basis=Basis.VOUCHER,
        may_invite=older.may_invite,
        depth=max(older.depth, min(issuer.depth + 1, MAX_CHAIN_DEPTH)),
        via=via,
        vouched_by=beside(via, kept, issuer.lineage, (issuer.subject,)),
        line=(issuer.subject,),
        basis_digest=digest_of(older_chain[0]),
        spared=dropped,
    )
    return _complete(certificate, sign, issuer_chain, older_chain)


# ------------------------------------------------------------------ common steps


def _valid(issuer_chain: Chain, now_ms: int) -> Certificate:
    issuer = leaf_of(issuer_chain)
    if now_ms >= issuer.expires_ms:
        raise CannotIssue("This member's own certificate has expired.")
    if now_ms < issuer.issued_ms - MAX_CLOCK_SKEW_MS:
        raise CannotIssue("This machine's clock is behind the time at which its own certificate was issued; set it.")
    return issuer


def _inviting(issuer_chain: Chain, now_ms: int) -> Certificate:
    issuer = _valid(issuer_chain, now_ms)
    if not issuer.may_invite:
        raise CannotIssue("This member may not invite others.")
    if issuer.depth >= MAX_CHAIN_DEPTH:
        raise CannotIssue(
            f"This member is {MAX_CHAIN_DEPTH} invites away from the founder; a member nearer to it must invite."
        )
    return issuer


def _draft(issuer_chain: Chain, issuer: Certificate, subject: bytes, now_ms: int, expires_ms: int) -> Certificate:
    return Certificate(
        version=CERTIFICATE_VERSION,
        mesh=issuer.mesh,
        role=Role.MEMBER,
        basis=Basis.ADMISSION,
        serial=derive_serial(issuer.subject, subject, now_ms),
        issuer=issuer.subject,
        subject=subject,
        issued_ms=now_ms,
        expires_ms=expires_ms,
        may_invite=False,
        depth=1,
        via=(),
        issuer_digest=digest_of(issuer_chain[0]),
    )


def _complete(certificate: Certificate, sign: Sign, *chains: Chain) -> Chain:
    signed = _sign(certificate, sign)
    try:
        return assemble(signed, *(chain for chain in chains if chain))
    except MalformedChain as error:
        raise CannotIssue(
            "The membership chain would become too long; a member nearer to the founder can issue it."
        ) from error


def _sign(certificate: Certificate, sign: Sign) -> SignedCertificate:
    body = encode_certificate(certificate)
    return SignedCertificate(body, sign(CERTIFICATE_PREFIX + body))
