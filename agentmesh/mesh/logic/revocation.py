"""Revocations: what their records hold, and which of them count.

A revocation counts unless its author was out itself; the author's own word about itself, and the root key's, always
count. Whether an author is out depends on other revocations, so this is a fixed point: the well-founded one, which depends on
the set of revocations and on nothing else. Authors that put each other out, possible only for keys that hold several
certificates, are both out: of two that call each other malicious, at least one is right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import msgspec

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.certificate import Chain
from agentmesh.mesh.logic.limits import MAX_CHAIN_BYTES

MAX_REASON_BYTES = 256
MAX_REVOCATION_BYTES = MAX_CHAIN_BYTES + 1024  # kinds.REVOCATION's limit

Lineage = tuple[bytes, ...]


class RevocationPayload(msgspec.Struct, array_like=True, frozen=True):
    """Why, and the proof that the author may: the target's chain, and the author's unless it is part of it."""

    reason: str
    target_chain: Chain
    author_chain: Chain = ()


@dataclass(frozen=True, slots=True)
class Revocation:
    """One well-formed revocation. `lineages` are those of the author's certificates that came with it."""

    author: bytes
    target: bytes
    timestamp_ms: int
    record_id: bytes
    expires_ms: int
    unconditional: bool
    lineages: tuple[Lineage, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RevocationPayload)


def encode_revocation(payload: RevocationPayload) -> bytes:
    return _encoder.encode(payload)


def decode_revocation(data: bytes) -> RevocationPayload:
    """The payload of a revocation record. Raises: ProtocolError: it is not one."""
    if len(data) > MAX_REVOCATION_BYTES:
        raise ProtocolError("A revocation is over its limit.")
    try:
        payload = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"A revocation is malformed: {error}") from error
    if len(payload.reason.encode(errors="surrogatepass")) > MAX_REASON_BYTES:
        raise ProtocolError("A revocation's reason is over its limit.")
    return payload


def revoked_targets(
    revocations: Collection[Revocation], more_lineages: Callable[[bytes], Iterable[Lineage]]
) -> frozenset[bytes]:
    """Keys and serials revoked by those that count.

    Args:
        more_lineages: those of further certificates known of an author; one untouched certificate keeps it in.

    The alternating fixed point (van Gelder, "The alternating fixpoint of logic programs with negation", 1993): the
    over-estimates shrink and the under-estimates grow until neither changes; what remains between them counts.
    """
    lineages = {r.author: tuple(more_lineages(r.author)) for r in revocations}
    over = frozenset(r.target for r in revocations)
    while True:
        under = _counting(revocations, lineages, over)
        smaller = _counting(revocations, lineages, under)
        if smaller == over:
            return over
        over = smaller


def _counting(
    revocations: Iterable[Revocation], lineages: dict[bytes, tuple[Lineage, ...]], revoked: frozenset[bytes]
) -> frozenset[bytes]:
    return frozenset(
        r.target
        for r in revocations
        if r.unconditional
        or (
            r.author not in revoked
            and any(revoked.isdisjoint(lineage) for lineage in (*r.lineages, *lineages[r.author]))
        )
    )
