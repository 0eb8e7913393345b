"""Words of a command line by what the program's help named: one of several spellings of an option, or none."""

from __future__ import annotations

from collections.abc import Sequence

from agentmesh.inference.engine.errors import EngineTooOld


def needed(flags: frozenset[str], names: Sequence[str], *value: str, so: str = "") -> list[str]:
    """The first of these names that the program knows, with its value.

    Args:
        so: what cannot be done without it, for the sentence: "it cannot use a draft".

    Raises:
        EngineTooOld: it knows none of them.
    """
    if found := optional(flags, names, *value):
        return found
    consequence = f", so {so}" if so else ""
    raise EngineTooOld(
        f"The llama.cpp engine knows no option {names[0]}{consequence}. Build a newer one with: agentmesh engine install"
    )


def optional(flags: frozenset[str], names: Sequence[str], *value: str) -> list[str]:
    """The same; nothing if it knows none of them."""
    for name in names:
        if name in flags:
            return [name, *value]
    return []
