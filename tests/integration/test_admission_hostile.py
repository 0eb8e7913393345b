"""Strangers and members that break the rules of admission: refused, in time, at nobody else's cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from agentmesh.core.errors import NotAdmitted, ProtocolError, StreamClosed, Unreachable
from agentmesh.core.units import DAY_MS
from agentmesh.mesh.control_service import ask
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.certificate import (
    JOIN_CONSENT_PREFIX,
    JOIN_INVITE_PREFIX,
    Chain,
    JoinProof,
    join_statement,
)
from agentmesh.mesh.logic.control_messages import ForwardJoin, Renew
from agentmesh.mesh.logic.handshake_messages import RefusedByPeer
from agentmesh.mesh.logic.issuing import issue_voucher
from agentmesh.mesh.logic.token import decode_token
from agentmesh.mesh.streams import StreamKind, open_framed
from tests.fakes.admission_world import NOW_MS, WAIT_S, World


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr("agentmesh.mesh.control_service.ANSWER_TIMEOUT_S", WAIT_S)  # answers wait for a disk
    made = World(tmp_path)
    async with asyncio.timeout(100):
        yield made
        await made.close()


async def _until(holds: Callable[[], bool]) -> None:
    """Let the other tasks run until it holds."""
    async with asyncio.timeout(WAIT_S):
        while not holds():
            await asyncio.sleep(0)


async def test_a_client_that_says_nothing_is_dropped_in_time(world: World) -> None:
    founder = await world.found()
    founder.admit_s = 0.2
    node = await world.newcomer("stranger", await founder.invite())
    connection = await node.transport.dial(founder.public, founder.address, WAIT_S)
    await asyncio.wait_for(connection.wait_closed(), WAIT_S)
    assert isinstance(founder.errors[-1], Unreachable)


async def test_a_server_that_says_nothing_is_given_up_in_time(world: World) -> None:
    founder = await world.found()
    token = await founder.invite()
    bob = await world.newcomer("bob", token)
    connection = await bob.transport.dial(founder.public, founder.address, WAIT_S)
    world.network.cut(founder.public, bob.public)
    with pytest.raises(Unreachable, match="did not finish"):
        await bob.admission.introduce(connection, decode_token(token), timeout_s=0.2)


@pytest.mark.parametrize("garbage", [b"\xc1", b"\x90", b"x" * 100, b"\x94\x01\x01\x01\xc4\x00"])
async def test_garbage_in_place_of_the_handshake_is_refused_and_costs_nobody_else(world: World, garbage: bytes) -> None:
    founder = await world.found()
    node = await world.newcomer("stranger", await founder.invite())
    connection = await node.transport.dial(founder.public, founder.address, WAIT_S)
    frames = await open_framed(connection, StreamKind.CONTROL)
    await frames.write_frame(garbage)
    answer = await asyncio.wait_for(frames.read_frame(), WAIT_S)
    assert answer is not None
    assert b"malformed" in answer
    connection.close("done")
    await world.member("ann", founder)


async def test_a_stream_of_another_kind_before_the_handshake_ends_the_connection(world: World) -> None:
    founder = await world.found()
    node = await world.newcomer("stranger", await founder.invite())
    connection = await node.transport.dial(founder.public, founder.address, WAIT_S)
    await open_framed(connection, StreamKind.GOSSIP)
    await asyncio.wait_for(connection.wait_closed(), WAIT_S)
    assert isinstance(founder.errors[-1], ProtocolError)


async def test_an_unknown_control_request_is_declined_and_the_connection_goes_on(world: World) -> None:
    founder = await world.found()
    bob = await world.member("bob", founder)
    for request in (b"\x92\x63\x01", b"\xc1"):
        frames = await open_framed(bob.links[founder.public], StreamKind.CONTROL)
        await frames.write_frame(request)
        answer = await asyncio.wait_for(frames.read_frame(), WAIT_S)
        assert answer is not None
        assert b"malformed" in answer
    assert not bob.links[founder.public].is_closed


async def test_a_member_cannot_have_somebody_else_renewed_or_a_join_made_up(world: World) -> None:
    founder = await world.found()
    ann, bob = await world.member("ann", founder), await world.member("bob", founder)
    world.clock.ms += 200 * DAY_MS
    stream = await bob.reach(founder.public)
    assert stream is not None
    with pytest.raises(RefusedByPeer, match="own renewal"):
        await ask(stream, Renew(ann.membership.chain))

    invite = decode_token(await founder.invite(uses=1))
    sybil, invite_key = NodeKey.generate(), NodeKey(invite.seed)
    for server, joiner in ((ann.public, sybil.public), (bob.public, sybil.public), (bob.public, b"short")):
        proof = JoinProof(server, bytes(16), bytes(16), bytes(64), bytes(64))
        statement = join_statement(invite.mesh, invite.certificate.serial, joiner, proof)
        made_up = msgspec.structs.replace(
            proof,
            invite_signature=invite_key.sign(JOIN_INVITE_PREFIX + statement),
            joiner_signature=sybil.sign(JOIN_CONSENT_PREFIX + statement) if server == ann.public else bytes(64),
        )
        stream = await bob.reach(founder.public)
        assert stream is not None
        with pytest.raises(RefusedByPeer, match="not genuine"):
            await ask(stream, ForwardJoin(invite.chain, joiner, made_up))


async def test_without_membership_and_token_there_is_a_sentence(world: World) -> None:
    founder = await world.found()
    node = await world.newcomer("nobody", await founder.invite())
    with pytest.raises(NotAdmitted, match="needs an invite"):
        await node.dial(founder)


async def test_a_node_that_leaves_in_the_middle_is_forgotten(world: World) -> None:
    founder = await world.found()
    node = await world.newcomer("stranger", await founder.invite())
    connection = await node.transport.dial(founder.public, founder.address, WAIT_S)
    await open_framed(connection, StreamKind.CONTROL)
    connection.close("changed my mind")
    await _until(lambda: bool(founder.errors))
    assert isinstance(founder.errors[-1], StreamClosed)


async def test_a_member_in_good_standing_takes_no_other_chain_from_a_peer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    founder = await world.found()
    ann = await world.member("ann", founder)
    cat = await world.member("cat", ann)
    own = cat.membership.chain
    lesser = issue_voucher(own, founder.membership.chain, founder.key.sign, [ann.public], NOW_MS)

    async def hand_out(_: object) -> Chain:
        return lesser

    monkeypatch.setattr(founder.admission, "_for_member", hand_out)
    admitted = await cat.dial(founder)
    assert admitted.publish is None
    assert cat.membership.chain == own

    world.clock.ms += 200 * DAY_MS
    monkeypatch.setattr(founder.admission._service, "_renew", lambda peer, chain: lesser)
    stream = await cat.reach(founder.public)
    assert stream is not None
    with pytest.raises(ProtocolError, match="instead of renewing"):
        await cat.admission.request_renewal(stream)
    assert cat.membership.chain == own
