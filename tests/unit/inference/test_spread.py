"""What is shown of a model that is spread, while its nodes come and go."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

from agentmesh.inference.logic.replan import State
from agentmesh.inference.logic.split_values import Wish
from agentmesh.inference.split.spread import _Followed  # pyright: ignore[reportPrivateUsage]
from tests.fakes.split_world import MODEL, TWO, node_id, split


def test_a_split_that_becomes_ready_while_its_worker_is_not_seen_is_advised_on_when_it_is() -> None:
    """A busy machine is suspected for some seconds; its lease bears that, and the split goes on."""
    offers = Mock()
    offers.nodes.return_value = TWO[:1]
    said: list[str] = []
    followed = _Followed(Mock(), MODEL, Wish(), node_id(1), offers, Mock(say=said.append))
    plan = split(TWO)
    driver = SimpleNamespace(is_ready=True, state=State.RUNNING, plan=plan, outcome=plan)
    followed._driver = driver  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    followed._report()  # pyright: ignore[reportPrivateUsage]
    assert not said
    offers.nodes.return_value = TWO
    followed._report()  # pyright: ignore[reportPrivateUsage]
    assert said
    assert said[0].startswith("big: About ")
