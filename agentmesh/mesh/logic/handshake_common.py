"""What both machines of the handshake share: effects, what a side says of itself, signatures, cleaning of what peers say."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from agentmesh.core.errors import AgentMeshError, ProtocolError
from agentmesh.mesh.logic.addresses import is_plausible
from agentmesh.mesh.logic.certificate import (
    JOIN_CONSENT_PREFIX,
    JOIN_INVITE_PREFIX,
    CapabilityError,
    Certificate,
    Chain,
    JoinProof,
    join_statement,
)
from agentmesh.mesh.logic.handshake_messages import (
    AUTH_PREFIX,
    INVITE_CODES,
    MAX_SENTENCE_CHARS,
    AnyHandshakeMessage,
    ClockMismatch,
    InviteRefused,
    Refusal,
    RefusalCode,
    RefusedByPeer,
)
from agentmesh.mesh.logic.limits import MAX_BOOTSTRAP_ADDRESSES
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.names import safe_name
from agentmesh.mesh.logic.record import KEY_BYTES, Verify

MAX_WELCOME_PEERS = 64


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a node says about itself. Addresses are `host:port`, best first; none when it is not dialable.

    `bulk_port` is the TCP port of the fast path on the hosts of these addresses, 0 if there is none.
    """

    name: str
    addresses: tuple[str, ...]
    dialable: bool
    bulk_port: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What the handshake proved (`node`, `chain` when it is not empty) or was told (the introduction) of the far side."""

    node: bytes
    introduction: Introduction
    chain: Chain
    version: int


# ------------------------------------------------------------------ effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send this message as one frame."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Proven:
    """Server: the client holds its key; `error` says why its chain is not good, None if it is. Answer it."""

    facts: Facts
    error: CapabilityError | None


@dataclass(frozen=True, slots=True)
class JoinAsked:
    """Server: the client holds its key and the invite's; `error` says why the invite is not good. Answer it."""

    facts: Facts
    invite_chain: Chain
    proof: JoinProof
    error: CapabilityError | None


@dataclass(frozen=True, slots=True)
class Welcomed:
    """Client: done. `granted` was verified to be for this node."""

    facts: Facts
    granted: Chain
    mesh_name: str
    observed: str
    peers: tuple[PeerEntry, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """It is over. A Send before it tells the far side, where that is due."""

    error: AgentMeshError


Effect = Send | Proven | JoinAsked | Welcomed | Failed

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyHandshakeMessage] = msgspec.msgpack.Decoder(AnyHandshakeMessage)


def parse_message(data: bytes) -> AnyHandshakeMessage:
    """A handshake message from a frame's body. Raises: ProtocolError."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"A peer sent a malformed handshake message: {error}") from error


def auth_bytes(mesh: bytes, client: bytes, server: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """What the client signs. All parts have fixed sizes."""
    return AUTH_PREFIX + mesh + client + server + client_nonce + server_nonce


def join_is_proven(mesh: bytes, invite: Certificate, joiner: bytes, proof: JoinProof, verify: Verify) -> bool:
    """Whether invite key and joiner both signed this join."""
    statement = join_statement(mesh, invite.serial, joiner, proof)
    return verify(invite.subject, proof.invite_signature, JOIN_INVITE_PREFIX + statement) and verify(
        joiner, proof.joiner_signature, JOIN_CONSENT_PREFIX + statement
    )


# ------------------------------------------------------------------ what peers say, made fit for use


def clean_entries(entries: tuple[PeerEntry, ...], own: bytes) -> tuple[PeerEntry, ...]:
    """Peer entries with a possible key and possible addresses, without our own."""
    return tuple(
        PeerEntry(entry.node, _addresses(entry.addresses), entry.dialable)
        for entry in entries[:MAX_WELCOME_PEERS]
        if len(entry.node) == KEY_BYTES and entry.node != own
    )


def introduction_of(name: str, addresses: tuple[str, ...], dialable: bool, bulk_port: int = 0) -> Introduction:
    usable = _addresses(addresses)
    return Introduction(safe_name(name), usable, dialable and bool(usable), bulk_port if 0 < bulk_port < 65_536 else 0)


def _addresses(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(a for a in addresses[:MAX_BOOTSTRAP_ADDRESSES] if is_plausible(a))


def refusal_error(refusal: Refusal) -> AgentMeshError:
    sentence = "".join(c if c.isprintable() else " " for c in refusal.sentence[:MAX_SENTENCE_CHARS]).strip()
    sentence = sentence or "The peer refused to admit this node to the mesh."
    if refusal.code in INVITE_CODES:
        return InviteRefused(refusal.code, sentence)
    if refusal.code == RefusalCode.CLOCK:
        return ClockMismatch(sentence)
    return RefusedByPeer(refusal.code, sentence)


def send(message: AnyHandshakeMessage) -> Send:
    return Send(_encoder.encode(message))
