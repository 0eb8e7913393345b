"""The composite machine: the order of effects, and what a change in one part does to another."""

from __future__ import annotations

from random import Random

from agentmesh.core.units import HOUR_MS, MINUTE_MS
from agentmesh.mesh.logic.events import (
    ClosePeer,
    DropRecords,
    Effect,
    Event,
    MessageReceived,
    PeerConnected,
    PeerLost,
    PeersLearned,
    PeerState,
    RecordCreated,
    ReportPeer,
    SendMessage,
    SendRecords,
    StoreRecords,
    TimePassed,
)
from agentmesh.mesh.logic.gossip import FORGED, OUT, GossipMachine
from agentmesh.mesh.logic.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_BLAME, PEER_IDS_BURST
from agentmesh.mesh.logic.messages import (
    AnyMessage,
    Goodbye,
    Gossip,
    Graft,
    IHave,
    Neighbour,
    PeerEntry,
    Prune,
    RecordBatch,
    WantRecords,
)
from agentmesh.mesh.logic.packing import batches, join_ids, split_ids
from agentmesh.mesh.logic.record import Record, SignedRecord
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.logic.trust import Trust
from tests.sim.keys import RULES, START_MS, Mint

NOW = START_MS


class Node:
    """Member 0, with members 1 to 3 as its neighbours."""

    def __init__(self) -> None:
        self.mint = Mint()
        for number in range(5):
            self.mint.member(number)
        self.trust = Trust(self.mint.mesh, self.mint.verify)
        self.index = RecordIndex(RULES, self.trust.standing, self.trust.scopes, self.trust.policy)
        entry = PeerEntry(self.id(0), ("192.0.2.1:1",), True)
        self.machine = GossipMachine(entry, self.index, self.trust, self.mint.verify, rng=Random(1))
        self.now_ms = NOW
        for number in (1, 2, 3):
            self.connect(number)
        self.receive(1, RecordBatch(tuple(self.mint.member_record(n).signed for n in range(5))))
        self.pass_time(1_000)

    def id(self, number: int) -> bytes:
        return self.mint.keys[number].public

    def feed(self, event: Event) -> list[Effect]:
        return self.machine.handle(event, self.now_ms)

    def connect(self, number: int) -> list[Effect]:
        effects = self.feed(PeerConnected(self.id(number), ("192.0.2.9:1",), True, False))
        return effects + self.receive(number, Neighbour(PeerEntry(self.id(number), ("192.0.2.9:1",), True), True))

    def receive(self, number: int, message: AnyMessage) -> list[Effect]:
        return self.feed(MessageReceived(self.id(number), message))

    def pass_time(self, duration_ms: int) -> list[Effect]:
        """Only when the machine asked for it, as a driver does."""
        end_ms, effects = self.now_ms + duration_ms, list[Effect]()
        while (deadline_ms := self.machine.next_deadline_ms()) is not None and deadline_ms <= end_ms:
            self.now_ms = max(self.now_ms, deadline_ms)
            effects += self.feed(TimePassed())
        self.now_ms = end_ms
        return effects

    def post(self, number: int, text: str = "hello") -> Record:
        return self.mint.post(number, text, self.now_ms)


def sent(effects: list[Effect], kind: type) -> dict[bytes, AnyMessage]:
    return {e.peer: e.message for e in effects if isinstance(e, SendMessage) and isinstance(e.message, kind)}


def stored(effects: list[Effect]) -> list[Record]:
    return [record for e in effects if isinstance(e, StoreRecords) for record in e.records]


def test_an_own_record_is_pushed_to_all_neighbours_and_not_stored_again() -> None:
    node = Node()
    post = node.post(0)
    effects = node.feed(RecordCreated(post))
    assert sent(effects, Gossip) == {node.id(n): Gossip((post.signed,), 1) for n in (1, 2, 3)}
    assert stored(effects) == []


