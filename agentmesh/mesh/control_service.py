"""Requests about certificates between admitted peers: renew, vouch, pass a join on to the invite's issuer. Both sides.

State: none. Owner: admission.py, which also lets joiners in through here. Each exchange is one request and one answer on a
stream of its own, within ANSWER_TIMEOUT_S.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from agentmesh.core.clock import Clock
from agentmesh.core.errors import AgentMeshError, PeerError, ProtocolError, StreamClosed, Unreachable
from agentmesh.mesh.authority import Authority, Draft
from agentmesh.mesh.identity import short_id, verify
from agentmesh.mesh.logic.capability import CapabilityError, Chain, Role
from agentmesh.mesh.logic.certificate import JoinProof, decode_chain, leaf_of
from agentmesh.mesh.logic.control_messages import (
    ControlRequest,
    Declined,
    ForwardJoin,
    Granted,
    Renew,
    Vouch,
    encode_control,
    parse_answer,
    parse_request,
)
from agentmesh.mesh.logic.handshake_common import join_is_proven
from agentmesh.mesh.logic.handshake_messages import (
    MAX_HANDSHAKE_FRAME_BYTES,
    MAX_SENTENCE_CHARS,
    InviteRefused,
    RefusalCode,
    RefusedByPeer,
)
from agentmesh.mesh.logic.issuing import CannotIssue
from agentmesh.mesh.logic.record import KEY_BYTES
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.logic.trust import Trust
from agentmesh.mesh.streams import FrameStream, StreamKind, write_header
from agentmesh.mesh.transport import Stream

_log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 3.0  # shorter than the handshake's, so that a joiner hears why when the issuer is silent

Reach = Callable[[bytes], Awaitable[Stream | None]]
"""A new stream to a connected member, without its header, or None when it is not connected."""


class ControlService:
    """The deciding half, for requests that came over the wire and for admission."""

    def __init__(
        self,
        authority: Authority,
        trust: Trust,
        clock: Clock,
        reach: Reach,
        publish: Callable[[Draft], Awaitable[None]],
    ) -> None:
        self._authority = authority
        self._trust = trust
        self._clock = clock
        self._reach = reach
        self._publish = publish

    async def admit_joiner(self, invite_chain: Chain, joiner: bytes, proof: JoinProof) -> Chain:
        """A membership by an invite that was checked and proven, from this node or from the invite's issuer.

        Raises:
            RefusedByPeer
        """
        if self._trust.is_revoked(joiner):
            raise RefusedByPeer(
                RefusalCode.REVOKED, "This node's key has been revoked; it cannot join this mesh again."
            )
        invite = leaf_of(invite_chain)
        ours = invite.issuer == self._authority.key.public
        if invite.uses is not None and not ours:
            return await self._pass_on(invite_chain, joiner, proof)
        try:
            return await self._grant(invite_chain, joiner, proof)
        except CannotIssue:
            if ours:
                raise RefusedByPeer(RefusalCode.CANNOT_ADMIT, "This member can no longer admit anybody.") from None
            return await self._pass_on(invite_chain, joiner, proof)

    async def _grant(self, invite_chain: Chain, joiner: bytes, proof: JoinProof) -> Chain:
        """Raises: CannotIssue, RefusedByPeer."""
        try:
            return await self._authority.grant(invite_chain, joiner, proof)
        except InviteRefused as error:
            raise RefusedByPeer(error.refusal, error.message) from error
        except CannotIssue:
            raise
        except AgentMeshError as error:  # this machine's disk: not the joiner's business, but its user's
            _log.error("a joiner could not be admitted: %s", error)
            raise RefusedByPeer(RefusalCode.INTERNAL, "The member could not admit anybody just now.") from error

    async def _pass_on(self, invite_chain: Chain, joiner: bytes, proof: JoinProof) -> Chain:
        """Ask the invite's issuer over our own connection to it. Raises: RefusedByPeer."""
        issuer = leaf_of(invite_chain).issuer
        name = short_id(issuer, self._trust.members())
        offline = RefusedByPeer(
            RefusalCode.ISSUER_OFFLINE,
            f"Only the node that made this invite ({name}) can admit by it, and it is not connected now. Try again later.",
        )
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                stream = await self._reach(issuer)
                if stream is None:
                    raise offline
                chain = await ask(stream, ForwardJoin(invite_chain, joiner, proof))
        except RefusedByPeer:
            raise
        except (TimeoutError, PeerError) as error:
            _log.info("the issuer %s did not answer a join: %s", name, error)
            raise offline from error
        self._check_passed_on(chain, issuer, joiner)
        return chain

    def _check_passed_on(self, chain: Chain, issuer: bytes, joiner: bytes) -> None:
        try:
            leaf = self._trust.check_presented(chain, self._clock.now_ms())
        except CapabilityError as error:
            raise RefusedByPeer(RefusalCode.INTERNAL, "The node that made this invite gave a bad answer.") from error
        if (leaf.subject, leaf.issuer) != (joiner, issuer):
            raise RefusedByPeer(RefusalCode.INTERNAL, "The node that made this invite gave a bad answer.")

    async def vouch_for(self, subject: bytes) -> Chain | None:
        """Vouch for somebody known before a revocation, and publish that. None if this node did not know it or may not."""
        candidate = self._trust.vouch_candidate(self._authority.key.public, subject, self._clock.now_ms())
        draft = self._authority.vouch(candidate) if candidate else None
        if draft is None:
            return None
        await self._publish(draft)
        return decode_chain(draft.payload)

    async def answer(self, peer: bytes, request: ControlRequest) -> Granted | Declined:
        """Decide one request of an admitted peer."""
        try:
            if isinstance(request, Renew):
                return Granted(self._renew(peer, request.chain))
            if isinstance(request, Vouch):
                return Granted(await self._vouch(peer))
            return Granted(await self._take_join(peer, request))
        except RefusedByPeer as error:
            return Declined(error.refusal, error.message[:MAX_SENTENCE_CHARS])

    def _renew(self, peer: bytes, chain: Chain) -> Chain:
        try:
            leaf = self._trust.check_presented(chain, self._clock.now_ms())
            if leaf.subject != peer:
                raise RefusedByPeer(RefusalCode.NOT_A_MEMBER, "A node can ask only for its own renewal.")
            return self._authority.renew(chain)
        except CapabilityError as error:
            raise RefusedByPeer(RefusalCode.NOT_RENEWABLE, error.message) from error

    async def _vouch(self, peer: bytes) -> Chain:
        if self._trust.standing(peer, self._clock.now_ms()) is Standing.MEMBER and (
            chain := self._trust.chain_of(peer)
        ):
            return chain
        if chain := await self.vouch_for(peer):
            return chain
        raise RefusedByPeer(RefusalCode.NOT_A_MEMBER, "This node cannot vouch for that one.")

    async def _take_join(self, peer: bytes, request: ForwardJoin) -> Chain:
        """A join that another member passes on. It was promised to us, so it is never passed on again."""
        try:
            invite = self._trust.check_presented(request.invite_chain, self._clock.now_ms(), role=Role.INVITE)
        except CapabilityError as error:
            raise RefusedByPeer(RefusalCode.INVITE_INVALID, error.message) from error
        joiner, proof, mesh = request.joiner, request.proof, self._trust.mesh
        passed_on = invite.issuer == self._authority.key.public and proof.server == peer and len(joiner) == KEY_BYTES
        if not passed_on or not join_is_proven(mesh, invite, joiner, proof, verify):
            raise RefusedByPeer(RefusalCode.INVITE_INVALID, "The join that was passed on is not genuine.")
        return await self.admit_joiner(request.invite_chain, joiner, proof)


