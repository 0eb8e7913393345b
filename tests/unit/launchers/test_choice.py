"""Reading the list of models, and choosing."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.core.errors import InvalidInput
from agentmesh.launchers.base import MeshModel
from agentmesh.launchers.choice import find_model, parse_models, strongest
from tests.fakes.model_api import model


def models(*entries: dict[str, Any]) -> tuple[MeshModel, ...]:
    found = parse_models({"object": "list", "data": list(entries)})
    assert found is not None
    return found


def chosen(*entries: dict[str, Any]) -> str | None:
    best = strongest(models(*entries))
    return best.id if best is not None else None


def test_the_list_of_agentmesh_is_read() -> None:
    (found,) = models(model("m-Q4", aliases=["m"], parameters=3, context_length=4096, ready=False))
    assert found == MeshModel("m-Q4", ("m",), 4096, frozenset(("chat", "completion", "tools")), 3, False)


@pytest.mark.parametrize(
    ("entry", "context_tokens", "parameters"),
    [
        ({"id": "x"}, 0, 0),
        ({"id": "x", "max_model_len": 40960}, 40960, 0),
        ({"id": "x", "meta": {"n_ctx_train": 32768, "n_params": 5}}, 32768, 5),
        ({"id": "x", "meta": {"n_ctx_train": 32768, "n_ctx": 2048}}, 2048, 0),
        ({"id": "x", "context_length": True, "parameters": -4}, 0, 0),
    ],
)
def test_lists_of_other_servers_are_read(entry: dict[str, Any], context_tokens: int, parameters: int) -> None:
    (found,) = models(entry)
    assert (found.context_tokens, found.parameters, found.ready) == (context_tokens, parameters, True)
    assert found.can("tools")
    assert found.context > 0


@pytest.mark.parametrize("answer", [None, [], "x", {}, {"data": {}}, {"models": []}])
def test_an_answer_that_is_no_list_of_models_is_none(answer: object) -> None:
    assert parse_models(answer) is None


def test_entries_that_cannot_be_used_are_left_out() -> None:
    bad: list[Any] = [7, {}, {"id": ""}, {"id": 3}, {"id": "a\x1b[31m"}, {"id": "x" * 201}]
    assert parse_models({"data": [*bad, {"id": "good"}]}) == (MeshModel("good"),)


def test_models_that_only_embed_are_not_offered_to_agents() -> None:
    assert models(model("e", capabilities=["embedding"])) == ()


def test_the_one_with_most_parameters_is_the_strongest() -> None:
    assert chosen(model("a", parameters=3), model("b", parameters=70), model("c", parameters=7)) == "b"


def test_of_equal_size_the_longer_context_wins() -> None:
    assert chosen(model("a", context_length=8192), model("b", context_length=4096)) == "a"


def test_tools_go_before_size() -> None:
    assert chosen(model("talker", parameters=70, capabilities=["chat"]), model("worker", parameters=3)) == "worker"


def test_without_any_tool_capable_model_the_biggest_is_taken() -> None:
    talkers = (model(name, parameters=n, capabilities=["chat"]) for name, n in (("a", 1), ("b", 2)))
    assert chosen(*talkers) == "b"


def test_a_model_that_is_not_ready_is_not_chosen() -> None:
    assert chosen(model("big", parameters=70, ready=False), model("small", parameters=3)) == "small"
    assert chosen(model("big", ready=False)) is None


def test_the_choice_does_not_depend_on_the_order() -> None:
    entries = [model("a"), model("b"), model("c")]
    assert chosen(*entries) == chosen(*reversed(entries))


@pytest.mark.parametrize("name", ["Qwen2.5-3B-Instruct-Q4_K_M", "3b", "qwen2.5-3b-instruct-q4_k_m"])
def test_a_model_is_found_by_id_or_alias_whatever_the_case(name: str) -> None:
    all_models = models(model("Qwen2.5-3B-Instruct-Q4_K_M", aliases=["3b"]), model("other"))
    assert find_model(all_models, name).id == "Qwen2.5-3B-Instruct-Q4_K_M"


def test_an_unknown_model_gets_a_suggestion() -> None:
    with pytest.raises(InvalidInput, match=r"no model 'qwen2.5-3'.*mean Qwen2.5-3B-Q4\?"):
        find_model(models(model("Qwen2.5-3B-Q4"), model("llama")), "qwen2.5-3")


def test_an_unknown_model_without_a_close_one_names_what_there_is() -> None:
    with pytest.raises(InvalidInput, match="there are: llama, phi"):
        find_model(models(model("phi"), model("llama")), "zzzzzz")


@pytest.mark.parametrize(
    ("context", "output"), [(131_072, 32_000), (32_768, 8_192), (8_192, 4_096), (2_048, 2_048), (0, 8_192)]
)
def test_an_answer_gets_a_quarter_of_the_context_but_not_too_little(context: int, output: int) -> None:
    assert MeshModel("x", context_tokens=context).output_tokens == output
