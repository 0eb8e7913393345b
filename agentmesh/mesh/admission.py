"""Who may be on a connection: runs the handshake on its first stream, and the requests about certificates after it.

    admit(connection)              the listening side: lets a member or a joiner in
    introduce(connection, token)   the dialling side: proves who this node is, or joins
    serve_control(peer, stream)    answers an admitted peer's renewal, voucher or passed-on join
    request_renewal(stream), request_voucher(stream)

State: none but the authority's. Owner: the event loop. Every wait is bounded: a far side that says nothing costs one task for
HANDSHAKE_TIMEOUT_MS. Nothing about this node or its mesh is told before the far side has proved itself. How many
handshakes run at once is for the caller to count (logic/handshake_gate.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from agentmesh.core.clock import Clock
from agentmesh.core.errors import NotAdmitted, ProtocolError, StreamClosed, Unreachable
from agentmesh.mesh.authority import Authority, Draft, open_token
from agentmesh.mesh.control_service import ControlService, Reach, answer_request, ask
from agentmesh.mesh.identity import verify
from agentmesh.mesh.logic.capability import CapabilityError, Chain, ExpiredChain, Role
from agentmesh.mesh.logic.certificate import NONCE_BYTES, Certificate, leaf_of
from agentmesh.mesh.logic.clocks import ClockView
from agentmesh.mesh.logic.control_messages import Renew, Vouch
from agentmesh.mesh.logic.handshake import (
    ClientConfig,
    ClientHandshake,
    Effect,
    Facts,
    Failed,
    Introduction,
    JoinAsked,
    JoinCredential,
    MemberCredential,
    Proven,
    Send,
    ServerConfig,
    ServerHandshake,
    Welcomed,
)
from agentmesh.mesh.logic.handshake_messages import MAX_HANDSHAKE_FRAME_BYTES, RefusalCode, RefusedByPeer
from agentmesh.mesh.logic.limits import HANDSHAKE_TIMEOUT_MS
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.logic.token import InviteToken
from agentmesh.mesh.logic.trust import RevokedChain, Trust
from agentmesh.mesh.streams import FrameStream, StreamKind, open_framed, read_header
from agentmesh.mesh.transport import Connection, Stream

_log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S: Final = HANDSHAKE_TIMEOUT_MS / 1000
LINGER_S: Final = 1.0  # for a refusal to reach the far side before the connection is closed
SILENT: Final = "The peer did not finish the handshake in time."


@dataclass(frozen=True, slots=True)
class Admitted:
    """The far side of an admitted connection.

    `observed_address` is this node's address as the far side sees it and `peers` are members worth knowing: both empty on the
    listening side. `publish` is this node's new member record, when the handshake gave it a new chain.
    """

    node: bytes
    name: str
    addresses: tuple[str, ...]
    dialable: bool
    chain: Chain
    version: int
    observed_address: str = ""
    peers: tuple[PeerEntry, ...] = ()
    mesh_name: str = ""
    publish: Draft | None = None
    bulk_port: int = 0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What admission asks of the node around it.

    Attributes:
        introduction: what this node says of itself.
        peers: members to tell a newcomer of.
        reach: opens a control stream to a connected member, or None when it is not connected.
        publish: spreads a record that admission made for somebody else (a voucher).
        clock_agrees: whether other members' clocks lately agreed with this machine's.
    """

    introduction: Callable[[], Introduction]
    peers: Callable[[], Iterable[PeerEntry]]
    reach: Reach
    publish: Callable[[Draft], Awaitable[None]]
    clock_agrees: Callable[[], bool] = lambda: False


