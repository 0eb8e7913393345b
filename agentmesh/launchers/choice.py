"""Which model an agent gets: reads `GET /v1/models` and chooses. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, cast

from agentmesh.core.errors import InvalidInput
from agentmesh.launchers.base import MeshModel

MAX_SUGGESTIONS: Final = 3
MAX_LISTED: Final = 10
MAX_NAME_CHARS: Final = 200


def parse_models(answer: object) -> tuple[MeshModel, ...] | None:
    """The models of a `GET /v1/models` answer, of agentmesh or another server; None if it is no such answer."""
    if not isinstance(answer, dict):
        return None
    listed = cast("dict[str, Any]", answer).get("data")
    if not isinstance(listed, list):
        return None
    entries = [cast("dict[str, Any]", entry) for entry in cast("list[Any]", listed) if isinstance(entry, dict)]
    models = [_model(entry) for entry in entries if _is_name(entry.get("id"))]
    return tuple(model for model in models if _can_chat(model))


def _model(entry: Mapping[str, Any]) -> MeshModel:
    meta = entry.get("meta")
    facts = {**cast("dict[str, Any]", meta), **entry} if isinstance(meta, dict) else dict(entry)
    # Ours, then what vLLM and llama-server call it.
    contexts = (facts.get(name) for name in ("context_length", "max_model_len", "n_ctx", "n_ctx_train"))
    return MeshModel(
        id=str(entry["id"]),
        aliases=tuple(name for name in _list(entry.get("aliases")) if _is_name(name)),
        context_tokens=next((number for value in contexts if (number := _count(value))), 0),
        capabilities=frozenset(str(item) for item in _list(entry.get("capabilities"))),
        parameters=_count(facts.get("parameters")) or _count(facts.get("n_params")),
        ready=entry.get("ready") is not False,
    )


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _can_chat(model: MeshModel) -> bool:
    return not model.capabilities or bool(model.capabilities & {"chat", "tools", "completion"})


def strength(model: MeshModel) -> tuple[bool, bool, int, int, str]:
    """What is better sorts later: with tools, made for chat, then parameters, context, and the name so that ties are settled."""
    return model.can("tools"), model.can("chat"), model.parameters, model.context_tokens, model.id


def find_model(models: Sequence[MeshModel], wanted: str) -> MeshModel:
    """The model of that id or alias. Raises: InvalidInput: there is none; the message names what there is."""
    by_name = {name: model for model in models for name in (*model.aliases, model.id)}
    if wanted in by_name:
        return by_name[wanted]
    folded = {name.casefold(): model for name, model in by_name.items()}
    if wanted.casefold() in folded:
        return folded[wanted.casefold()]
    close = get_close_matches(wanted.casefold(), list(folded), n=MAX_SUGGESTIONS, cutoff=0.5)
    close += [name for name in folded if wanted.casefold() in name and name not in close]
    suggested = list(dict.fromkeys(folded[name].id for name in close))[:MAX_SUGGESTIONS]
    if suggested:
        raise InvalidInput(f"There is no model '{wanted}' on the mesh. Did you mean {' or '.join(suggested)}?")
    listed = ", ".join(sorted(model.id for model in models)[:MAX_LISTED])
    raise InvalidInput(f"There is no model '{wanted}' on the mesh; there are: {listed}.")


def strongest(models: Sequence[MeshModel]) -> MeshModel | None:
    """The strongest one that is ready, tool-capable ones first; None when none is ready."""
    return max((model for model in models if model.ready), key=strength, default=None)
