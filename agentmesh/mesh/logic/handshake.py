"""The handshake's two machines: bytes in, effects out. Runs on the first stream of every connection, before anything else.

    client                                   server
    Hello(versions, nonce)            ->
                                      <-     Challenge(version, nonce, time)           says nothing about mesh or server
    Auth(key, signature, chain|join)  ->
                                      <-     Welcome(chain, granted, peers, ...)  or  Refusal(code, sentence, time)

The transport has proved the server's key to the client. The client's signature covers both keys, both nonces and the mesh, so it
cannot be replayed or relayed. Neither side learns the other's name or chain before that.

What to do with a proven member or a join request is decided outside (admission.py), which then calls `welcome` or `refuse`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentmesh.core.errors import AgentMeshError, NotAdmitted, ProtocolError
from agentmesh.mesh.logic.addresses import is_plausible
from agentmesh.mesh.logic.certificate import (
    JOIN_CONSENT_PREFIX,
    JOIN_INVITE_PREFIX,
    NONCE_BYTES,
    CapabilityError,
    Certificate,
    Chain,
    JoinProof,
    join_statement,
    leaf_of,
)
from agentmesh.mesh.logic.clocks import ClockView, clock_complaint
from agentmesh.mesh.logic.handshake_common import (
    MAX_WELCOME_PEERS,
    Effect,
    Facts,
    Failed,
    Introduction,
    JoinAsked,
    Proven,
    Send,
    Welcomed,
    auth_bytes,
    clean_entries,
    introduction_of,
    join_is_proven,
    parse_message,
    refusal_error,
    send,
)
from agentmesh.mesh.logic.handshake_messages import (
    HANDSHAKE_VERSIONS,
    MAX_SENTENCE_CHARS,
    AnyHandshakeMessage,
    Auth,
    Challenge,
    ClockMismatch,
    Hello,
    JoinRequest,
    Refusal,
    RefusalCode,
    RefusedByPeer,
    Welcome,
)
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.names import safe_name
from agentmesh.mesh.logic.record import KEY_BYTES, SIGNATURE_BYTES, Verify

__all__ = [
    "ClientConfig",
    "ClientHandshake",
    "Effect",
    "Facts",
    "Failed",
    "Introduction",
    "JoinAsked",
    "JoinCredential",
    "MemberCredential",
    "Proven",
    "Send",
    "ServerConfig",
    "ServerHandshake",
    "Welcomed",
]

Sign = Callable[[bytes], bytes]
CheckChain = Callable[[Chain, int], Certificate]
"""Trust.check_presented: the leaf of a chain that is good now. Raises: CapabilityError."""

SOFTWARE_TOO_OLD: Final = (
    "One of the two nodes runs a version of agentmesh that the other no longer speaks; update the older one."
)


# ------------------------------------------------------------------ client


@dataclass(frozen=True, slots=True)
class MemberCredential:
    """This node is a member by this chain."""

    chain: Chain


@dataclass(frozen=True, slots=True)
class JoinCredential:
    """This node holds an invite's chain and private key."""

    invite_chain: Chain
    sign: Sign


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """One attempt to get in. `nonce` is fresh; `server` is the key that the transport proved."""

    mesh: bytes
    key: bytes
    sign: Sign
    server: bytes
    nonce: bytes
    credential: MemberCredential | JoinCredential
    introduction: Introduction
    clock: ClockView
    versions: tuple[int, int] = HANDSHAKE_VERSIONS


