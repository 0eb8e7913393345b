"""Which models suit a request for `auto`, best first.

Owns what the endpoints need of a model. Embeddings and images are musts: a model without them gives nonsense or an error.
Tools and reasoning are wishes, because llama-server offers them for most chat models whether or not their header says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agentmesh.inference.logic.target import Capability, ServedModel

AUTO: Final = "auto"
BYTES_PER_TOKEN: Final = 4  # of English and code in JSON; a rough guess that only orders hosts

_ENDPOINTS: Final = {
    "/embeddings": frozenset({Capability.EMBEDDING}),
    "/rerank": frozenset({Capability.EMBEDDING}),
    "/completions": frozenset({Capability.COMPLETION, Capability.CHAT}),
    "/infill": frozenset({Capability.COMPLETION}),
}
_CHAT: Final = frozenset({Capability.CHAT})
_MUSTS: Final = frozenset({Capability.EMBEDDING, Capability.VISION})
# What a model that says nothing is taken for: chat is what nearly all of them are for.
_UNSAID: Final = (Capability.CHAT, Capability.COMPLETION)


def is_auto(name: str) -> bool:
    """Whether the mesh is to choose; a model that is really called so is found by its id before this is asked."""
    return name.lower() == AUTO


def tokens_estimate(body_bytes: int, needs: frozenset[str]) -> int:
    """About how many tokens a request has; 0 if its size says nothing because it holds images."""
    return 0 if Capability.VISION in needs else body_bytes // BYTES_PER_TOKEN


def suitable(models: Iterable[ServedModel], path: str, needs: frozenset[str], body_bytes: int) -> tuple[str, ...]:
    """Ids of the models that can do it, best first: ready, with all that is wished for, with context enough, large.

    Load is not known here: whoever asks takes the first one that has room.
    """
    one_of = _ENDPOINTS.get("/" + path.rstrip("/").rpartition("/")[2], _CHAT)
    musts, wishes = needs & _MUSTS, needs - _MUSTS
    tokens = tokens_estimate(body_bytes, needs)
    ranked: list[tuple[bool, int, bool, int, int, str]] = []
    for model in models:
        can = frozenset(model.capabilities or _UNSAID)
        if not one_of & can or not musts <= can:
            continue
        short = 0 < model.context_tokens < tokens
        ranked.append((not model.ready, len(wishes - can), short, -model.parameters, -model.size_bytes, model.id))
    return tuple(entry[-1] for entry in sorted(ranked))
