"""When to reconcile with whom: transcripts of one node."""

from __future__ import annotations

from random import Random

from agentmesh.mesh.logic.events import (
    Effect,
    EndReconcile,
    ReconcileStepped,
    SendMessage,
    SendRecords,
    StepReconcile,
)
from agentmesh.mesh.logic.exchange import Exchange
from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.limits import RECONCILE_ATTEMPTS, RECONCILE_EVERY_MS, RECONCILE_SESSIONS, RECONCILE_TIMEOUT_MS
from agentmesh.mesh.logic.messages import Reconcile, WantRecords

ME = bytes([50]) * 32
A, B, C = (bytes([n]) * 32 for n in range(1, 4))
T0 = 1_000_000
X = bytes(16)


class Node:
    def __init__(self) -> None:
        self.part = Exchange(ME, GossipConfig(), Random(1))
        self.now_ms = T0

    def connect(self, peer: bytes, *, outbound: bool = True) -> list[Effect]:
        out: list[Effect] = []
        self.part.connected(peer, outbound, self.now_ms, out)
        return out

    def run(self, duration_ms: int) -> list[Effect]:
        out: list[Effect] = []
        for _ in range(duration_ms // 500):
            self.now_ms += 500
            self.part.tick(self.now_ms, out)
        return out

    def receive(self, peer: bytes, session: int, body: bytes = b"body") -> list[Effect]:
        out: list[Effect] = []
        self.part.on_reconcile(peer, Reconcile(session, body), self.now_ms, out)
        return out

    def step(
        self, begun: StepReconcile, reply: bytes | None = b"reply", *, done: bool = False, **more: object
    ) -> list[Effect]:
        out: list[Effect] = []
        fields = {"send": (), "want": (), "more": False, **more}
        event = ReconcileStepped(begun.peer, begun.session, reply, done=done, **fields)  # type: ignore[arg-type]
        self.part.stepped(event, self.now_ms, out)
        return out


def begun(effects: list[Effect]) -> list[StepReconcile]:
    return [e for e in effects if isinstance(e, StepReconcile)]


def test_who_dialled_begins_on_a_new_link_and_the_other_waits() -> None:
    assert [s.body for s in begun(Node().connect(A))] == [None]
    assert begun(Node().connect(A, outbound=False)) == []


def test_one_session_is_begun_at_a_time() -> None:
    node = Node()
    [first] = begun(node.connect(A))
    assert begun(node.connect(B)) == []
    node.step(first)
    assert [s.peer for s in begun(node.step(first, None, done=True))] == [B]


def test_a_session_goes_back_and_forth_until_it_is_done() -> None:
    node = Node()
    [first] = begun(node.connect(A))
    assert node.step(first, b"opening") == [SendMessage(A, Reconcile(first.session, b"opening"))]
    assert node.receive(A, first.session, b"answer") == [StepReconcile(A, first.session, b"answer")]
    effects = node.step(first, b"last", done=True, send=(X,), want=(X,))
    assert effects[:3] == [
        SendRecords(A, (X,)),
        SendMessage(A, WantRecords(X)),
        SendMessage(A, Reconcile(first.session, b"last")),
    ]
    assert node.receive(A, first.session, b"late") == []
    assert node.part.done == 1


def test_a_message_that_is_out_of_turn_is_ignored() -> None:
    node = Node()
    [first] = begun(node.connect(A))
    assert node.receive(A, first.session, b"too early") == []
    node.step(first)
    assert begun(node.receive(A, first.session, b"answer"))
    assert node.receive(A, first.session, b"answer") == []


def test_both_ends_may_begin_and_their_sessions_are_told_apart() -> None:
    node = Node()
    [own] = begun(node.connect(A))
    theirs = own.session ^ 1
    assert node.receive(A, theirs, b"question") == [StepReconcile(A, theirs, b"question")]


def test_only_so_many_are_answered_at_once_and_the_others_are_told_to_come_back() -> None:
    node = Node()
    peers = [bytes([n]) * 32 for n in range(1, RECONCILE_SESSIONS + 2)]
    answers = []
    for peer in peers:
        node.connect(peer, outbound=False)
        answers.append(node.receive(peer, 2))
    assert all(begun(answer) for answer in answers[:-1])
    assert answers[-1] == [SendMessage(peers[-1], Reconcile(2, b""))]
    node.step(StepReconcile(peers[0], 2, None), None, done=True)
    assert begun(node.receive(peers[-1], 4))


def test_who_is_told_to_come_back_does_after_a_while() -> None:
    node = Node()
    [first] = begun(node.connect(A))
    node.step(first)
    assert node.receive(A, first.session, b"") == [EndReconcile(A, first.session)]
    assert begun(node.run(1_500)) == []
    assert [s.peer for s in begun(node.run(4_000))] == [A]


def test_a_session_without_an_answer_ends_and_is_tried_again_a_few_times() -> None:
    node = Node()
    [first] = begun(node.connect(A))
    node.step(first)
    effects = node.run(RECONCILE_TIMEOUT_MS + 500)
    assert EndReconcile(A, first.session) in effects
    effects += node.run(4 * RECONCILE_TIMEOUT_MS)
    assert RECONCILE_ATTEMPTS - 1 <= len(begun(effects)) <= RECONCILE_ATTEMPTS + 1
    assert node.part.failed >= RECONCILE_ATTEMPTS - 1


def test_a_step_that_is_never_computed_ends_too() -> None:
    node = Node()
    [first] = begun(node.connect(A))
    assert EndReconcile(A, first.session) in node.run(RECONCILE_TIMEOUT_MS + 500)


def test_a_responders_session_is_forgotten_when_the_peer_falls_silent() -> None:
    node = Node()
    node.connect(A, outbound=False)
    node.receive(A, 2)
    assert EndReconcile(A, 2) in node.run(RECONCILE_TIMEOUT_MS + 500)


def test_sessions_end_with_their_link() -> None:
    node = Node()
    [first] = begun(node.connect(A))
    node.receive(A, first.session ^ 1)
    out: list[Effect] = []
    node.part.lost(A, out)
    assert out == [EndReconcile(A, first.session ^ 1), EndReconcile(A, first.session)]
    assert node.step(first) == []


def test_regularly_some_peer_is_asked() -> None:
    node = Node()
    for peer in (A, B, C):
        node.connect(peer, outbound=False)
    chosen: list[bytes] = []
    for _ in range(1_800):
        for effect in begun(node.run(500)):
            node.step(effect, None, done=True)
            chosen.append(effect.peer)
    assert 20 <= len(chosen) <= 40
    assert set(chosen) == {A, B, C}


def test_what_differed_is_checked_again_a_few_times_and_not_for_ever() -> None:
    node = Node()
    sessions = begun(node.connect(A))
    checks = 0
    for _ in range(40):
        for session in sessions:
            node.step(session)
            node.receive(A, session.session)
            node.step(session, b"wants", done=True)
            checks += 1
        sessions = begun(node.run(2_500))
    assert 3 + 1 <= checks <= 3 + 1 + 100_000 // (RECONCILE_EVERY_MS // 2)


def test_a_peer_whose_records_still_come_in_is_not_asked_and_not_answered() -> None:
    node = Node()
    node.connect(A, outbound=False)
    node.part.want_soon(A, node.now_ms)
    for _ in range(10):
        node.part.batch_came(A, node.now_ms)
        assert begun(node.run(500)) == []
        assert node.receive(A, 2) == [SendMessage(A, Reconcile(2, b""))]
    assert begun(node.run(3_000))


def test_much_news_is_passed_on_by_reconciling_with_the_other_neighbours() -> None:
    node = Node()
    for peer in (A, B, C):
        node.connect(peer, outbound=False)
    node.part.spread([A, B, C], A, node.now_ms)
    asked: list[bytes] = []
    for _ in range(6):
        sessions = begun(node.run(500))
        while sessions:
            asked.append(sessions[0].peer)
            sessions = begun(node.step(sessions[0], None, done=True))
    assert sorted(asked) == [B, C]


def test_presence_is_asked_for_once_after_the_first_session() -> None:
    node = Node()
    [first] = begun(node.connect(A))
    node.step(first)
    assert SendMessage(A, WantRecords(b"")) in node.step(first, None, done=True)
    [second] = begun(node.connect(B))
    assert SendMessage(B, WantRecords(b"")) not in node.step(second, None, done=True)


def test_all_presence_is_given_to_one_peer_only_so_often() -> None:
    node = Node()
    node.connect(A)
    assert node.part.may_have_presence(A, T0)
    assert not node.part.may_have_presence(A, T0 + 1_000)
    assert node.part.may_have_presence(A, T0 + 60_000)
    assert not node.part.may_have_presence(B, T0)
