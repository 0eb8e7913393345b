"""Conversations with a model that peers have in shards: the real dispatcher and proxy, engines behind peers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentmesh.inference.logic.presence import NodeOffer, encode_offer
from agentmesh.inference.logic.target import ServedModel
from agentmesh.inference.proxy.directory import Directory
from agentmesh.inference.proxy.dispatch import Dispatcher
from agentmesh.mesh.logic.events import PeerState
from tests.fakes.proxy_world import OWN, Backend, Call, PeerLinks, Reply, World, answer, post, proxy_world, until
from tests.fakes.routing import node_record

SHARDS = (b"1" * 32, b"2" * 32, b"3" * 32)
WHOLE = b"w" * 32
SHARD = ServedModel("m", ready=True, slots=4, capabilities=("chat",), sha256="ab", shard="8/16 1f09a3c2")
SESSIONS = [f"talk {number}" for number in range(12)]


@dataclass
class Shards:
    """A node that is asked, and peers that have parts."""

    here: World
    links: PeerLinks
    directory: Directory
    states: dict[bytes, PeerState]
    peers: dict[bytes, World] = field(default_factory=dict[bytes, World])
    engines: dict[bytes, Backend] = field(default_factory=dict[bytes, Backend])

    async def add(self, world: World, node: bytes, model: ServedModel) -> None:
        """A peer whose engine answers with its node's first letter."""

        async def say(call: Call) -> None:
            await call.send(answer(node[:1]))

        self.peers[node] = world
        self.engines[node] = await world.backend(say)
        await self.links.add(node, world.server.serve_peer)
        await self.offer(node, model)

    async def offer(self, node: bytes, *models: ServedModel) -> None:
        payload = encode_offer(NodeOffer(1, "test", "b1", 0, models))
        await self.directory.on_records([node_record(node, payload=payload)])

    async def say(self, session: str, turn: int = 0) -> Reply:
        """A turn of a conversation."""
        later = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": f"And {turn}?"}] * turn
        return await self.here.ask(post({"model": "m", "messages": [{"role": "user", "content": session}, *later]}))

    async def hosts(self, sessions: Sequence[str] = SESSIONS, turn: int = 0) -> dict[str, bytes]:
        """Which peer answers each."""
        found: dict[str, bytes] = {}
        for session in sessions:
            reply = await self.say(session, turn)
            assert reply.status == 200
            found[session] = reply.body
        return found


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Shards]:
    for name in ("here", "1", "2", "3", "w"):
        (tmp_path / name).mkdir()
    loop = asyncio.get_running_loop()
    async with (
        proxy_world(tmp_path / "here") as here,
        proxy_world(tmp_path / "1") as one,
        proxy_world(tmp_path / "2") as two,
        proxy_world(tmp_path / "3") as three,
        proxy_world(tmp_path / "w") as whole,
    ):
        states: dict[bytes, PeerState] = {}
        directory = Directory(OWN, lambda: states, loop.time)
        here.server.parts.dispatch = Dispatcher(directory, here.metrics, loop.time, loop.call_later)
        world = Shards(here, PeerLinks(here), directory, states)
        world.peers[WHOLE] = whole
        for node, peer in zip(SHARDS, (one, two, three), strict=True):
            await world.add(peer, node, SHARD)
        yield world
        await world.links.close()


async def test_a_conversation_stays_on_its_shard_and_only_those_of_a_lost_one_move(mesh: Shards) -> None:
    before = await mesh.hosts()
    assert len(set(before.values())) > 1
    assert await mesh.hosts(turn=1) == before
    assert await mesh.hosts(turn=3) == before
    lost = next(iter(before.values()))
    mesh.links.drop(lost * 32)
    mesh.peers[lost * 32].server.parts.draining = True
    mesh.states[lost * 32] = PeerState.DEAD
    mesh.directory.on_peer_state(lost * 32, PeerState.DEAD)
    after = await mesh.hosts(turn=4)
    assert {session for session in SESSIONS if before[session] != after[session]} == {
        session for session in SESSIONS if before[session] == lost
    }
    assert await mesh.hosts(turn=5) == after


async def test_a_shard_that_breaks_off_before_its_first_byte_hands_its_sessions_to_the_next_of_their_order(
    mesh: Shards,
) -> None:
    before = await mesh.hosts()
    lost = before[SESSIONS[0]]
    mesh.engines[lost * 32].kill()
    first = await mesh.say(SESSIONS[0], 1)
    assert first.status == 200
    assert first.body != lost
    after = await mesh.hosts(turn=2)
    assert after[SESSIONS[0]] == first.body
    assert all(after[session] == before[session] for session in SESSIONS if before[session] != lost)


async def test_the_whole_model_answers_while_it_has_a_free_slot(mesh: Shards) -> None:
    before = await mesh.hosts()
    whole = ServedModel("m", ready=True, slots=1, capabilities=("chat",), sha256="ab")
    go = asyncio.Event()
    await mesh.add(mesh.peers[WHOLE], WHOLE, whole)
    assert set((await mesh.hosts()).values()) == {b"w"}

    async def wait(call: Call) -> None:
        await go.wait()
        await call.send(answer(b"w"))

    mesh.engines[WHOLE].handler = wait
    taken = asyncio.create_task(mesh.say("long"))
    await until(lambda: len(mesh.engines[WHOLE].calls) > len(SESSIONS))
    assert await mesh.hosts(turn=1) == before, "while it is busy, each goes to its shard"
    go.set()
    assert (await taken).body == b"w"


async def test_the_whole_model_answers_when_no_shard_does(mesh: Shards) -> None:
    await mesh.add(mesh.peers[WHOLE], WHOLE, ServedModel("m", ready=True, slots=1, sha256="ab"))
    for node in SHARDS:
        mesh.states[node] = PeerState.DEAD
        mesh.directory.on_peer_state(node, PeerState.DEAD)
    assert set((await mesh.hosts(SESSIONS[:3])).values()) == {b"w"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"user": "me", "messages": [{"role": "user", "content": "Q"}]}),
        ("/v1/completions", {"user": "me", "prompt": "Q"}),
        ("/v1/responses", {"user": "me", "input": "Q"}),
        (
            "/v1/messages",
            {"metadata": {"user_id": "me"}, "messages": [{"role": "user", "content": "Q"}], "max_tokens": 1},
        ),
    ],
)
async def test_whoever_says_who_they_are_is_answered_by_one_shard_in_all_dialects(
    mesh: Shards, path: str, body: dict[str, object]
) -> None:
    mine = (await mesh.here.ask(post({"model": "m", "user": "me", "messages": []}))).body
    for number in range(4):
        text = json.dumps(body).replace("Q", f"Question {number}")
        reply = await mesh.here.ask(post(json.dumps({"model": "m", **json.loads(text)}).encode(), path))
        assert (reply.status, reply.body) == (200, mine)


async def test_a_large_body_in_a_file_is_looked_into_and_nothing_of_it_is_kept(mesh: Shards) -> None:
    messages = [{"role": "user", "content": "big"}, {"role": "assistant", "content": "x" * 3_000_000}]
    mine = (await mesh.say("big")).body
    reply = await mesh.here.ask(post({"model": "m", "messages": messages}))
    assert (reply.status, reply.body) == (200, mine)
    await mesh.here.settled()
