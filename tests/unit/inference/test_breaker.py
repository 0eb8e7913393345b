"""The breaker of one target."""

from __future__ import annotations

from agentmesh.inference.logic.breaker import Breaker, Phase
from agentmesh.inference.logic.route_limits import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    FAILURES_TO_OPEN,
    FORGET_FAILURES_S,
)


def _unreachable(breaker: Breaker, now_s: float) -> None:
    breaker.failed(breaker.begin(now_s), now_s, reached=False)


def test_no_connection_opens_it_at_once() -> None:
    breaker = Breaker()
    _unreachable(breaker, 10.0)
    assert breaker.phase(10.0) is Phase.OPEN
    assert not breaker.admits(10.0)
    assert not breaker.answers_at_all()


def test_answers_of_5xx_open_it_when_they_come_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(breaker.begin(0.0), 0.0, reached=True)
        assert breaker.admits(0.0)
    breaker.failed(breaker.begin(0.0), 0.0, reached=True)
    assert breaker.phase(0.0) is Phase.OPEN
    assert breaker.answers_at_all()


def test_a_whole_answer_between_failures_starts_the_count_again() -> None:
    breaker = Breaker()
    for _ in range(5):
        for _ in range(FAILURES_TO_OPEN - 1):
            breaker.failed(breaker.begin(0.0), 0.0, reached=True)
        breaker.succeeded(breaker.begin(0.0))
    assert breaker.phase(0.0) is Phase.CLOSED
    assert not breaker.is_shaky(0.0)


def test_failures_long_ago_are_forgotten() -> None:
    breaker = Breaker()
    now_s = 0.0
    for _ in range(3 * FAILURES_TO_OPEN):
        breaker.failed(breaker.begin(now_s), now_s, reached=True)
        assert breaker.is_shaky(now_s)
        now_s += FORGET_FAILURES_S + 1
        assert not breaker.is_shaky(now_s)
    assert breaker.phase(now_s) is Phase.CLOSED


def test_after_the_back_off_one_request_finds_out_and_no_other_begins_meanwhile() -> None:
    breaker = Breaker()
    _unreachable(breaker, 0.0)
    later = BACKOFF_FIRST_S
    assert breaker.phase(later) is Phase.HALF_OPEN
    ticket = breaker.begin(later)
    assert ticket.is_probe
    assert not breaker.admits(later + 100)
    breaker.succeeded(ticket)
    assert breaker.phase(later) is Phase.CLOSED


def test_a_probe_whose_client_left_lets_the_next_request_probe() -> None:
    breaker = Breaker()
    _unreachable(breaker, 0.0)
    ticket = breaker.begin(5.0)
    breaker.undecided(ticket)
    assert breaker.admits(5.0)
    assert breaker.begin(5.0).is_probe


def test_a_probe_that_fails_doubles_the_back_off_up_to_the_bound() -> None:
    breaker = Breaker()
    now_s, waits = 0.0, []
    for _ in range(10):
        _unreachable(breaker, now_s)
        waits.append(breaker.open_until_s() - now_s)
        now_s = breaker.open_until_s()
    assert waits[:4] == [BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S, 4 * BACKOFF_FIRST_S, 8 * BACKOFF_FIRST_S]
    assert waits[-1] == BACKOFF_MAX_S == max(waits)


def test_requests_that_fail_together_open_it_once() -> None:
    breaker = Breaker()
    tickets = [breaker.begin(0.0) for _ in range(10)]
    for ticket in tickets:
        breaker.failed(ticket, 0.0, reached=False)
    assert breaker.open_until_s() == BACKOFF_FIRST_S


def test_an_answer_to_a_request_from_before_does_not_close_it() -> None:
    breaker = Breaker()
    old = breaker.begin(0.0)
    _unreachable(breaker, 0.0)
    breaker.succeeded(old)
    breaker.reached(old, 0.0)
    assert breaker.phase(0.0) is Phase.OPEN


def test_the_first_byte_of_a_probe_lets_others_in_but_one_more_failure_shuts_them_out() -> None:
    breaker = Breaker()
    _unreachable(breaker, 0.0)
    ticket = breaker.begin(2.0)
    breaker.reached(ticket, 2.0)
    assert breaker.admits(2.0)
    assert breaker.is_shaky(2.0)
    breaker.failed(ticket, 2.0, reached=True)
    assert breaker.phase(2.0) is Phase.OPEN
    assert breaker.open_until_s() - 2.0 == 2 * BACKOFF_FIRST_S


def test_a_first_byte_is_no_proof_that_wipes_out_failures() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        ticket = breaker.begin(0.0)
        breaker.reached(ticket, 0.0)
        breaker.failed(ticket, 0.0, reached=True)
    assert breaker.phase(0.0) is Phase.OPEN
