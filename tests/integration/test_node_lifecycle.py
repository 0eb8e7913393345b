"""A node as a process: how it comes up, who may be beside it, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from agentmesh.control.lock import is_held
from agentmesh.node.process import STOP_TIMEOUT_S
from tests.fakes.node_process import END_TIMEOUT_S, READY_TIMEOUT_S, ROOT, NodeHome, Nodes, wait_for
from tests.fakes.patient_node import PATIENT


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def children(pid: int) -> list[int]:
    """The live children of a process."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def test_a_node_prints_its_invite_alone_on_stdout_and_its_ports_on_stderr(nodes: Nodes) -> None:
    node = nodes.start("--name", "ada")
    status = node.json("status")
    said = node.stderr_file.read_text()
    assert f"127.0.0.1:{status['console_port']}" in said
    assert str(status["bind_port"]) in said
    assert "amesh1." not in said
    assert (status["name"], status["api_port"], status["peers"]) == ("ada", node.api_port, [])
    assert f"127.0.0.1:{node.api_port}/v1" in said
    assert node.stop() == 0
    assert len(node.output) == 1


def test_a_node_cuts_itself_off_after_5_seconds() -> None:
    assert STOP_TIMEOUT_S == 5


@pytest.mark.timeout(300)
def test_a_node_leaves_by_itself_and_nothing_of_it_stays(nodes: Nodes) -> None:
    node = nodes.home().start(prefix=PATIENT)  # half a second; where the machine stands still, nothing is cut off
    assert node.cli("blackboard", "hello").code == 0  # so that its scrub worker runs
    workers = children(node.pid)
    node.signal(signal.SIGTERM)
    assert node.wait() == 0
    said = node.stderr_file.read_text()
    assert "cut off" not in said
    assert "did not end within" not in said
    wait_for(lambda: not any(alive(pid) for pid in workers), 10.0, "the worker processes to end")
    assert not (node.root / "run" / "node.sock").exists()
    assert not (node.root / "run" / "node.json").exists()


@pytest.mark.timeout(300)
def test_a_second_signal_ends_a_node_at_once(nodes: Nodes) -> None:
    for _ in range(3):  # a machine that stands still for two seconds at the wrong moment sends it too late
        if (code := _code_after_two_signals(nodes.start())) != 0:
            break
    assert code == 128 + signal.SIGTERM


def _code_after_two_signals(node: NodeHome) -> int:
    assert node.cli("blackboard", "hello").code == 0
    workers = [psutil.Process(pid) for pid in children(node.pid)]
    assert workers
    for worker in workers:
        worker.suspend()  # a worker that does not end when told to: now a clean end takes a while
    try:
        node.signal(signal.SIGINT)
        wait_for(lambda: not (node.root / "run" / "node.json").exists(), 30.0, "the node to begin its end")
        node.signal(signal.SIGTERM)
        return node.wait()
    finally:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()


def test_a_killed_node_starts_again_over_what_it_left(nodes: Nodes) -> None:
    node = nodes.start()
    first = node.json("status")
    posted = node.json("blackboard", "kept")["id"]
    node.kill()
    assert (node.root / "run" / "node.sock").exists()
    again = node.start().json("status")
    assert (again["node_id"], again["mesh_id"]) == (first["node_id"], first["mesh_id"])
    assert [post["id"] for post in node.json("blackboard")["posts"]] == [posted]


def test_a_second_node_by_hand_in_one_home_is_refused_with_the_others_process(nodes: Nodes) -> None:
    node = nodes.start()
    second = nodes.home(root=node.root).start(ready=False)
    assert second.wait(60.0) == 1
    assert str(node.pid) in second.stderr_file.read_text()
    assert node.cli("status").code == 0


def test_a_node_by_hand_takes_over_from_one_in_the_background(nodes: Nodes) -> None:
    home = nodes.home()
    posted = home.json("blackboard", "before")["id"]
    background = home.node_json()["pid"]
    home.start()
    assert home.node_json()["pid"] == home.pid != background
    wait_for(lambda: not alive(background), END_TIMEOUT_S, "the node in the background to end")
    assert [post["id"] for post in home.json("blackboard")["posts"]] == [posted]


def test_stop_ends_the_node_and_keeps_its_mesh(nodes: Nodes) -> None:
    node = nodes.start()
    before = node.json("status")["mesh_id"]
    assert node.cli("stop").code == 0
    assert node.wait() == 0
    assert node.start().json("status")["mesh_id"] == before


def test_stop_awaits_a_node_that_is_just_starting_and_ends_it(nodes: Nodes) -> None:
    home = nodes.home().start(ready=False)
    wait_for(lambda: is_held(home.root / "run" / "lock"), READY_TIMEOUT_S, "the node to begin its start")
    assert home.cli("stop").code == 0
    assert home.wait() == 0


def test_leave_forgets_the_mesh_running_or_not(nodes: Nodes) -> None:
    node = nodes.start()
    meshes = [node.json("status")["mesh_id"]]
    assert node.cli("leave").code == 0
    assert node.wait() == 0
    meshes.append(node.start().json("status")["mesh_id"])
    node.stop()
    assert node.cli("leave").code == 0
    meshes.append(node.start().json("status")["mesh_id"])
    assert len(set(meshes)) == 3


