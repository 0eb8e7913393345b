"""What somebody with a member's keys cannot make: certificates that outlive the revocation of those who answer for them."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.mesh.logic.capability import CertificateCache, InvalidChain, verify_chain
from agentmesh.mesh.logic.certificate import (
    CERTIFICATE_PREFIX,
    Certificate,
    Chain,
    SignedCertificate,
    encode_certificate,
    leaf_of,
)
from agentmesh.mesh.logic.issuing import issue_founding
from agentmesh.mesh.logic.trust import Outcome
from tests.fakes.family import NOW_MS, Family, cheap_key
from tests.sim.keys import cheap_verify

HALF_YEAR_MS = 190 * 86_400_000
LATER_MS = NOW_MS + HALF_YEAR_MS


def _resigned(chain: Chain, family: Family, signer: str, **changes: object) -> Chain:
    """The chain with its leaf changed and signed anew."""
    leaf: Certificate = msgspec.structs.replace(leaf_of(chain), **changes)
    body = encode_certificate(leaf)
    return (SignedCertificate(body, family.keys[signer].sign(CERTIFICATE_PREFIX + body)), *chain[1:])


def test_whoever_took_a_founders_key_cannot_renew_a_member_out_of_the_founders_reach() -> None:
    family = Family()
    family.join("ann")
    renewed = family.renew("ann", "founder", LATER_MS)
    assert len(renewed) == 2  # the older certificate is not shown
    forged = _resigned(renewed, family, "founder", via=(family.mesh,), line=())
    with pytest.raises(InvalidChain):
        verify_chain(forged, family.mesh, LATER_MS, cheap_verify)


def test_remembered_certificates_are_bounded_by_their_bytes() -> None:
    cache = CertificateCache(limit=1_000, limit_bytes=10_000)
    for number in range(1_000):
        cache.add(number.to_bytes(32, "big"), SignedCertificate(bytes(1_000), bytes(64)))
    held = [number for number in range(1_000) if number.to_bytes(32, "big") in cache]
    assert 4 <= len(held) <= 10
    assert held[-1] == 999


def test_revoking_a_founder_reaches_whom_it_renewed() -> None:
    family = Family()
    family.join("ann")
    family.chains["ann"] = family.renew("ann", "founder", LATER_MS)
    trust = family.trust()
    assert trust.consider(family.member_record("ann"), LATER_MS).outcome is Outcome.ACCEPTED
    trust.consider(family.revocation("root", "founder", at_ms=LATER_MS), LATER_MS)
    assert trust.members() == ()


def test_a_second_founder_shows_the_older_certificate_when_it_renews_somebody_elses_guest() -> None:
    family = Family()
    family.keys["other"] = cheap_key("other founder")
    family.chains["other"] = issue_founding(family.mesh, family.root.sign, family.key("other"), NOW_MS)
    family.join("ann")
    renewed = family.renew("ann", "other", LATER_MS)
    assert len(renewed) > 2
    verify_chain(renewed, family.mesh, LATER_MS, cheap_verify)
