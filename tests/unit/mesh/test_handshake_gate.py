"""Who may begin a handshake."""

from __future__ import annotations

import pytest

from agentmesh.mesh.logic.handshake_gate import HandshakeGate
from agentmesh.mesh.logic.limits import HANDSHAKE_TIMEOUT_MS, MAX_HANDSHAKES, MAX_HANDSHAKES_PER_SOURCE
from agentmesh.mesh.logic.reasons import clip_reason
from agentmesh.mesh.logic.transport_limits import MAX_REASON_BYTES, MAX_WAITING, MAX_WAITING_PER_SOURCE, STRANGERS


def gate_of_text() -> HandshakeGate[str]:
    return HandshakeGate()


def test_one_source_gets_its_share_and_no_more() -> None:
    gate = gate_of_text()
    assert [gate.enter("a", known=False) for _ in range(MAX_HANDSHAKES_PER_SOURCE + 1)] == [
        *[True] * MAX_HANDSHAKES_PER_SOURCE,
        False,
    ]
    assert gate.enter("b", known=False)
    gate.leave("a")
    assert gate.enter("a", known=False)


def test_strangers_leave_a_quarter_to_known_members() -> None:
    gate = gate_of_text()
    assert all(gate.enter(f"stranger {number}", known=False) for number in range(STRANGERS))
    assert not gate.enter("one more", known=False)
    assert all(gate.enter(f"member {number}", known=True) for number in range(MAX_HANDSHAKES - STRANGERS))
    assert not gate.enter("member too many", known=True)
    assert gate.in_progress == MAX_HANDSHAKES


def test_a_gate_that_all_have_left_is_empty() -> None:
    gate = gate_of_text()
    for _ in range(3):
        assert gate.enter("a", known=False)
    for _ in range(3):
        gate.leave("a")
    assert gate.in_progress == 0
    assert gate.enter("a", known=False)


def test_who_waits_is_admitted_in_order_when_its_source_has_room() -> None:
    gate = gate_of_text()
    while gate.enter("a", known=False):
        pass
    for number in range(3):
        gate.wait(bytes([number]), "a", f"a{number}", known=False, now_ms=0)
    gate.wait(bytes([1]), "a", "repeated", known=False, now_ms=1)
    assert gate.admit_next(1) is None
    gate.leave("a")
    gate.leave("a")
    assert [gate.admit_next(1), gate.admit_next(1), gate.admit_next(1)] == [("a", "a0"), ("a", "a1"), None]
    assert gate.waiting == 1


def test_who_waits_for_one_source_does_not_hold_up_another() -> None:
    gate = gate_of_text()
    while gate.enter("a", known=False):
        pass
    gate.wait(b"1", "a", "a", known=False, now_ms=0)
    gate.wait(b"2", "b", "b", known=False, now_ms=0)
    assert gate.admit_next(1) == ("b", "b")


def test_the_waiting_room_is_bounded_per_source_and_in_all_and_forgets() -> None:
    gate = gate_of_text()
    for number in range(2 * MAX_WAITING):
        gate.wait(number.to_bytes(2, "big"), "a", "x", known=False, now_ms=0)
    assert gate.waiting == MAX_WAITING_PER_SOURCE
    for number in range(2 * MAX_WAITING):
        gate.wait(b"o" + number.to_bytes(2, "big"), f"source {number}", "x", known=False, now_ms=0)
    assert gate.waiting == MAX_WAITING
    assert gate.refused == 4 * MAX_WAITING - MAX_WAITING
    assert gate.admit_next(HANDSHAKE_TIMEOUT_MS) is None
    assert gate.waiting == 0


@pytest.mark.parametrize(
    ("reason", "shown"), [("bye", "bye"), ("a\x1b[31m\nb", "a?[31m?b"), ("é" * 100, "é" * 64), ("x" * 200, "x" * 128)]
)
def test_a_reason_is_short_and_printable(reason: str, shown: str) -> None:
    assert clip_reason(reason) == shown
    assert len(clip_reason(reason).encode()) <= MAX_REASON_BYTES
