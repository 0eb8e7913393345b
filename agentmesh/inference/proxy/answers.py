"""What the API answers by itself, without a model: the list of models, health, metrics, a word of welcome, and errors.

Owns the forms of these answers in OpenAI's and Anthropic's dialects. Asks for the models anew each time, keeps nothing.
`auto` is not in the list, because clients that take the only model, or write one entry for each, would take it for a model
of its own; but `/v1/models/auto` answers, because some clients look a name up before they use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qs, unquote

from agentmesh.inference.logic.auto import AUTO
from agentmesh.inference.logic.roster import same_name
from agentmesh.inference.logic.target import ServedModel
from agentmesh.inference.proxy.dialects import Answer, error_answer, is_anthropic, json_answer, sse_error
from agentmesh.inference.proxy.ports import Refused
from agentmesh.inference.proxy.refusals import not_ready_here
from agentmesh.inference.serving_types import Unready

__all__ = ["Answer", "LocalAnswers", "error_answer", "is_anthropic", "refused_answer", "sse_error"]

Models = Callable[[], Sequence[tuple[ServedModel, Sequence[bytes]]]]

MAX_PAGE: Final = 1000  # of Anthropic's list; their own limit
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OWNER: Final = "agentmesh"
_GETS: Final = frozenset({"GET", "HEAD"})
_LISTS: Final = frozenset({"/v1/models", "/models"})
_ONE: Final = ("/v1/models/", "/models/")
_HEALTH: Final = frozenset({"/health", "/healthz", "/v1/health"})

WELCOME: Final = """\
This is an agentmesh node. It answers for every model that a node of its mesh serves.

  GET  /v1/models                  what there is
  POST /v1/chat/completions        OpenAI's API; also /v1/completions, /v1/embeddings, /v1/responses
  POST /v1/messages                Anthropic's API; also /v1/messages/count_tokens
  GET  /health, /metrics

Give a client the base URL http://{host}/v1 (Anthropic's: http://{host}) and any API key, unless this node asks for one.
The model is a name from the list, or `auto`.