# ------------------------------------------------------------------ one exchange on a stream


async def answer_request(service: ControlService, peer: bytes, stream: Stream) -> None:
    """Read one request from a stream whose header was read, and answer it. Raises: ProtocolError, StreamClosed, Unreachable."""
    frames = FrameStream(stream, limit=MAX_HANDSHAKE_FRAME_BYTES)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            body = await frames.read_frame()
        if body is None:
            return
        try:
            request = parse_request(body)
        except ProtocolError as error:
            answer: Granted | Declined = Declined(RefusalCode.MALFORMED, error.message[:MAX_SENTENCE_CHARS])
        else:
            answer = await service.answer(peer, request)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await frames.write_frame(encode_control(answer))
            await frames.end()
    except TimeoutError as error:
        stream.abort()
        raise Unreachable("The peer fell silent in the middle of a request.") from error


async def ask(stream: Stream, request: ControlRequest) -> Chain:
    """Send a request on a fresh stream and wait for the chain.

    Raises:
        RefusedByPeer: the peer declined.
        ProtocolError, StreamClosed, Unreachable
    """
    frames = FrameStream(stream, limit=MAX_HANDSHAKE_FRAME_BYTES)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await write_header(stream, StreamKind.CONTROL)
            await frames.write_frame(encode_control(request))
            await frames.end()
            body = await frames.read_frame()
    except TimeoutError as error:
        stream.abort()
        raise Unreachable("The peer did not answer a request in time.") from error
    if body is None:
        raise StreamClosed("The peer ended a request without an answer.")
    answer = parse_answer(body)
    if isinstance(answer, Granted):
        return answer.chain
    raise RefusedByPeer(answer.code, answer.sentence[:MAX_SENTENCE_CHARS])
