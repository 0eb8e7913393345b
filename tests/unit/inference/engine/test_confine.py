"""Which paths a confined program may read: computed, not tried (tests/integration/test_rpc_server.py tries)."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmesh.inference.engine import confine


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine: `sys/lib`, `sys/opt/tool`, and homes below `home` and `sys/opt`."""
    for folder in ("sys/lib", "sys/opt/tool", "sys/opt/agent/bin", "home/me/bin"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(confine, "SYSTEM", (str(tmp_path / "sys/lib"), str(tmp_path / "sys/opt")))
    return tmp_path


def readable(system: Path, program: str, homes: list[str], **environ: str) -> set[str]:
    (system / program).write_text("")
    paths = confine.readable(str(system / program), [str(system / home) for home in homes], environ)
    return {Path(path).relative_to(system).as_posix() for path in paths}


def test_a_program_in_a_folder_of_a_home_reads_that_folder_and_its_libraries_only(system: Path) -> None:
    paths = readable(system, "home/me/bin/rpc", ["home/me"])
    assert paths == {"sys/lib", "sys/opt", "home/me/bin", "home/me/lib", "home/me/bin/rpc"}


def test_a_program_that_lies_in_the_home_itself_does_not_open_it(system: Path) -> None:
    (system / "home/me/libggml.so.1").write_text("")
    (system / "home/me/.ssh").mkdir()
    paths = readable(system, "home/me/rpc", ["home/me"])
    assert paths == {"sys/lib", "sys/opt", "home/me/rpc", "home/me/libggml.so.1", "home/lib"}


def test_a_home_within_a_system_folder_stays_closed(system: Path) -> None:
    paths = readable(system, "sys/lib/rpc", ["sys/opt/agent"])
    assert "sys/opt" not in paths and "sys/opt/agent" not in paths
    assert "sys/opt/tool" in paths


def test_a_link_does_not_open_a_home(system: Path) -> None:
    (system / "sys/opt/link").symlink_to(system / "home/me")
    (system / "sys/opt/agent/x").write_text("")
    paths = readable(system, "sys/lib/rpc", ["home/me", "sys/opt/agent"])
    assert "sys/opt/link" not in paths


def test_folders_of_the_library_path_are_read_unless_they_hold_a_home(system: Path) -> None:
    (system / "libs").mkdir()
    library_path = f"{system / 'libs'}:{system}::{system / 'home'}"
    paths = readable(system, "sys/lib/rpc", ["home/me"], LD_LIBRARY_PATH=library_path)
    assert "libs" in paths and "." not in paths and "home" not in paths


@pytest.mark.parametrize(
    ("abi", "rights"), [(1, 0x1FFF), (2, 0x3FFF), (3, 0x7FFF), (4, 0x7FFF), (5, 0xFFFF), (7, 0xFFFF)]
)
def test_every_right_that_a_kernel_knows_is_given_up(abi: int, rights: int) -> None:
    assert confine.rights_of(abi) == rights
