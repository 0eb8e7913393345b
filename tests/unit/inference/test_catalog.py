"""The catalog, and the finding of names in it."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.model_files import is_model, is_safe_path, quant_of
from agentmesh.inference.logic.names import find
from agentmesh.inference.logic.reference import is_repo
from agentmesh.inference.models.catalog import catalog, draft_of, entry_of, look_up, recommended, search_catalog
from agentmesh.inference.models.errors import UnknownModel


def test_every_entry_can_be_downloaded_by_its_form() -> None:
    for entry in catalog():
        assert is_repo(entry.repo), entry
        assert is_safe_path(entry.file), entry
        assert is_model(entry.file), entry
        assert quant_of(entry.file) == "Q4_K_M", entry
        assert entry.size_bytes > 300_000_000, entry
        assert entry.context_tokens >= 32_768, entry


def test_every_name_and_alias_means_its_own_entry() -> None:
    for entry in catalog():
        for name in (entry.name, entry.id, entry.name.lower(), *entry.aliases):
            assert look_up(name) is entry, name


def test_drafts_are_smaller_models_of_the_same_family() -> None:
    for entry in catalog():
        draft = draft_of(entry)
        if draft is not None:
            assert draft.size_bytes * 2 < entry.size_bytes
            assert draft.name.split("-")[0].split(".")[0] == entry.name.split("-")[0].split(".")[0]


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        ("32b", "Qwen2.5-0.5B-Instruct"),
        ("coder-32b", "Qwen2.5-0.5B-Instruct"),
        ("qwen3-32b", "Qwen3-0.6B"),
        ("llama-3.3", "Llama-3.2-1B-Instruct"),
        ("gemma-3-27b", "Gemma-3-1B-it"),
        ("glm-4.7-flash", None),
    ],
)
def test_the_published_pairs_are_kept(target: str, draft: str | None) -> None:
    assert look_up(target).draft == draft


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("3B", "Qwen2.5-3B-Instruct"),
        ("72b", "Qwen2.5-72B-Instruct"),
        ("qwen2.5 7b", "Qwen2.5-7B-Instruct"),
        ("qwen2.5-coder-7b", "Qwen2.5-Coder-7B-Instruct"),
        ("Qwen3_Coder", "Qwen3-Coder-30B-A3B-Instruct"),
        ("llama 70b", "Llama-3.3-70B-Instruct"),
        ("minimax m2.5", "MiniMax-M2.5"),
        ("glm-4.7", "GLM-4.7-Flash"),
    ],
)
def test_a_partial_name_is_enough(typed: str, meant: str) -> None:
    assert look_up(typed).name == meant


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("gemma", "Gemma-3-1B-it or Gemma-3-4B-it"), ("qwen3-32", "Qwen3-32B"), ("glm-4.8-flash", "GLM-4.7-Flash")],
)
def test_a_name_that_could_mean_several_or_is_misspelt_gets_an_offer(typed: str, offered: str) -> None:
    try:
        assert look_up(typed).name in offered
    except UnknownModel as error:
        assert f"Did you mean {offered}" in error.message


@pytest.mark.parametrize("typed", ["", "zzzz", "3c", "\x1b[31m", "x" * 5000])
def test_nonsense_is_no_model(typed: str) -> None:
    with pytest.raises(UnknownModel) as raised:
        look_up(typed)
    assert len(raised.value.message) < 400


def test_a_letter_that_is_somewhere_in_a_name_is_no_hint_of_it() -> None:
    with pytest.raises(UnknownModel) as raised:
        look_up("x")
    assert "Did you mean" not in raised.value.message


def test_names_are_found_surely_only_when_one_is_meant() -> None:
    names = {"Alpha-7B": ("seven",), "Alpha-70B": (), "Beta-7B-Coder": ()}
    assert find("seven", names) == (["Alpha-7B"], True)
    assert find("alpha", names) == (["Alpha-7B", "Alpha-70B"], False)
    assert find("coder", names) == (["Beta-7B-Coder"], True)
    assert find("alhpa-70b", names)[0][0] == "Alpha-70B"


def test_what_fits_is_recommended_the_largest_first() -> None:
    fitting = recommended(24_000_000_000)
    assert fitting[0].size_bytes <= 0.85 * 24_000_000_000
    assert [e.size_bytes for e in fitting] == sorted((e.size_bytes for e in fitting), reverse=True)
    assert recommended(100_000_000) == []


def test_the_catalog_is_searched_by_name_and_capability() -> None:
    assert {entry.name for entry in search_catalog("vision")} >= {"Gemma-3-27B-it"}
    assert search_catalog("coder 7b")[0].name == "Qwen2.5-Coder-7B-Instruct"
    entry = look_up("3b")
    assert entry_of(entry.repo, entry.file) is entry
    assert entry_of("org/repo", entry.file) is None
