"""`agentmesh mesh export-root` and `agentmesh leave`, on the files of a home."""

from __future__ import annotations

import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentmesh.cli.main import run
from agentmesh.control import start
from agentmesh.control.lock import FileLock
from agentmesh.core.paths import Home
from agentmesh.mesh.authority import found_mesh
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.policy import Policy
from agentmesh.mesh.membership_file import MembershipFile

NOW_MS = 1_800_000_000_000


@pytest.fixture
def founded() -> MembershipFile:
    membership, _ = found_mesh(Home.from_environment(), NodeKey.generate(), "ours", Policy(), NOW_MS)
    return membership


def test_the_root_key_is_copied_to_a_private_file_and_said_to_be_what_it_is(
    founded: MembershipFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "vault" / "root.key"
    assert run(["mesh", "export-root", str(target)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{target}\n"
    assert "root key of the mesh 'ours'" in err
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert NodeKey.load(target).public == founded.mesh


def test_without_a_name_it_goes_into_the_working_directory(
    founded: MembershipFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["mesh", "export-root"]) == 0
    assert NodeKey.load(tmp_path / f"agentmesh-root-{founded.mesh_id[:8]}.key").public == founded.mesh


def test_a_file_that_exists_is_left_as_it_is(
    founded: MembershipFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mine"
    target.write_text("mine")
    assert run(["mesh", "export-root", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert founded.root_key() is not None


def test_a_home_that_is_no_founders_says_so(
    founded: MembershipFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    founded.root_key_path.unlink()
    assert run(["mesh", "export-root", str(tmp_path / "x")]) == 1
    assert "only the founder" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_home_on_no_mesh_says_so_and_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mesh", "export-root"]) == 1
    assert "no mesh" in capsys.readouterr().err
    assert not Home.from_environment().root.exists()


@pytest.mark.usefixtures("founded")
def test_leave_beside_a_node_that_is_just_ending_waits_and_forgets_the_mesh(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home.from_environment()
    home.prepare()
    ending = FileLock.acquire(home.lock)
    assert ending is not None

    def ends(_seconds: float) -> None:
        ending.release()

    monkeypatch.setattr(start, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=ends))
    assert run(["leave"]) == 0
    assert "Left the mesh." in capsys.readouterr().err
    assert not home.current_mesh.exists()
