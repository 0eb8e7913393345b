"""Plumtree: transcripts of one node's part of the tree."""

from __future__ import annotations

from agentmesh.mesh.logic.broadcast import Broadcast
from agentmesh.mesh.logic.events import Effect, SendMessage, SendRecords
from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.limits import ANNOUNCE_BURST, GRAFT_ATTEMPTS, MAX_IDS_PER_MESSAGE, MISSING_IDS
from agentmesh.mesh.logic.messages import Graft, IHave, Prune, WantRecords

A, B, C = (bytes([n]) * 32 for n in range(1, 4))
T0 = 1_000_000


def ids(count: int, start: int = 0) -> list[bytes]:
    return [n.to_bytes(16, "big") for n in range(start, start + count)]


X, Y = ids(2)


class Tree:
    """The tree of a node with neighbours A, B and C, all eager."""

    def __init__(self) -> None:
        self.here: set[bytes] = set()
        self.part = Broadcast(GossipConfig(), self.here.__contains__)
        self.now_ms = T0
        for peer in (A, B, C):
            self.part.neighbour_up(peer)

    def tick(self, after_ms: int) -> list[Effect]:
        self.now_ms += after_ms
        out: list[Effect] = []
        self.part.tick(self.now_ms, out)
        return out

    def ihave(self, peer: bytes, announced: list[bytes], hop: int = 1) -> None:
        self.part.on_ihave(peer, IHave(b"".join(announced), hop), self.now_ms)


def test_new_records_are_pushed_to_all_eager_neighbours_but_the_source() -> None:
    assert Tree().part.push_targets(A) == [B, C]


def test_a_duplicate_prunes_the_link_it_came_by() -> None:
    tree, out = Tree(), list[Effect]()
    tree.part.duplicate(B, out)
    assert out == [SendMessage(B, Prune())]
    assert list(tree.part.lazy) == [B]


def test_a_repeat_by_the_peer_that_brought_it_first_is_known_as_such() -> None:
    tree = Tree()
    tree.part.delivered(X, A, 1)
    assert tree.part.is_repeat(X, A)
    assert not tree.part.is_repeat(X, B)


def test_lazy_neighbours_get_ids_gathered_for_a_while() -> None:
    tree = Tree()
    tree.part.on_prune(B)
    tree.part.announce_new([X], 2, A, tree.now_ms)
    tree.part.announce_new([Y], 2, A, tree.now_ms)
    assert tree.tick(10) == []
    assert tree.tick(50) == [SendMessage(B, IHave(X + Y, 2))]
    assert tree.part.deadline_ms is None


def test_an_announced_id_that_does_not_come_is_grafted_and_the_link_becomes_eager() -> None:
    tree = Tree()
    tree.part.on_prune(B)
    tree.ihave(B, [X])
    assert tree.tick(1_400) == []
    assert tree.tick(200) == [SendMessage(B, Graft(X))]
    assert B in tree.part.eager


def test_an_announced_id_that_comes_in_time_is_not_asked_for() -> None:
    tree = Tree()
    tree.ihave(B, [X])
    tree.part.delivered(X, A, 1)
    assert tree.tick(5_000) == []


def test_the_next_announcer_is_asked_when_the_first_does_not_answer() -> None:
    tree = Tree()
    tree.ihave(B, [X])
    tree.ihave(C, [X])
    assert tree.tick(1_500) == [SendMessage(B, Graft(X))]
    assert tree.tick(500) == [SendMessage(C, Graft(X))]
    assert tree.tick(500) == [SendMessage(B, Graft(X))]


def test_after_some_attempts_it_is_left_to_reconciliation() -> None:
    tree = Tree()
    tree.ihave(B, [X])
    asked = sum(len(tree.tick(500)) for _ in range(50))
    assert asked == GRAFT_ATTEMPTS
    assert tree.part.deadline_ms is None


def test_an_announcer_that_is_no_neighbour_any_more_is_not_asked() -> None:
    tree = Tree()
    tree.ihave(B, [X])
    tree.part.neighbour_down(B)
    assert tree.tick(5_000) == []


def test_ids_that_were_fetched_are_asked_for_without_touching_the_tree() -> None:
    tree = Tree()
    tree.part.on_prune(B)
    tree.ihave(B, [X, Y], hop=0)
    assert tree.tick(50) == [SendMessage(B, WantRecords(X + Y))]
    assert B in tree.part.lazy


def test_what_is_here_is_not_asked_for() -> None:
    tree = Tree()
    tree.here.update((X, Y))
    tree.ihave(B, [X, Y])
    assert tree.tick(5_000) == []


def test_a_graft_is_answered_with_the_hop_that_the_record_had() -> None:
    tree, out = Tree(), list[Effect]()
    tree.part.on_prune(B)
    tree.part.delivered(X, A, 4)
    tree.part.on_graft(B, [X, Y], out)
    assert out == [SendRecords(B, (X,), 5), SendRecords(B, (Y,), 1)]
    assert B in tree.part.eager


def test_fetched_records_are_announced_to_all_neighbours_but_only_so_many() -> None:
    tree = Tree()
    few, many = ids(10), ids(ANNOUNCE_BURST, 100)
    assert tree.part.announce_fetched(few, A, tree.now_ms)
    assert tree.tick(50) == [SendMessage(peer, IHave(b"".join(few), 0)) for peer in (B, C)]
    assert not tree.part.announce_fetched(many, A, tree.now_ms)
    tree.now_ms += 60_000
    assert tree.part.announce_fetched(many, A, tree.now_ms), "the allowance grows back"


def test_an_own_record_is_announced_once_more() -> None:
    tree = Tree()
    tree.part.announce_own([X], tree.now_ms)
    assert tree.tick(2_000) == []
    assert tree.tick(50) == [SendMessage(peer, IHave(X, 1)) for peer in (A, B, C)]
    assert tree.tick(60_000) == []


def test_messages_never_hold_more_ids_than_their_limit_and_neither_does_memory() -> None:
    tree = Tree()
    tree.part.on_prune(B)
    tree.part.announce_new(ids(MAX_IDS_PER_MESSAGE + 1), 1, A, tree.now_ms)
    sizes = [
        len(e.message.ids) // 16 for e in tree.tick(50) if isinstance(e, SendMessage) and isinstance(e.message, IHave)
    ]
    assert sizes == [MAX_IDS_PER_MESSAGE, 1]
    for start in range(0, 2 * MISSING_IDS, MAX_IDS_PER_MESSAGE):
        tree.ihave(C, ids(MAX_IDS_PER_MESSAGE, start), hop=0)
    asked = b"".join(
        e.message.ids for e in tree.tick(60) if isinstance(e, SendMessage) and isinstance(e.message, WantRecords)
    )
    assert len(asked) == 16 * MISSING_IDS
