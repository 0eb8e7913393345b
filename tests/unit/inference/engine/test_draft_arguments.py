"""A draft's options, by what the engine knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmesh.inference.engine.draft_arguments import draft_arguments
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineTooOld

NEW = (
    *("--spec-draft-model", "-md", "--model-draft", "--spec-draft-n-max", "--spec-type"),
    *("--spec-draft-device", "-devd", "--device-draft", "--spec-draft-ngl", "-ngld"),
)
OLD = ("-md", "--model-draft", "--draft", "--draft-n", "--draft-max", "-devd", "--device-draft", "-ngld")
DRAFT = Path("/m/draft.gguf")


def an_engine(*flags: str) -> Engine:
    return Engine(("s",), None, None, None, "cpu", "PATH", 1, "c", frozenset(flags), (), True)


def test_of_today_s_engine() -> None:
    assert draft_arguments(an_engine(*NEW), DRAFT, 8) == [
        *("--spec-draft-model", "/m/draft.gguf", "--spec-draft-n-max", "8", "--spec-type", "draft-simple"),
        *("--spec-draft-device", "none", "--spec-draft-ngl", "0"),
    ]


def test_of_an_engine_of_last_year() -> None:
    words = ["--model-draft", "/m/draft.gguf", "--draft-max", "4", "--device-draft", "none", "-ngld", "0"]
    assert draft_arguments(an_engine(*OLD), DRAFT, 4) == words


def test_on_a_local_device() -> None:
    words = draft_arguments(an_engine(*NEW), DRAFT, 8, device="CUDA0")
    assert words[-4:] == ["--spec-draft-device", "CUDA0", "--spec-draft-ngl", "999"]


@pytest.mark.parametrize(
    "missing",
    ["--spec-draft-model -md --model-draft", "--spec-draft-n-max", "--spec-draft-device -devd --device-draft"],
)
def test_an_engine_that_cannot_is_refused_with_the_option(missing: str) -> None:
    flags = [flag for flag in NEW if flag not in missing.split()]
    with pytest.raises(EngineTooOld, match=missing.split(maxsplit=1)[0]):
        draft_arguments(an_engine(*flags), DRAFT, 8)
