"""Which host of a model gets a request."""

from __future__ import annotations

from agentmesh.inference.logic.breaker import Breaker
from agentmesh.inference.logic.route import Choice, Key, Place, Verdict, choose, in_order_of, most_in_flight
from agentmesh.inference.logic.route_limits import FAILURES_TO_OPEN, MAX_CONSIDERED, MAX_SHARD_HOSTS
from agentmesh.inference.logic.target import Target
from tests.fakes.routing import at, model, own, peer


def _choose(targets: list[Target], places: dict[Key, Place] | None = None, **more: object) -> Choice:
    arguments: dict[str, object] = {"now_s": 100.0, **more}
    return choose(targets, places or {}, **arguments)  # type: ignore[arg-type]


def _with(target: Target, in_flight: int = 0, **more: object) -> dict[Key, Place]:
    return {target.key: Place(in_flight, **more)}  # type: ignore[arg-type]


def _failing(times: int, *, reached: bool = True, at_s: float = 100.0) -> Breaker:
    breaker = Breaker()
    for _ in range(times):
        breaker.failed(breaker.begin(at_s), at_s, reached=reached)
    return breaker


def test_an_idle_mesh_is_asked_at_home() -> None:
    assert _choose([own(), at(1), at(2)]).target == own()


def test_the_least_in_flight_for_its_slots_wins() -> None:
    one, four = at(1, model(slots=1)), at(2, model(slots=4))
    assert _choose([one, four], _with(one, 1) | _with(four, 3)).target == four
    assert _choose([own(), one], _with(own(), 1)).target == one


def test_this_node_wins_ties_while_it_has_a_free_slot_only() -> None:
    here, there = own(model(slots=2)), at(1, model(slots=2))
    assert _choose([here, there], _with(here, 1) | _with(there, 1)).target == here
    assert _choose([here, there], _with(here, 2) | _with(there, 2)).target == there


def test_a_host_is_given_its_slots_and_a_few_more() -> None:
    assert [most_in_flight(model(slots=slots)) for slots in (1, 4, 16)] == [2, 6, 21]
    here = own(model(slots=4))
    assert _choose([here], _with(here, 5)).verdict is Verdict.ROOM
    full = _choose([here], _with(here, 6))
    assert (full.verdict, full.target) == (Verdict.FULL, None)


def test_suspect_and_dead_peers_are_not_asked() -> None:
    choice = _choose([at(1), at(2)], out={peer(1)})
    assert (choice.target, choice.away) == (at(2), 1)
    assert _choose([at(1)], out={peer(1)}).verdict is Verdict.NOBODY


def test_a_model_that_is_not_ready_is_known_but_not_asked() -> None:
    choice = _choose([own(model(ready=False)), at(1)])
    assert (choice.target, choice.loading) == (at(1), 1)
    assert _choose([own(model(ready=False))]).verdict is Verdict.NOBODY


def test_a_request_is_not_tried_twice_at_one_host() -> None:
    choice = _choose([own(), at(1)], avoid={own().key})
    assert (choice.target, choice.tried) == (at(1), 1)
    assert _choose([own(), at(1)], avoid={own().key, at(1).key}).verdict is Verdict.NOBODY


def test_a_request_of_a_peer_goes_to_own_engines_only() -> None:
    assert _choose([own(), at(1)], _with(own(), 1), own_only=True).target == own()
    assert _choose([own(), at(1)], _with(own(), 2), own_only=True).verdict is Verdict.FULL
    assert _choose([at(1)], own_only=True).verdict is Verdict.NOBODY


def test_a_host_that_fails_fast_attracts_no_load() -> None:
    failing, working = at(1), at(2, model(slots=4))
    places = _with(failing, 0, breaker=_failing(1)) | _with(working, 4)
    assert _choose([failing, working], places).target == working


def test_a_host_whose_breaker_is_open_is_not_asked() -> None:
    broken = _with(at(1), 0, breaker=_failing(1, reached=False))
    choice = _choose([at(1), at(2)], broken)
    assert (choice.target, choice.broken) == (at(2), 1)
    nobody = _choose([at(1)], broken)
    assert (nobody.verdict, nobody.soonest_s) == (Verdict.NOBODY, 101.0)


def test_the_probe_of_a_host_comes_first_so_that_its_return_is_noticed() -> None:
    places = _with(at(1), 0, breaker=_failing(1, reached=False, at_s=0.0))
    assert _choose([own(), at(1)], places).target == at(1)
    places[at(1).key].breaker.begin(100.0)
    assert _choose([own(), at(1)], places).target == own()


def test_a_request_that_failed_once_is_no_probe_while_others_have_room() -> None:
    places = _with(at(1), 0, breaker=_failing(1, reached=False, at_s=0.0)) | _with(at(2), 1)
    assert _choose([at(1), at(2), at(3)], places, avoid={at(3).key}).target == at(2)