def test_a_pushed_record_is_stored_first_and_then_pushed_on() -> None:
    node = Node()
    post = node.post(4)
    effects = node.receive(1, Gossip((post.signed,), 3))
    assert effects[0] == StoreRecords((post,))
    assert sent(effects, Gossip) == {node.id(n): Gossip((post.signed,), 4) for n in (2, 3)}


def test_the_second_to_push_it_is_pruned_and_gets_ids_from_then_on() -> None:
    node = Node()
    first, second = node.post(4), node.post(4, "more")
    node.receive(1, Gossip((first.signed,), 1))
    assert node.receive(2, Gossip((first.signed,), 5)) == [SendMessage(node.id(2), Prune())]
    assert node.receive(1, Gossip((first.signed,), 1)) == [], "a repeat by the same peer prunes nothing"
    assert list(sent(node.receive(1, Gossip((second.signed,), 1)), Gossip)) == [node.id(3)]
    assert sent(node.pass_time(60), IHave) == {node.id(2): IHave(second.id, 2)}


def test_a_fetched_record_is_announced_and_not_pushed() -> None:
    node = Node()
    post = node.post(4)
    effects = node.receive(1, RecordBatch((post.signed,)))
    assert stored(effects) == [post]
    assert sent(effects, Gossip) == {}
    assert sent(node.pass_time(60), IHave) == {node.id(n): IHave(post.id, 0) for n in (2, 3)}


def test_records_asked_for_are_sent_as_far_as_they_are_here() -> None:
    node = Node()
    post = node.post(0)
    node.feed(RecordCreated(post))
    asked = post.id + bytes(16)
    assert node.receive(1, WantRecords(asked)) == [SendRecords(node.id(1), (post.id,))]
    assert node.receive(1, Graft(asked)) == [SendRecords(node.id(1), (post.id,), 1)]
    assert node.receive(1, WantRecords(bytes(16))) == []


