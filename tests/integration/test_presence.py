"""Presence (`node` records): not reconciled, so that every way in which it reaches a member, and leaves it again, is tried here.

Whoever follows presence sees it through `mesh.watch`, and after a restart begins with what `RecordStore.load_kind` gives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.core.units import HOUR_MS
from agentmesh.mesh.identity import encode_id
from agentmesh.mesh.logic.kinds import NODE
from agentmesh.mesh.logic.record import Record, parse_record
from tests.fakes.mesh_nodes import PUSHED_S, TEXT, LateClock, TestNode, eventually

SHORT_MS = 60_000  # for what is to expire: the test sets the clock forward when it has seen it


class Follower(TestNode):
    """A node that keeps what a directory would keep: the payload of each author, by what watchers are told alone."""

    __test__ = False

    def __init__(self, root: Path, name: str, clock: LateClock) -> None:
        super().__init__(root, name, clock=clock)
        self.here: dict[bytes, Record] = {}
        self.told: list[bytes] = []  # payloads, in order
        self.dropped: list[tuple[bytes, str]] = []

    async def _on_records(self, records: Sequence[Record]) -> None:
        await super()._on_records(records)
        for record in records:
            if record.kind == NODE.name:
                self.here[record.id] = record
                self.told.append(record.payload)

    async def _on_dropped(self, ids: Sequence[bytes], reason: str) -> None:
        for id_ in ids:
            if self.here.pop(id_, None) is not None:
                self.dropped.append((id_, reason))

    async def start(self) -> Follower:
        """With an index that is looked through more often than in life, where it takes up to EXPIRE_EVERY_MS."""
        await super().start()
        machine = self.mesh._machine
        machine._config = replace(machine._config, expire_every_ms=200)
        machine._expire_ms = 0
        return self

    async def announce(self, payload: bytes, lifetime_ms: int = HOUR_MS) -> Record:
        return await self.mesh.publish(NODE.name, b"", payload, lifetime_ms)

    async def from_store(self) -> None:
        """What a directory does after a restart."""
        stored = await self.store.load_kind(NODE.name)
        records = [parse_record(signed, mesh=self.mesh.mesh) for signed in stored]
        self.here = {record.id: record for record in records}

    def sees(self, node: TestNode) -> list[bytes]:
        """The payloads of a node that are held here: one, or none."""
        return [record.payload for record in self.here.values() if record.author == node.key.public]


Make = Callable[[str], Follower]


@pytest.fixture
def clock() -> LateClock:
    """Of all nodes."""
    return LateClock()


@pytest.fixture
async def make(tmp_path: Path, clock: LateClock) -> AsyncIterator[Make]:
    made: list[Follower] = []

    def node(name: str) -> Follower:
        made.append(Follower(tmp_path, name, clock))
        return made[-1]

    yield node
    for one in made:
        if hasattr(one, "mesh"):
            await one.mesh.stop()


async def join(make: Make, name: str, host: Follower, *neighbours: Follower) -> Follower:
    node = await (await make(name).join(await host.token())).start()
    await eventually(lambda: len(node.mesh.peers()) >= 1 + len(neighbours))
    return node


async def pair(make: Make) -> tuple[Follower, Follower]:
    a = await make("a").found().start()
    return a, await join(make, "b", a)


async def test_presence_is_seen_by_a_peer_at_once(make: Make) -> None:
    a, b = await pair(make)
    await a.announce(b"hello")
    await eventually(lambda: b.sees(a) == [b"hello"], PUSHED_S)
    await b.announce(b"and back")
    await eventually(lambda: a.sees(b) == [b"and back"], PUSHED_S)


async def test_a_node_sees_its_own_presence(make: Make) -> None:
    a = await make("a").found().start()
    await a.announce(b"me")
    await eventually(lambda: a.sees(a) == [b"me"], PUSHED_S)


async def test_a_node_that_joins_later_gets_all_presence(make: Make) -> None:
    a, b = await pair(make)
    await a.announce(b"from a")
    await b.announce(b"from b")
    await eventually(lambda: a.sees(b) == [b"from b"], PUSHED_S)
    c = await join(make, "c", a)
    await eventually(lambda: c.sees(a) == [b"from a"] and c.sees(b) == [b"from b"])


async def test_a_node_that_was_away_gets_what_it_missed(make: Make) -> None:
    a, b = await pair(make)
    await a.announce(b"before")
    await eventually(lambda: b.sees(a) == [b"before"], PUSHED_S)
    await b.stop()
    await eventually(lambda: b.key.public not in a.mesh._driver.links)
    await a.announce(b"while away")
    await b.start()
    await b.from_store()
    await eventually(lambda: b.sees(a) == [b"while away"])


async def test_a_peer_whose_link_broke_gets_what_it_missed_when_it_is_back(make: Make) -> None:
    a, b = await pair(make)
    await a.announce(b"before")
    await eventually(lambda: b.sees(a) == [b"before"], PUSHED_S)
    links = [link for node in (a, b) for link in node.mesh._driver.links.values()]
    for link in links:
        link.connection.close("the cable is out")
    await eventually(lambda: not any(link in links for link in a.mesh._driver.links.values()))
    await a.announce(b"while cut off")
    await eventually(lambda: b.sees(a) == [b"while cut off"])


async def test_the_newest_presence_replaces_the_one_before_and_watchers_are_told_of_both(make: Make) -> None:
    a, b = await pair(make)
    first = await a.announce(b"one")
    await eventually(lambda: b.sees(a) == [b"one"], PUSHED_S)
    await a.announce(b"two")
    for node in (a, b):
        await eventually(lambda node=node: node.sees(a) == [b"two"], PUSHED_S)
        assert first.id in [id_ for id_, _ in node.dropped]
        assert node.told[-1] == b"two"
        assert [r.payload for r in node.store.records.values() if r.kind == NODE.name] == [b"two"]


async def test_fast_updates_end_with_the_last_one_everywhere(make: Make) -> None:
    a, b = await pair(make)
    c = await join(make, "c", a)
    for number in range(50):
        await a.announce(b"%d" % number)
    for node in (a, b, c):
        await eventually(lambda node=node: node.sees(a) == [b"49"], PUSHED_S)


async def test_presence_expires_everywhere_and_watchers_are_told(make: Make, clock: LateClock) -> None:
    a, b = await pair(make)
    c = await join(make, "c", a)
    record = await a.announce(b"brief", SHORT_MS)
    for node in (a, b, c):
        await eventually(lambda node=node: node.sees(a) == [b"brief"], PUSHED_S)
    clock.ahead_ms = SHORT_MS
    for node in (a, b, c):
        await eventually(lambda node=node: record.id in [id_ for id_, _ in node.dropped])
        assert node.sees(a) == []
        assert record.id not in node.store.records


async def test_presence_that_was_renewed_does_not_go_when_the_first_would_have_expired(
    make: Make, clock: LateClock
) -> None:
    a, b = await pair(make)
    await a.announce(b"brief", SHORT_MS)
    await a.announce(b"lasting", HOUR_MS)
    await a.mesh.publish(TEXT.name, b"", b"of the same age", SHORT_MS)
    await eventually(lambda: b.sees(a) == [b"lasting"] and b.texts() == ["of the same age"], PUSHED_S)
    clock.ahead_ms = SHORT_MS
    await eventually(lambda: a.texts() == b.texts() == [])  # so what is over has been looked for
    assert b.sees(a) == a.sees(a) == [b"lasting"]


async def test_a_restarted_node_has_the_presence_that_it_stored(make: Make) -> None:
    a, b = await pair(make)
    await a.announce(b"from a")
    await eventually(lambda: b.sees(a) == [b"from a"], PUSHED_S)
    await a.stop()  # nobody can tell b again
    await b.stop()
    await b.start()
    await b.from_store()
    assert b.sees(a) == [b"from a"]


async def test_presence_that_expired_while_a_node_was_down_is_not_there_when_it_is_back(
    make: Make, clock: LateClock
) -> None:
    a, b = await pair(make)
    await a.announce(b"brief", SHORT_MS)
    await eventually(lambda: b.sees(a) == [b"brief"], PUSHED_S)
    await b.stop()
    await a.stop()
    clock.ahead_ms = SHORT_MS
    await b.start()
    await b.from_store()
    assert b.sees(a) == []


async def test_what_a_restarted_node_has_stored_still_expires(make: Make, clock: LateClock) -> None:
    a, b = await pair(make)
    await a.announce(b"brief", SHORT_MS)
    await eventually(lambda: b.sees(a) == [b"brief"], PUSHED_S)
    await a.stop()
    await b.stop()
    await b.start()
    await b.from_store()
    assert b.sees(a) == [b"brief"]
    clock.ahead_ms = SHORT_MS
    await eventually(lambda: b.sees(a) == [] and len(b.dropped) == 1)


async def test_a_restarted_node_publishes_presence_that_replaces_its_own_from_before(make: Make) -> None:
    a, b = await pair(make)
    await b.announce(b"first life")
    await eventually(lambda: a.sees(b) == [b"first life"], PUSHED_S)
    await b.stop()
    await b.start()
    await b.announce(b"second life")
    await eventually(lambda: a.sees(b) == [b"second life"])
    assert a.told[-1] == b"second life"


async def test_the_presence_of_a_revoked_node_is_dropped_and_none_is_taken_again(make: Make) -> None:
    a, b = await pair(make)
    c = await join(make, "c", a)
    await b.announce(b"from b")
    for node in (a, c):
        await eventually(lambda node=node: node.sees(b) == [b"from b"], PUSHED_S)
    await a.mesh.revoke(encode_id(b.key.public))
    for node in (a, c):
        await eventually(lambda node=node: node.sees(b) == [], PUSHED_S)
        assert len(node.dropped) == 1
    await b.announce(b"still here?")
    d = await join(make, "d", a)
    await d.announce(b"from d")
    for node in (a, c):
        await eventually(lambda node=node: node.sees(d) == [b"from d"], PUSHED_S)
        assert node.sees(b) == []
    assert d.sees(b) == []


async def test_presence_crosses_a_node_that_is_between(make: Make) -> None:
    """Of several nodes each has at least one link; presence reaches all, and each is told once of each record."""
    a = await make("a").found().start()
    others = [await join(make, f"n{number}", a) for number in range(4)]
    nodes = [a, *others]
    for node in nodes:
        await node.announce(node.name.encode())
    for node in nodes:
        await eventually(lambda node=node: len(node.here) == len(nodes), PUSHED_S)
        assert sorted(node.told) == sorted(other.name.encode() for other in nodes)


async def test_presence_of_the_largest_size_passes_and_a_larger_one_does_not(make: Make) -> None:
    a, b = await pair(make)
    await a.announce(b"x" * NODE.max_payload_bytes)
    await eventually(lambda: b.sees(a) == [b"x" * NODE.max_payload_bytes], PUSHED_S)
