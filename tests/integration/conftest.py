"""Fixtures of the integration tests: real processes in temporary homes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmesh.inference.engine.engine import Engine
from tests.fakes.node_process import Nodes
from tests.fakes.split_cases import ask_alone
from tests.fakes.split_nodes import SplitNodes, a_dense


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with Nodes() as made:
        yield made


@pytest.fixture(scope="session")
def dense_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `sharing`. 123 MB: one file for all tests, and none changes it."""
    return a_dense(tmp_path_factory.mktemp("dense"))


@pytest.fixture
def dense_alone(real_engine: Engine, dense_file: Path) -> str:
    """What it says on one node that can hold it."""
    assert not real_engine.is_embedded
    return ask_alone(dense_file).said


@pytest.fixture
def dense_texts(real_engine: Engine, dense_file: Path) -> list[str]:
    """The longer answers of that node, without a draft."""
    assert not real_engine.is_embedded
    return ask_alone(dense_file).texts


@pytest.fixture
def sharing(real_engine: Engine, nodes: Nodes, dense_file: Path) -> Iterator[SplitNodes]:
    """Nodes that share the dense model."""
    assert real_engine.has_rpc
    yield SplitNodes(nodes, dense_file)
    for home in nodes.homes:  # one that is halted does not heed what ends it
        if home.process is not None and home.process.poll() is None:
            home.signal(signal.SIGCONT)
