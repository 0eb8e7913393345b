"""How often a peer may ask for something that costs work."""

from __future__ import annotations

from agentmesh.mesh.logic.limits import KNOWN_PEERS
from agentmesh.mesh.logic.request_rate import RequestRate

PEER, OTHER = b"p" * 32, b"o" * 32


def test_a_burst_is_allowed_and_then_only_what_refills() -> None:
    rate = RequestRate(3, 1 / 1000)
    assert [rate.take(PEER, 0) for _ in range(5)] == [True, True, True, False, False]
    assert rate.take(PEER, 999) is False
    assert rate.take(PEER, 1_000) is True


def test_one_peer_does_not_use_up_what_another_may() -> None:
    rate = RequestRate(1, 1 / 1000)
    assert rate.take(PEER, 0)
    assert rate.take(OTHER, 0)
    assert not rate.take(PEER, 0)


def test_a_clock_that_runs_back_gives_nothing_away() -> None:
    rate = RequestRate(1, 1 / 1000)
    assert rate.take(PEER, 10_000)
    assert not rate.take(PEER, 0)


def test_many_peers_take_bounded_room() -> None:
    rate = RequestRate(1, 1 / 1000)
    for number in range(2 * KNOWN_PEERS):
        rate.take(number.to_bytes(32, "big"), 0)
    assert len(rate._buckets) <= KNOWN_PEERS
