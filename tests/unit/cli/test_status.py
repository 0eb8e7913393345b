"""What `agentmesh status` shows of models."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.cli.node import show_models


def model(name: str, **facts: Any) -> dict[str, Any]:
    return {
        "id": name,
        "state": "ready",
        "context_tokens": 32768,
        "slots": 4,
        "nodes": ["n" * 52],
        "reason": "",
    } | facts


def shown(capsys: pytest.CaptureFixture[str], *models: dict[str, Any]) -> list[str]:
    show_models({"models": list(models), "peers": [], "node_id": "n" * 52, "name": "desktop"})
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_long_names_are_shown_whole_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a-model-of-" + "x" * 120
    lines = shown(capsys, model(name))
    assert lines[2] == f"{name}  ready  32,768   4      desktop"


def test_a_reason_stands_below_the_table_and_does_not_squeeze_it(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "The hub at https://hub.example could not be reached (Name or service not known)."
    lines = shown(capsys, model("3b", state="failed", reason=f"{reason}\nmore", context_tokens=0, slots=0))
    assert lines[1].split() == ["model", "state", "context", "slots", "on"]
    assert lines[2].split() == ["3b", "failed", "desktop"]
    assert lines[3] == f"3b: {reason}"
    assert len(lines) == 4


def test_who_is_doubted_is_shown_at_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "laptop is passed over as a worker where another can do, for 90 s more: it ended 2 runs of this node."
    doubt = {
        "node": "l" * 52,
        "name": "laptop",
        "role": "worker",
        "times": 2,
        "left_s": 90.0,
        "why": "",
        "sentence": sentence,
    }
    lines = shown(capsys, model("m", role="host", plan="The plan.", doubts=[doubt], advice=["Other ways."]))
    assert lines[3:] == ["m: The plan.", f"m: {sentence}", "m: Other ways."]
