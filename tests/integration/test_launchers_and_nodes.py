"""Launchers and real nodes: one is started when there is none, and ends with the agent unless somebody needs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.fake_agent import FakeAgent
from tests.fakes.model_api import ModelApi, model
from tests.fakes.node_process import ROOT, NodeHome, Nodes, wait_for

WAIT_S = 90.0


@pytest.fixture
def agent(tmp_path: Path) -> FakeAgent:
    return FakeAgent(tmp_path / "bin", "claude")


def prepared(nodes: Nodes, agent: FakeAgent) -> NodeHome:
    """A home whose node takes any ports, with the agent on the PATH."""
    home = nodes.home()
    home.environment["PATH"] = f"{agent.folder}:{home.environment['PATH']}"
    home.environment["HOME"] = str(home.root)
    (home.root / "config.toml").write_text("console_port = 0\napi_port = 0\n")
    return home


def runs(home: NodeHome) -> bool:
    return (home.root / "run" / "node.json").exists()


def test_with_nothing_running_and_no_model_the_node_that_was_started_ends_again(nodes: Nodes, agent: FakeAgent) -> None:
    home = prepared(nodes, agent)
    done = home.cli("claude", "--port", "9", "-p", "hi")
    assert done.code == 3
    assert "started a node for this" in done.err
    assert "agentmesh --model qwen2.5-3b" in done.err
    assert "agentmesh --join TOKEN --client" in done.err
    assert not agent.ran
    assert not runs(home)


def test_a_node_that_was_there_before_stays(nodes: Nodes, agent: FakeAgent) -> None:
    home = prepared(nodes, agent)
    home.start()
    port = home.json("status")["api_port"]
    done = home.cli("claude")
    assert done.code == 3
    assert "started" not in done.err
    assert home.json("status")["api_port"] == port


def test_without_a_node_an_api_on_the_port_is_used_and_no_node_is_started(nodes: Nodes, agent: FakeAgent) -> None:
    home = prepared(nodes, agent)
    with ModelApi([model("elsewhere")]) as api:
        done = home.cli("claude", "--port", str(api.port))
    assert done.code == 0
    assert agent.record()["environment"]["ANTHROPIC_BASE_URL"] == api.url
    assert not runs(home)


def test_printing_the_configuration_starts_no_node(nodes: Nodes, agent: FakeAgent) -> None:
    home = prepared(nodes, agent)
    assert home.cli("claude", "--port", "9", "--print-config").code == 0
    assert not runs(home)


def test_a_node_that_was_started_stays_while_another_client_is_attached(nodes: Nodes, agent: FakeAgent) -> None:
    home = prepared(nodes, agent)
    home.environment["AGENTMESH_JOIN"] = nodes.start().invite  # so that the launcher waits for the mesh's models
    launcher = subprocess.Popen(
        [sys.executable, "-m", "agentmesh", "claude", "--port", "9"],
        env=home.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # It looks for a node while one is being started, so that it is there long before the launcher has waited enough.
    wait_for((home.root / "logs" / "node.log").exists, WAIT_S, "the start to begin")
    follower = subprocess.Popen(
        [sys.executable, "-m", "agentmesh", "blackboard", "--follow"],
        env=home.environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _, errors = launcher.communicate(timeout=WAIT_S)
        assert launcher.returncode == 3
        assert runs(home)
        assert "another client uses it" in errors
    finally:
        os.kill(follower.pid, signal.SIGTERM)
        follower.wait(WAIT_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_is_just_being_started_ends_when_the_launcher_is_interrupted(
    nodes: Nodes, agent: FakeAgent, number: signal.Signals
) -> None:
    home = prepared(nodes, agent)
    home.environment["AGENTMESH_JOIN"] = (
        nodes.start().invite
    )  # so that it has not ended by itself when the signal comes
    launcher = subprocess.Popen(
        [sys.executable, "-m", "agentmesh", "claude", "--port", "9"],
        env=home.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for((home.root / "logs" / "node.log").exists, WAIT_S, "the start to begin")
    launcher.send_signal(number)
    _, errors = launcher.communicate(timeout=WAIT_S)
    assert launcher.returncode == 128 + number, errors
    assert "started a node" in errors
    wait_for(lambda: not runs(home), WAIT_S, "the node to end")
    assert not agent.ran
