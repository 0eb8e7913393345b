"""The catalog: models known by name, with the file that is meant, its size, what it can do, and which small model drafts for it.

Owns catalog.toml and the finding of names in it. Knows no hub and no disk.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Final

import msgspec

from agentmesh.inference.logic.model_files import model_id
from agentmesh.inference.logic.names import MAX_SUGGESTIONS, find
from agentmesh.inference.models.errors import UnknownModel

# Weights may fill this much of a machine's memory; the rest is for context, buffers and the system.
WEIGHTS_SHARE: Final = 0.85
MAX_NAME_CHARS: Final = 200


class CatalogEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the catalog."""

    name: str
    repo: str
    file: str
    size_bytes: int
    context_tokens: int
    capabilities: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    draft: str | None = None
    note: str = ""
    minimum_experts: int | None = None  # that a part of the model needs to be of use; None: half of them

    @property
    def id(self) -> str:
        """The id under which it is served."""
        return model_id(self.file)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[CatalogEntry, ...]


@cache
def catalog() -> tuple[CatalogEntry, ...]:
    """All entries, in the order of the file."""
    text = files("agentmesh.inference.models").joinpath("catalog.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), _File).model


def look_up(name: str) -> CatalogEntry:
    """The entry that is meant by `name`, which may be partial or a little wrong.

    Raises:
        UnknownModel: none or several could be meant; the message offers the nearest.
    """
    entries = {entry.name: entry for entry in catalog()}
    keys, sure = find(name[:MAX_NAME_CHARS], {entry.name: (*entry.aliases, entry.id) for entry in catalog()})
    if sure:
        return entries[keys[0]]
    shown = name[:MAX_NAME_CHARS]
    if keys:
        more = "" if len(keys) <= MAX_SUGGESTIONS else " or another"
        raise UnknownModel(f"No model is called '{shown}'. Did you mean {' or '.join(keys[:MAX_SUGGESTIONS])}{more}?")
    raise UnknownModel(
        f"No model is called '{shown}'. 'agentmesh download' lists what there is; others are named org/repo."
    )


def search_catalog(query: str) -> list[CatalogEntry]:
    """Entries in which every word of `query` occurs, by name, alias, repository or capability."""
    words = query.lower().split()
    return [
        entry
        for entry in catalog()
        if all(
            word in " ".join((entry.name, *entry.aliases, entry.repo, *entry.capabilities)).lower() for word in words
        )
    ]


def entry_of(repo: str, path: str) -> CatalogEntry | None:
    """The entry whose file this is."""
    return next((entry for entry in catalog() if (entry.repo, entry.file) == (repo, path)), None)


def draft_of(entry: CatalogEntry) -> CatalogEntry | None:
    """The entry that drafts for this one."""
    return look_up(entry.draft) if entry.draft else None


def recommended(memory_bytes: int) -> list[CatalogEntry]:
    """What fits a machine with this much memory, the largest first."""
    fitting = [entry for entry in catalog() if entry.size_bytes <= memory_bytes * WEIGHTS_SHARE]
    return sorted(fitting, key=lambda entry: (-entry.size_bytes, entry.name))
