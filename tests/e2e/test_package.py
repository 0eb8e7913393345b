"""What a user gets from `pip install .`, and the commands that the README promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _run(*command: str | Path, cwd: Path = ROOT, timeout: float = 120, **environment: str) -> str:
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as pip builds it for a user."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, timeout=550)
    return next(folder.glob("agentmesh-*.whl"))


@pytest.mark.timeout(700)
def test_the_wheel_carries_the_skill_and_every_data_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "agentmesh/_data/skills/blackboard/SKILL.md" in names
    tracked = _run("git", "ls-files", "agentmesh").split()
    assert {name for name in tracked if "__pycache__" not in name} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.timeout(1500)
def test_pip_install_alone_gives_a_working_command(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    _run(binaries / "pip", "install", "-q", "--disable-pip-version-check", wheel, timeout=800)
    assert "blackboard" in _run(binaries / "agentmesh", "--help", cwd=tmp_path)
    try:
        posted = _run(binaries / "agentmesh", "blackboard", "STATUS: from a wheel", cwd=tmp_path)
        assert posted.strip()
        assert "from a wheel" in _run(binaries / "agentmesh", "blackboard", cwd=tmp_path)
        installed = _run(binaries / "agentmesh", "blackboard", "install-skill", cwd=tmp_path, HOME=str(tmp_path))
        assert "SKILL.md" in installed or "skills" in installed
    finally:
        _run(binaries / "agentmesh", "stop", cwd=tmp_path)


def test_the_readme_has_exactly_two_set_up_commands_and_make_knows_them() -> None:
    section = (ROOT / "README.md").read_text("utf-8").split("## See it work")[1].split("##")[0]
    commands = re.findall(r"^\$ (.+)$", section, re.MULTILINE)
    assert commands == ["make demo", "make test"]
    for command in commands:
        _run(*command.split(), "--dry-run")


@pytest.mark.timeout(500)
def test_the_demo_shows_what_it_claims_and_leaves_nothing_behind() -> None:
    output = _run(sys.executable, ROOT / "benchmarks" / "demo.py", timeout=480)
    assert "nothing left behind" in output
    assert "masked before it was stored or sent" in output
