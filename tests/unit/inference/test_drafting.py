"""Drafts: which one is looked for, and when two vocabularies match. Headers are written by the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.logic.drafting import DraftFlags, WantedDraft, pair_draft, wanted_draft
from agentmesh.inference.logic.vocabulary import VocabularyPrint, difference, vocabulary_print
from agentmesh.inference.models.catalog import catalog, draft_of
from agentmesh.inference.models.gguf import read_header

TEXTS = [f"token {number}" for number in range(400)]


def a_print(
    folder: Path,
    texts: list[str],
    *,
    model: str = "gpt2",
    pre: str = "qwen2",
    bos: int | None = None,
    eos: int | None = None,
    adds_bos: bool | None = None,
    adds_eos: bool | None = None,
) -> VocabularyPrint:
    path = folder / f"{len(list(folder.iterdir()))}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    if texts:
        writer.add_token_list(texts)
    if bos is not None:
        writer.add_bos_token_id(bos)
    if eos is not None:
        writer.add_eos_token_id(eos)
    if adds_bos is not None:
        writer.add_add_bos_token(adds_bos)
    if adds_eos is not None:
        writer.add_add_eos_token(adds_eos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return vocabulary_print(read_header(path))


def test_the_same_vocabulary_matches(tmp_path: Path) -> None:
    assert difference(a_print(tmp_path, TEXTS), a_print(tmp_path, TEXTS)) is None


@pytest.mark.parametrize("more", [1, 128])
def test_a_vocabulary_that_was_padded_matches_as_qwen_s_large_and_small_ones_do(tmp_path: Path, more: int) -> None:
    large, small = a_print(tmp_path, TEXTS), a_print(tmp_path, TEXTS[:-more])
    assert difference(large, small) is None
    assert difference(small, large) is None


def test_a_vocabulary_that_is_much_longer_does_not_match(tmp_path: Path) -> None:
    why = difference(a_print(tmp_path, TEXTS), a_print(tmp_path, TEXTS[:-129]))
    assert why is not None
    assert "400 and 271 tokens" in why


@pytest.mark.parametrize("place", [0, 5, 200, 389])
def test_one_other_token_is_enough_to_differ(tmp_path: Path, place: int) -> None:
    other = [*TEXTS[:place], "other", *TEXTS[place + 1 : 390]]
    assert difference(a_print(tmp_path, TEXTS), a_print(tmp_path, other)) == "their vocabularies have different tokens"


def test_the_same_text_cut_elsewhere_differs(tmp_path: Path) -> None:
    assert difference(a_print(tmp_path, ["ab", "c"]), a_print(tmp_path, ["a", "bc"])) is not None


DIFFERENT = [
    ({"model": "llama"}, {"model": "gpt2"}, "different kinds"),
    ({"adds_bos": True, "bos": 1}, {"adds_bos": True, "bos": 2}, "begin texts"),
    ({"adds_bos": True, "bos": 1}, {"adds_bos": False, "bos": 1}, "begin texts"),
    ({"adds_eos": True, "eos": 1}, {"adds_eos": True, "eos": 2}, "end texts"),
    ({"adds_eos": True, "eos": 1}, {"eos": 1}, "end texts"),
    ({"pre": "llama-bpe", "bos": 1}, {"pre": "llama-bpe", "bos": 1, "adds_bos": False}, "begin texts"),
]


@pytest.mark.parametrize(("target", "draft", "said"), DIFFERENT)
def test_special_tokens_that_are_added_must_be_the_same(
    tmp_path: Path, target: dict[str, object], draft: dict[str, object], said: str
) -> None:
    why = difference(a_print(tmp_path, TEXTS, **target), a_print(tmp_path, TEXTS, **draft))  # type: ignore[arg-type]
    assert why is not None
    assert said in why


SAME = [
    ({"adds_bos": False, "bos": 1}, {"adds_bos": False, "bos": 2}),
    ({"pre": "llama-bpe", "bos": 1}, {"pre": "llama-bpe", "bos": 1, "adds_bos": True}),
    ({"model": "llama"}, {"model": "llama", "bos": 1, "adds_bos": True}),
    ({"model": "llama", "bos": 5_000}, {"model": "llama", "bos": 1}),
]


@pytest.mark.parametrize(("target", "draft"), SAME)
def test_what_a_header_leaves_out_counts_as_llama_cpp_fills_it_in(
    tmp_path: Path, target: dict[str, object], draft: dict[str, object]
) -> None:
    assert difference(a_print(tmp_path, TEXTS, **target), a_print(tmp_path, TEXTS, **draft)) is None  # type: ignore[arg-type]


def test_a_file_without_a_vocabulary_drafts_for_nothing(tmp_path: Path) -> None:
    assert difference(a_print(tmp_path, TEXTS), a_print(tmp_path, [])) is not None


# ------------------------------------------------------------------ flags


def test_a_split_gets_the_catalog_s_draft_and_a_single_node_only_if_asked() -> None:
    assert wanted_draft(DraftFlags(), "small", is_split=True) == WantedDraft("small", 8, False)
    assert wanted_draft(DraftFlags(), "small", is_split=False) is None
    assert wanted_draft(DraftFlags(draft_max=4), "small", is_split=False) == WantedDraft("small", 4, False)
    assert wanted_draft(DraftFlags(), None, is_split=True) is None


def test_the_user_s_draft_goes_before_the_catalog_s_and_none_before_both() -> None:
    assert wanted_draft(DraftFlags(draft="mine", draft_max=16), "small", is_split=False) == WantedDraft(
        "mine", 16, True
    )
    assert wanted_draft(DraftFlags(no_draft=True), "small", is_split=True) is None


@pytest.mark.parametrize(
    "flags",
    [
        DraftFlags(draft="x", no_draft=True),
        DraftFlags(draft_max=3, no_draft=True),
        DraftFlags(draft_max=0),
        DraftFlags(draft_max=65),
    ],
)
def test_flags_that_cannot_be_are_refused(flags: DraftFlags) -> None:
    with pytest.raises(InvalidInput, match="--draft-max"):
        wanted_draft(flags, "small", is_split=True)


def test_a_draft_that_does_not_match_is_an_error_if_named_and_left_out_if_not(tmp_path: Path) -> None:
    target, draft = a_print(tmp_path, TEXTS), a_print(tmp_path, TEXTS[:100])
    pairing = pair_draft(WantedDraft("small", 8, False), "big", target, draft)
    assert not pairing.used
    assert "runs without a draft" in pairing.sentence
    with pytest.raises(InvalidInput, match="cannot draft for big"):
        pair_draft(WantedDraft("small", 8, True), "big", target, draft)
    assert pair_draft(WantedDraft("small", 8, False), "big", target, target).used


def test_every_draft_of_the_catalog_is_in_it_and_smaller_by_far() -> None:
    for entry in catalog():
        draft = draft_of(entry)
        if draft is not None:
            assert draft.size_bytes * 2 < entry.size_bytes
            assert draft.draft is None
