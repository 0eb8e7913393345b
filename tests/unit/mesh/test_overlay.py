"""HyParView with undialable nodes: transcripts of one node's views."""

from __future__ import annotations

from random import Random

import pytest

from agentmesh.mesh.logic.addressbook import AddressBook
from agentmesh.mesh.logic.events import ClosePeer, DialPeer, Effect, SendMessage
from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.limits import (
    ACTIVE_VIEW,
    ACTIVE_WALK,
    BAN_MS,
    DIAL_BACKOFF_MAX_MS,
    FULL_MESH_BELOW,
    ISOLATED_BACKOFF_MAX_MS,
    KNOWN_PEERS,
    MAX_DIALS,
    PASSIVE_VIEW,
    SIMULTANEOUS_MS,
    UNDIALABLE_NEIGHBOURS,
)
from agentmesh.mesh.logic.messages import (
    Disconnect,
    ForwardJoin,
    Join,
    Neighbour,
    NeighbourReply,
    PeerEntry,
    Shuffle,
    ShuffleReply,
)
from agentmesh.mesh.logic.overlay import Overlay, keeps_new_connection

T0 = 1_000_000


def node(number: int, *, dialable: bool = True) -> PeerEntry:
    return PeerEntry(number.to_bytes(32, "big"), (f"192.0.2.{number % 256}:1",) if dialable else (), dialable)


