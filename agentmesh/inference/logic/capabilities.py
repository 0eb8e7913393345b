"""What a model can be asked for, from its header and the catalog. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agentmesh.inference.logic.fit import embeds
from agentmesh.inference.logic.gguf_facts import ModelFacts
from agentmesh.inference.logic.target import Capability


def capabilities_of(
    facts: ModelFacts, known: Iterable[str], *, projector: bool, embeddings: bool = False
) -> tuple[str, ...]:
    """The capabilities, sorted. `known` are the catalog's; `vision` needs the projector to be here, whatever it says, and
    a model of text embeds where its engine was started for it (`embeddings`)."""
    if embeds(facts):
        return (str(Capability.EMBEDDING),)
    found = {Capability.COMPLETION, *(one for one in Capability if one in set(known))} - {Capability.VISION}
    if facts.chat_template:
        found.add(Capability.CHAT)
        if facts.template_tools:
            found.add(Capability.TOOLS)
        if facts.template_reasoning:
            found.add(Capability.REASONING)
    if embeddings:
        found.add(Capability.EMBEDDING)
    if projector:
        found.add(Capability.VISION)
    return tuple(sorted(str(one) for one in found))