Models that answer now: {ready}
"""


def refused_answer(path: str, refused: Refused) -> Answer:
    """The answer to a request that no target was found for."""
    return error_answer(path, refused.status, refused.error_code, refused.message, refused.retry_after_s)


class LocalAnswers:
    """See the module. `created_s` is the Unix time that models are said to be from: the node's start. `here`: as Dispatcher's."""

    def __init__(
        self,
        models: Models,
        render_metrics: Callable[[], bytes],
        *,
        created_s: int,
        port: int = 9337,
        here: Callable[[str], Unready | None] = lambda _name: None,
    ) -> None:
        self._here = here
        self._models = models
        self._render_metrics = render_metrics
        self._created_s = created_s
        self._port = port

    def answer(
        self, method: str, path: str, query: str = "", accept: str = "", *, anthropic: bool = False
    ) -> Answer | None:
        """The answer to a request for something of this module; None if it is for something else.

        Args:
            path: percent-encoded, as it came, without the query.
            anthropic: whether the request has an `anthropic-version` header; lists have that form then.
        """
        handler = self._handler(path)
        if handler is None:
            return None
        if method not in _GETS:
            return _not_allowed(path, anthropic)
        return handler(path, query, anthropic)

    def _handler(self, path: str) -> Callable[[str, str, bool], Answer] | None:
        if path in _LISTS:
            return self._list
        if path.startswith(_ONE):
            return self._one
        if path in _HEALTH:
            return self._health
        if path == "/metrics":
            return self._metrics
        return self._welcome if path in {"/", "/v1", "/v1/"} else None

    # ------------------------------------------------------------------ models

    def _list(self, path: str, query: str, anthropic: bool) -> Answer:
        models = self._models()
        if anthropic:
            return _anthropic_page([self._anthropic_model(model) for model, _ in models], query, path)
        return json_answer(
            200, {"object": "list", "data": [self._openai_model(model, len(nodes)) for model, nodes in models]}
        )

    def _one(self, path: str, query: str, anthropic: bool) -> Answer:
        name = unquote(path.split("/models/", 1)[1])
        models = list(self._models())
        if name.lower() == AUTO and models:
            model = ServedModel(id=AUTO, ready=any(model.ready for model, _ in models))
            return json_answer(200, self._anthropic_model(model) if anthropic else self._openai_model(model, 0))
        wanted = same_name(name, [model for model, _ in models])
        for model, nodes in models:
            if model.id == wanted:
                value = self._anthropic_model(model) if anthropic else self._openai_model(model, len(nodes))
                return json_answer(200, value)
        if (here := self._here(name)) is not None:
            message = not_ready_here(name, here).message
            return error_answer(path, 404, "model_not_found", message, anthropic=anthropic)
        known = ", ".join(model.id for model, _ in models[:MAX_LISTED]) or "none"
        message = f"No node of this mesh serves a model named '{name[:200]}'. There is: {known}."
        return error_answer(path, 404, "model_not_found", message, anthropic=anthropic)

    def _openai_model(self, model: ServedModel, nodes: int) -> dict[str, object]:
        return {
            "id": model.id,
            "object": "model",
            "created": self._created_s,
            "owned_by": OWNER,
            "aliases": model.aliases,
            "context_length": model.context_tokens,
            "capabilities": model.capabilities,
            "parameters": model.parameters,
            "ready": model.ready,
            "nodes": nodes,
        }

    def _anthropic_model(self, model: ServedModel) -> dict[str, object]:
        created = datetime.fromtimestamp(self._created_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "type": "model",
            "id": model.id,
            "display_name": model.id,
            "created_at": created,
            "lifecycle": "active",
            "max_input_tokens": model.context_tokens or None,
            "max_tokens": model.context_tokens or None,
        }

    # ------------------------------------------------------------------ the rest

    def _health(self, path: str, query: str, anthropic: bool) -> Answer:
        models = self._models()
        return json_answer(
            200, {"status": "ok", "models": len(models), "ready": sum(model.ready for model, _ in models)}
        )

    def _metrics(self, path: str, query: str, anthropic: bool) -> Answer:
        return Answer(200, METRICS_TYPE, self._render_metrics())

    def _welcome(self, path: str, query: str, anthropic: bool) -> Answer:
        ready = [model.id for model, _ in self._models() if model.ready]
        text = WELCOME.format(host=f"localhost:{self._port}", ready=", ".join(ready[:MAX_LISTED]) or "none yet")
        return Answer(200, "text/plain; charset=utf-8", text.encode())


MAX_LISTED: Final = 30  # names in one sentence


def _not_allowed(path: str, anthropic: bool) -> Answer:
    answer = error_answer(path, 405, "method_not_allowed", "This can only be read: use GET.", anthropic=anthropic)
    return Answer(answer.status, answer.content_type, answer.body, (*answer.headers, ("Allow", "GET, HEAD")))


def _anthropic_page(models: list[dict[str, object]], query: str, path: str) -> Answer:
    """A page of Anthropic's list: `limit`, `after_id`, `before_id` as they define them; everything without a limit."""
    given = parse_qs(query)
    ids = [model["id"] for model in models]
    start, end = 0, len(models)
    if (after := given.get("after_id", [""])[0]) in ids:
        start = ids.index(after) + 1
    before = given.get("before_id", [""])[0]
    if before in ids:
        end = ids.index(before)
    limit_text = given.get("limit", [str(MAX_PAGE)])[0]
    if not limit_text.isdecimal() or not 0 < len(limit_text) <= 4 or not 0 < int(limit_text) <= MAX_PAGE:
        message = f"limit must be a whole number from 1 to {MAX_PAGE}."
        return error_answer(path, 400, "invalid_limit", message, anthropic=True)
    limit = int(limit_text)
    page = models[max(start, end - limit) : end] if before in ids else models[start : min(end, start + limit)]
    more = len(page) < end - start
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return json_answer(200, {"data": page, "has_more": more, "first_id": first, "last_id": last})
