"""Fixtures of the integration tests: real processes in temporary homes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.node_process import Nodes


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with Nodes() as made:
        yield made
