"""Which small model drafts for a large one: what the user says, else what the catalog says, and only if the vocabularies match.

Owns the choice and its sentence. Neither looks up names nor opens files: the catalog's draft and both vocabularies are given.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.logic.fit import embeds
from agentmesh.inference.logic.gguf_facts import ModelFacts
from agentmesh.inference.logic.split_limits import DRAFT_MAX_TOKENS, MAX_DRAFT_TOKENS
from agentmesh.inference.logic.vocabulary import VocabularyPrint, difference


@dataclass(frozen=True, slots=True)
class DraftFlags:
    """`--draft NAME` (a catalog name, a repository or a path), `--draft-max N`, `--no-draft`."""

    draft: str | None = None
    draft_max: int | None = None
    no_draft: bool = False


@dataclass(frozen=True, slots=True)
class WantedDraft:
    """A draft to be found and compared. `name` is the user's if `named`, else the catalog's: then it is used only if it is at
    hand, and left out if it does not fit."""

    name: str
    max_tokens: int
    named: bool


@dataclass(frozen=True, slots=True)
class Pairing:
    """Whether the draft is used, and a sentence for status."""

    used: bool
    max_tokens: int
    sentence: str


def wanted_draft(flags: DraftFlags, catalog_draft: str | None, *, is_split: bool) -> WantedDraft | None:
    """Which draft to look for; None: none.

    Without being asked for, only a split gets one: there a token costs round trips, which a draft saves.

    Raises:
        InvalidInput: the flags contradict each other, or the number is out of bounds.
    """
    if flags.no_draft and (flags.draft is not None or flags.draft_max is not None):
        raise InvalidInput("--no-draft cannot be given together with --draft or --draft-max. Leave one out.")
    tokens = DRAFT_MAX_TOKENS if flags.draft_max is None else flags.draft_max
    if not 1 <= tokens <= MAX_DRAFT_TOKENS:
        raise InvalidInput(f"--draft-max takes 1 to {MAX_DRAFT_TOKENS} tokens, not {tokens}.")
    if flags.no_draft:
        return None
    if flags.draft is not None:
        return WantedDraft(flags.draft, tokens, True)
    if catalog_draft is not None and (is_split or flags.draft_max is not None):
        return WantedDraft(catalog_draft, tokens, False)
    return None


def obstacle(target: ModelFacts, draft: ModelFacts, *, has_projector: bool) -> str | None:
    """What stands in the way of drafting whatever the vocabularies, to be read after "…: "; None: nothing.

    Args:
        has_projector: the target is served with one. A picture's embeddings do not fit a draft of another width: llama-server
            (0c1e570) then ends every request that runs.
    """
    if embeds(target):
        return "it makes embeddings, not text"
    if embeds(draft):
        return "the draft makes embeddings, not text"
    if has_projector:
        return "it reads pictures, which llama.cpp does not do beside a draft"
    return None


def pair_draft(
    wanted: WantedDraft, model_id: str, target: VocabularyPrint, draft: VocabularyPrint, hindered: str | None = None
) -> Pairing:
    """Whether the draft that was found is used. `hindered`: see `obstacle`.

    Raises:
        InvalidInput: the user named it, and it cannot draft for this model.
    """
    why = hindered or difference(target, draft)
    if why is None:
        return Pairing(
            True, wanted.max_tokens, f"{wanted.name} drafts up to {wanted.max_tokens} tokens for {model_id}."
        )
    if wanted.named:
        raise InvalidInput(f"{wanted.name} cannot draft for {model_id}: {why}. Name another draft, or use --no-draft.")
    return Pairing(False, 0, f"{model_id} runs without a draft; {wanted.name} cannot draft for it: {why}.")
