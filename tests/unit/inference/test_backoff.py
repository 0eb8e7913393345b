"""How long is waited for a hub that fails, and when it is given up."""

from __future__ import annotations

import pytest

from agentmesh.inference.models.errors import HubBusy, HubUnavailable
from agentmesh.inference.models.source import MAX_BREAKS, MAX_RETRY_AFTER_S, Backoff


def test_waits_grow_and_end() -> None:
    pauses: list[float] = []
    backoff = Backoff(pauses.append)
    with pytest.raises(HubUnavailable):
        for _ in range(99):
            backoff.wait(HubUnavailable())
    assert pauses == [1.0, 2.0, 4.0, 8.0]


def test_progress_begins_anew_but_not_for_ever() -> None:
    pauses: list[float] = []
    backoff = Backoff(pauses.append)
    with pytest.raises(HubUnavailable):
        for _ in range(2 * MAX_BREAKS):
            backoff.wait(HubUnavailable())
            backoff.progress()
    assert pauses == [1.0] * (MAX_BREAKS - 1)


@pytest.mark.parametrize(("asked", "waited"), [(0.0, [1.0]), (MAX_RETRY_AFTER_S, [MAX_RETRY_AFTER_S])])
def test_what_the_server_asks_for_is_waited(asked: float, waited: list[float]) -> None:
    pauses: list[float] = []
    Backoff(pauses.append).wait(HubBusy(retry_after_s=asked))
    assert pauses == waited


def test_a_server_that_asks_for_too_long_is_given_up_at_once() -> None:
    pauses: list[float] = []
    with pytest.raises(HubBusy):
        Backoff(pauses.append).wait(HubBusy(retry_after_s=MAX_RETRY_AFTER_S + 1))
    assert pauses == []
