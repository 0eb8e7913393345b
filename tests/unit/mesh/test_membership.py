"""SWIM failure detection: transcripts of one node's view."""

from __future__ import annotations

from random import Random

from agentmesh.mesh.logic.events import ClosePeer, Effect, PeerState, ReportPeer, SendMessage
from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.membership import Membership
from agentmesh.mesh.logic.messages import Ping, Pong, ProbeRequest, ProbeResult, Refutation, Suspicion

ME, A, B, C = (bytes([n]) * 32 for n in range(4))
T0 = 1_000_000


class Detector:
    """The detector with time under the test's control. `quiet`: peers that say nothing more."""

    def __init__(self, *peers: bytes) -> None:
        self.now_ms = T0
        self.part = Membership(ME, GossipConfig(), Random(1), lambda node: node == A)
        self.peers = peers
        self.effects: list[Effect] = []
        self.closed: list[bytes] = []
        for peer in peers:
            self.part.connected(peer, self.now_ms, self.effects)

    def run(self, duration_ms: int, *, quiet: tuple[bytes, ...] = ()) -> list[Effect]:
        """Tick every 100 ms; whoever is not quiet is heard each time. Returns the effects of this while."""
        start = len(self.effects)
        for _ in range(duration_ms // 100):
            self.now_ms += 100
            for peer in self.peers:
                if peer not in quiet:
                    self.part.heard(peer, self.now_ms, self.effects)
            self.closed += self.part.tick(self.now_ms, self.effects)
        return self.effects[start:]

    def sent(self, effects: list[Effect], kind: type) -> list[tuple[bytes, object]]:
        return [(e.peer, e.message) for e in effects if isinstance(e, SendMessage) and isinstance(e.message, kind)]


def test_a_peer_that_is_heard_is_never_probed() -> None:
    detector = Detector(A, B)
    assert detector.sent(detector.run(10_000), Ping) == []


def test_a_silent_peer_is_probed_every_second_and_suspect_after_two() -> None:
    detector = Detector(A, B)
    effects = detector.run(1_900, quiet=(A,))
    assert 1 <= len(detector.sent(effects, Ping)) <= 2
    assert ReportPeer(A, PeerState.SUSPECT) not in effects
    assert ReportPeer(A, PeerState.SUSPECT) in detector.run(700, quiet=(A,))


def test_others_are_asked_before_a_suspect_is_dead_and_closed() -> None:
    detector = Detector(A, B, C)
    effects = detector.run(9_000, quiet=(A,))
    asked = detector.sent(effects, ProbeRequest)
    assert sorted(peer for peer, _ in asked) == [B, C]
    assert ReportPeer(A, PeerState.DEAD) not in effects
    effects = detector.run(2_000, quiet=(A,))
    assert ReportPeer(A, PeerState.DEAD) in effects
    assert any(isinstance(e, ClosePeer) and e.peer == A for e in effects)
    assert detector.closed == [A]


def test_a_suspect_that_others_reach_is_closed_later_and_not_called_dead() -> None:
    detector = Detector(A, B)
    detector.run(3_000, quiet=(A,))
    detector.part.on_probe_result(B, ProbeResult(1, A, True, 5), detector.now_ms, detector.effects)
    assert detector.run(9_000, quiet=(A,)) != []
    assert detector.closed == []
    effects = detector.run(9_000, quiet=(A,))
    assert detector.closed == [A]
    assert ReportPeer(A, PeerState.DEAD) not in effects


def test_a_newer_incarnation_refutes_a_suspicion_and_an_old_one_does_not() -> None:
    detector = Detector(A, B)
    detector.part.on_pong(A, Pong(1, 7, T0), T0, detector.effects)
    detector.run(3_000, quiet=(A,))
    assert detector.part.states()[A] is PeerState.SUSPECT
    detector.part.on_refutation(B, Refutation(A, 7), detector.now_ms, detector.effects)
    assert detector.part.states()[A] is PeerState.SUSPECT
    detector.part.on_refutation(B, Refutation(A, 8), detector.now_ms, detector.effects)
    assert detector.part.states()[A] is PeerState.ALIVE
    assert ReportPeer(A, PeerState.SUSPECT) in detector.run(3_000, quiet=(A,)), "suspected anew while it stays silent"


def test_one_that_is_suspected_itself_answers_with_a_newer_incarnation() -> None:
    detector = Detector(A, B)
    out: list[Effect] = []
    before = detector.part.incarnation
    detector.part.on_suspicion(B, Suspicion(ME, before), T0, out)
    assert detector.part.incarnation == before + 1
    assert out == [SendMessage(peer, Refutation(ME, before + 1)) for peer in (A, B)]


def test_a_suspicion_is_passed_on_once_and_the_refutation_passed_back() -> None:
    detector = Detector(A, B, C)
    out: list[Effect] = []
    for teller in (B, C):
        detector.part.on_suspicion(teller, Suspicion(A, 3), T0, out)
    assert out == [SendMessage(A, Suspicion(A, 3))]
    out.clear()
    detector.part.on_refutation(A, Refutation(A, 4), T0, out)
    assert out == [SendMessage(B, Refutation(A, 4)), SendMessage(C, Refutation(A, 4))]


def test_who_hears_nobody_asks_nobody_and_condemns_nobody() -> None:
    detector = Detector(A, B, C)
    effects = detector.run(30_000, quiet=(A, B, C))
    assert detector.sent(effects, ProbeRequest) == []
    assert PeerState.DEAD not in {e.state for e in effects if isinstance(e, ReportPeer)}
    assert sorted(detector.closed) == [A, B, C], "silent links are of no use all the same"


def test_own_sleep_is_not_held_against_the_peers() -> None:
    detector = Detector(A, B)
    detector.run(1_000)
    detector.now_ms += 3_600_000
    effects: list[Effect] = []
    assert detector.part.tick(detector.now_ms, effects) == ()
    assert not any(isinstance(e, ReportPeer | ClosePeer) for e in effects)


def test_a_probe_for_another_is_answered_at_once_when_the_target_was_just_heard() -> None:
    detector = Detector(A, B)
    out: list[Effect] = []
    detector.part.on_probe_request(B, ProbeRequest(9, A), T0, out)
    assert out == [SendMessage(B, ProbeResult(9, A, True, 0))]


def test_a_probe_for_another_is_answered_when_the_target_answers_or_time_is_up() -> None:
    detector = Detector(A, B, C)
    detector.run(1_500, quiet=(A, C))
    out: list[Effect] = []
    detector.part.on_probe_request(B, ProbeRequest(1, A), detector.now_ms, out)
    detector.part.on_probe_request(B, ProbeRequest(2, C), detector.now_ms, out)
    assert [e.peer for e in out if isinstance(e, SendMessage)] == [A, C], "both are pinged"
    effects = detector.run(3_000, quiet=(C,))
    results = [message for _, message in detector.sent(effects, ProbeResult)]
    assert results == [ProbeResult(1, A, True, 0), ProbeResult(2, C, False, 0)]


def test_who_is_not_connected_to_the_target_says_nothing() -> None:
    detector = Detector(B)
    out: list[Effect] = []
    detector.part.on_probe_request(B, ProbeRequest(1, A), T0, out)
    assert out == []


def test_a_lost_peer_is_suspect_then_dead_and_alive_again_when_it_comes_back() -> None:
    detector = Detector(A, B)
    out: list[Effect] = []
    detector.part.lost(A, False, T0, out)
    assert out == [ReportPeer(A, PeerState.SUSPECT)]
    detector.peers = (B,)
    assert ReportPeer(A, PeerState.DEAD) in detector.run(12_000)
    detector.part.connected(A, detector.now_ms, out)
    assert out[-1] == ReportPeer(A, PeerState.ALIVE)
    assert detector.part.states() == {A: PeerState.ALIVE, B: PeerState.ALIVE}


def test_a_peer_that_left_cleanly_is_just_forgotten() -> None:
    detector = Detector(A, B)
    out: list[Effect] = []
    detector.part.lost(A, True, T0, out)
    assert out == []
    assert detector.part.states() == {B: PeerState.ALIVE}


def test_pings_say_whether_the_receiver_is_a_neighbour_and_tell_clocks_apart() -> None:
    detector = Detector(A, B)
    out: list[Effect] = []
    for peer in (A, B):
        detector.part.on_ping(peer, Ping(4, 2, T0 + 90_000), T0, out)
    assert out == [SendMessage(p, Pong(4, detector.part.incarnation, T0, p == A)) for p in (A, B)]
    assert detector.part.clock_offset_ms() == 90_000
