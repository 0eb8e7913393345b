"""The four messages of the handshake, in the order in which they are sent, and the refusal that may replace any of the server's.

Msgpack arrays that begin with a tag, as in messages.py; elements added by later versions follow at the end and are
ignored. `Refusal` must stay readable by every version.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from agentmesh.core.errors import NotAdmitted, TokenError
from agentmesh.core.units import KIB
from agentmesh.mesh.logic.certificate import Chain
from agentmesh.mesh.logic.messages import PeerEntry

HANDSHAKE_VERSIONS: Final = (1, 1)  # oldest and newest that this version speaks
MAX_HANDSHAKE_FRAME_BYTES: Final = 128 * KIB  # two chains of 32 KiB, names and addresses; less than any other frame
MAX_SENTENCE_CHARS: Final = 300
AUTH_PREFIX: Final = b"agentmesh/1 client auth\x00"


class RefusalCode(StrEnum):
    """Why a server refuses. Later versions may send codes that this one does not know."""

    VERSION = "version"
    MALFORMED = "malformed"
    FOREIGN_MESH = "foreign_mesh"
    CLOCK = "clock"
    SELF = "self"
    BAD_SIGNATURE = "bad_signature"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NOT_A_MEMBER = "not_a_member"
    INVITE_EXPIRED = "invite_expired"
    INVITE_REVOKED = "invite_revoked"
    INVITE_INVALID = "invite_invalid"
    INVITE_USED_UP = "invite_used_up"
    ISSUER_OFFLINE = "issuer_offline"
    CANNOT_ADMIT = "cannot_admit"
    NOT_RENEWABLE = "not_renewable"
    BUSY = "busy"
    INTERNAL = "internal"


INVITE_CODES: Final = (
    RefusalCode.INVITE_EXPIRED,
    RefusalCode.INVITE_REVOKED,
    RefusalCode.INVITE_INVALID,
    RefusalCode.INVITE_USED_UP,
)
"""The invite itself is no good: no other member would take it either."""

PASSING_CODES: Final = (RefusalCode.ISSUER_OFFLINE, RefusalCode.CANNOT_ADMIT, RefusalCode.BUSY, RefusalCode.INTERNAL)
"""Another member, or this one later, may admit."""


class RefusedByPeer(NotAdmitted):
    """The peer refused to admit this node to the mesh."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.refusal = code


class InviteRefused(TokenError):
    """The mesh does not accept this invite."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.refusal = code


class ClockMismatch(NotAdmitted):
    """The clocks of this machine and of the peer differ too much."""


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Client: these versions I speak, oldest and newest."""

    oldest_version: int
    newest_version: int
    nonce: bytes


class Challenge(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Server: this version we speak, prove who you are. Says nothing of the mesh or the server."""

    version: int
    nonce: bytes
    now_ms: int


class JoinRequest(msgspec.Struct, array_like=True, frozen=True):
    """The invite, and its key's and the joiner's signature over certificate.join_statement."""

    invite_chain: Chain
    invite_signature: bytes
    joiner_signature: bytes


class Auth(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Client: who I am, with my chain (a member) or a join request; empty chain and no join mean: you know me.

    `signature` covers AUTH_PREFIX, mesh, client, server and both nonces. A node that cannot be dialled names no address.
    `bulk_port` is where it takes bulk streams over TLS (bulk.py), 0 if nowhere.
    """

    mesh: bytes
    client: bytes
    signature: bytes
    now_ms: int
    name: str
    addresses: tuple[str, ...]
    dialable: bool
    chain: Chain = ()
    join: JoinRequest | None = None
    bulk_port: int = 0


class Welcome(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Server: you are in. `granted` is a chain for the client when it joined or when its own was no longer the best.

    `observed` is the client's address as the server sees it, `peers` are members worth knowing.
    """

    chain: Chain
    granted: Chain
    name: str
    mesh_name: str
    addresses: tuple[str, ...]
    dialable: bool
    observed: str
    peers: tuple[PeerEntry, ...]
    now_ms: int
    bulk_port: int = 0


class Refusal(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """Server: no. The sentence is meant for a person."""

    code: str
    sentence: str
    now_ms: int


AnyHandshakeMessage = Hello | Challenge | Auth | Welcome | Refusal
