"""What a request asks for: its endpoint, its model, its needs."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.classify import ENDPOINTS, NoModel, NotJson, endpoint_of, read_body

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/v1/chat/completions", CHAT),
        ("/chat/completions", CHAT),
        ("/v1/messages", "/v1/messages"),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/messages", None),
        ("/v1/chat/completions/", None),
        ("/V1/chat/completions", None),
        ("/v1/../slots", None),
        ("/slots", None),
        ("", None),
    ],
)
def test_only_listed_paths_are_endpoints(path: str, endpoint: str | None) -> None:
    assert endpoint_of(path) == endpoint


def test_the_top_level_model_counts_and_no_other() -> None:
    body = b'{"messages":[{"model":"inner"}],"tools":{"model":"t"},"model":"outer","x":"\\"model\\":\\"y\\""}'
    assert read_body(CHAT, body).model == "outer"


def test_the_last_of_two_models_counts_as_for_the_engine() -> None:
    assert read_body(CHAT, b'{"model":"a","model":"b"}').model == "b"


@pytest.mark.parametrize("body", [b"", b"null", b'"m"', b"[]", b"{", b'{"model":"m"} x', b"\xff", b"[" * 10_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(NotJson):
        read_body(CHAT, body)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"model":null}', b'{"model":""}', b'{"model":["m"]}', b'{"model":"%b"}' % (b"m" * 201)]
)
def test_a_body_without_a_usable_model_is_refused(body: bytes) -> None:
    with pytest.raises(NoModel):
        read_body(CHAT, body)


def test_a_memoryview_is_read_as_well() -> None:
    assert read_body(CHAT, memoryview(b'{"model":"m"}')).model == "m"


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_endpoint_needs_its_capability(path: str) -> None:
    assert read_body(path, b'{"model":"m"}').needs == {str(ENDPOINTS[path])}


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        (b'{"model":"auto"}', {"chat"}),
        (b'{"model":"AUTO","tools":[]}', {"chat"}),
        (b'{"model":"auto","tools":[{"type":"function"}]}', {"chat", "tools"}),
        (b'{"model":"auto","tools":{}}', {"chat", "tools"}),
        (b'{"model":"auto","messages":[{"content":[{"type": "image_url"}]}]}', {"chat", "vision"}),
        (b'{"model":"auto","messages":[{"content":[{"type":"image"}]}]}', {"chat", "vision"}),
        (b'{"model":"auto","messages":[{"content":"what is \\"type\\":\\"image\\"?"}]}', {"chat"}),
        (b'{"model":"m","tools":[{"type":"function"}]}', {"chat"}),
    ],
)
def test_what_auto_must_be_able_to_do_is_seen_in_the_body(body: bytes, needs: set[str]) -> None:
    assert read_body(CHAT, body).needs == needs
