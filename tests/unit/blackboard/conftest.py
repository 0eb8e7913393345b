"""What tests of the board get."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _time_to_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search answers with what it has after 100 ms: where the machine stands still for as long, that is less than there is."""
    monkeypatch.setattr("agentmesh.blackboard.store.SEARCH_BUDGET_MS", 60_000)
