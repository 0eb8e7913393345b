"""load, unload and drop against a real node with a fake engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agentmesh.control.client import NodeClient
from agentmesh.core.paths import Home
from tests.fakes.fake_engine import write_fake_engine
from tests.fakes.node_process import ROOT, NodeHome, Nodes, wait_for
from tests.fakes.tiny_gguf import write_tiny

READY_S = 90.0


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")[0]


def start(nodes: Nodes, tmp_path: Path, *options: str, engine: tuple[str, ...] = ()) -> NodeHome:
    """A node that serves the model `first`."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    write_fake_engine(folder, *engine)
    first = write_tiny(tmp_path / "first.gguf")[0]
    home = nodes.start("--gguf", str(first), "--bin-dir", str(folder), *options)
    wait_for(lambda: states(home).get("first") == "ready", READY_S, "the first model")
    return home


def states(home: NodeHome) -> dict[str, str]:
    return {model["id"]: model["state"] for model in home.json("status")["models"]}


def test_a_model_is_loaded_followed_unloaded_and_dropped(nodes: Nodes, tmp_path: Path, tiny: Path) -> None:
    home = start(nodes, tmp_path)
    done = home.cli("load", str(tiny), "--ctx-size", "256", "--slots", "2")
    assert (done.code, done.out) == (0, "tiny\n"), done.err
    assert "tiny: ready, 256 tokens of context, 2 at once, on the CPU" in done.err
    assert "agentmesh claude --model tiny" in done.err
    again = home.cli("load", str(tiny))
    assert (again.code, "served here already" in again.err) == (2, True)
    assert "its memory is free" in home.cli("unload", "TINY").err
    assert set(states(home)) == {"first"}
    assert home.json("load", str(tiny))["state"] == "ready"
    assert home.json("drop", "tiny") == {"id": "tiny", "message": "tiny is unloaded and forgotten."}
    assert "tiny" not in (home.root / "models.json").read_text()
    assert "serves no 'org/repo:Q8_0'" in home.cli("unload", "org/repo:Q8_0").err
    missing = home.cli("unload", "tiny")
    assert (missing.code, missing.err) == (1, "agentmesh: This node serves no 'tiny'. It serves: first.\n")


def test_a_file_is_unloaded_and_dropped_as_it_was_named(nodes: Nodes, tmp_path: Path, tiny: Path) -> None:
    home = start(nodes, tmp_path)
    relative = os.path.relpath(tiny, ROOT)
    for written in (str(tiny), relative):
        assert home.cli("load", written).code == 0
        assert "tiny is unloaded" in home.cli("unload", written).err
        assert home.cli("drop", written).code == 0
        assert "tiny" not in (home.root / "models.json").read_text()


def test_a_node_that_the_board_started_loads_nothing_unasked(nodes: Nodes, tmp_path: Path, tiny: Path) -> None:
    write_fake_engine(tmp_path)
    home = nodes.home({"AGENTMESH_BIN_DIR": str(tmp_path)})
    assert home.cli("blackboard", "hello").code == 0
    assert home.cli("load", str(tiny)).code == 0
    assert home.cli("stop").code == 0
    assert home.cli("blackboard", "again").code == 0
    assert states(home) == {}
    assert "tiny" in (home.root / "models.json").read_text()


def test_a_node_in_the_background_keeps_its_models_when_it_joins(nodes: Nodes, tmp_path: Path, tiny: Path) -> None:
    write_fake_engine(tmp_path)
    other = nodes.start()
    home = nodes.home({"AGENTMESH_BIN_DIR": str(tmp_path)})
    assert home.cli("blackboard", "hello").code == 0
    assert home.cli("load", str(tiny)).code == 0
    NodeClient(Home(home.root)).request("POST", "/api/mesh/join", json={"tokens": [other.invite]})
    joined = other.json("status")["mesh_id"]
    wait_for(lambda: joined in home.cli("status", "--json").out, READY_S, "the other mesh")
    wait_for(lambda: states(home).get("tiny") == "ready", READY_S, "the model")


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(nodes: Nodes, tmp_path: Path, tiny: Path) -> None:
    home = start(nodes, tmp_path, "--max-vram", "0.1")
    done = home.cli("load", str(tiny))
    assert done.code == 2
    assert "tiny needs " in done.err
    assert "are free of 100 MB" in done.err


def test_an_engine_that_crashes_is_shown_with_its_last_words(nodes: Nodes, tmp_path: Path, tiny: Path) -> None:
    home = start(nodes, tmp_path)
    (tmp_path / "bin" / "llama-server").unlink()
    write_fake_engine(tmp_path / "bin", "--crash-at-start")
    done = home.cli("load", str(tiny))
    assert done.code == 1
    assert "tiny could not be served" in done.err
    assert "is not a model" in done.err
    assert states(home)["tiny"] == "failed"


def test_interrupting_a_load_leaves_it_going(nodes: Nodes, tmp_path: Path, tiny: Path) -> None:
    home = start(nodes, tmp_path)
    (tmp_path / "bin" / "llama-server").unlink()
    write_fake_engine(tmp_path / "bin", "--ready-when", str(tmp_path / "loaded"))
    command = [sys.executable, "-m", "agentmesh", "load", str(tiny)]
    with subprocess.Popen(command, env=home.environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as load:
        assert load.stderr is not None
        assert load.stderr.readline().startswith("tiny: ")  # it is followed, not asked for any more
        wait_for(lambda: states(home).get("tiny") == "loading", READY_S, "the load")
        load.send_signal(signal.SIGINT)
        _, err = load.communicate(timeout=60)
    assert load.returncode == 130
    assert "the node goes on loading tiny" in err
    (tmp_path / "loaded").touch()
    wait_for(lambda: states(home).get("tiny") == "ready", READY_S, "the model")


def test_a_client_refuses_to_load(nodes: Nodes, tiny: Path) -> None:
    home = nodes.start()
    done = home.cli("load", str(tiny))
    assert done.code == 2
    assert "started as a client and serves no models" in done.err


def test_models_and_engines_of_a_stopped_node_come_back_and_leave_with_it(
    nodes: Nodes, tmp_path: Path, tiny: Path
) -> None:
    home = start(nodes, tmp_path)
    home.cli("load", str(tiny))
    assert home.cli("stop").code == 0
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tiny) in (p.info["cmdline"] or ())]
    home.process = None
    home.start("--gguf", str(tmp_path / "first.gguf"), "--bin-dir", str(tmp_path / "bin"))
    wait_for(lambda: states(home) == {"first": "ready", "tiny": "ready"}, READY_S, "both models")
