"""What the API answers by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentmesh.inference.logic.target import ServedModel
from agentmesh.inference.proxy.answers import (
    Answer,
    LocalAnswers,
    error_answer,
    is_anthropic,
    refused_answer,
    sse_error,
)
from agentmesh.inference.proxy.ports import Refused
from agentmesh.inference.serving_types import ModelState, Unready
from tests.fakes.routing import ME, model, peer

CREATED_S = 1_700_000_000


def _answers(*models: ServedModel) -> LocalAnswers:
    return LocalAnswers(
        lambda: [(served, (ME, peer(1))) for served in models], lambda: b"metrics\n", created_s=CREATED_S, port=4711
    )


def _get(answers: LocalAnswers, path: str, query: str = "", *, anthropic: bool = False) -> Any:
    answer = answers.answer("GET", path, query, anthropic=anthropic)
    assert answer is not None
    return json.loads(answer.body)


QWEN = model("Qwen", aliases=("qwen2.5",), context=32768, parameters=7, can=("chat", "tools"))
SLASHED = model("org/repo/file", ready=False)


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_models_are_listed_in_openais_form_with_what_launchers_need(path: str) -> None:
    listed = _get(_answers(QWEN, SLASHED), path)
    assert listed["object"] == "list"
    assert listed["data"][0] == {
        "id": "Qwen",
        "object": "model",
        "created": CREATED_S,
        "owned_by": "agentmesh",
        "aliases": ["qwen2.5"],
        "context_length": 32768,
        "capabilities": ["chat", "tools"],
        "parameters": 7,
        "ready": True,
        "nodes": 2,
    }
    assert [entry["id"] for entry in listed["data"]] == ["Qwen", "org/repo/file"]


def test_a_model_that_failed_here_is_not_listed_and_says_why_to_who_looks_it_up() -> None:
    failed = {"tiny": Unready("tiny", ModelState.FAILED, "tiny.gguf is cut short.", "tiny")}
    answers = LocalAnswers(lambda: [(QWEN, (ME,))], bytes, created_s=CREATED_S, here=failed.get)
    assert [entry["id"] for entry in _get(answers, "/v1/models")["data"]] == ["Qwen"]
    answer = answers.answer("GET", "/v1/models/tiny")
    assert answer is not None
    assert answer.status == 404
    assert "tiny.gguf is cut short." in json.loads(answer.body)["error"]["message"]
    assert _get(answers, "/v1/models/Qwen")["ready"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_sdks_are_told_not_to_try_again_what_failed_for_good(path: str) -> None:
    assert ("x-should-retry", "false") in refused_answer(path, Refused(500, "model_failed", "No.")).headers
    assert refused_answer(path, Refused(503, "model_loading", "Wait.", 5)).headers == (("Retry-After", "5"),)


def test_an_empty_mesh_has_an_empty_list() -> None:
    assert _get(_answers(), "/v1/models") == {"object": "list", "data": []}
    assert _get(_answers(), "/v1/models", anthropic=True) == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


def test_models_are_listed_in_anthropics_form_for_its_clients() -> None:
    listed = _get(_answers(QWEN, SLASHED), "/v1/models", anthropic=True)
    assert listed["data"][0] == {
        "type": "model",
        "id": "Qwen",
        "display_name": "Qwen",
        "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active",
        "max_input_tokens": 32768,
        "max_tokens": 32768,
    }
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "Qwen", "org/repo/file")


@pytest.mark.parametrize(
    ("query", "ids", "more"),
    [
        ("", "abcd", False),
        ("limit=2", "ab", True),
        ("limit=4", "abcd", False),
        ("limit=2&after_id=b", "cd", False),
        ("limit=1&after_id=b", "c", True),
        ("after_id=d", "", False),
        ("limit=2&before_id=d", "bc", True),
        ("before_id=b", "a", False),
        ("after_id=unknown", "abcd", False),
    ],
)
def test_anthropics_pages_follow_its_cursors(query: str, ids: str, more: bool) -> None:
    page = _get(_answers(*[model(name) for name in "abcd"]), "/v1/models", query, anthropic=True)
    assert ("".join(entry["id"] for entry in page["data"]), page["has_more"]) == (ids, more)


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1001", "9" * 5000, "1.5", "²"])
def test_an_impossible_limit_is_refused(limit: str) -> None:
    answer = _answers(QWEN).answer("GET", "/v1/models", f"limit={limit}", anthropic=True)
    assert answer is not None
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "path",
    ["/v1/models/org/repo/file", "/v1/models/org%2Frepo%2Ffile", "/models/org%2frepo/file", "/v1/models/ORG/repo/FILE"],
)
def test_one_model_is_found_though_its_id_has_slashes(path: str) -> None:
    assert _get(_answers(QWEN, SLASHED), path)["id"] == "org/repo/file"


def test_one_model_is_found_by_its_alias() -> None:
    assert _get(_answers(QWEN), "/v1/models/QWEN2.5", anthropic=True)["id"] == "Qwen"


@pytest.mark.parametrize("path", ["/v1/models/none", "/v1/models/", "/v1/models/%00%ff", "/v1/models/" + "x" * 9000])
@pytest.mark.parametrize("anthropic", [True, False])
def test_an_unknown_model_is_404_with_the_list(path: str, anthropic: bool) -> None:
    answer = _answers(QWEN).answer("GET", path, anthropic=anthropic)
    assert answer is not None
    assert answer.status == 404
    assert "There is: Qwen" in json.loads(answer.body)["error"]["message"]
    assert len(answer.body) < 1000


def test_auto_is_not_listed_but_can_be_looked_up() -> None:
    assert [entry["id"] for entry in _get(_answers(QWEN), "/v1/models")["data"]] == ["Qwen"]
    assert _get(_answers(QWEN), "/v1/models/auto")["ready"] is True
    answer = _answers().answer("GET", "/v1/models/auto")
    assert answer is not None and answer.status == 404


@pytest.mark.parametrize("path", ["/health", "/healthz"])
def test_health_says_how_many_models_answer(path: str) -> None:
    assert _get(_answers(QWEN, SLASHED), path) == {"status": "ok", "models": 2, "ready": 1}


def test_the_front_page_says_what_this_is_and_how_to_use_it() -> None:
    answer = _answers(QWEN, SLASHED).answer("GET", "/")
    assert answer is not None
    assert answer.content_type.startswith("text/plain")
    assert b"http://localhost:4711/v1" in answer.body
    assert answer.body.rstrip().endswith(b"Models that answer now: Qwen")


def test_metrics_are_prometheus_text() -> None:
    answer = _answers().answer("GET", "/metrics")
    assert answer == Answer(200, "text/plain; version=0.0.4; charset=utf-8", b"metrics\n")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/modelsx", "/metrics/x", "/props", "", "/v2/models"])
def test_other_paths_are_not_answered_here(path: str) -> None:
    assert _answers(QWEN).answer("GET", path) is None


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/Qwen", "/", "/health", "/metrics"])
def test_what_can_only_be_read_says_so(path: str) -> None:
    answer = _answers(QWEN).answer("POST", path)
    assert answer is not None
    assert answer.status == 405
    assert ("Allow", "GET, HEAD") in answer.headers
    head = _answers(QWEN).answer("HEAD", path)
    assert head is not None and head.status == 200


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/messages", True),
        ("/v1/messages?beta=true", True),
        ("/v1/messages/count_tokens", True),
        ("/messages", True),
        ("/v1/chat/completions", False),
        ("/v1/messagesx", False),
    ],
)
def test_the_path_tells_the_dialect(path: str, expected: bool) -> None:
    assert is_anthropic(path) is expected


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (404, "invalid_request_error"), (429, "rate_limit_error"), (503, "server_error")],
)
def test_openais_errors_have_its_four_fields(status: int, kind: str) -> None:
    answer = error_answer("/v1/chat/completions", status, "some_code", "Sentence.")
    assert json.loads(answer.body) == {
        "error": {"message": "Sentence.", "type": kind, "param": None, "code": "some_code"}
    }
    assert answer.headers == ()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_anthropics_errors_have_its_types(status: int, kind: str) -> None:
    answer = error_answer("/v1/messages", status, "code", "Sentence.")
    assert json.loads(answer.body) == {"type": "error", "error": {"type": kind, "message": "Sentence."}}


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.1, "2"), (30, "30")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, header: str) -> None:
    assert error_answer("/v1/completions", 503, "c", "m", seconds).headers == (("Retry-After", header),)


def test_a_refusal_becomes_an_answer() -> None:
    answer = refused_answer("/v1/embeddings", Refused(404, "model_not_found", "No such.", None))
    assert (answer.status, json.loads(answer.body)["error"]["param"]) == (404, "model")


def test_a_broken_stream_ends_with_an_event_of_its_own() -> None:
    event = sse_error("/v1/chat/completions", "It broke.").decode()
    assert event.startswith("\n\ndata: ") and event.endswith("\n\n")
    assert json.loads(event.strip().removeprefix("data: "))["error"]["message"] == "It broke."
    for path, kind in (("/v1/messages", "error"), ("/v1/responses", "error")):
        name, data = sse_error(path, "It broke.").decode().strip().split("\n")
        assert name == "event: error"
        assert json.loads(data.removeprefix("data: "))["type"] == kind