class ClientHandshake:
    """The dialling side."""

    def __init__(self, config: ClientConfig, check: CheckChain) -> None:
        if config.server == config.key:
            raise NotAdmitted("This address is this node's own.")
        self._config = config
        self._check = check
        self._version: int | None = None
        self._over = False

    def start(self) -> list[Effect]:
        oldest, newest = self._config.versions
        return [send(Hello(oldest, newest, self._config.nonce))]

    def handle(self, data: bytes, now_ms: int) -> list[Effect]:
        """A frame from the server."""
        if self._over:
            return []
        try:
            return self._on_message(parse_message(data), now_ms)
        except AgentMeshError as error:
            self._over = True
            return [Failed(error)]

    def _on_message(self, message: AnyHandshakeMessage, now_ms: int) -> list[Effect]:
        if isinstance(message, Refusal):
            raise refusal_error(message)
        if isinstance(message, Challenge) and self._version is None:
            return self._on_challenge(message, now_ms)
        if isinstance(message, Welcome) and self._version is not None:
            self._over = True
            return [self._on_welcome(message, self._version, now_ms)]
        raise ProtocolError("The peer sent a handshake message out of turn.")

    def _on_challenge(self, challenge: Challenge, now_ms: int) -> list[Effect]:
        c = self._config
        oldest, newest = c.versions
        if not oldest <= challenge.version <= newest:
            raise RefusedByPeer(RefusalCode.VERSION, SOFTWARE_TOO_OLD)
        if len(challenge.nonce) != NONCE_BYTES:
            raise ProtocolError("The peer sent a challenge of impossible size.")
        complaint = clock_complaint(
            now_ms, challenge.now_ms, c.clock, own="this machine's clock", other="the peer's clock"
        )
        if complaint:
            raise ClockMismatch(complaint)
        self._version = challenge.version
        signature = c.sign(auth_bytes(c.mesh, c.key, c.server, c.nonce, challenge.nonce))
        intro = c.introduction
        member = isinstance(c.credential, MemberCredential)
        auth = Auth(
            mesh=c.mesh,
            client=c.key,
            signature=signature,
            now_ms=now_ms,
            name=intro.name,
            addresses=intro.addresses,
            dialable=intro.dialable,
            chain=c.credential.chain if isinstance(c.credential, MemberCredential) else (),
            join=None if member else self._join_request(challenge.nonce),
            bulk_port=intro.bulk_port,
        )
        return [send(auth)]

    def _join_request(self, server_nonce: bytes) -> JoinRequest:
        c = self._config
        assert isinstance(c.credential, JoinCredential)  # noqa: S101 - narrowed by the only caller
        chain = c.credential.invite_chain
        draft = JoinProof(c.server, c.nonce, server_nonce, b"", b"")
        statement = join_statement(c.mesh, leaf_of(chain).serial, c.key, draft)
        return JoinRequest(
            chain, c.credential.sign(JOIN_INVITE_PREFIX + statement), c.sign(JOIN_CONSENT_PREFIX + statement)
        )

    def _on_welcome(self, welcome: Welcome, version: int, now_ms: int) -> Welcomed:
        c = self._config
        try:
            server = self._check(welcome.chain, now_ms)
            granted = self._check(welcome.granted, now_ms) if welcome.granted else None
        except CapabilityError as error:
            raise NotAdmitted(f"The peer at this address is not a member of the mesh: {error.message}") from error
        if server.subject != c.server:
            raise NotAdmitted("The peer showed somebody else's membership.")
        if granted is None and isinstance(c.credential, JoinCredential):
            raise ProtocolError("The peer let this node in without giving it a membership.")
        if granted is not None and granted.subject != c.key:
            raise ProtocolError("The peer gave this node somebody else's membership.")
        intro = introduction_of(welcome.name, welcome.addresses, welcome.dialable, welcome.bulk_port)
        return Welcomed(
            facts=Facts(c.server, intro, welcome.chain, version),
            granted=welcome.granted,
            mesh_name=safe_name(welcome.mesh_name),
            observed=welcome.observed if is_plausible(welcome.observed) else "",
            peers=clean_entries(welcome.peers, c.key),
        )