def test_nobody_is_sent_the_board_over_and_over() -> None:
    node = Node()
    post = node.post(0)
    node.feed(RecordCreated(post))
    granted = 0
    for _ in range(PEER_IDS_BURST // 4_096 + 10):
        for effect in node.receive(1, WantRecords(post.id * 4_096)):
            assert isinstance(effect, SendRecords)
            granted += len(effect.ids)
    assert granted == PEER_IDS_BURST


def test_all_presence_is_given_to_who_asks_for_it() -> None:
    node = Node()
    presence = node.mint.record(node.mint.keys[0], "node", b"", node.now_ms, HOUR_MS)
    node.feed(RecordCreated(presence))
    assert node.receive(1, WantRecords(b"")) == [SendRecords(node.id(1), (presence.id,))]
    assert node.receive(1, WantRecords(b"")) == [], "once in a while"


def test_a_revocation_closes_the_outcast_and_drops_what_it_wrote() -> None:
    node = Node()
    post = node.post(1)
    node.receive(1, Gossip((post.signed,), 1))
    revocation = node.mint.revocation(1, node.now_ms)
    effects = node.receive(2, Gossip((revocation.signed,), 1))
    assert effects[0] == StoreRecords((revocation,))
    assert ClosePeer(node.id(1), OUT) in effects
    assert post.id in {id_ for e in effects if isinstance(e, DropRecords) for id_ in e.ids}
    assert node.id(1) not in node.machine.active_peers()
    assert node.connect(1)[0] == ClosePeer(node.id(1), OUT)
    assert node.receive(1, Goodbye("")) == []


def test_too_much_blame_closes_a_peer_and_keeps_it_out_for_a_while() -> None:
    node = Node()
    for number in range(MAX_BLAME):
        effects = node.receive(1, Gossip((SignedRecord(b"%d" % number, bytes(64)),), 1))
        assert (ClosePeer(node.id(1), FORGED) in effects) == (number == MAX_BLAME - 1)
    assert node.machine.is_banned(node.id(1), node.now_ms)
    assert node.connect(1)[0] == ClosePeer(node.id(1), FORGED)
    node.now_ms += 10 * MINUTE_MS
    assert ReportPeer(node.id(1), PeerState.ALIVE) in node.connect(1)


def test_an_unknown_authors_post_makes_the_node_reconcile_with_who_sent_it() -> None:
    node = Node()
    node.mint.member(5)
    effects = node.receive(2, Gossip((node.post(5).signed,), 1))
    assert stored(effects) == []
    assert node.machine.waiting_records() == 1
    later = node.pass_time(8_000)
    assert any(getattr(e, "body", b"") is None and getattr(e, "peer", b"") == node.id(2) for e in later)


def test_own_presence_is_told_to_the_first_peer_that_comes() -> None:
    node = Node()
    presence = node.mint.record(node.mint.keys[0], "node", b"", node.now_ms, HOUR_MS)
    node.feed(RecordCreated(presence))
    for number in (1, 2, 3):
        node.feed(PeerLost(node.id(number), "gone"))
    assert SendRecords(node.id(4), (presence.id,)) in node.connect(4)


def test_an_own_record_over_quota_is_dropped_and_not_sent() -> None:
    node = Node()
    for number in range(121):
        effects = node.feed(
            RecordCreated(node.mint.post(0, f"{number}", node.now_ms - node.now_ms % MINUTE_MS + number))
        )
    assert sent(effects, Gossip) == {}
    assert [e for e in effects if isinstance(e, DropRecords)]


def test_expired_records_are_dropped_by_themselves() -> None:
    node = Node()
    note = node.mint.record(node.mint.keys[4], "post", b"", node.now_ms, MINUTE_MS)
    node.receive(1, Gossip((note.signed,), 1))
    dropped = [e for e in node.pass_time(2 * MINUTE_MS) if isinstance(e, DropRecords)]
    assert dropped == [DropRecords((note.id,), "expired")]


def test_a_goodbye_ends_the_link_without_suspicion() -> None:
    node = Node()
    effects = node.receive(1, Goodbye("leaving"))
    assert [e.peer for e in effects if isinstance(e, ClosePeer)] == [node.id(1)]
    assert not [e for e in effects if isinstance(e, ReportPeer)]
    assert node.feed(PeerLost(node.id(1), "closed")) == [], "what follows is no news"


def test_farewells_go_to_everybody_connected() -> None:
    node = Node()
    assert {e.peer for e in node.machine.farewell("bye") if isinstance(e, SendMessage)} == {
        node.id(n) for n in (1, 2, 3)
    }


def test_messages_of_nobody_connected_are_ignored() -> None:
    node = Node()
    assert node.receive(4, Gossip((node.post(4).signed,), 1)) == []


def test_known_peers_are_worth_keeping() -> None:
    node = Node()
    node.feed(PeersLearned((PeerEntry(node.id(4), ("198.51.100.7:5",), True),)))
    assert {entry.node for entry in node.machine.known_peers()} == {node.id(n) for n in (1, 2, 3, 4)}


def test_pieces_fit_into_one_message() -> None:
    big = [SignedRecord(bytes(60_000), bytes(64)) for _ in range(10)]
    assert [len(piece) for piece in batches(big)] == [4, 4, 2]
    assert all(sum(len(r.body) + 64 for r in piece) <= MAX_BATCH_BYTES for piece in batches(big))
    small = [SignedRecord(b"x", bytes(64))] * (MAX_BATCH_RECORDS + 1)
    assert [len(piece) for piece in batches(small)] == [MAX_BATCH_RECORDS, 1]
    assert list(batches([])) == []
    ids = [n.to_bytes(16, "big") for n in range(5_000)]
    assert [id_ for piece in join_ids(ids) for id_ in split_ids(piece)] == ids
    assert list(split_ids(b"not sixteen bytes or a multiple of it")) == [b"not sixteen byte", b"s or a multiple "]
