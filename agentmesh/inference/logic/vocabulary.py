"""What two models must share so that one may draft for the other, and whether they do.

Owns the rule of llama.cpp (common/speculative.cpp, common_speculative_are_compatible) and its defaults for what a header leaves out
(llama-vocab.cpp). No texts are needed: the header's digests tell whether one list begins with the other.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agentmesh.inference.logic.gguf_header import TAIL_ITEMS, Header

TOKENS: Final = "tokenizer.ggml.tokens"
# tokenizer.ggml.model -> (add_bos, add_eos, bos, eos) when the header does not say; llama-vocab.cpp. "gpt2" adds a first token for some
# pre-tokenizers.
_DEFAULTS: Final[dict[str, tuple[bool, bool, int, int]]] = {
    "llama": (True, False, 1, 2),
    "bert": (True, False, 101, -1),
    "gpt2": (False, False, 11, 11),
    "t5": (False, True, -1, 1),
    "rwkv": (False, False, -1, -1),
}
_GPT2_WITH_BOS: Final = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("tekken", "chameleon"),
)


class VocabularyPrint(msgspec.Struct, frozen=True, array_like=True):
    """A vocabulary without its texts. `tails`: as in ArrayFacts; `bos`, `eos`: -1 if there is none."""

    model: str
    size: int
    adds_bos: bool
    adds_eos: bool
    bos: int
    eos: int
    tails: tuple[bytes, ...]


def vocabulary_print(header: Header) -> VocabularyPrint:
    """Of a model whose (first) part has this header."""
    model = header.text("tokenizer.ggml.model")
    pre = header.text("tokenizer.ggml.pre")
    adds_bos, adds_eos, bos, eos = _DEFAULTS.get(model, (False, False, -1, -1))
    if model == "gpt2" and pre in _GPT2_WITH_BOS:
        adds_bos = True
    tokens = header.arrays.get(TOKENS)
    return VocabularyPrint(
        model=model,
        size=tokens.count if tokens else 0,
        adds_bos=_flag(header, "tokenizer.ggml.add_bos_token", adds_bos),
        adds_eos=_flag(header, "tokenizer.ggml.add_eos_token", adds_eos),
        bos=_id(header, "tokenizer.ggml.bos_token_id", bos),
        eos=_id(header, "tokenizer.ggml.eos_token_id", eos),
        tails=tokens.tails if tokens else (),
    )


def difference(target: VocabularyPrint, draft: VocabularyPrint) -> str | None:
    """Why the one cannot draft for the other, to be read after "…: "; None if it can.

    Stricter than llama.cpp in one thing: the first five tokens must be equal, too.
    """
    if not target.tails or not draft.tails:
        return "one of the files has no vocabulary"
    if target.model != draft.model:
        return f"their tokenizers are of different kinds ({target.model} and {draft.model})"
    if target.adds_bos != draft.adds_bos or (target.adds_bos and target.bos != draft.bos):
        return "they begin texts with different tokens"
    if target.adds_eos != draft.adds_eos or (target.adds_eos and target.eos != draft.eos):
        return "they end texts with different tokens"
    if abs(target.size - draft.size) > TAIL_ITEMS:
        return f"their vocabularies have {target.size:,} and {draft.size:,} tokens; at most {TAIL_ITEMS} may be more"
    longer, shorter = (target, draft) if target.size >= draft.size else (draft, target)
    at = len(longer.tails) - 1 - (longer.size - shorter.size)
    if at < 0 or longer.tails[at] != shorter.tails[-1]:
        return "their vocabularies have different tokens"
    return None


def _flag(header: Header, key: str, default: bool) -> bool:
    value = header.values.get(key)
    return value if isinstance(value, bool) else default


def _id(header: Header, key: str, default: int) -> int:
    """A header's id counts if it is one of a token; else llama.cpp takes its default, if that is one."""
    tokens = header.arrays.get(TOKENS)
    size = tokens.count if tokens else 0
    given = header.integer(key, -1)
    if 0 <= given < size:
        return given
    return default if default < size else -1
