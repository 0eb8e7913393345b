"""Where engines listen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentmesh.core.errors import HomeError
from agentmesh.core.paths import MAX_SOCKET_PATH_BYTES
from agentmesh.inference.engine.address import choose_address, prepare_folder, release_address, socket_path, unique_name
from tests.fakes.fake_engine import fake_engine


def test_an_engine_that_can_gets_a_socket_in_its_folder(tmp_path: Path) -> None:
    address = choose_address(fake_engine(), tmp_path, "e-1")
    assert address.socket == str(tmp_path / "e-1.sock")
    assert (address.port, address.api_key) == (None, None)


def test_a_folder_too_deep_for_a_socket_gets_one_in_the_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    deep = tmp_path / ("d" * 100)
    path = socket_path(deep, "e-12345678")
    assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
    assert path.parent.parent == Path("/run/user/1")
    assert path != socket_path(tmp_path / ("e" * 100), "e-12345678")


def test_another_engine_gets_a_loopback_port_and_a_key_of_its_own(tmp_path: Path) -> None:
    first, second = (choose_address(fake_engine(unix_sockets=False), tmp_path, "e") for _ in range(2))
    assert first.socket is None
    assert first.port is not None
    assert first.port > 1023
    assert first.api_key != second.api_key
    assert len(first.api_key or "") >= 40


def test_names_are_not_used_twice() -> None:
    assert len({unique_name() for _ in range(50)}) == 50


def test_a_socket_is_released_whether_it_is_there_or_not(tmp_path: Path) -> None:
    address = choose_address(fake_engine(), tmp_path, "e-1")
    (tmp_path / "e-1.sock").write_text("")
    for _ in range(2):
        release_address(address)
        assert not (tmp_path / "e-1.sock").exists()


def test_a_folder_that_others_can_change_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(HomeError, match="changed by other users"):
        prepare_folder(folder)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError):
        prepare_folder(tmp_path / "file")
