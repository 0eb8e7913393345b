"""The cache on disk: what is found, deleted and pruned, and which file a file is."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import threading
from pathlib import Path

import pytest

from agentmesh.core.errors import Ambiguous, NotFound
from agentmesh.inference.logic.reference import parse_reference
from agentmesh.inference.models import identity
from agentmesh.inference.models.cache import HubCache
from agentmesh.inference.models.errors import ModelFileUnusable, UnknownModel, UnsafeName
from agentmesh.inference.models.identity import FileIdentities, Stopped
from agentmesh.inference.models.local import delete, find_local, installed_for_deletion, prune
from agentmesh.inference.models.settings import HubSettings
from agentmesh.inference.models.source import WantedFile

OLD, NEW = "a" * 40, "b" * 40


def put(cache: HubCache, path: str, data: bytes, commit: str = NEW, repo: str = "org/Model-GGUF") -> Path:
    digest = hashlib.sha256(data).hexdigest()
    file = WantedFile(repo, "main", commit, path, len(data), digest, None)
    cache.blob(file).parent.mkdir(parents=True, exist_ok=True)
    cache.blob(file).write_bytes(data)
    return cache.link(file)


def blobs(cache: HubCache, repo: str = "org/Model-GGUF") -> set[bytes]:
    return {path.read_bytes() for path in (cache.repo(repo) / "blobs").iterdir()}


@pytest.fixture
def cache(tmp_path: Path) -> HubCache:
    return HubCache(tmp_path / "hub")


def test_an_empty_or_missing_cache_has_no_models(cache: HubCache) -> None:
    assert cache.models() == []
    assert prune(cache).paths == ()


def test_models_are_found_with_their_parts(cache: HubCache) -> None:
    put(cache, "M-Q4_K_M.gguf", b"one")
    put(cache, "d/B-Q8_0-00001-of-00002.gguf", b"two")
    put(cache, "mmproj-F16.gguf", b"eye")
    put(cache, "config.json", b"{}")
    single, partial = sorted(cache.models(), key=lambda m: m.path)
    assert (single.path, single.missing, single.current) == ("M-Q4_K_M.gguf", (), True)
    assert partial.missing == ("d/B-Q8_0-00002-of-00002.gguf",)


def test_a_model_is_found_by_every_form_of_its_name(cache: HubCache) -> None:
    path = put(cache, "M-Q4_K_M.gguf", b"one")
    for text in ("M-Q4_K_M", "org/Model-GGUF", "org/Model-GGUF:Q4_K_M", "org/Model-GGUF/M-Q4_K_M.gguf", str(path)):
        assert find_local(parse_reference(text), cache) == path, text
    assert find_local(parse_reference("org/Model-GGUF:Q8_0"), cache) is None
    assert find_local(parse_reference("3b"), cache) is None
    with pytest.raises(UnknownModel):
        find_local(parse_reference("no such thing"), cache)


def test_the_current_commit_goes_before_older_ones(cache: HubCache) -> None:
    put(cache, "M-Q4_K_M.gguf", b"new", commit="c" * 40)
    latest = put(cache, "M-Q4_K_M.gguf", b"newest", commit=OLD)
    assert find_local(parse_reference("org/Model-GGUF"), cache) == latest


def test_deleting_frees_only_what_nothing_else_uses(cache: HubCache) -> None:
    put(cache, "M-Q4_K_M.gguf", b"shared", commit=OLD)
    put(cache, "M-Q4_K_M.gguf", b"shared")
    put(cache, "M-Q8_0.gguf", b"eight")
    put(cache, "mmproj-F16.gguf", b"eye")
    removed = delete(installed_for_deletion(parse_reference("org/Model-GGUF:Q4_K_M"), cache), cache)
    assert removed.size_bytes == len(b"shared")
    assert blobs(cache) == {b"eight", b"eye"}
    assert [model.path for model in cache.models()] == ["M-Q8_0.gguf"]
    delete(installed_for_deletion(parse_reference("M-Q8_0"), cache), cache)
    assert blobs(cache) == set()


def test_deleting_something_unclear_or_absent_is_refused(cache: HubCache, tmp_path: Path) -> None:
    put(cache, "M-Q4_K_M.gguf", b"four")
    put(cache, "M-Q8_0.gguf", b"eight")
    with pytest.raises(Ambiguous, match="Name one file"):
        installed_for_deletion(parse_reference("org/Model-GGUF"), cache)
    with pytest.raises(NotFound, match="not installed"):
        installed_for_deletion(parse_reference("72b"), cache)
    own = tmp_path / "own.gguf"
    own.write_bytes(b"mine")
    with pytest.raises(NotFound, match="remove it yourself"):
        installed_for_deletion(parse_reference(str(own)), cache)
    assert own.exists()


def test_pruning_takes_old_commits_and_rests_and_leaves_the_rest(cache: HubCache) -> None:
    put(cache, "M-Q4_K_M.gguf", b"old", commit=OLD)
    put(cache, "M-Q4_K_M.gguf", b"current")
    folder = cache.repo("org/Model-GGUF") / "blobs"
    (folder / ("c" * 64 + ".incomplete")).write_bytes(b"rest")
    put(cache, "model.safetensors", b"not ours", repo="org/Other")
    (cache.repo("org/Other") / "blobs" / "lost").write_bytes(b"not ours either")
    shown = prune(cache, dry_run=True)
    assert blobs(cache) == {b"old", b"current", b"rest"}
    removed = prune(cache)
    assert removed == shown
    assert removed.size_bytes == len(b"old") + len(b"rest")
    assert blobs(cache) == {b"current"}
    assert len(blobs(cache, "org/Other")) == 2
    assert not (cache.repo("org/Model-GGUF") / "snapshots" / OLD).exists()


def test_pruning_leaves_what_is_being_downloaded(cache: HubCache) -> None:
    put(cache, "M-Q4_K_M.gguf", b"current")
    file = WantedFile("org/Model-GGUF", "main", NEW, "N.gguf", 9, "d" * 64, None)
    cache.partial(file).write_bytes(b"rest")
    lock = cache.lock(file, 0)
    assert lock is not None
    with lock:
        assert prune(cache).paths == ()
    assert prune(cache).paths == (cache.partial(file),)


def test_where_the_file_system_has_no_locks_what_may_be_being_downloaded_stays(
    cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, "M-Q4_K_M.gguf", b"old", commit=OLD)
    put(cache, "M-Q4_K_M.gguf", b"current")
    file = WantedFile("org/Model-GGUF", "main", NEW, "N.gguf", 9, "d" * 64, None)
    cache.partial(file).write_bytes(b"rest")
    lock = cache.lock(file, 0)
    assert lock is not None
    lock.release()

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    prune(cache)
    assert blobs(cache) == {b"current", b"rest"}


def test_a_name_that_climbs_out_is_never_linked(cache: HubCache) -> None:
    with pytest.raises(UnsafeName):
        cache.pointer(WantedFile("org/repo", "main", NEW, "../../../x.gguf", 1, "d" * 64, None))


def test_an_identity_is_computed_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    digest = identity._digest
    monkeypatch.setattr(identity, "_digest", lambda fd, stop: hashed.append(fd) or digest(fd, stop))
    path = tmp_path / "m.gguf"
    path.write_bytes(b"first")
    cache_path = tmp_path / "cache" / "hashes.json"
    for _ in range(2):
        assert FileIdentities(cache_path).identify_now(path).sha256 == hashlib.sha256(b"first").hexdigest()
    assert len(hashed) == 1
    path.write_bytes(b"other")
    os.utime(path, ns=(1, 1))
    assert FileIdentities(cache_path).identify_now(path).sha256 == hashlib.sha256(b"other").hexdigest()
    assert len(hashed) == 2


def test_a_damaged_cache_of_identities_is_only_slower(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")
    (tmp_path / "hashes.json").write_text("{broken")
    assert FileIdentities(tmp_path / "hashes.json").identify_now(path).size_bytes == 1
    with pytest.raises(ModelFileUnusable):
        FileIdentities(tmp_path / "hashes.json").identify_now(tmp_path / "nothing")


def test_a_file_that_changes_while_it_is_hashed_has_no_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")

    def meanwhile(fd: int, stop: threading.Event | None) -> str:
        path.write_bytes(b"longer")
        return "0" * 64

    monkeypatch.setattr(identity, "_digest", meanwhile)
    with pytest.raises(ModelFileUnusable, match="changed"):
        FileIdentities(tmp_path / "hashes.json").identify_now(path)


async def test_a_cancelled_hash_stops_its_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")
    begun, ended = threading.Event(), threading.Event()

    def slow(fd: int, stop: threading.Event | None) -> str:
        begun.set()
        assert stop is not None
        if stop.wait(60):
            ended.set()
        raise Stopped

    monkeypatch.setattr(identity, "_digest", slow)
    task = asyncio.ensure_future(FileIdentities(tmp_path / "hashes.json").identify(path))
    assert await asyncio.to_thread(begun.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 60)


def test_the_environment_names_the_cache_the_hub_and_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").write_text("hf_file\n")
    settings = HubSettings.from_environment()
    assert (settings.cache, settings.token) == (tmp_path / "hub", "hf_file")
    assert settings.endpoint == "https://huggingface.co"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:5/")
    settings = HubSettings.from_environment()
    assert (settings.cache, settings.token) == (tmp_path / "elsewhere", "hf_env")
    assert settings.endpoint == "http://127.0.0.1:5"
