"""Getting the source: the right file or none, unpacked nowhere but where it belongs."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest

from agentmesh.inference.engine import source
from agentmesh.inference.engine.child import Stopped
from agentmesh.inference.engine.errors import BuildFailed
from agentmesh.inference.engine.pin import PinnedSource, load_pin
from agentmesh.inference.engine.source import check_sdist, download_sdist, unpack

TOP = "llama_cpp_python-0.3.36"
INNER = f"{TOP}/vendor/llama.cpp"
PIN = load_pin().source


def archive(path: Path, *entries: tuple[str, bytes | str | None]) -> PinnedSource:
    """A tar.gz: bytes are a file, a string is a link to it, None is a device. Returns a pin for it."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (("x/setup.py", b"raise SystemExit"), (f"{INNER}/CMakeLists.txt", b"project()"), *entries):
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                continue
            info.type = tarfile.SYMTYPE if content else tarfile.CHRTYPE
            info.linkname = content or ""
            tar.addfile(info)
    return msgspec.structs.replace(PIN, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_what_the_build_needs_is_unpacked(tmp_path: Path) -> None:
    pin = archive(
        tmp_path / "s.tar.gz",
        (f"{INNER}/src/llama.cpp", b"1"),
        (f"{INNER}/models/vocab.gguf", b"2"),
        (f"{TOP}/llama_cpp/llama.py", b"3"),
        (f"{INNER}/.git/config", b"4"),
        (f"{TOP}/docs/link", "/etc/passwd"),
    )
    seen: list[int] = []
    unpack(tmp_path / "s.tar.gz", pin, tmp_path / "out", seen.append)
    assert files(tmp_path / "out") == {"CMakeLists.txt", "src/llama.cpp"}
    assert seen == [1, 2]


@pytest.mark.parametrize(
    "entry",
    [
        (f"{INNER}/src/../../../../../evil", b"x"),
        (f"{INNER}/src/a\\..\\evil", b"x"),
        (f"{INNER}/src/link", "/etc/passwd"),
        (f"{INNER}/src/device", None),
        (f"{INNER}/CMakeLists.txt", b"a second one of this name"),
    ],
)
def test_an_archive_that_would_write_elsewhere_is_refused(
    tmp_path: Path, entry: tuple[str, bytes | str | None]
) -> None:
    pin = archive(tmp_path / "s.tar.gz", entry)
    with pytest.raises(BuildFailed):
        unpack(tmp_path / "s.tar.gz", pin, tmp_path / "deep" / "out", lambda _: None)
    assert files(tmp_path) <= {"s.tar.gz", "deep/out/CMakeLists.txt"}


def test_an_archive_is_bounded_in_files_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = archive(tmp_path / "s.tar.gz", (f"{INNER}/src/a", b"123"), (f"{INNER}/src/b", b"123"))
    monkeypatch.setattr(source, "MAX_SDIST_FILES", 2)
    with pytest.raises(BuildFailed, match="src/b"):
        unpack(tmp_path / "s.tar.gz", pin, tmp_path / "one", lambda _: None)
    monkeypatch.setattr(source, "MAX_SDIST_FILES", 20)
    monkeypatch.setattr(source, "MAX_UNPACKED_BYTES", 14)
    with pytest.raises(BuildFailed, match="src/b"):
        unpack(tmp_path / "s.tar.gz", pin, tmp_path / "two", lambda _: None)


def test_a_damaged_archive_is_said_to_be_one(tmp_path: Path) -> None:
    archive(tmp_path / "s.tar.gz", (f"{INNER}/src/a", os.urandom(100_000)))
    whole = (tmp_path / "s.tar.gz").read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("text", b"<html>not here</html>"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BuildFailed, match="could not be unpacked"):
            unpack(tmp_path / name, PIN, tmp_path / f"out-{name}", lambda _: None)


def test_an_archive_without_llama_cpp_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "s.tar.gz")
    other = msgspec.structs.replace(PIN, folder="vendor/other")
    with pytest.raises(BuildFailed, match="holds no llama"):
        unpack(tmp_path / "s.tar.gz", other, tmp_path / "out", lambda _: None)


def test_a_file_that_is_not_the_pinned_one_is_refused_with_both_hashes(tmp_path: Path) -> None:
    (tmp_path / "s.tar.gz").write_bytes(b"other")
    with pytest.raises(BuildFailed, match=f"{hashlib.sha256(b'other').hexdigest()}.*{PIN.sha256}"):
        check_sdist(tmp_path / "s.tar.gz", PIN)
    with pytest.raises(BuildFailed, match="cannot be read"):
        check_sdist(tmp_path / "none", PIN)


def test_pip_is_told_the_hash_so_that_it_runs_nothing_of_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str, ...]] = []

    def run(command: tuple[str, ...], **_: object) -> Stopped:
        commands.append(command)
        archive(tmp_path / "sdist" / "s.tar.gz")
        return Stopped(0, "")

    monkeypatch.setattr(source, "run_logged", run)
    with pytest.raises(BuildFailed, match="is not the pinned source"):  # checked here as well
        download_sdist(PIN, tmp_path, tmp_path / "log", {})
    assert commands[0][:4] == (sys.executable, "-m", "pip", "download")
    assert "--require-hashes" in commands[0]
    assert "--no-deps" in commands[0]
    assert (tmp_path / "requirements.txt").read_text() == f"llama-cpp-python==0.3.36 --hash=sha256:{PIN.sha256}\n"


@pytest.mark.parametrize(
    ("ended", "why"), [(Stopped(1, "no route"), "ended with 1"), (Stopped(None, "", True), "not done")]
)
def test_a_failed_download_says_what_pip_said_and_what_else_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: Stopped, why: str
) -> None:
    monkeypatch.setattr(source, "run_logged", lambda *_, **__: ended)
    with pytest.raises(BuildFailed, match=f"(?s){why}.*{ended.tail}.*--sdist FILE"):
        download_sdist(PIN, tmp_path, tmp_path / "log", {})


def test_without_pip_a_temporary_environment_is_made_else_the_ways_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str, ...]] = []

    def run(command: tuple[str, ...], **_: object) -> Stopped:
        commands.append(command)
        return Stopped(1, "no ensurepip")

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(source, "run_logged", run)
    with pytest.raises(BuildFailed, match=r"uv pip install pip.*--sdist FILE"):
        download_sdist(PIN, tmp_path, tmp_path / "log", {"PATH": "/nowhere"})
    assert commands == [(sys.executable, "-m", "venv", str(tmp_path / "pip"))]
