"""Whether a model fits: what it needs (weights, contexts, buffers), what there is, and which context and how many requests at once.

Owns the arithmetic and the sentence that shows it. Measures nothing: rooms are values. docs/serving.md compares it with llama-server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agentmesh.core.units import KIB, MIB
from agentmesh.inference.logic.gguf_facts import ModelFacts
from agentmesh.inference.logic.kv_cache import DEFAULT_UBATCH_TOKENS

NO_DEVICE: Final = "none"  # what --device calls the CPU
MAX_SLOTS: Final = 4  # llama-server's own default; more requests at once cost each of them speed
MIN_CONTEXT_TOKENS: Final = 4 * KIB  # chosen automatically; an agent's system prompt alone may have more
WORKABLE_CONTEXT_TOKENS: Final = 32 * KIB  # from here on a second request at once is worth more than a longer context
UNKNOWN_CONTEXT_TOKENS: Final = 4 * KIB  # of a model whose header names none
MAX_CONTEXT_TOKENS: Final = 1 << 28
MAX_WANTED_SLOTS: Final = 64
EMBEDDING_RESERVE: Final = 8  # so many times what embedding takes beside chat must stay free, or it is left out
MAX_EMBEDDING_BATCH_TOKENS: Final = 8 * KIB  # what the longest embedding models in use take as a whole
# The program itself: 22 MB measured with a vocabulary of 259 tokens; a large vocabulary and its merges take some tens more.
PROCESS_BYTES: Final = 64 * MIB
# A guess from users' reports: the CUDA context and its workspaces, which no log line shows.
DEVICE_CONTEXT_BYTES: Final = 512 * MIB
_FLOAT_BYTES: Final = 4
_MASK_BYTES: Final = 2
# ggml's graph allocator keeps about so many activations of the embedding's length at once, besides the feed-forward's three.
_WIDE_ACTIVATIONS: Final = 4
_FEED_FORWARD_ACTIVATIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Room:
    """One place for a model: a device, several together (`CUDA0,CUDA1`), or the machine's memory (`device` is None, or "none"
    where the engine has devices that are not to be used)."""

    device: str | None
    total_bytes: int
    free_bytes: int

    @property
    def on_device(self) -> bool:
        return self.device not in (None, NO_DEVICE)


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes with `slots` contexts of `context_tokens` each. In bytes, where nothing else is said."""

    weights: int
    contexts: int
    buffers: int
    context_tokens: int
    slots: int
    embeddings: bool = False  # texts can be embedded, too
    draft: int = 0  # all that a draft model takes beside it

    @property
    def total(self) -> int:
        return self.weights + self.contexts + self.buffers + self.draft


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer: where, with what, and whether it fits there. `sentence` carries the whole arithmetic."""

    room: Room
    need: Need
    fits: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class DraftModel:
    """A model that drafts beside another one, at most `max_tokens` at once."""

    facts: ModelFacts
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for; None: what fits. `projector_bytes` come on top of the weights, the draft's bytes beside all."""

    context_tokens: int | None = None
    slots: int | None = None
    projector_bytes: int = 0
    draft: DraftModel | None = None


def buffer_bytes(facts: ModelFacts, context_tokens: int, slots: int, *, ubatch_tokens: int, on_device: bool) -> int:
    """What llama.cpp allocates besides weights and contexts, with flash attention.

    The activations of one batch, the attention mask of one request's context, and one row of logits a slot.
    """
    experts = facts.expert_used_count
    hidden = max(facts.feed_forward_length, experts * facts.expert_feed_forward_length)
    wide = (_WIDE_ACTIVATIONS + experts) * facts.embedding_length
    activations = (wide + _FEED_FORWARD_ACTIVATIONS * hidden) * ubatch_tokens * _FLOAT_BYTES
    mask = context_tokens * ubatch_tokens * _MASK_BYTES
    logits = slots * facts.vocabulary.size * _FLOAT_BYTES
    return activations + mask + logits + PROCESS_BYTES + (DEVICE_CONTEXT_BYTES if on_device else 0)


def draft_bytes(draft: DraftModel, target_vocabulary: int, context_tokens: int, slots: int) -> int:
    """What a draft takes on top of its target: weights, as many contexts of the same length, buffers (its own vocabulary is in
    PROCESS_BYTES), and a row of the target's logits for each drafted token. Where the target is on a device, so is the draft."""
    own = buffer_bytes(
        draft.facts, context_tokens, slots, ubatch_tokens=batch_tokens(draft.facts, context_tokens), on_device=False
    )
    checked = slots * draft.max_tokens * target_vocabulary * _FLOAT_BYTES
    return draft.facts.weight_bytes + draft.facts.kv_bytes(context_tokens) * slots + own + checked


def batch_tokens(facts: ModelFacts, context_tokens: int) -> int:
    """How many tokens are computed at once. A text to embed must fit into one batch."""
    return min(MAX_EMBEDDING_BATCH_TOKENS if embeds(facts) else DEFAULT_UBATCH_TOKENS, context_tokens)