def test_when_5xx_is_all_there_is_it_is_asked_for_all_the_same() -> None:
    first = _with(at(1), 1, breaker=_failing(FAILURES_TO_OPEN))
    second = _with(at(2), 0, breaker=_failing(FAILURES_TO_OPEN))
    assert _choose([at(1), at(2)], first | second).target == at(2)
    assert _choose([at(1), at(2), at(3)], first | second).target == at(3)
    full = _with(at(1), 2, breaker=_failing(FAILURES_TO_OPEN))
    assert _choose([at(1)], full).verdict is Verdict.FULL


def test_a_busy_peer_is_left_alone_for_as_long_as_it_said_and_counts_as_full() -> None:
    busy = _with(at(1), 0, busy_until_s=101.0)
    assert _choose([at(1)], busy).verdict is Verdict.FULL
    assert _choose([at(1), at(2)], busy).target == at(2)
    assert _choose([at(1)], busy, now_s=101.0).target == at(1)


def test_a_host_with_context_enough_is_preferred_however_busy() -> None:
    short, long = own(model(context=1000)), at(1, model(context=9000))
    assert _choose([short, long], _with(long, 1), tokens=5000).target == long
    assert _choose([short, long], _with(long, 1), tokens=500).target == short
    assert _choose([short], tokens=5000).target == short


def test_one_decision_compares_a_bounded_number_of_hosts() -> None:
    many = [at(number) for number in range(1, MAX_CONSIDERED + 2)]
    taken: dict[Key, Place] = {}
    for target in many[:-1]:
        taken |= _with(target, 2)
    assert _choose(many, taken).verdict is Verdict.FULL
    assert _choose(many, taken, out={target.node for target in many[:5]}).target == many[-1]


def test_a_host_that_was_only_busy_is_waited_for_though_it_was_tried() -> None:
    busy = _with(at(1), 0, busy_until_s=101.0)
    assert _choose([at(1)], busy, avoid={at(1).key}).verdict is Verdict.FULL
    assert _choose([at(1)], busy, avoid={at(1).key}, now_s=101.0).target == at(1)


# ---------------------------------------------------------------------- parts of a model

PART = model(slots=1, shard="8/16 -")


def test_the_whole_model_is_preferred_while_it_has_a_free_slot_then_the_sessions_part() -> None:
    whole, parts = at(9), [at(1, PART), at(2, PART)]
    targets = [*parts, whole]
    assert _choose(targets, session=b"s").target == whole
    mine = _choose(targets, _with(whole, 1), session=b"s").target
    assert mine == _choose(parts, session=b"s").target
    full = _with(parts[0], 2) | _with(parts[1], 2)
    assert _choose(targets, _with(whole, 1) | full, session=b"s").target == whole, "where it waits at least"
    assert _choose(targets, _with(whole, 2) | full, session=b"s").verdict is Verdict.FULL


def test_a_whole_model_that_failed_lately_comes_after_the_parts() -> None:
    failing = _with(at(9), 0, breaker=_failing(1))
    assert _choose([at(9), at(1, PART)], failing, session=b"s").target == at(1, PART)
    assert _choose([at(9), at(1, PART)], failing, session=b"s", out={peer(1)}).target == at(9)


def test_a_whole_model_that_is_back_is_found_out_and_a_second_try_is_no_probe() -> None:
    back = _with(at(9), 0, breaker=_failing(1, reached=False, at_s=0.0))
    assert _choose([at(9), at(1, PART)], back, session=b"s").target == at(9)
    assert _choose([at(8), at(9), at(1, PART)], back, session=b"s").target == at(9), "though another is in order"
    assert _choose([at(9), at(1, PART), at(2, PART)], back, session=b"s", avoid={at(2).key}).target == at(1, PART)


def test_a_part_that_failed_once_keeps_its_sessions_but_is_not_probed_by_a_second_try() -> None:
    parts = [at(1, PART), at(2, PART), at(3, PART)]
    first, second, third = in_order_of(b"s", parts)
    assert _choose(parts, _with(first, 0, breaker=_failing(1)), session=b"s").target == first
    back = _with(second, 0, breaker=_failing(1, reached=False, at_s=0.0))
    assert _choose(parts, back, session=b"s", avoid={first.key}).target == third
    assert _choose(parts, back, session=b"s", out={first.node}).target == second


def test_a_request_too_long_for_a_part_goes_where_there_is_context_enough() -> None:
    short, long = at(1, model(context=1000, shard="8/16 -")), at(2, model(context=9000, shard="8/16 -"))
    for number in range(8):
        assert _choose([short, long], tokens=5000, session=b"%d" % number).target == long


def test_parts_without_a_session_are_chosen_as_other_hosts() -> None:
    assert _choose([at(1, PART), at(2, PART)], _with(at(1), 1)).target == at(2, PART)


def test_one_decision_about_a_session_compares_a_bounded_number_of_hosts() -> None:
    many = [Target(number.to_bytes(32), PART) for number in range(1, 20 * MAX_SHARD_HOSTS)]
    assert len(in_order_of(b"s", [*many, *(at(9) for _ in range(500))])) <= MAX_SHARD_HOSTS + MAX_CONSIDERED
