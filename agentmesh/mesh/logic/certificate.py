"""Certificates and chains: what they say, their encoding, and how a bundle of them hangs together.

A chain is a bundle of signed certificates, leaf first, that proves its leaf to anyone who knows the mesh's root key and
nothing else. Each certificate names the certificates that it rests on by their digest, so a bundle is a small graph.
Format and sizes only: which certificates are valid is in capability.py, how they are made in issuing.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from agentmesh.core.errors import PeerError
from agentmesh.mesh.logic.limits import MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES
from agentmesh.mesh.logic.record import KEY_BYTES, SIGNATURE_BYTES

CERTIFICATE_VERSION: Final = 1
CERTIFICATE_PREFIX: Final = b"agentmesh/1 certificate\x00"
JOIN_INVITE_PREFIX: Final = b"agentmesh/1 join by invite\x00"
JOIN_CONSENT_PREFIX: Final = b"agentmesh/1 join consent\x00"
SERIAL_PREFIX: Final = b"agentmesh/1 serial\x00"
SERIAL_BYTES: Final = 16
NONCE_BYTES: Final = 16
DIGEST_BYTES: Final = 32
MAX_USES: Final = 1_000  # of one counted invite: its issuer rewrites the list of those it admitted each time
MAX_TIME_MS: Final = 2**53


class CapabilityError(PeerError):
    """The membership certificate is not valid."""

    http_status = 403


class MalformedChain(CapabilityError):
    """The membership chain is malformed."""


class ForeignChain(CapabilityError):
    """The membership chain belongs to another mesh."""


class ExpiredChain(CapabilityError):
    """The membership certificate has expired; ask a member for a new invite."""


class EarlyChain(CapabilityError):
    """The certificate was issued in the future: a clock is wrong."""


class NewerChain(CapabilityError):
    """The certificate was made by a newer version of agentmesh; update this one."""


class Role(StrEnum):
    MEMBER = "member"
    INVITE = "invite"


class Basis(StrEnum):
    """Why the issuer was allowed to issue."""

    FOUNDING = "founding"
    INVITATION = "invitation"
    ADMISSION = "admission"
    RENEWAL = "renewal"
    VOUCHER = "voucher"


class JoinProof(msgspec.Struct, array_like=True, frozen=True):
    """What an admission rests on: the invite's and the joiner's own signatures over one handshake.

    `server` is the member that the joiner reached. It may pass the join on to the invite's issuer, and to nobody else.
    """

    server: bytes
    client_nonce: bytes
    server_nonce: bytes
    invite_signature: bytes
    joiner_signature: bytes


class Certificate(msgspec.Struct, array_like=True, frozen=True):
    """What an issuer says of a subject. Fields added by later versions follow at the end and are ignored.

    `line` is (invite serial, inviter) for an admission and (voucher,) for a voucher: where the subject hangs in the tree
    of quotas. `uses` is set on an invitation that its issuer alone may admit by, so many times.
    """

    version: int
    mesh: bytes
    role: Role
    basis: Basis
    serial: bytes
    issuer: bytes
    subject: bytes
    issued_ms: int
    expires_ms: int
    may_invite: bool
    depth: int
    via: tuple[bytes, ...]
    vouched_by: tuple[bytes, ...] = ()
    line: tuple[bytes, ...] = ()
    uses: int | None = None
    issuer_digest: bytes = b""
    basis_digest: bytes = b""
    spared: tuple[bytes, ...] = ()
    proof: JoinProof | None = None

    @property
    def lineage(self) -> tuple[bytes, ...]:
        """Everything whose revocation puts this certificate out, the subject aside."""
        return self.via + self.vouched_by

    @property
    def is_founder(self) -> bool:
        """Whether the root key itself stands behind the subject: only a founder's certificates have this depth."""
        return self.depth == 1


class SignedCertificate(msgspec.Struct, array_like=True, frozen=True):
    """A certificate as it travels: the exact bytes that its issuer signed, and the signature."""

    body: bytes
    signature: bytes


Chain = tuple[SignedCertificate, ...]
"""Leaf first; then, depth first, what each rests on: the issuer's certificate before the basis. Nothing twice."""

_encoder = msgspec.msgpack.Encoder()
_certificate_decoder = msgspec.msgpack.Decoder(Certificate)
_chain_decoder = msgspec.msgpack.Decoder(Chain)


def digest_of(signed: SignedCertificate) -> bytes:
    """The name by which one certificate refers to another: SHA-256 over body and signature."""
    return hashlib.sha256(signed.body + signed.signature).digest()


def derive_serial(issuer: bytes, subject: bytes, issued_ms: int) -> bytes:
    """The only serial that a certificate may have, so that nobody can give an invite the serial of somebody else's."""
    material = SERIAL_PREFIX + issuer + subject + issued_ms.to_bytes(8, "big")
    return hashlib.sha256(material).digest()[:SERIAL_BYTES]


def join_statement(mesh: bytes, serial: bytes, joiner: bytes, proof: JoinProof) -> bytes:
    """What invite key and joiner sign, each behind its own prefix. All parts but the last have fixed sizes."""
    return mesh + serial + joiner + proof.server + proof.client_nonce + proof.server_nonce


def encode_chain(chain: Chain) -> bytes:
    return _encoder.encode(chain)


