"""What a request asks for: its endpoint from the path, its model and needs from the body. Pure.

The body is read by a real parser, which passes over everything but the top-level `model`; what else it holds is between the
client and the engine. Only `auto`, which chooses by need, has more of it read.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.logic.target import Capability

AUTO: Final = "auto"
MAX_MODEL_CHARS: Final = 200  # presence.MAX_NAME_CHARS: no model has a longer name

_OPENAI: Final = {
    "/v1/chat/completions": Capability.CHAT,
    "/v1/completions": Capability.COMPLETION,
    "/v1/responses": Capability.CHAT,
    "/v1/embeddings": Capability.EMBEDDING,
}
_OTHERS: Final = {
    "/v1/messages": Capability.CHAT,
    "/v1/messages/count_tokens": Capability.CHAT,
}
ENDPOINTS: Final[dict[str, Capability]] = {**_OPENAI, **_OTHERS}
"""What is relayed to engines, always by POST, and the capability that each needs."""

_CANONICAL: Final = {path: path for path in ENDPOINTS} | {path.removeprefix("/v1"): path for path in _OPENAI}

# A quotation mark inside a JSON string is escaped, so neither pattern can be met in what a user wrote.
_IMAGE = re.compile(rb'"type"\s*:\s*"(?:image_url|input_image|image)"')


class _Named(msgspec.Struct):
    model: str | None = None


class _Needing(msgspec.Struct):
    tools: list[msgspec.Raw] | None = None


_named = msgspec.json.Decoder(_Named)
_needing = msgspec.json.Decoder(_Needing)


class NotJson(InvalidInput):
    """The request's body is not a JSON object."""


class NoModel(InvalidInput):
    """The request names no model: set `model` to one that GET /v1/models lists, or to "auto"."""


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What a body asks for."""

    model: str
    needs: frozenset[str]


def endpoint_of(path: str) -> str | None:
    """The endpoint as engines know it (`/v1/...`), or None if nothing is relayed there."""
    return _CANONICAL.get(path)


_NEEDS_OF_PATH: Final = {path: frozenset((str(need),)) for path, need in ENDPOINTS.items()}


def read_body(path: str, body: bytes | memoryview) -> Asked:
    """Find the model that `body` names and what the request needs of it.

    Args:
        path: an endpoint that `endpoint_of` gave.
        body: UTF-8 JSON.

    Raises:
        NotJson, NoModel
    """
    try:
        model = _named.decode(body).model
    except msgspec.ValidationError as error:
        if "$.model" in str(error):
            raise NoModel("The field `model` must be a string.") from error
        raise NotJson() from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotJson(f"The request's body is not JSON: {str(error)[:200]}.") from error
    if not model:
        raise NoModel()
    if len(model) > MAX_MODEL_CHARS:
        raise NoModel(f"The name of the model is longer than {MAX_MODEL_CHARS} characters.")
    needs = _NEEDS_OF_PATH[path]
    return Asked(model, needs if model.lower() != AUTO else needs | _needs_of_body(body))


def _needs_of_body(body: bytes | memoryview) -> frozenset[str]:
    needs: set[str] = set()
    try:
        if _needing.decode(body).tools:
            needs.add(str(Capability.TOOLS))
    except (msgspec.ValidationError, RecursionError):  # it is nested just too deeply for this reader
        needs.add(str(Capability.TOOLS))  # something is there; whether it is right, the engine says
    if _IMAGE.search(body) is not None:
        needs.add(str(Capability.VISION))
    return frozenset(needs)
