"""`agentmesh moe …` as a command of the program: reached, explained, refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmesh.cli.main import run
from agentmesh.core.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from tests.fakes.expert_gguf import ExpertShape, write_expert_gguf
from tests.unit.inference.test_expert_ranking import write_imatrix


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTMESH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return write_expert_gguf(tmp_path / "model" / "experts.gguf", ExpertShape(used=2))[0]


def test_its_commands_are_in_the_help_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == EXIT_DONE
    assert "moe" in capsys.readouterr().out
    for name in ("plan", "rank", "split"):
        assert run(["moe", name, "--help"]) == EXIT_DONE
        assert f"agentmesh moe {name} " in capsys.readouterr().out.split("Examples:")[1]


def test_a_plan_is_made_by_the_matrix_that_lies_beside_the_model(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["moe", "plan", str(model), "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["ranked_by"] == "unranked"
    write_imatrix(model.parent / "experts-imatrix.gguf", dict.fromkeys((0, 1), (1.0,) * 7 + (9.0,)))
    assert run(["moe", "plan", str(model), "--json"]) == EXIT_DONE
    plan = json.loads(capsys.readouterr().out)
    assert plan["ranked_by"] == "imatrix"
    assert all(7 in kept for node in plan["nodes"] for kept in node["kept"])


def test_a_part_is_written_and_its_path_printed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["moe", "split", str(model), "--node", "1", "--no-rank"]) == EXIT_DONE
    assert Path(capsys.readouterr().out.strip()).name == "experts.gguf"


def test_what_cannot_be_is_one_sentence(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["moe", "plan", str(model.parent / "none.gguf")]) == EXIT_FAILED
    assert run(["moe", "plan", str(model), "--min-experts", "9"]) == EXIT_USAGE
    assert run(["moe"]) == EXIT_USAGE
    assert "does not exist" in (err := capsys.readouterr().err)
    assert "choose from 2 to 8" in err