class Admission:
    """See the module. `authority.membership` has an empty chain before this node has joined."""

    def __init__(self, authority: Authority, trust: Trust, clock: Clock, around: Surroundings) -> None:
        self.authority = authority
        self._trust = trust
        self._clock = clock
        self._around = around
        self._service = ControlService(authority, trust, clock, around.reach, around.publish)

    # -------------------------------------------------------------- listening side

    async def admit(self, connection: Connection, *, timeout_s: float = HANDSHAKE_TIMEOUT_S) -> Admitted:
        """Let the far side of an incoming connection in, or tell it why not.

        Raises:
            RefusedByPeer: it was refused (by this node); the connection can be closed.
            ProtocolError, StreamClosed, Unreachable: it broke the protocol, left, or fell silent.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._admit(connection)
        except TimeoutError as error:
            raise Unreachable(SILENT) from error
        except RefusedByPeer:
            await _linger(connection)
            raise

    async def _admit(self, connection: Connection) -> Admitted:
        stream = await connection.accept_stream()
        if (await read_header(stream)).known_kind is not StreamKind.CONTROL:
            raise ProtocolError("A peer did not begin with the handshake.")
        frames = FrameStream(stream, limit=MAX_HANDSHAKE_FRAME_BYTES)
        machine = ServerHandshake(
            ServerConfig(self._trust.mesh, self.authority.key.public, os.urandom(NONCE_BYTES), self._clock_view()),
            check_member=self._trust.check_presented,
            check_invite=self._check_invite,
            verify=verify,
        )
        while True:
            for effect in machine.handle(await _next(frames), self._clock.now_ms()):
                if isinstance(effect, Proven | JoinAsked):
                    admitted = await self._answer(machine, frames, connection, effect)
                    await frames.end()
                    return admitted
                await self._perform(frames, effect)

    async def _answer(
        self, machine: ServerHandshake, frames: FrameStream, connection: Connection, effect: Proven | JoinAsked
    ) -> Admitted:
        """Decide about somebody who has proved its key."""
        try:
            granted = await (self._for_joiner(effect) if isinstance(effect, JoinAsked) else self._for_member(effect))
        except RefusedByPeer as error:
            for step in machine.refuse(error.refusal, error.message, self._clock.now_ms()):
                await self._perform(frames, step)
            raise
        welcome = machine.welcome(
            self.authority.chain,
            granted,
            self._around.introduction(),
            mesh_name=self.authority.membership.name,
            observed=connection.remote_address,
            peers=tuple(self._around.peers()),
            now_ms=self._clock.now_ms(),
        )
        for step in welcome:
            await self._perform(frames, step)
        return _admitted(effect.facts, granted or effect.facts.chain)

    async def _for_member(self, proven: Proven) -> Chain:
        """A better chain for a member whose own is not good, empty when its own is. Raises: RefusedByPeer."""
        if proven.error is None:
            return ()
        node, now_ms = proven.facts.node, self._clock.now_ms()
        if self._trust.standing(node, now_ms) is Standing.MEMBER:
            return self._trust.chain_of(node) or ()
        if isinstance(proven.error, RevokedChain) and (chain := await self._service.vouch_for(node)):
            return chain
        raise _refusal_of(proven.error, RefusalCode.EXPIRED, RefusalCode.REVOKED, RefusalCode.NOT_A_MEMBER)

    async def _for_joiner(self, asked: JoinAsked) -> Chain:
        """A membership for somebody who holds an invite. Raises: RefusedByPeer."""
        if asked.error is not None:
            raise _refusal_of(
                asked.error, RefusalCode.INVITE_EXPIRED, RefusalCode.INVITE_REVOKED, RefusalCode.INVITE_INVALID
            )
        return await self._service.admit_joiner(asked.invite_chain, asked.facts.node, asked.proof)

    def _check_invite(self, chain: Chain, now_ms: int) -> Certificate:
        return self._trust.check_presented(chain, now_ms, role=Role.INVITE)

    # -------------------------------------------------------------- dialling side

    async def introduce(
        self, connection: Connection, token: InviteToken | None = None, *, timeout_s: float = HANDSHAKE_TIMEOUT_S
    ) -> Admitted:
        """Prove this node to the far side of a connection that it dialled; with a token, join.

        A chain that the far side gave is stored before this returns; its record is in `publish`.

        Raises:
            TokenError: the invite is not good, here or there (InviteRefused).
            NotAdmitted: refused (RefusedByPeer), clocks apart (ClockMismatch), or the far side is no member.
            ProtocolError, StreamClosed, Unreachable: it broke the protocol, left, or fell silent.
            StorageError: the new membership could not be written.
        """
        try:
            async with asyncio.timeout(timeout_s):
                welcomed = await self._introduce(connection, token)
        except TimeoutError as error:
            raise Unreachable(SILENT) from error
        publish = None
        # A member takes another chain only in need: a peer could hand it a lesser one, with itself above it.
        if welcomed.granted and (token is not None or not self.authority.chain_is_good()):
            publish = await self.authority.adopt(welcomed.granted, welcomed.mesh_name)
        facts = welcomed.facts
        return Admitted(
            node=facts.node,
            name=facts.introduction.name,
            addresses=facts.introduction.addresses,
            dialable=facts.introduction.dialable,
            chain=facts.chain,
            version=facts.version,
            observed_address=welcomed.observed,
            peers=welcomed.peers,
            mesh_name=welcomed.mesh_name,
            publish=publish,
            bulk_port=facts.introduction.bulk_port,
        )

    async def _introduce(self, connection: Connection, token: InviteToken | None) -> Welcomed:
        machine = ClientHandshake(self._client_config(connection, token), self._trust.check_presented)
        frames = await open_framed(connection, StreamKind.CONTROL, limit=MAX_HANDSHAKE_FRAME_BYTES)
        effects = machine.start()
        while True:
            for effect in effects:
                if isinstance(effect, Welcomed):
                    await frames.end()
                    return effect
                await self._perform(frames, effect)
            effects = machine.handle(await _next(frames), self._clock.now_ms())

    def _client_config(self, connection: Connection, token: InviteToken | None) -> ClientConfig:
        key = self.authority.key
        if token is not None:
            invite_key = open_token(token, self._clock.now_ms())
            credential = JoinCredential(token.chain, invite_key.sign)
        elif self.authority.chain:
            credential = MemberCredential(self.authority.chain)
        else:
            raise NotAdmitted("This node is not a member yet; it needs an invite.")
        return ClientConfig(
            mesh=self._trust.mesh,
            key=key.public,
            sign=key.sign,
            server=connection.server_node,
            nonce=os.urandom(NONCE_BYTES),
            credential=credential,
            introduction=self._around.introduction(),
            clock=self._clock_view(token.chain if token else ()),
        )

    # -------------------------------------------------------------- after admission

    async def serve_control(self, peer: bytes, stream: Stream) -> None:
        """Answer one request of an admitted peer. Raises: ProtocolError, StreamClosed, Unreachable (it fell silent)."""
        await answer_request(self._service, peer, stream)

    async def request_renewal(self, stream: Stream) -> Draft:
        """Ask the peer behind a fresh stream for another year; the new chain is stored when this returns.

        Returns the record to publish.

        Raises:
            RefusedByPeer: not now, or not by this peer.
            CapabilityError: what it sent is no good.
            ProtocolError, StreamClosed, Unreachable, StorageError
        """
        leaf = self._check_answer(chain := await ask(stream, Renew(self.authority.chain)))
        own = leaf_of(self.authority.chain)
        kept = (leaf.via, leaf.vouched_by, leaf.line, leaf.depth, leaf.may_invite)
        if kept != (own.via, own.vouched_by, own.line, own.depth, own.may_invite) or leaf.expires_ms <= own.expires_ms:
            raise ProtocolError("The peer gave this node another membership instead of renewing its own.")
        return await self.authority.adopt(chain)

    async def request_voucher(self, stream: Stream) -> Draft | None:
        """Ask a peer that knew this node to vouch for it. As request_renewal; None if that has become needless."""
        self._check_answer(chain := await ask(stream, Vouch(self.authority.chain)))
        return None if self.authority.chain_is_good() else await self.authority.adopt(chain)

    def _check_answer(self, chain: Chain) -> Certificate:
        leaf = self._trust.check_presented(chain, self._clock.now_ms())
        if leaf.subject != self.authority.key.public:
            raise ProtocolError("The peer gave this node somebody else's membership.")
        return leaf

    # -------------------------------------------------------------- small steps

    async def _perform(self, frames: FrameStream, effect: Effect) -> None:
        if isinstance(effect, Send):
            await frames.write_frame(effect.data)
        elif isinstance(effect, Failed):
            await frames.end()
            raise effect.error

    def _clock_view(self, more: Chain = ()) -> ClockView:
        chains = [chain for chain in (self.authority.chain, more) if chain]
        passed_ms = max((leaf_of(chain).issued_ms for chain in chains), default=0)
        return ClockView(passed_ms, self._around.clock_agrees())


async def _next(frames: FrameStream) -> bytes:
    frame = await frames.read_frame()
    if frame is None:
        raise StreamClosed("The peer left in the middle of the handshake.")
    return frame


async def _linger(connection: Connection) -> None:
    """Let a refusal arrive: the far side closes when it has read it."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(connection.wait_closed(), LINGER_S)


def _admitted(facts: Facts, chain: Chain) -> Admitted:
    intro = facts.introduction
    return Admitted(
        facts.node, intro.name, intro.addresses, intro.dialable, chain, facts.version, bulk_port=intro.bulk_port
    )


def _refusal_of(
    error: CapabilityError, expired: RefusalCode, revoked: RefusalCode, other: RefusalCode
) -> RefusedByPeer:
    if isinstance(error, ExpiredChain):
        return RefusedByPeer(expired, error.message)
    return RefusedByPeer(revoked if isinstance(error, RevokedChain) else other, error.message)