class Views:
    def __init__(self, *, dialable: bool = True) -> None:
        self.me = node(10_000, dialable=dialable)
        self.part = Overlay(self.me, GossipConfig(), Random(1))
        self.now_ms = T0
        self.out: list[Effect] = []

    def connect(self, entry: PeerEntry, *, outbound: bool = False) -> None:
        self.part.connected(entry, outbound, self.now_ms, self.out)

    def neighbour(self, entry: PeerEntry, *, high_priority: bool = False) -> bool:
        """A peer connects and asks to be a neighbour; whether it may."""
        self.connect(entry)
        self.part.on_neighbour(entry.node, Neighbour(entry, high_priority), self.now_ms, self.out)
        reply = [m for m in self.sent(NeighbourReply) if m[0] == entry.node][-1][1]
        assert isinstance(reply, NeighbourReply)
        return reply.accepted

    def full(self) -> None:
        for number in range(1, FULL_MESH_BELOW + 2):
            self.neighbour(node(number), high_priority=True)

    def sent(self, kind: type) -> list[tuple[bytes, object]]:
        return [(e.peer, e.message) for e in self.out if isinstance(e, SendMessage) and isinstance(e.message, kind)]

    def dialled(self) -> list[bytes]:
        return [e.peer for e in self.out if isinstance(e, DialPeer)]

    def run(self, duration_ms: int) -> list[bytes]:
        """Ticks every second; the idle links closed meanwhile."""
        closed: list[bytes] = []
        for _ in range(duration_ms // 1000):
            self.now_ms += 1000
            closed += self.part.tick(self.now_ms, self.out)
        return closed


# ------------------------------------------------------------------ who may be a neighbour


def test_a_lonely_node_joins_through_its_bootstrap_peer() -> None:
    views = Views()
    views.part.learned((node(1),), T0, views.out)
    assert views.dialled() == [node(1).node]
    views.connect(node(1), outbound=True)
    assert views.sent(Join) == [(node(1).node, Join(views.me))]
    views.part.on_neighbour_reply(node(1).node, NeighbourReply(True), T0, views.out)
    assert views.part.changes == [(node(1).node, True)]


def test_a_full_view_refuses_a_polite_request_and_grants_an_urgent_one_at_anothers_cost() -> None:
    views = Views()
    views.full()
    assert len(views.part.active) == ACTIVE_VIEW
    assert not views.neighbour(node(50))
    assert views.neighbour(node(51), high_priority=True)
    assert len(views.part.active) == ACTIVE_VIEW
    assert node(51).node in views.part.active
    assert views.sent(Disconnect)[-1][1] == Disconnect(True)


def test_undialable_neighbours_never_count_against_the_dialable_and_are_never_evicted() -> None:
    views = Views()
    behind_nat = [node(n, dialable=False) for n in range(100, 100 + UNDIALABLE_NEIGHBOURS)]
    assert all(views.neighbour(entry) for entry in behind_nat)
    for number in range(1, 40):
        views.neighbour(node(number), high_priority=True)
    assert {entry.node for entry in behind_nat} < set(views.part.active)
    assert len(views.part.active) == UNDIALABLE_NEIGHBOURS + ACTIVE_VIEW
    assert not views.neighbour(node(999, dialable=False), high_priority=True), "not more than the limit, however urgent"


def test_in_a_small_mesh_everybody_is_a_neighbour() -> None:
    views = Views()
    assert all(views.neighbour(node(n)) for n in range(1, FULL_MESH_BELOW - 1))
    assert len(views.part.active) == FULL_MESH_BELOW - 2


def test_an_unanswered_request_is_repeated_and_then_given_up() -> None:
    views = Views()
    views.part.learned((node(1),), T0, views.out)
    views.connect(node(1), outbound=True)
    views.run(9_000)
    assert 3 <= len(views.sent(Join)) <= 4


def test_a_neighbour_that_says_disconnect_becomes_passive() -> None:
    views = Views()
    views.neighbour(node(1))
    views.part.on_disconnect(node(1).node, Disconnect(True), T0, views.out)
    assert views.part.active == {}
    assert node(1) in views.part.book.passive()


def test_two_ends_that_disagree_on_being_neighbours_come_to_agree() -> None:
    views = Views()
    views.neighbour(node(1))
    views.part.on_claim(node(1).node, False, T0 + 1, views.out)
    assert node(1).node in views.part.active, "its reply may still be on the way"
    views.part.on_claim(node(1).node, False, T0 + 5_000, views.out)
    assert views.part.active == {}
    views.connect(node(2))
    views.part.on_claim(node(2).node, True, T0 + 9_000, views.out)
    assert (node(2).node, Disconnect(True)) in views.sent(Disconnect)


def test_a_link_that_is_no_neighbours_is_closed_after_a_while() -> None:
    views = Views()
    views.full()
    views.neighbour(node(50))
    idle = {n for n in views.part.linked() if n not in views.part.active}
    assert set(views.run(40_000)) == idle
    assert {e.peer for e in views.out if isinstance(e, ClosePeer)} == idle
    assert len(views.part.active) == ACTIVE_VIEW


def test_a_link_that_carries_streams_stays_and_has_its_time_of_grace_after_them() -> None:
    views = Views()
    views.full()
    views.neighbour(node(50))
    used, *others = sorted(n for n in views.part.linked() if n not in views.part.active)
    views.part.link_used(used, 1, views.now_ms)
    assert views.run(60_000) == others
    views.part.link_used(used, -1, views.now_ms)
    views.part.link_used(used, -1, views.now_ms)  # one of an earlier connection, late
    assert views.run(20_000) == []
    assert views.run(20_000) == [used]


# ------------------------------------------------------------------ walks


def test_a_join_is_spread_to_the_neighbours() -> None:
    views = Views()
    views.neighbour(node(1))
    views.neighbour(node(2))
    views.connect(node(3))
    views.part.on_join(node(3).node, Join(node(3)), T0, views.out)
    walks = views.sent(ForwardJoin)
    assert walks == [(node(n).node, ForwardJoin(node(3), ACTIVE_WALK)) for n in (1, 2)]
    views.part.on_join(node(3).node, Join(node(3)), T0, views.out)
    assert views.sent(ForwardJoin) == walks, "a repeated join is answered, not spread again"


def test_the_end_of_a_join_walk_dials_the_newcomer() -> None:
    views = Views()
    views.full()
    views.part.on_forward_join(node(1).node, ForwardJoin(node(77), 0), T0, views.out)
    assert views.dialled() == [node(77).node]


def test_nobody_dials_a_newcomer_behind_nat() -> None:
    views = Views()
    views.full()
    views.part.on_forward_join(node(1).node, ForwardJoin(node(77, dialable=False), 0), T0, views.out)
    assert views.dialled() == []


def test_a_shuffle_walks_on_and_its_reply_walks_back() -> None:
    views = Views()
    views.neighbour(node(1))
    views.neighbour(node(2))
    origin = node(9, dialable=False)
    views.part.on_shuffle(node(1).node, Shuffle(origin, (node(30),), 3), T0, views.out)
    assert views.sent(Shuffle) == [(node(2).node, Shuffle(origin, (node(30),), 2))]
    reply = ShuffleReply((node(31),), origin.node)
    views.part.on_shuffle_reply(node(2).node, reply, T0, views.out)
    assert views.sent(ShuffleReply) == [(node(1).node, reply)]
    views.part.on_shuffle_reply(node(2).node, reply, T0, views.out)
    assert len(views.sent(ShuffleReply)) == 1, "one way back for one walk"


def test_a_shuffle_that_ends_here_is_answered_and_learnt_from() -> None:
    views = Views()
    views.neighbour(node(1))
    views.part.on_shuffle(node(1).node, Shuffle(node(9), (node(30),), 1), T0, views.out)
    assert views.sent(ShuffleReply)[0][0] == node(1).node
    assert {node(9), node(30)} <= set(views.part.book.passive())


# ------------------------------------------------------------------ dialling


def test_ghosts_are_dialled_few_at_a_time_and_ever_more_rarely() -> None:
    views = Views()
    views.part.learned(tuple(node(n) for n in range(1, 21)), T0, views.out)
    assert len(views.dialled()) == MAX_DIALS
    for _ in range(600):
        for peer in views.dialled()[-MAX_DIALS:]:
            views.part.dial_failed(peer, views.now_ms, views.out)
        views.run(1_000)
    worst = max(views.dialled().count(node(n).node) for n in range(1, 21))
    assert 10 < worst <= 8 + 600_000 // ISOLATED_BACKOFF_MAX_MS, (
        "tried for ever, and not more often than the backoff says"
    )


