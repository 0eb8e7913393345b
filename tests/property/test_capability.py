"""Chains: what the issuers make is valid, and nothing else is, however it was bent."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmesh.core.errors import AgentMeshError
from agentmesh.mesh.logic.capability import CertificateCache, verify_chain
from agentmesh.mesh.logic.certificate import (
    CERTIFICATE_PREFIX,
    Basis,
    CapabilityError,
    Certificate,
    Chain,
    Role,
    SignedCertificate,
    decode_chain,
    derive_serial,
    encode_certificate,
    encode_chain,
    leaf_of,
    parse_certificate,
)
from agentmesh.mesh.logic.limits import MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES
from tests.fakes.family import NOW_MS, Family, cheap_key
from tests.sim.keys import Key, cheap_verify

HALF_YEAR_MS = 190 * 86_400_000


def _family() -> Family:
    """A tree four deep, with a second inviter, an admission by another than the inviter, a renewal and a voucher."""
    family = Family()
    family.join("ann")
    family.join("bob", "ann")
    family.join("cat", "bob", admitter="founder")
    family.join("dan", "cat", admitter="ann")
    return family


FAMILY = _family()
LATER_MS = NOW_MS + HALF_YEAR_MS
CHAINS: dict[str, tuple[Chain, Role, int]] = {
    "founder": (FAMILY.chains["founder"], Role.MEMBER, NOW_MS),
    "invite": (FAMILY.invites["of bob"][1], Role.INVITE, NOW_MS),
    "member": (FAMILY.chains["bob"], Role.MEMBER, NOW_MS),
    "member by two": (FAMILY.chains["dan"], Role.MEMBER, NOW_MS),
    "renewed by a member": (FAMILY.renew("bob", "dan", LATER_MS), Role.MEMBER, LATER_MS),
    "renewed by the founder": (FAMILY.renew("dan", "founder", LATER_MS), Role.MEMBER, LATER_MS),
    "vouched": (FAMILY.vouch("dan", "founder", ("bob",)), Role.MEMBER, NOW_MS),
}


def _verify(chain: Chain, role: Role = Role.MEMBER, now_ms: int = NOW_MS) -> Certificate:
    return verify_chain(chain, FAMILY.mesh, now_ms, cheap_verify, role=role)


@pytest.mark.parametrize("name", list(CHAINS))
def test_what_the_issuers_make_is_valid_alone_and_with_a_warm_cache(name: str) -> None:
    chain, role, now_ms = CHAINS[name]
    assert _verify(chain, role, now_ms) == leaf_of(chain)
    cache = CertificateCache()
    for _ in range(2):
        assert verify_chain(chain, FAMILY.mesh, now_ms, cheap_verify, role=role, cache=cache) == leaf_of(chain)


@pytest.mark.parametrize("name", list(CHAINS))
def test_a_chain_survives_its_encoding(name: str) -> None:
    chain = CHAINS[name][0]
    assert decode_chain(encode_chain(chain)) == chain
    assert len(chain) <= MAX_CHAIN_CERTIFICATES
    assert len(encode_chain(chain)) <= MAX_CHAIN_BYTES


@settings(max_examples=600, deadline=None)
@given(name=st.sampled_from(list(CHAINS)), data=st.data())
def test_no_byte_of_a_valid_chain_can_be_changed_added_or_left_out(name: str, data: st.DataObject) -> None:
    chain, role, now_ms = CHAINS[name]
    raw = bytearray(encode_chain(chain))
    position = data.draw(st.integers(0, len(raw) - 1))
    how = data.draw(st.sampled_from(("flip", "delete", "insert", "cut")))
    if how == "flip":
        raw[position] ^= data.draw(st.integers(1, 255))
    elif how == "delete":
        del raw[position]
    elif how == "insert":
        raw.insert(position, data.draw(st.integers(0, 255)))
    else:
        del raw[position:]
    # Removing or repeating one of several equal bytes can give the same bytes again: then nothing was changed.
    if bytes(raw) == encode_chain(chain):
        return
    cache = CertificateCache()
    verify_chain(chain, FAMILY.mesh, now_ms, cheap_verify, role=role, cache=cache)
    with pytest.raises(CapabilityError):
        verify_chain(decode_chain(bytes(raw)), FAMILY.mesh, now_ms, cheap_verify, role=role, cache=cache)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(list(CHAINS)), data=st.data())
def test_certificates_cannot_be_dropped_repeated_reordered_or_mixed_in(name: str, data: st.DataObject) -> None:
    chain, role, now_ms = CHAINS[name]
    others = [signed for other in CHAINS.values() for signed in other[0]]
    bent = data.draw(st.lists(st.sampled_from([*chain, *others]), max_size=len(chain) + 2).map(tuple))
    if bent in [c for c, r, _ in CHAINS.values() if r is role]:
        return
    with pytest.raises(CapabilityError):
        leaf = _verify(bent, role, now_ms)
        # A whole chain of another certificate is valid, but not a bent form of this one.
        if leaf != leaf_of(chain) and len(bent) == len(set(bent)):
            raise CapabilityError


FIELDS = {
    "mesh": cheap_key("other mesh").public,
    "role": Role.INVITE,
    "basis": Basis.FOUNDING,
    "issuer": cheap_key("stranger").public,
    "subject": cheap_key("stranger").public,
    "issued_ms": NOW_MS - 3 * 400 * 86_400_000,
    "expires_ms": NOW_MS + 400 * 86_400_000,
    "depth": 1,
    "via": (FAMILY.mesh,),
    "vouched_by": (cheap_key("stranger").public,),
    "line": (),
    "uses": 3,
    "issuer_digest": b"",
    "basis_digest": b"",
    "spared": (FAMILY.key("ann"),),
    "proof": None,
    "version": 2,
    "serial": bytes(16),
}


def _resign(certificate: Certificate, key: Key) -> SignedCertificate:
    body = encode_certificate(certificate)
    return SignedCertificate(body, key.sign(CERTIFICATE_PREFIX + body))


@pytest.mark.parametrize("field", list(FIELDS))
def test_an_issuer_cannot_sign_an_admission_that_bends_one_field(field: str) -> None:
    chain = FAMILY.chains["dan"]
    leaf = leaf_of(chain)
    assert _verify((_resign(leaf, FAMILY.keys["ann"]), *chain[1:])) == leaf
    bent = msgspec.structs.replace(leaf, **{field: FIELDS[field]})
    if field in ("issuer", "subject", "issued_ms"):
        bent = msgspec.structs.replace(bent, serial=derive_serial(bent.issuer, bent.subject, bent.issued_ms))
    signer = cheap_key("stranger") if field == "issuer" else FAMILY.keys["ann"]
    with pytest.raises(CapabilityError):
        _verify((_resign(bent, signer), *chain[1:]))


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from([n for n in CHAINS if n not in ("founder", "invite")]),
    depth=st.integers(1, 8),
    may_invite=st.booleans(),
    via=st.lists(st.sampled_from([FAMILY.mesh, *(k.public for k in FAMILY.keys.values())]), max_size=5).map(tuple),
)
def test_a_member_cannot_sign_away_ancestry_or_depth(
    name: str, depth: int, may_invite: bool, via: tuple[bytes, ...]
) -> None:
    chain, role, now_ms = CHAINS[name]
    leaf = leaf_of(chain)
    bent = msgspec.structs.replace(leaf, depth=depth, may_invite=may_invite, via=via)
    # A founder's renewal states the ancestry on the founder's word; it is not proven by the chain.
    by_founder = leaf.basis is Basis.RENEWAL and not leaf.basis_digest
    weaker = msgspec.structs.replace(bent, may_invite=leaf.may_invite) == leaf and not may_invite
    if by_founder or bent == leaf or (weaker and leaf.basis is not Basis.RENEWAL):
        return
    signer = next(key for key in FAMILY.keys.values() if key.public == leaf.issuer)
    with pytest.raises(CapabilityError):
        _verify((_resign(bent, signer), *chain[1:]), role, now_ms)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_as_a_chain_or_certificate_raise_only_our_errors(data: bytes) -> None:
    for parse in (decode_chain, lambda raw: parse_certificate(SignedCertificate(raw, bytes(64)))):
        try:
            parse(data)
        except AgentMeshError:
            continue
