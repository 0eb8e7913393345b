"""What the parts of running splits see of each other: narrow protocols, so that each can be tested with a few lines instead of a mesh."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from agentmesh.inference.logic.split_offer import WantedModel, WorkedModel
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream

OpenStream = Callable[[bytes, StreamKind], Awaitable[Stream]]
"""mesh.open_stream: node, kind. Raises: Unreachable, StreamClosed."""


class Tells(Protocol):
    """Puts something into this node's own `split` record, and publishes it soon. split/offers.py: SplitOffers."""

    def want(self, model: WantedModel) -> None:
        """Say, or say anew, that this node wants the model of `model.content` spread."""
        ...

    def unwant(self, content: str) -> None:
        """It does not any more."""
        ...

    def work(self, model: WorkedModel) -> None:
        """Say, or say anew, what this node serves of a model for a host, or the highest term that it served."""
        ...
