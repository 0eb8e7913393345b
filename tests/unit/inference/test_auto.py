"""What `auto` means."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.auto import is_auto, suitable, tokens_estimate
from tests.fakes.routing import model

CHAT = "/v1/chat/completions"
NOTHING: frozenset[str] = frozenset()


def test_auto_is_meant_in_any_case_and_nothing_else_is() -> None:
    assert is_auto("AUTO")
    assert not is_auto("auto-7b")


def test_the_largest_ready_model_is_preferred() -> None:
    models = [model("small", parameters=1), model("big", parameters=9), model("huge", parameters=99, ready=False)]
    assert suitable(models, CHAT, NOTHING, 0) == ("big", "small", "huge")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/v1/embeddings/"])
def test_embeddings_are_asked_of_embedding_models_only(path: str) -> None:
    models = [model("chat"), model("embed", can=("embedding",)), model("unsaid", can=())]
    assert suitable(models, path, NOTHING, 0) == ("embed",)


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/messages", "/v1/messages/count_tokens", "/v1/responses", "/v1/completions"]
)
def test_text_is_never_asked_of_embedding_models(path: str) -> None:
    models = [model("embed", can=("embedding",), parameters=9), model("unsaid", can=())]
    assert suitable(models, path, NOTHING, 0) == ("unsaid",)


def test_images_need_vision() -> None:
    models = [model("text", parameters=9), model("seeing", can=("chat", "vision"))]
    assert suitable(models, CHAT, frozenset({"vision"}), 0) == ("seeing",)
    assert suitable(models[:1], CHAT, frozenset({"vision"}), 0) == ()


def test_tools_are_a_wish() -> None:
    plain, handy = model("plain", can=("chat",), parameters=9), model("handy", parameters=1)
    assert suitable([plain, handy], CHAT, frozenset({"tools"}), 0) == ("handy", "plain")
    assert suitable([plain], CHAT, frozenset({"tools"}), 0) == ("plain",)


def test_a_long_request_prefers_a_long_context() -> None:
    short, long = model("short", context=1000, parameters=9), model("long", context=100_000)
    assert suitable([short, long], CHAT, NOTHING, 40_000)[0] == "long"
    assert suitable([short, long], CHAT, NOTHING, 400)[0] == "short"


def test_the_size_of_a_body_with_images_says_nothing_of_its_tokens() -> None:
    assert tokens_estimate(4000, frozenset({"vision"})) == 0
    assert tokens_estimate(4000, NOTHING) == 1000
