"""Who can answer for a model, as the proxy sees it: values that serving, presence and routing share.

Owns no state. `ServedModel` is what a node says of a model, whether it is this node or a peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec


class Capability(StrEnum):
    """What a model can be asked for."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    TOOLS = "tools"
    VISION = "vision"
    REASONING = "reasoning"


class ServedModel(msgspec.Struct, frozen=True, array_like=True):
    """One model that a node offers.

    Attributes:
        id: what the API calls it: the stem of its (first) file.
        aliases: other names that requests may use, the catalog's among them.
        ready: whether it answers now; else it is being fetched or loaded.
        context_tokens: of one request (a slot's context), 0 while unknown.
        slots: requests that run at once.
        capabilities: of `Capability`; names that this version does not know are kept.
        parameters: how many the model has, 0 if unknown; `auto` and launchers prefer more.
        size_bytes: of its weights.
        sha256: of its (first) file, empty while unknown. Of a shard: that of the whole model's file, for all shards of one model are
            the same model to whoever asks.
        shard: which part of a mixture of experts it is (logic/shard_name.py), empty: the whole model.
        waits: what it waits for, in a sentence; empty: it does not wait.
    """

    id: str
    aliases: tuple[str, ...] = ()
    ready: bool = False
    context_tokens: int = 0
    slots: int = 1
    capabilities: tuple[str, ...] = ()
    parameters: int = 0
    size_bytes: int = 0
    sha256: str = ""
    shard: str = ""
    waits: str = ""


class EngineAddress(msgspec.Struct, frozen=True):  # pools are found by it: its hash is not computed in Python
    """Where an engine of this node listens: a Unix socket in the home, or a loopback port guarded by a key of its own."""

    socket: str | None = None
    port: int | None = None
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One place that can answer for a model. `engine` is set for this node's own engines, None for a peer."""

    node: bytes
    model: ServedModel
    engine: EngineAddress | None = None

    @property
    def key(self) -> tuple[bytes, str]:
        """What in-flight counts and breakers are kept by."""
        return (self.node, self.model.id)
