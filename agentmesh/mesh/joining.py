"""Becoming a member: with invite tokens, over whichever of their bootstrap nodes answers first. Runs before the mesh does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from agentmesh.core.clock import Clock
from agentmesh.core.errors import InvalidInput, PeerError, StorageError, TokenError, Unreachable
from agentmesh.core.paths import Home
from agentmesh.mesh.admission import Admission, Admitted, Surroundings
from agentmesh.mesh.authority import Authority, Draft, open_token
from agentmesh.mesh.dialing import dial_first
from agentmesh.mesh.identity import NodeKey, verify
from agentmesh.mesh.interfaces import interface_networks
from agentmesh.mesh.logic.addresses import dial_order
from agentmesh.mesh.logic.capability import CapabilityError
from agentmesh.mesh.logic.handshake_common import Introduction
from agentmesh.mesh.logic.handshake_messages import InviteRefused, RefusalCode, RefusedByPeer
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.token import InviteToken, decode_token
from agentmesh.mesh.logic.trust import Trust
from agentmesh.mesh.membership_file import KnownPeer, MembershipFile
from agentmesh.mesh.transport import Transport

_log = logging.getLogger(__name__)

# These say something of the member that was reached, not of the invite: another member may still admit.
_ANOTHER_MAY_ADMIT = frozenset((RefusalCode.ISSUER_OFFLINE, RefusalCode.CANNOT_ADMIT, RefusalCode.INTERNAL))


@dataclass(frozen=True, slots=True)
class Joined:
    """A home's membership of the tokens' mesh, the members to begin with, and the record that shows a new membership."""

    membership: MembershipFile
    bootstrap: tuple[PeerEntry, ...]
    publish: tuple[Draft, ...]


def read_tokens(texts: Sequence[str], now_ms: int) -> list[InviteToken]:
    """The tokens, checked as far as that goes offline.

    Raises:
        TokenError: one is damaged, expired, forged.
        InvalidInput: they name more than one mesh.
    """
    tokens = [decode_token(text) for text in texts]
    for token in tokens:
        open_token(token, now_ms)
    if len({token.mesh for token in tokens}) > 1:
        raise InvalidInput("The tokens name different meshes; a home is on one mesh at a time.")
    return tokens


async def join_mesh(
    tokens: Sequence[InviteToken], home: Home, key: NodeKey, transport: Transport, clock: Clock, name: str
) -> Joined:
    """Join the mesh of `tokens`; a home that is a member already only learns where to find it.

    Raises:
        TokenError: every member that was reached refused the invite.
        NotAdmitted: clocks are apart, versions do not fit, this key was revoked.
        Unreachable: no bootstrap node answered; their addresses are named.
        StorageError: the membership could not be written.
    """
    membership = MembershipFile.open(home, tokens[0].mesh)
    bootstrap = tuple(entry for token in tokens for entry in token.bootstrap)
    trust = Trust(tokens[0].mesh, verify)
    if membership.chain and _still_good(membership, trust, clock):
        membership.make_current()
        return Joined(membership, bootstrap, ())
    around = Surroundings(
        introduction=lambda: Introduction(name, (), False), peers=tuple, reach=_reach_nobody, publish=_publish_nothing
    )
    admission = Admission(Authority(key, membership, trust, clock), trust, clock, around)
    admitted = await _first_admission(tokens, admission, transport)
    publish = (admitted.publish,) if admitted.publish else ()
    entries = (*bootstrap, *admitted.peers)
    _remember(membership, entries, clock.now_ms())
    return Joined(membership, entries, publish)


def _remember(membership: MembershipFile, entries: Sequence[PeerEntry], now_ms: int) -> None:
    """Killed before its first round of upkeep, the node must still find the mesh: a restart has no token."""
    known = {peer.node: peer for peer in membership.peers()}
    known |= {e.node: KnownPeer(e.node, "", e.addresses, e.dialable, now_ms) for e in entries if e.addresses}
    try:
        membership.save_peers(tuple(known.values()))
    except StorageError as error:  # the membership itself is on disk; the node can go on with what it has in memory
        _log.warning("the members to begin with were not saved: %s", error)


async def _first_admission(tokens: Sequence[InviteToken], admission: Admission, transport: Transport) -> Admitted:
    refusal: PeerError | TokenError | None = None
    networks = interface_networks()
    for token in tokens:
        for entry in token.bootstrap:
            try:
                connection = await dial_first(transport, entry.node, dial_order(entry.addresses, networks))
                try:
                    return await admission.introduce(connection, token)
                finally:
                    connection.close("joined")
            except (InviteRefused, RefusedByPeer) as error:
                if error.refusal not in _ANOTHER_MAY_ADMIT:
                    raise
                refusal = error
            except PeerError as error:
                _log.info("joining through %s: %s", ", ".join(entry.addresses), error)
    if refusal is not None:
        raise refusal
    tried = ", ".join(dict.fromkeys(a for token in tokens for entry in token.bootstrap for a in entry.addresses))
    raise Unreachable(f"None of the mesh's nodes that the invite names answered ({tried or 'it names none'}).")


def _still_good(membership: MembershipFile, trust: Trust, clock: Clock) -> bool:
    try:
        trust.check_presented(membership.chain, clock.now_ms())
    except CapabilityError:
        return False
    return True


async def _reach_nobody(node: bytes) -> None:
    """While joining there is no connected member to pass anything on to."""


async def _publish_nothing(draft: Draft) -> None:
    """While joining nothing is vouched for."""
