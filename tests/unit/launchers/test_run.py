"""Signals before the agent runs."""

from __future__ import annotations

import signal

import pytest

from agentmesh.core.errors import NoNode
from agentmesh.launchers.run import HungUp, Interrupted, put_off, tidy_end


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Interrupted), (signal.SIGHUP, HungUp)])
def test_a_signal_while_a_node_is_started_takes_effect_when_it_is_known(
    number: signal.Signals, error: type[Interrupted]
) -> None:
    done: list[str] = []
    with pytest.raises(error) as raised, tidy_end():
        with put_off():
            signal.raise_signal(number)
            done.append("the node is known")
        done.append("unreachable")
    assert done == ["the node is known"]
    assert raised.value.exit_code == 128 + number
    assert signal.getsignal(number) == signal.SIG_DFL


def test_ctrl_c_is_put_off_too_and_a_second_one_is_not() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), put_off():
        signal.raise_signal(signal.SIGINT)
        done.append("first")
        signal.raise_signal(signal.SIGINT)
        done.append("second")
    assert done == ["first"]


def test_a_start_that_was_interrupted_and_failed_is_an_interrupted_one() -> None:
    with pytest.raises(Interrupted), tidy_end(), put_off():
        signal.raise_signal(signal.SIGTERM)
        raise NoNode


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with put_off():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
