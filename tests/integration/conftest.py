"""Fixtures of the integration tests: real processes in temporary homes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmesh.inference.engine.engine import Engine
from tests.fakes.node_process import Nodes
from tests.fakes.split_cases import Alone, ask_alone
from tests.fakes.split_nodes import SplitNodes, a_dense


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with Nodes() as made:
        yield made


@pytest.fixture(scope="session")
def dense_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `sharing`. 123 MB: one file for all tests, and none changes it."""
    return a_dense(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def dense_whole(real_engine: Engine, dense_file: Path) -> Alone:
    """What it says on one node that can hold it."""
    assert not real_engine.is_embedded
    return ask_alone(dense_file)


@pytest.fixture
def dense_alone(dense_whole: Alone) -> str:
    """The short answer of it."""
    return dense_whole.said


@pytest.fixture
def dense_texts(dense_whole: Alone) -> list[str]:
    """The long ones, without a draft."""
    return dense_whole.texts


@pytest.fixture
def sharing(real_engine: Engine, nodes: Nodes, dense_file: Path) -> Iterator[SplitNodes]:
    """Nodes that share the dense model."""
    assert real_engine.has_rpc
    yield SplitNodes(nodes, dense_file)
    for home in nodes.homes:  # one that is halted does not heed what ends it
        if home.process is not None and home.process.poll() is None:
            home.signal(signal.SIGCONT)