def decode_chain(data: bytes) -> Chain:
    """A chain from bytes that a peer sent: sizes and shape only, no signatures.

    Raises:
        MalformedChain: too long, not a chain, or not in its one canonical encoding.
    """
    if len(data) > MAX_CHAIN_BYTES:
        raise MalformedChain(f"A membership chain is longer than {MAX_CHAIN_BYTES} bytes.")
    try:
        chain = _chain_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedChain from error
    if encode_chain(chain) != data:
        raise MalformedChain("A membership chain is not in its canonical encoding.")
    check_chain_size(chain)
    return chain


def check_chain_size(chain: Chain) -> None:
    """Raises: MalformedChain: no certificates, too many of them, or too many bytes."""
    if not 0 < len(chain) <= MAX_CHAIN_CERTIFICATES:
        raise MalformedChain(f"A membership chain holds 1 to {MAX_CHAIN_CERTIFICATES} certificates, not {len(chain)}.")
    # Array headers and length prefixes take at most 16 bytes for each certificate.
    if sum(len(c.body) + len(c.signature) + 16 for c in chain) > MAX_CHAIN_BYTES:
        raise MalformedChain(f"A membership chain is longer than {MAX_CHAIN_BYTES} bytes.")


def encode_certificate(certificate: Certificate) -> bytes:
    return _encoder.encode(certificate)


def parse_certificate(signed: SignedCertificate) -> Certificate:
    """Decode and check sizes; no signature, no rules.

    Raises:
        MalformedChain, NewerChain
    """
    if len(signed.signature) != SIGNATURE_BYTES:
        raise MalformedChain("A certificate's signature has an impossible size.")
    try:
        certificate = _certificate_decoder.decode(signed.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedChain(f"A certificate is malformed: {error}") from error
    if certificate.version > CERTIFICATE_VERSION:
        raise NewerChain
    _check_shape(certificate)
    return certificate


def _check_shape(c: Certificate) -> None:
    keys = (c.mesh, c.issuer, c.subject)
    elements = (*c.via, *c.vouched_by, *c.line, *c.spared)
    shaped = (
        c.version == CERTIFICATE_VERSION
        and all(len(key) == KEY_BYTES for key in keys)
        and all(len(element) in (KEY_BYTES, SERIAL_BYTES) for element in elements)
        and len(c.issuer_digest) in (0, DIGEST_BYTES)
        and len(c.basis_digest) in (0, DIGEST_BYTES)
        and 0 < c.issued_ms < c.expires_ms < MAX_TIME_MS
        and c.serial == derive_serial(c.issuer, c.subject, c.issued_ms)
        and (c.uses is None or 0 < c.uses <= MAX_USES)
        and (c.proof is None or _proof_is_shaped(c.proof))
    )
    if not shaped:
        raise MalformedChain("A certificate has a field of impossible size or value.")


def _proof_is_shaped(proof: JoinProof) -> bool:
    return (
        len(proof.server) == KEY_BYTES
        and len(proof.client_nonce) == len(proof.server_nonce) == NONCE_BYTES
        and len(proof.invite_signature) == len(proof.joiner_signature) == SIGNATURE_BYTES
    )


# ------------------------------------------------------------------ graphs of certificates


@dataclass(frozen=True, slots=True)
class Node:
    """One certificate of a chain, parsed, with its digest."""

    signed: SignedCertificate
    certificate: Certificate
    digest: bytes

    @property
    def rests_on(self) -> tuple[bytes, ...]:
        c = self.certificate
        return tuple(digest for digest in (c.issuer_digest, c.basis_digest) if digest)


def parse_nodes(chain: Chain) -> dict[bytes, Node]:
    """The chain's certificates by digest, leaf first. Raises: MalformedChain, NewerChain."""
    check_chain_size(chain)
    nodes = {digest_of(signed): signed for signed in chain}
    return {digest: Node(signed, parse_certificate(signed), digest) for digest, signed in nodes.items()}


def walk(nodes: dict[bytes, Node], leaf: bytes) -> Iterator[Node]:
    """The certificates that `leaf` rests on, itself first, in the canonical order, each once.

    Raises:
        MalformedChain: one is missing.
    """
    seen: set[bytes] = set()
    stack = [leaf]
    while stack:
        digest = stack.pop()
        if digest in seen:
            continue
        seen.add(digest)
        node = nodes.get(digest)
        if node is None:
            raise MalformedChain("A membership chain is incomplete.")
        yield node
        stack.extend(reversed(node.rests_on))


def assemble(leaf: SignedCertificate, *chains: Chain) -> Chain:
    """The chain of `leaf`, with what it rests on taken from `chains`, in canonical order.

    Raises:
        MalformedChain: something is missing, or the result is over the limits.
    """
    pool: dict[bytes, Node] = {}
    for chain in ((leaf,), *chains):
        pool.update(parse_nodes(chain))
    result = tuple(node.signed for node in walk(pool, digest_of(leaf)))
    check_chain_size(result)
    return result


def leaf_of(chain: Chain) -> Certificate:
    """The first certificate, parsed. Raises: MalformedChain, NewerChain."""
    check_chain_size(chain)
    return parse_certificate(chain[0])


def merge(*parts: Sequence[bytes]) -> tuple[bytes, ...]:
    """All elements in order, keeping the first occurrence of each."""
    return tuple(dict.fromkeys(element for part in parts for element in part))


def beside(via: Sequence[bytes], *parts: Sequence[bytes]) -> tuple[bytes, ...]:
    """`merge` of `parts` without what is in `via`: the form of `vouched_by`."""
    return tuple(element for element in merge(*parts) if element not in via)


def subchain(chain: Chain, digest: bytes) -> Chain:
    """The chain of one certificate within `chain`. Raises: MalformedChain: it is not there."""
    return tuple(node.signed for node in walk(parse_nodes(chain), digest))
