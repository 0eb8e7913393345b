"""What a running engine says of itself: the context and slots that it really has. Asked once it is ready.

Owns two GET requests with small limits; a few an engine's life, so a plain client will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.logic.target import EngineAddress

if TYPE_CHECKING:
    import httpx2

TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024  # /props carries the chat template


class _Generation(msgspec.Struct):
    n_ctx: int = 0


class _Props(msgspec.Struct):
    default_generation_settings: _Generation = msgspec.field(default_factory=_Generation)
    total_slots: int = 0


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


@dataclass(frozen=True, slots=True)
class EngineSays:
    """The context of one slot in tokens and the number of slots, 0 where it does not tell; and the ids it answers to."""

    context_tokens: int
    slots: int
    model_ids: tuple[str, ...]


async def ask_engine(address: EngineAddress) -> EngineSays:
    """Ask for /props and /v1/models.

    Raises:
        EngineFailed: it does not answer, or says something else than llama-server would.
    """
    import httpx2

    transport = httpx2.AsyncHTTPTransport(uds=address.socket)
    base = "http://localhost" if address.socket is not None else f"http://127.0.0.1:{address.port}"
    headers = {"Authorization": f"Bearer {address.api_key}"} if address.api_key is not None else {}
    try:
        async with httpx2.AsyncClient(
            transport=transport, base_url=base, headers=headers, timeout=TIMEOUT_S, trust_env=False
        ) as client:
            props = msgspec.json.decode(await _get(client, "/props"), type=_Props)
            models = msgspec.json.decode(await _get(client, "/v1/models"), type=_Models)
    except (httpx2.HTTPError, msgspec.MsgspecError, OSError) as error:
        raise EngineFailed(f"The engine is ready but does not say what it serves ({error}).") from error
    context = max(props.default_generation_settings.n_ctx, 0)
    return EngineSays(context, max(props.total_slots, 0), tuple(model.id for model in models.data))


async def _get(client: httpx2.AsyncClient, path: str) -> bytes:
    async with client.stream("GET", path) as response:
        response.raise_for_status()
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise EngineFailed(f"The engine's answer to {path} is longer than {MAX_ANSWER_BYTES} bytes.")
    return bytes(body)
