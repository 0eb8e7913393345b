"""Who may begin a handshake."""

from __future__ import annotations

import pytest

from agentmesh.mesh.logic.gate import STRANGERS, HandshakeGate
from agentmesh.mesh.logic.limits import MAX_HANDSHAKES, MAX_HANDSHAKES_PER_SOURCE
from agentmesh.mesh.logic.reasons import MAX_REASON_BYTES, clip_reason


def test_one_source_gets_its_share_and_no_more() -> None:
    gate = HandshakeGate()
    assert [gate.enter("a", known=False) for _ in range(MAX_HANDSHAKES_PER_SOURCE + 1)] == [
        *[True] * MAX_HANDSHAKES_PER_SOURCE,
        False,
    ]
    assert gate.enter("b", known=False)
    gate.leave("a")
    assert gate.enter("a", known=False)


def test_strangers_leave_a_quarter_to_known_members() -> None:
    gate = HandshakeGate()
    assert all(gate.enter(f"stranger {number}", known=False) for number in range(STRANGERS))
    assert not gate.enter("one more", known=False)
    assert all(gate.enter(f"member {number}", known=True) for number in range(MAX_HANDSHAKES - STRANGERS))
    assert not gate.enter("member too many", known=True)
    assert (gate.in_progress, gate.refused) == (MAX_HANDSHAKES, 2)


def test_a_gate_that_all_have_left_is_empty() -> None:
    gate = HandshakeGate()
    for _ in range(3):
        assert gate.enter("a", known=False)
    for _ in range(3):
        gate.leave("a")
    assert gate.in_progress == 0
    assert gate.enter("a", known=False)


@pytest.mark.parametrize(
    ("reason", "shown"), [("bye", "bye"), ("a\x1b[31m\nb", "a?[31m?b"), ("é" * 100, "é" * 64), ("x" * 200, "x" * 128)]
)
def test_a_reason_is_short_and_printable(reason: str, shown: str) -> None:
    assert clip_reason(reason) == shown
    assert len(clip_reason(reason).encode()) <= MAX_REASON_BYTES