def test_a_dial_of_which_nothing_is_heard_ends_by_itself() -> None:
    views = Views()
    views.part.learned((node(1),), T0, views.out)
    views.run(60_000)
    assert views.dialled().count(node(1).node) >= 2


def test_a_lost_peer_is_sought_even_when_the_view_is_full() -> None:
    views = Views()
    views.full()
    lost = next(iter(views.part.active))
    views.part.lost(lost, False, views.now_ms, views.out)
    for number in range(60, 70):
        views.neighbour(node(number))
    views.out.clear()
    for _ in range(30):
        for peer in views.dialled():
            views.part.dial_failed(peer, views.now_ms, views.out)
        views.run(10_000)
    assert lost in views.dialled()


def test_who_left_cleanly_is_not_sought() -> None:
    views = Views()
    views.full()
    left = next(iter(views.part.active))
    views.part.lost(left, True, views.now_ms, views.out)
    for number in range(60, 70):
        views.neighbour(node(number))
    views.out.clear()
    views.run(120_000)
    assert left not in views.dialled()


@pytest.mark.parametrize("smaller_is_self", [True, False])
def test_of_two_crossing_connections_the_one_dialled_by_the_smaller_id_stays(smaller_is_self: bool) -> None:
    me, peer = (b"a", b"b") if smaller_is_self else (b"b", b"a")

    def keeps(existing_outbound: bool, new_outbound: bool, age_ms: int = 10) -> bool:
        return keeps_new_connection(
            me, peer, existing_outbound=existing_outbound, existing_age_ms=age_ms, new_outbound=new_outbound
        )

    assert keeps(False, True) is smaller_is_self
    assert keeps(True, False) is not smaller_is_self
    assert keeps(True, True)
    assert keeps(False, False)
    assert keeps(True, False, SIMULTANEOUS_MS + 1)
    assert keeps(False, True, SIMULTANEOUS_MS + 1), "an old connection is dead at the other end"


# ------------------------------------------------------------------ the address book


class TestAddressBook:
    def book(self) -> AddressBook:
        return AddressBook(node(10_000).node, GossipConfig(), Random(1))

    def test_dialable_nodes_displace_undialable_ones_from_the_passive_view_and_not_the_other_way(self) -> None:
        book = self.book()
        for number in range(PASSIVE_VIEW):
            book.add_passive(node(number, dialable=False))
        for number in range(100, 100 + PASSIVE_VIEW):
            book.add_passive(node(number))
        assert all(entry.dialable for entry in book.passive())
        book.add_passive(node(500, dialable=False))
        assert all(entry.dialable for entry in book.passive())
        assert len(book.passive()) == PASSIVE_VIEW

    def test_nothing_grows_without_bound(self) -> None:
        book = self.book()
        for number in range(3 * KNOWN_PEERS):
            book.met(node(number))
            book.ban(node(number + 100_000).node, T0)
        assert len(book.known()) == KNOWN_PEERS
        assert book.known()[-1] == node(3 * KNOWN_PEERS - 1)
        book.learn(tuple(node(number) for number in range(3 * KNOWN_PEERS)))
        assert len(book.known()) == KNOWN_PEERS

    def test_what_a_peer_says_of_others_is_held_to_its_limits(self) -> None:
        book = self.book()
        book.add_passive(PeerEntry(b"short", ("192.0.2.1:1",), True))
        book.add_passive(PeerEntry(b"x" * 32, (), True))
        book.add_passive(PeerEntry(b"y" * 32, ("a" * 5_000,), True))
        book.add_passive(node(10_000))
        assert [e for e in book.passive() if e.addresses] == []
        book.add_passive(PeerEntry(b"z" * 32, tuple(f"192.0.2.1:{n + 1}" for n in range(99)), True))
        assert len(book.passive()[-1].addresses) == 16

    def test_a_ghost_is_not_learnt_again_from_gossip_and_comes_back_when_it_is_met(self) -> None:
        book = self.book()
        book.met(node(1))
        book.add_passive(node(1))
        for _ in range(3):
            book.failed(node(1).node, T0)
        assert book.passive() == ()
        book.add_passive(node(1))
        assert book.passive() == ()
        book.met(node(1))
        book.add_passive(node(1))
        assert book.passive() == (node(1),)

    def test_a_node_that_is_alone_does_not_wait_for_the_backoff_that_grew_in_company(self) -> None:
        book = self.book()
        book.learn((node(1),))
        for _ in range(20):
            book.failed(node(1).node, T0)
        assert book.candidates(False, T0 + DIAL_BACKOFF_MAX_MS - 1) == []
        assert book.candidates(True, T0 + ISOLATED_BACKOFF_MAX_MS) == [node(1).node]

    def test_a_ban_ends(self) -> None:
        book = self.book()
        book.ban(node(1).node, T0)
        assert book.is_banned(node(1).node, T0 + BAN_MS - 1)
        assert not book.is_banned(node(1).node, T0 + BAN_MS)
