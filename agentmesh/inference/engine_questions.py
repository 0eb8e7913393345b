"""What a running engine says of itself: the context and slots that it really has. Asked once it is ready."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.health import ask_engine
from agentmesh.inference.logic.target import EngineAddress

TIMEOUT_S: Final = 10.0  # a large model that was just loaded may be slow to begin

T = TypeVar("T")


class _Generation(msgspec.Struct):
    n_ctx: int = 0


class _Props(msgspec.Struct):
    default_generation_settings: _Generation = msgspec.field(default_factory=_Generation)
    total_slots: int = 0


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Slot(msgspec.Struct):
    is_processing: bool = False


@dataclass(frozen=True, slots=True)
class EngineSays:
    """The context of one slot in tokens and the number of slots, 0 where it does not tell; and the ids it answers to."""

    context_tokens: int
    slots: int
    model_ids: tuple[str, ...]


async def ask_serving(address: EngineAddress) -> EngineSays:
    """Ask for /props and /v1/models.

    Raises:
        EngineFailed: it does not answer, or says something else than llama-server would.
    """
    props = await _json(address, "/props", _Props)
    models = await _json(address, "/v1/models", _Models)
    context = max(props.default_generation_settings.n_ctx, 0)
    return EngineSays(context, max(props.total_slots, 0), tuple(model.id for model in models.data))


async def is_busy(address: EngineAddress) -> bool:
    """Whether it computes an answer; not, if it does not say."""
    try:
        slots = await _json(address, "/slots", list[_Slot])
    except EngineFailed:
        return False
    return any(slot.is_processing for slot in slots)


async def _json(address: EngineAddress, path: str, shape: type[T]) -> T:
    answer = await ask_engine(address, path, timeout_s=TIMEOUT_S)
    head, _, body = (answer or b"").partition(b"\r\n\r\n")
    if head.split(b" ", 2)[1:2] != [b"200"]:
        raise EngineFailed(f"The engine is ready but does not answer {path}.")
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.MsgspecError as error:
        raise EngineFailed(
            f"The engine answers {path} with something else than llama-server would ({error})."
        ) from error
