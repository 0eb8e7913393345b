"""What is written behind the options of splits: as values, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentmesh.cli.split_flags import parse_rpc_peers, parse_tensor_split, split_body
from agentmesh.core.errors import InvalidInput
from agentmesh.mesh.identity import encode_id

AN_ID = encode_id(bytes(range(32)))
NOTHING: dict[str, Any] = {
    **dict.fromkeys(("split", "tensor_split", "host_node", "min_peers", "draft", "draft_max")),
    "no_draft": False,
}


def body(**given: Any) -> dict[str, Any]:
    return split_body({**NOTHING, **given})


def test_nothing_given_says_nothing() -> None:
    assert body() == {}


def test_all_of_a_split_as_fields_of_the_api() -> None:
    assert body(split="layers", tensor_split="3,1.5", host_node=AN_ID.upper(), min_peers=2) == {
        "split": {"way": "layers", "tensor_split": (3.0, 1.5), "host": AN_ID, "min_peers": 2}
    }


@pytest.mark.parametrize(
    ("given", "named"),
    [({"tensor_split": "1,1"}, "tensor-split"), ({"host_node": AN_ID}, "host-node"), ({"min_peers": 0}, "min-peers")],
)
def test_what_belongs_to_a_split_needs_one(given: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=f"--{named} belongs to --split"):
        body(**given)


@pytest.mark.parametrize("text", ["", "1", "1,", "a,b", "1,-1", "1,nan", "1,inf", ",".join("1" * 17), "1;1"])
def test_a_tensor_split_that_is_none_is_refused_and_an_example_given(text: str) -> None:
    with pytest.raises(InvalidInput, match="such as 3,1"):
        parse_tensor_split(text)


def test_a_host_that_is_no_id_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--host-node takes a node's id"):
        body(split="any", host_node="kim")


def test_no_draft_beside_a_draft_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--no-draft cannot"):
        body(no_draft=True, draft="x")
    assert body(no_draft=True) == {"draft": {"draft": None, "draft_max": None, "no_draft": True}}
    assert body(draft="x", draft_max=4) == {"draft": {"draft": "x", "draft_max": 4, "no_draft": False}}


def test_a_drafts_file_is_named_whole_since_the_node_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("small.gguf", "./small.gguf"):
        assert body(draft=text)["draft"]["draft"] == str(tmp_path / "small.gguf")
    for text in (
        "0.5b",
        "org/repo",
        "org/repo:Q8_0",
        "org/repo/a/small.gguf",
        "https://huggingface.co/o/r/blob/main/s.gguf",
    ):
        assert body(draft=text)["draft"]["draft"] == text


def test_lending() -> None:
    assert parse_rpc_peers(None) == (False, frozenset())
    assert parse_rpc_peers("all") == (True, frozenset())
    assert parse_rpc_peers(f"{AN_ID}, {AN_ID}") == (False, frozenset({bytes(range(32))}))
    for wrong in ("", ",", "kim", f"all,{AN_ID}", ",".join([AN_ID] * 65)):
        with pytest.raises(InvalidInput, match="--rpc-peers takes"):
            parse_rpc_peers(wrong)
