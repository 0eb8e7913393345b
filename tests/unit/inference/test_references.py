"""What a user may write for a model, and which files of a repository are meant."""

from __future__ import annotations

import pytest

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.logic.model_files import (
    choose_model,
    choose_projector,
    is_model,
    is_safe_path,
    model_id,
    parts,
    quant_of,
)
from agentmesh.inference.logic.reference import CatalogName, HubFile, HubRepo, LocalFile, Reference, parse_reference

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("3b", CatalogName("3b")),
        (" qwen2.5 coder ", CatalogName("qwen2.5 coder")),
        ("org/repo", HubRepo("org/repo")),
        ("org/repo:q4_k_m", HubRepo("org/repo", "Q4_K_M")),
        ("hf.co/org/repo:UD-Q4_K_XL", HubRepo("org/repo", "UD-Q4_K_XL")),
        ("org/repo/file.gguf", HubFile("org/repo", "file.gguf")),
        ("org/repo/deep/er/file.GGUF", HubFile("org/repo", "deep/er/file.GGUF")),
        ("https://huggingface.co/org/repo", HubRepo("org/repo")),
        ("https://huggingface.co/org/repo/tree/v2", HubRepo("org/repo", revision="v2")),
        ("https://huggingface.co/org/repo/resolve/main/a%20b.gguf?download=true", HubFile("org/repo", "a b.gguf")),
        (f"https://hf.co/org/repo/blob/{SHA}/d/f.gguf", HubFile("org/repo", "d/f.gguf", SHA)),
        ("http://127.0.0.1:99/org/repo/resolve/main/f.gguf", HubFile("org/repo", "f.gguf")),
        ("/models/a.gguf", LocalFile("/models/a.gguf")),
        ("./a/b/c.gguf", LocalFile("./a/b/c.gguf")),
        ("~/a.gguf", LocalFile("~/a.gguf")),
        ("a.gguf", LocalFile("a.gguf")),
        ("models/a.gguf", LocalFile("models/a.gguf")),
    ],
)
def test_every_form_is_understood(text: str, meant: Reference) -> None:
    assert parse_reference(text, "http://127.0.0.1:99") == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 3000,
        "a\x1bb",
        "org/repo/../../etc/x.gguf",
        "org/repo/a/./x.gguf",
        "org/repo//x.gguf",
        "org/repo:../../x",
        "../x/../repo:Q4 K",
        "org/../x.gguf/y.gguf/z.gguf",
        "https://huggingface.co/org/repo/resolve/main/..%2f..%2fx.gguf",
        "https://huggingface.co/org/repo/resolve/main/%2e%2e/x.gguf",
        "https://huggingface.co/org/repo/resolve/..%2fx/x.gguf",
        "https://huggingface.co/org/repo/resolve/main/x.bin",
        "https://example.org/org/repo/resolve/main/x.gguf",
        "https://huggingface.co.example.org/org/repo",
        "https://huggingface.co@example.org/org/repo",
        "https://[broken/org/repo",
        "file:///etc/passwd",
        "https://huggingface.co/org",
        "org/repo/too/deep/d/d/d/d/d/d/d/x.gguf",
    ],
)
def test_what_is_none_of_the_forms_or_climbs_out_is_refused(text: str) -> None:
    try:
        meant = parse_reference(text)
    except InvalidInput as error:
        assert error.exit_code == 2
    else:
        assert isinstance(meant, LocalFile)  # a path that the user typed may go anywhere
        assert text.startswith("../")


@pytest.mark.parametrize(
    "path", ["..", "a/../b", "/a", "a//b", "a\\b", "C:x", "a\0b", "~/x", "", "a/" * 9 + "b", "é" * 200]
)
def test_paths_that_leave_their_folder_or_do_not_fit_are_unsafe(path: str) -> None:
    assert not is_safe_path(path)


def test_a_set_of_parts_is_known_by_its_name() -> None:
    assert parts("d/M-Q4_K_M-00002-of-00003.gguf") == tuple(f"d/M-Q4_K_M-0000{n}-of-00003.gguf" for n in (1, 2, 3))
    assert parts("M.gguf") == ("M.gguf",)
    assert parts("M-00009-of-00003.gguf") == ("M-00009-of-00003.gguf",)
    assert parts("M-00001-of-99999.gguf") == ("M-00001-of-99999.gguf",)
    assert model_id("d/M-Q4_K_M-00002-of-00003.gguf") == "M-Q4_K_M"


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen2.5-3B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("GLM-4.7-Flash-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("x/M-IQ4_XS-00001-of-00002.gguf", "IQ4_XS"),
        ("m.Q8_0.gguf", "Q8_0"),
        ("m-BF16.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Qwen3-8B.gguf", ""),
        ("Q4_K_M.gguf", "Q4_K_M"),
    ],
)
def test_the_quantisation_is_read_from_the_name(name: str, quant: str) -> None:
    assert quant_of(name) == quant


FILES = [
    "README.md",
    "M-Q8_0.gguf",
    "M-Q4_K_M.gguf",
    "UD/M-UD-Q4_K_XL.gguf",
    "BF16/M-BF16-00001-of-00002.gguf",
    "BF16/M-BF16-00002-of-00002.gguf",
    "mmproj-F32.gguf",
    "mmproj-F16.gguf",
    "mmproj-BF16.gguf",
    "imatrix_unsloth.gguf",
]


def test_the_model_that_is_meant_is_chosen() -> None:
    assert choose_model(FILES) == "M-Q4_K_M.gguf"
    assert choose_model(FILES, "q8_0") == "M-Q8_0.gguf"
    assert choose_model(FILES, "BF16") == "BF16/M-BF16-00001-of-00002.gguf"
    assert choose_model(FILES, "Q2_K") is None
    assert choose_model(["weird.gguf"]) == "weird.gguf"
    assert choose_model(["README.md"]) is None


def test_projectors_matrices_and_later_parts_are_no_models() -> None:
    assert [path for path in FILES if not is_model(path)] == [
        "README.md",
        "BF16/M-BF16-00002-of-00002.gguf",
        "mmproj-F32.gguf",
        "mmproj-F16.gguf",
        "mmproj-BF16.gguf",
        "imatrix_unsloth.gguf",
    ]


def test_the_projector_of_the_same_folder_and_of_f16_goes_first() -> None:
    assert choose_projector(FILES, "M-Q8_0.gguf") == "mmproj-F16.gguf"
    assert choose_projector([*FILES, "UD/mmproj-F32.gguf"], "UD/M-UD-Q4_K_XL.gguf") == "UD/mmproj-F32.gguf"
    assert choose_projector(["a.gguf"], "a.gguf") is None
