"""`agentmesh models …` and `agentmesh download` against a hub on loopback: words, JSON and exit codes."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.cli.main import run
from agentmesh.inference.models import catalog as catalog_module
from agentmesh.inference.models import local, upkeep
from agentmesh.inference.models.catalog import CatalogEntry
from tests.fakes.hub_server import HubServer
from tests.fakes.tiny_gguf import LLAMA, QWEN3_MOE, write_tiny

REPO = "maker/Tiny-GGUF"
ENTRY = CatalogEntry("Tiny", REPO, "Tiny-Q4_K_M.gguf", 1_000, 512, ("chat",), aliases=("t1",), draft="Small")
SMALL = CatalogEntry("Small", "maker/Small-GGUF", "Small-Q4_K_M.gguf", 100, 512, ("chat",))


@pytest.fixture
def tiny(tmp_path: Path) -> bytes:
    return write_tiny(tmp_path / "tiny.gguf", LLAMA)[0].read_bytes()


@pytest.fixture
def server(tmp_path: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(catalog_module, "catalog", lambda: (ENTRY, SMALL))
    files = {"Tiny-Q4_K_M.gguf": tiny, "Tiny-Q8_0.gguf": b"8" * 99}
    with HubServer({REPO: files, "maker/Small-GGUF": {"Small-Q4_K_M.gguf": tiny[:-1] + b"?"}}) as hub:
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield hub


Out = pytest.CaptureFixture[str]


def said(capsys: Out, *arguments: str) -> tuple[int, str, str]:
    code = run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def answered(capsys: Out, *arguments: str) -> Any:
    code, out, err = said(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("name", ["t1", "Tiny", REPO, f"{REPO}:Q4_K_M", f"{REPO}/Tiny-Q4_K_M.gguf"])
def test_download_prints_the_path_on_stdout_and_progress_on_stderr(
    server: HubServer, capsys: Out, tiny: bytes, name: str
) -> None:
    code, out, err = said(capsys, "download", name)
    assert code == 0, err
    assert Path(out.strip()).read_bytes() == tiny
    assert "100 %" in err


def test_download_with_a_draft_brings_both(server: HubServer, capsys: Out) -> None:
    models = answered(capsys, "models", "download", "Tiny", "--draft")["models"]
    assert [model["id"] for model in models] == ["Tiny-Q4_K_M", "Small-Q4_K_M"]


def test_download_without_a_name_lists_the_catalog(server: HubServer, capsys: Out) -> None:
    assert [entry["name"] for entry in answered(capsys, "download")["models"]] == ["Tiny", "Small"]
    code, out, _ = said(capsys, "download")
    assert code == 0
    assert "Tiny (t1)" in out


def test_what_is_installed_is_listed_shown_and_deleted(server: HubServer, capsys: Out) -> None:
    assert answered(capsys, "models", "installed")["models"] == []
    assert answered(capsys, "models", "show", "t1")["installed"] is False
    said(capsys, "download", "t1")
    (model,) = answered(capsys, "models", "installed")["models"]
    assert (model["id"], model["repo"], model["quant"], model["missing"]) == ("Tiny-Q4_K_M", REPO, "Q4_K_M", [])
    shown = answered(capsys, "models", "show", "t1")
    assert (shown["installed"], shown["architecture"], shown["kv_bytes_per_token"]["f16"]) == (True, "llama", 256)
    code, out, _ = said(capsys, "models", "show", REPO)
    assert code == 0
    assert "256 bytes a token" in out
    assert answered(capsys, "models", "delete", "t1")["size_bytes"] == model["size_bytes"]
    assert answered(capsys, "models", "installed")["models"] == []
    code, _, err = said(capsys, "models", "delete", "t1")
    assert code == 1
    assert "not installed" in err


def test_the_hub_and_the_catalog_are_searched(server: HubServer, capsys: Out) -> None:
    assert [hit["repo"] for hit in answered(capsys, "models", "search", "tiny")["repos"]] == [REPO]
    asked = len(server.requests)
    assert [e["name"] for e in answered(capsys, "models", "search", "small", "--catalog")["models"]] == ["Small"]
    assert len(server.requests) == asked
    assert said(capsys, "models", "search", " ")[0] == 2


def test_updates_are_seen_and_fetched(server: HubServer, capsys: Out, tiny: bytes) -> None:
    said(capsys, "download", "t1")
    assert [m["state"] for m in answered(capsys, "models", "updates", "--check")["models"]] == ["current"]
    server.repos[REPO]["Tiny-Q4_K_M.gguf"] = newer = tiny[:-1] + b"N"
    (update,) = answered(capsys, "models", "updates")["models"]
    assert (update["state"], update["size_bytes"]) == ("outdated", len(newer))
    assert [m["current"] for m in answered(capsys, "models", "installed")["models"]] == [True]
    assert said(capsys, "models", "updates", "--all")[0] == 0
    assert [m["state"] for m in answered(capsys, "models", "updates")["models"]] == ["current"]
    assert sorted(m["current"] for m in answered(capsys, "models", "installed")["models"]) == [False, True]
    assert answered(capsys, "models", "prune", "--dry-run")["size_bytes"] == len(tiny)
    assert answered(capsys, "models", "prune")["size_bytes"] == len(tiny)
    assert len(answered(capsys, "models", "installed")["models"]) == 1
    del server.repos[REPO]["Tiny-Q4_K_M.gguf"]
    assert [m["state"] for m in answered(capsys, "models", "updates", REPO)["models"]] == ["withdrawn"]
    assert said(capsys, "models", "updates", REPO, "--all")[0] == 2


def test_only_what_the_hub_publishes_is_migrated(server: HubServer, capsys: Out, tmp_path: Path, tiny: bytes) -> None:
    old = tmp_path / "models"
    (old / "deep").mkdir(parents=True)
    (old / "deep" / "Tiny-Q4_K_M.gguf").write_bytes(tiny)
    (old / "Small-Q4_K_M.gguf").write_bytes(tiny)  # the name and size of the published one, other content
    (old / "mine.gguf").write_bytes(b"mine")
    planned = answered(capsys, "models", "migrate", "--from", str(old))["files"]
    assert sorted(Path(f["source"]).name for f in planned if f["action"] == "move") == [
        "Small-Q4_K_M.gguf",
        "Tiny-Q4_K_M.gguf",
    ]
    assert answered(capsys, "models", "installed")["models"] == []
    done = answered(capsys, "models", "migrate", "--from", str(old), "--apply")["files"]
    actions = {Path(file["source"]).name: file["action"] for file in done}
    assert actions == {"Tiny-Q4_K_M.gguf": "moved", "Small-Q4_K_M.gguf": "different", "mine.gguf": "unknown"}
    assert sorted(path.name for path in old.rglob("*.gguf")) == ["Small-Q4_K_M.gguf", "mine.gguf"]
    assert [model["id"] for model in answered(capsys, "models", "installed")["models"]] == ["Tiny-Q4_K_M"]
    said(capsys, "download", "t1")
    assert server.body_requests() == []


def test_a_model_on_another_disk_is_copied_and_checked_before_the_original_goes(
    server: HubServer, capsys: Out, tmp_path: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "models"
    old.mkdir()
    (old / "Tiny-Q4_K_M.gguf").write_bytes(tiny)

    def other_disk(source: object, target: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(upkeep.os, "rename", other_disk)
    copyfile = shutil.copyfile
    monkeypatch.setattr(upkeep.shutil, "copyfile", lambda _source, target: Path(target).write_bytes(b"damaged"))
    (file,) = answered(capsys, "models", "migrate", "--from", str(old), "--apply")["files"]
    assert file["action"] == "different"
    assert (old / "Tiny-Q4_K_M.gguf").read_bytes() == tiny
    monkeypatch.setattr(upkeep.shutil, "copyfile", copyfile)
    (file,) = answered(capsys, "models", "migrate", "--from", str(old), "--apply")["files"]
    assert file["action"] == "moved"
    assert not (old / "Tiny-Q4_K_M.gguf").exists()
    assert Path(file["target"]).read_bytes() == tiny


def test_a_missing_folder_to_migrate_is_no_failure(server: HubServer, capsys: Out, tmp_path: Path) -> None:
    code, _, err = said(capsys, "models", "migrate", "--from", str(tmp_path / "none"))
    assert code == 0
    assert "no models" in err


def test_what_fits_this_machine_is_recommended(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "machine_memory_bytes", lambda: 8_000_000_000)
    answer = answered(capsys, "models", "recommended")
    assert answer["models"][0]["size_bytes"] <= 0.85 * 8_000_000_000
    assert {"Qwen2.5-7B-Instruct"} <= {entry["name"] for entry in answer["models"]}
    assert local.machine_memory_bytes() > 0


def test_failures_are_one_sentence_and_an_exit_code(server: HubServer, capsys: Out, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    for arguments, code, words in (
        (("download", "nope nope"), 1, "No model is called"),
        (("download", "maker/None-GGUF"), 1, "has no 'maker/None-GGUF'"),
        (("download", f"{REPO}:Q2_K"), 1, "It has: Q4_K_M, Q8_0"),
        (("download", "org/repo/../../x.gguf"), 2, "outside of its repository"),
        (("download", "./x.gguf"), 2, "nothing to download"),
        (("download", "--draft"), 2, "--draft needs"),
        (("models", "show", str(broken)), 1, "ends in the middle of its header"),
        (("models", "show", str(tmp_path / "none.gguf")), 1, "does not exist"),
        (("models", "delete", str(broken)), 1, "remove it yourself"),
    ):
        got, out, err = said(capsys, *arguments)
        assert (got, out) == (code, ""), err
        assert words in err
        assert err.count("\n") == 1, err


def test_a_mixture_of_experts_on_disk_is_shown(capsys: Out, tmp_path: Path) -> None:
    (path,) = write_tiny(tmp_path / "moe.gguf", QWEN3_MOE)
    code, out, _ = said(capsys, "models", "show", str(path))
    assert code == 0
    assert "8 experts of which 2 used" in out
