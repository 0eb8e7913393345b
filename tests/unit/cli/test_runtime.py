"""The words of load, unload and drop: what counts as a path, the progress line."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmesh.cli.main import run
from agentmesh.cli.runtime import as_reference, progress_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7b", ("7b", False)),
        ("org/repo:Q4_K_M", ("org/repo:Q4_K_M", False)),
        ("org/repo/file.gguf", ("org/repo/file.gguf", False)),
        ("https://huggingface.co/org/repo", ("https://huggingface.co/org/repo", False)),
        ("/models/a.gguf", ("/models/a.gguf", True)),
    ],
)
def test_names_stay_as_they_are(text: str, expected: tuple[str, bool]) -> None:
    assert as_reference(text) == expected


def test_paths_are_made_whole_because_the_node_works_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.gguf").touch()
    assert as_reference("x.gguf") == (str(tmp_path / "x.gguf"), True)
    assert as_reference("./x") == (str(tmp_path / "x"), True)
    assert as_reference("a/b/x.gguf") == (str(tmp_path / "a/b/x.gguf"), True)
    assert as_reference("~/x.gguf") == (str(Path.home() / "x.gguf"), True)


def status(**more: object) -> dict[str, object]:
    return {
        "id": "m",
        "state": "loading",
        "reason": "",
        "progress": None,
        "context_tokens": 32_768,
        "slots": 2,
        "need_bytes": 5_200_000_000,
        "device": None,
    } | more


def test_the_progress_line_says_what_is_known() -> None:
    half = {"done_bytes": 2_345_000_000, "total_bytes": 4_700_000_000}
    assert progress_line(status(state="resolving")) == "m: resolving"
    assert progress_line(status(state="downloading", progress=half)) == "m: downloading, 49 %, 2.3 GB of 4.7 GB"
    assert progress_line(status(state="downloading", progress=half), fine=False) == "m: downloading, 40 %"
    assert progress_line(status(state="waiting", reason="needs 5 GB")) == "m: waiting, needs 5 GB"
    assert (
        progress_line(status(state="ready", device="CUDA0"))
        == "m: ready, 32,768 tokens of context, 2 at once, on CUDA0"
    )


def test_a_models_name_cannot_move_the_cursor() -> None:
    assert "\x1b" not in progress_line(status(id="\x1b[2Jm"))


def test_without_a_node_it_is_said_how_to_start_one_that_serves(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("load", "unload", "drop"):
        assert run([command, "7b"]) == 3
        assert "agentmesh --model NAME" in capsys.readouterr().err