# ------------------------------------------------------------------ server


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One connection to be let in or not. `nonce` is fresh."""

    mesh: bytes
    key: bytes
    nonce: bytes
    clock: ClockView
    versions: tuple[int, int] = HANDSHAKE_VERSIONS


class ServerHandshake:
    """The listening side. After Proven or JoinAsked its owner answers with `welcome` or `refuse`."""

    def __init__(
        self, config: ServerConfig, check_member: CheckChain, check_invite: CheckChain, verify: Verify
    ) -> None:
        self._config = config
        self._check_member = check_member
        self._check_invite = check_invite
        self._verify = verify
        self._hello: Hello | None = None
        self._version = 0
        self._over = False

    def handle(self, data: bytes, now_ms: int) -> list[Effect]:
        """A frame from the client."""
        if self._over:
            return []
        try:
            return self._on_message(parse_message(data), now_ms)
        except RefusedByPeer as error:
            return self.refuse(error.refusal, error.message, now_ms)
        except AgentMeshError as error:
            return self.refuse(RefusalCode.MALFORMED, error.message, now_ms)

    def refuse(self, code: str, sentence: str, now_ms: int) -> list[Effect]:
        """End it with a reason for the client's user."""
        self._over = True
        return [send(Refusal(code, sentence[:MAX_SENTENCE_CHARS], now_ms)), Failed(RefusedByPeer(code, sentence))]

    def welcome(
        self,
        chain: Chain,
        granted: Chain,
        introduction: Introduction,
        *,
        mesh_name: str,
        observed: str,
        peers: tuple[PeerEntry, ...],
        now_ms: int,
    ) -> list[Effect]:
        """Let the client in."""
        self._over = True
        return [
            send(
                Welcome(
                    chain=chain,
                    granted=granted,
                    name=introduction.name,
                    mesh_name=mesh_name,
                    addresses=introduction.addresses,
                    dialable=introduction.dialable,
                    observed=observed,
                    peers=peers[:MAX_WELCOME_PEERS],
                    now_ms=now_ms,
                    bulk_port=introduction.bulk_port,
                )
            )
        ]

    def _on_message(self, message: AnyHandshakeMessage, now_ms: int) -> list[Effect]:
        if isinstance(message, Hello) and self._hello is None:
            return self._on_hello(message, now_ms)
        if isinstance(message, Auth) and self._hello is not None:
            return [self._on_auth(message, self._hello.nonce, now_ms)]
        raise ProtocolError("A peer sent a handshake message out of turn.")

    def _on_hello(self, hello: Hello, now_ms: int) -> list[Effect]:
        if len(hello.nonce) != NONCE_BYTES or hello.oldest_version > hello.newest_version:
            raise ProtocolError("A peer sent an impossible greeting.")
        oldest, newest = self._config.versions
        self._version = min(newest, hello.newest_version)
        if self._version < max(oldest, hello.oldest_version):
            raise RefusedByPeer(RefusalCode.VERSION, SOFTWARE_TOO_OLD)
        self._hello = hello
        return [send(Challenge(self._version, self._config.nonce, now_ms))]

    def _on_auth(self, auth: Auth, client_nonce: bytes, now_ms: int) -> Effect:
        c = self._config
        if len(auth.client) != KEY_BYTES or len(auth.mesh) != KEY_BYTES:
            raise ProtocolError("A peer sent a key of impossible size.")
        if auth.mesh != c.mesh:
            raise RefusedByPeer(RefusalCode.FOREIGN_MESH, "The node at this address is on another mesh.")
        if auth.client == c.key:
            raise RefusedByPeer(RefusalCode.SELF, "This address is this node's own.")
        signed = auth_bytes(c.mesh, auth.client, c.key, client_nonce, c.nonce)
        if len(auth.signature) != SIGNATURE_BYTES or not self._verify(auth.client, auth.signature, signed):
            raise RefusedByPeer(RefusalCode.BAD_SIGNATURE, "The node did not prove that it holds its key.")
        complaint = clock_complaint(
            now_ms, auth.now_ms, c.clock, own="the mesh member's clock", other="the joining machine's clock"
        )
        if complaint:
            raise RefusedByPeer(RefusalCode.CLOCK, complaint)
        intro = introduction_of(auth.name, auth.addresses, auth.dialable, auth.bulk_port)
        facts = Facts(auth.client, intro, auth.chain, self._version)
        if auth.join is not None:
            return self._on_join(facts, auth.join, client_nonce, now_ms)
        return self._on_member(facts, now_ms)

    def _on_member(self, facts: Facts, now_ms: int) -> Proven:
        try:
            leaf = self._check_member(facts.chain, now_ms)
        except CapabilityError as error:
            return Proven(facts, error)
        if leaf.subject != facts.node:
            raise RefusedByPeer(RefusalCode.NOT_A_MEMBER, "The node showed somebody else's membership.")
        return Proven(facts, None)

    def _on_join(self, facts: Facts, join: JoinRequest, client_nonce: bytes, now_ms: int) -> JoinAsked:
        c = self._config
        proof = JoinProof(c.key, client_nonce, c.nonce, join.invite_signature, join.joiner_signature)
        try:
            invite = self._check_invite(join.invite_chain, now_ms)
        except CapabilityError as error:
            return JoinAsked(facts, join.invite_chain, proof, error)
        if not join_is_proven(c.mesh, invite, facts.node, proof, self._verify):
            raise RefusedByPeer(RefusalCode.INVITE_INVALID, "The node did not prove that it holds the invite.")
        return JoinAsked(facts, join.invite_chain, proof, None)
