"""What `agentmesh status` says of the mesh's models."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.target import ServedModel
from agentmesh.node.management import model_views

A, B = b"a" * 32, b"b" * 32


@pytest.mark.parametrize(
    ("is_ready", "away", "state"),
    [(True, {B}, "ready"), (False, set(), "loading"), (False, {A}, "loading"), (False, {A, B}, "away")],
)
def test_a_peers_model_is_ready_or_loading_or_out_of_reach(is_ready: bool, away: set[bytes], state: str) -> None:
    (view,) = model_views([], [(ServedModel("m", ready=is_ready), [A, B])], away)
    assert view.state == state
    assert ("cannot be reached" in view.reason) is (state == "away")