def need_of(facts: ModelFacts, wanted: Wanted, context_tokens: int, slots: int, *, on_device: bool) -> Need:
    """What the model takes. Each slot's context is allocated whole, in f16 for keys and values alike."""
    ubatch = batch_tokens(facts, context_tokens)
    return Need(
        weights=facts.weight_bytes + wanted.projector_bytes,
        contexts=facts.kv_bytes(context_tokens) * slots,
        buffers=buffer_bytes(facts, context_tokens, slots, ubatch_tokens=ubatch, on_device=on_device),
        context_tokens=context_tokens,
        slots=slots,
        draft=draft_bytes(wanted.draft, facts.vocabulary.size, context_tokens, slots)
        if wanted.draft is not None
        else 0,
    )


_EMBEDDING_ARCHITECTURES: Final = ("bert", "gemma-embedding", "t5encoder")
_POOLING_RANK: Final = 4  # llama.h, enum llama_pooling_type: 0 none, 1 mean, 2 cls, 3 last, 4 rank


def embeds(facts: ModelFacts) -> bool:
    """Whether the model makes embeddings instead of text: by its architecture, or its header names a pooling."""
    named = facts.architecture.endswith(_EMBEDDING_ARCHITECTURES) or "-bert" in facts.architecture
    return named or 0 < facts.pooling_type < _POOLING_RANK


def fit_model(name: str, facts: ModelFacts, wanted: Wanted, rooms: Sequence[Room]) -> Fit:
    """The first room in which the model fits, with the best context and number of requests there.

    An explicit context or number of slots is never lowered. None fits: the answer is for the room with most free memory.

    Args:
        rooms: at least one, the preferred first.
    """
    for room in rooms:
        chosen = _choose(facts, wanted, room)
        if chosen is not None:
            # Beside embeddings, llama-server (0c1e570) checks no drafts of requests that ask for backend_sampling: it answers 500.
            if wanted.draft is None or embeds(facts):
                chosen = _with_embeddings(facts, chosen, room)
            return Fit(room, chosen, True, _sentence(name, chosen, room))
    room = max(rooms, key=lambda one: one.free_bytes)
    need = least_need(facts, wanted, on_device=room.on_device)
    return Fit(room, need, False, _sentence(name, need, room))


def least_need(facts: ModelFacts, wanted: Wanted, *, on_device: bool) -> Need:
    """What the model takes at least: with less, it does not fit."""
    smallest = (list(_contexts(facts, wanted))[-1], min(_slot_counts(wanted)))
    return need_of(facts, wanted, *smallest, on_device=on_device)


def _choose(facts: ModelFacts, wanted: Wanted, room: Room) -> Need | None:
    """Two requests at once in a workable context are preferred, within half of what the weights leave free: other models and
    the machine's own work want some. When that cannot be: the longest context in which one request fits."""

    def need(context: int, slots: int) -> Need:
        return need_of(facts, wanted, context, slots, on_device=room.on_device)

    contexts, slot_counts = list(_contexts(facts, wanted)), _slot_counts(wanted)
    workable = min(WORKABLE_CONTEXT_TOKENS, contexts[0])
    for context in contexts:
        for slots in slot_counts:
            one = need(context, slots)
            half = one.weights + max(room.free_bytes - one.weights, 0) // 2
            if context >= workable and slots >= min(2, slot_counts[0]) and one.total <= half:
                return one
    for context in contexts:
        one = need(context, slot_counts[-1])
        if one.total <= room.free_bytes:
            return one
    return None


def _with_embeddings(facts: ModelFacts, need: Need, room: Room) -> Need:
    """A model of text embeds texts, too, where there is memory for it: llama-server then keeps room for the logits of a
    whole batch (311 MB at a vocabulary of 152,064)."""
    if embeds(facts):
        return replace(need, embeddings=True)
    ubatch = batch_tokens(facts, need.context_tokens)
    more = replace(need, buffers=need.buffers + ubatch * facts.vocabulary.size * _FLOAT_BYTES, embeddings=True)
    return more if more.total + EMBEDDING_RESERVE * (more.total - need.total) <= room.free_bytes else need


def _contexts(facts: ModelFacts, wanted: Wanted) -> Iterator[int]:
    """The contexts to try, longest first: what was asked for, else what the model was trained for and its halves."""
    if wanted.context_tokens is not None:
        yield wanted.context_tokens
        return
    context = min(facts.context_length or UNKNOWN_CONTEXT_TOKENS, MAX_CONTEXT_TOKENS)
    yield context
    while context // 2 >= MIN_CONTEXT_TOKENS:
        context //= 2
        yield context


def _slot_counts(wanted: Wanted) -> Sequence[int]:
    return (wanted.slots,) if wanted.slots is not None else range(MAX_SLOTS, 0, -1)


def _sentence(name: str, need: Need, room: Room) -> str:
    requests = f"{need.context_tokens:,} tokens" + (f" x {need.slots} slots" if need.slots > 1 else "")
    draft = f" + draft {size(need.draft)}" if need.draft else ""
    place = f" on {room.device}" if room.on_device else ""
    return (
        f"{name} needs {size(need.total)}: weights {size(need.weights)} + context {size(need.contexts)} ({requests}) "
        f"+ buffers {size(need.buffers)}{draft}; {size(room.free_bytes)} are free of {size(room.total_bytes)}{place}"
    )


def size(count_bytes: int) -> str:
    """A size in GB, or MB when it is small."""
    if count_bytes >= 1e9:
        return f"{count_bytes / 1e9:.1f} GB"
    return f"{max(count_bytes, 0) / 1e6:.0f} MB" if count_bytes >= 1e7 else f"{max(count_bytes, 0) / 1e6:.1f} MB"