def test_the_home_is_private(nodes: Nodes) -> None:
    node = nodes.start()
    node.cli("blackboard", "hello")
    node.signal(signal.SIGSTOP)  # no file comes or goes while they are looked at
    try:
        wait_for(lambda: psutil.Process(node.pid).status() == psutil.STATUS_STOPPED, 30.0, "the node to stand still")
        open_to_others = [
            str(path)
            for path in [node.root, *node.root.rglob("*")]
            if path.name not in ("config.toml", "foreground.err") and stat.S_IMODE(path.lstat().st_mode) & 0o077
        ]
    finally:
        node.signal(signal.SIGCONT)
    assert open_to_others == []


def test_the_console_needs_the_token_of_node_json(nodes: Nodes) -> None:
    node = nodes.start()
    file = node.node_json()

    def ask(authorization: str) -> bytes:
        with socket.create_connection(("127.0.0.1", file["console_port"]), timeout=60) as connection:
            connection.sendall(
                f"GET /api/status HTTP/1.1\r\nHost: localhost\r\n{authorization}Connection: close\r\n\r\n".encode()
            )
            return connection.recv(100).split(b" ")[1]

    assert ask("") == b"401"
    assert ask(f"Authorization: Bearer {file['token']}\r\n") == b"200"


# ------------------------------------------------------------------ bad input


def refused(node: NodeHome, *arguments: str, code: int, stdin: str | None = None) -> str:
    """What a node that cannot start says."""
    node.stderr_file.unlink(missing_ok=True)
    node.start(*arguments, ready=False, stdin=stdin)
    assert node.wait(60.0) == code
    said = node.stderr_file.read_text().strip().splitlines()
    assert len(said) == 1, said
    return said[0]


def test_a_port_that_is_taken_and_named_is_refused(nodes: Nodes) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refused(nodes.home(), "--console", port, code=1)


def test_a_port_of_the_model_api_that_is_taken_and_named_is_refused(nodes: Nodes) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = refused(nodes.home(), "--port", port, code=1)
        assert f"Port {port} is in use" in said
        assert "--port" in said


def test_the_model_api_is_not_opened_to_other_machines_without_a_key(nodes: Nodes) -> None:
    assert "--api-key @FILE" in refused(nodes.home(), "--listen-all", code=2)


def test_a_udp_port_that_is_taken_and_named_is_refused(nodes: Nodes) -> None:
    first = nodes.start()
    port = str(first.json("status")["bind_port"])
    assert port in refused(nodes.home(), "--bind-port", port, code=1)


@pytest.mark.parametrize("damage", ["world-readable", "damaged", "a folder"])
def test_a_key_that_cannot_be_trusted_is_refused_and_left_as_it_is(nodes: Nodes, damage: str) -> None:
    node = nodes.start()
    node.stop()
    key = node.root / "identity.key"
    if damage == "world-readable":
        key.chmod(0o644)
    elif damage == "damaged":
        key.write_bytes(b"not a key")
    else:
        key.unlink()
        key.mkdir()
    assert "identity.key" in refused(node, code=1)
    assert key.exists()


@pytest.mark.parametrize("obstacle", ["a file", "writable by others"])
def test_a_home_that_cannot_be_used_is_refused(nodes: Nodes, obstacle: str) -> None:
    node = nodes.home()
    environment = node.environment
    if obstacle == "a file":
        environment["AGENTMESH_HOME"] = str(node.root / "config.toml")
    else:
        node.root.chmod(0o777)
    assert environment["AGENTMESH_HOME"] in refused(node, code=1)
    node.root.chmod(0o700)


def test_a_home_on_a_read_only_file_system_is_refused() -> None:
    # Root may write where permissions forbid it; /proc takes no folders from anybody.
    environment = {**os.environ, "AGENTMESH_HOME": "/proc/agentmesh"}
    for arguments, code in ((["--client"], 1), (["blackboard", "hi"], 3)):
        done = subprocess.run(
            [sys.executable, "-m", "agentmesh", *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100,
            check=False,
        )  # fmt: skip
        assert done.returncode == code
        assert "/proc/agentmesh" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_mistake_in_config_toml_is_named(nodes: Nodes) -> None:
    node = nodes.home()
    (node.root / "config.toml").write_text("consol_port = 1\n")
    assert "consol_port" in refused(node, code=2)
    assert "consol_port" in node.cli("blackboard", "hi").err


@pytest.mark.parametrize("token", ["amesh1.", "amesh1.abcd", "nonsense", "amesh1." + "A" * 20_000])
def test_a_damaged_token_is_refused_before_anything_is_made(nodes: Nodes, token: str) -> None:
    node = nodes.home()
    assert token not in refused(node, "--join", token, code=2)
    assert not (node.root / "meshes" / "current").exists()


def test_a_truncated_token_is_refused(nodes: Nodes) -> None:
    first = nodes.start()
    refused(nodes.home(), "--join", first.invite[:-7], code=2)
    refused(nodes.home(), "--join", "-", code=2, stdin=first.invite[:-7])


def test_an_expired_token_is_refused(nodes: Nodes) -> None:
    first = nodes.start()
    made = first.json("invite", "--expires", "1s")
    wait_for(lambda: time.time() * 1000 > made["expires_at"], 30.0, "the invite to expire")
    assert "expire" in refused(nodes.home(), "--join", made["token"], code=2)
