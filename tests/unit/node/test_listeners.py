"""Ports and sockets: what is taken, what gives way, and who may open it."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmesh.core.errors import HomeError, PortInUse
from agentmesh.core.paths import Home
from agentmesh.node.listeners import bind_console, bind_home_socket, port_of
from agentmesh.node.node_file import NodeFile, new_token, read_node_file, write_node_file


@pytest.fixture
def busy() -> Iterator[int]:
    """A port that is taken, with a free one right after it."""
    for _ in range(50):
        with socket.socket() as taken, socket.socket() as following:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            if port == 65535 or following.connect_ex(("127.0.0.1", port + 1)) == 0:
                continue
            taken.listen()
            yield port
            return
    raise AssertionError("no free neighbouring ports")


def test_a_busy_default_port_gives_way_to_another(busy: int) -> None:
    with bind_console(busy, named=False) as bound:
        assert busy < port_of(bound) < busy + 50


def test_a_busy_port_that_the_user_named_is_an_error_that_names_it(busy: int) -> None:
    with pytest.raises(PortInUse, match=str(busy)):
        bind_console(busy, named=True)


def test_port_0_is_any_port() -> None:
    with bind_console(0, named=True) as bound:
        assert port_of(bound) > 0
        assert bound.getsockname()[0] == "127.0.0.1"


def test_the_socket_is_for_its_owner_only_and_replaces_a_stale_one(tmp_path: Path) -> None:
    path = Path(tempfile.mkdtemp(prefix="am-", dir="/tmp")) / "node.sock"
    for _ in range(2):  # the second time over what a killed node would have left
        with bind_home_socket(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    path.parent.rmdir()


def test_a_home_too_deep_for_a_socket_gets_it_elsewhere_and_still_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Path(tempfile.mkdtemp(prefix="am-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    home = Home(tmp_path / ("deep" * 30))
    assert home.socket.is_relative_to(runtime)
    with bind_home_socket(home.socket):
        assert stat.S_IMODE(home.socket.parent.stat().st_mode) == 0o700
    home.socket.unlink()
    home.socket.parent.rmdir()
    runtime.rmdir()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a folder to another user")
def test_a_socket_folder_that_another_user_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Path(tempfile.mkdtemp(prefix="am-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    home = Home(tmp_path / ("deep" * 30))
    home.socket.parent.mkdir()
    os.chown(home.socket.parent, 65534, 65534)
    with pytest.raises(HomeError, match="other users"):
        bind_home_socket(home.socket)
    home.socket.parent.rmdir()
    runtime.rmdir()


def test_the_node_file_is_whole_private_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    written = NodeFile(7, "0.1.0", True, 1, "/run/x.sock", new_token(), 3131, None, None)
    write_node_file(path, written)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_node_file(path) == written
    path.write_text('{"pid": ')
    assert read_node_file(path) is None
    path.unlink()
    assert read_node_file(path) is None


def test_every_start_has_a_token_of_its_own() -> None:
    assert len({new_token() for _ in range(100)}) == 100
    assert all(len(new_token()) >= 43 for _ in range(3))
