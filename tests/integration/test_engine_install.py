"""`agentmesh engine install` with a CMake of our own in place of the real one: whole or not at all, whatever happens."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import namedtuple
from pathlib import Path

import msgspec
import psutil
import pytest

from agentmesh.control.lock import FileLock
from agentmesh.core.paths import Home
from agentmesh.inference.engine import build as build_module
from agentmesh.inference.engine.build import Installed, InstallRequest, install
from agentmesh.inference.engine.errors import BuildFailed, UnknownFlavor
from agentmesh.inference.engine.pin import Pin, load_pin
from agentmesh.inference.engine.store import build_key
from agentmesh.inference.engine.tensor_hash import program_name
from tests.fakes.engine_programs import program

INNER = "llama_cpp_python-0.3.36/vendor/llama.cpp"

GOOD_BUILD = """
mkdir -p "$folder/bin"
echo "[1/3] Building"; echo "warning: something"; echo "[2/3] Building"; echo "[3/3] Linking"
for name in llama-server ggml-rpc-server llama-gguf-split llama-imatrix; do
  printf '#!/bin/sh\\necho version: 1 \\n' > "$folder/bin/$name"; chmod +x "$folder/bin/$name"
done
"""


class World:
    """A home, a sdist with its pin, and a fake CMake whose build step is `body`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.home = Home(folder / "home")
        self.bin = folder / "bin"
        self.sdist = folder / "s.tar.gz"
        with tarfile.open(self.sdist, "w:gz") as tar:
            for name in ("CMakeLists.txt", "LICENSE"):
                info = tarfile.TarInfo(f"{INNER}/{name}")
                info.size = 3
                tar.addfile(info, io.BytesIO(b"mit"))
        source = msgspec.structs.replace(load_pin().source, sha256=hashlib.sha256(self.sdist.read_bytes()).hexdigest())
        self.pin: Pin = msgspec.structs.replace(load_pin(), source=source)
        for tool in ("c++", "make"):
            program(self.bin / tool, "")
        self.cmake()
        self.said: list[str] = []
        self.steps: list[tuple[str, int]] = []

    def cmake(self, build: str = GOOD_BUILD, configure: str = "true") -> None:
        program(
            self.bin / "cmake",
            f'echo "$@" >> {self.folder}/cmake.calls\n'
            f'if [ "$1" = --build ]; then folder=$2\n{build}\nelse\n{configure}\nfi',
        )

    @property
    def calls(self) -> list[str]:
        path = self.folder / "cmake.calls"
        return path.read_text().splitlines() if path.exists() else []

    def request(self, **changes: object) -> InstallRequest:
        environ = {"PATH": f"{self.bin}:/usr/bin:/bin"}
        fields = {"flavor": "cpu", "sdist": self.sdist, "pin": self.pin, "environ": environ, **changes}
        return InstallRequest(self.home, **fields)  # type: ignore[arg-type]

    def install(self, **changes: object) -> Installed:
        return install(
            self.request(**changes), self.said.append, lambda step, percent: self.steps.append((step, percent))
        )

    @property
    def store(self) -> Path:
        return self.home.root / "engine"

    def left(self) -> list[str]:
        return sorted(path.name for path in self.store.iterdir() if path.name != ".lock")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_build_is_put_into_the_homes_store_under_its_key(world: World) -> None:
    done = world.install(jobs=3)
    key = build_key(world.pin, "cpu")
    assert world.left() == [key]
    assert done.build.bin == world.store / key / "bin"
    assert not done.was_there
    assert sorted(p.name for p in done.build.bin.iterdir()) == [
        program_name(),
        "ggml-rpc-server",
        "llama-gguf-split",
        "llama-imatrix",
        "llama-server",
    ]
    assert (done.build.folder / "LICENSE").read_bytes() == b"mit"
    record = json.loads((done.build.folder / "build.json").read_bytes())
    assert (record["flavor"], record["commit"]) == ("cpu", load_pin().source.commit)
    configure, compile_ = world.calls
    assert "-DGGML_RPC=ON" in configure
    assert "-DBUILD_SHARED_LIBS=OFF" in configure
    assert compile_.endswith("--parallel 3 --target llama-server ggml-rpc-server llama-gguf-split llama-imatrix")
    assert [s for s in world.steps if s[0] == "compiling"] == [("compiling", 33), ("compiling", 66), ("compiling", 100)]
    log = (world.home.logs / "engine-install.log").read_text()
    assert "warning: something" in log


def test_the_same_build_is_not_made_twice_unless_forced(world: World) -> None:
    world.install()
    again = world.install()
    assert again.was_there
    assert len(world.calls) == 2
    inode = again.build.bin.stat().st_ino
    forced = world.install(force=True)
    assert not forced.was_there
    assert forced.build.bin.stat().st_ino != inode
    assert world.left() == [build_key(world.pin, "cpu")]


def test_a_damaged_build_is_made_again(world: World) -> None:
    done = world.install()
    (done.build.bin / "llama-server").unlink()
    assert not world.install().was_there
    assert world.left() == [build_key(world.pin, "cpu")]


def test_a_shared_store_takes_the_build_for_every_home(world: World, tmp_path: Path) -> None:
    environ = {"PATH": f"{world.bin}:/usr/bin:/bin", "AGENTMESH_ENGINE_CACHE": str(tmp_path / "shared")}
    done = world.install(environ=environ)
    assert done.build.folder.parent == tmp_path / "shared"
    assert not world.store.exists()
    world.home = Home(tmp_path / "other-home")
    assert world.install(environ=environ).was_there


def test_the_program_that_hashes_comes_beside_a_build_that_lacks_it(world: World) -> None:
    done = world.install()
    hasher = done.build.bin / program_name()
    inode = hasher.stat().st_ino
    assert world.install().was_there
    assert hasher.stat().st_ino == inode
    hasher.unlink()
    assert world.install().was_there
    assert hasher.is_file()
    assert len(world.calls) == 2  # nothing of llama.cpp was built again


COMPILERS = {
    "fails": ("echo 'x.c:1: error: no such thing'; exit 1", "could not compile it.*no such thing"),
    "makes nothing": ("true", "No such file"),
    "makes another program": ("printf '#!/bin/sh\\necho 0 0 0' > $3; chmod +x $3", "does not hash right"),
}


@pytest.mark.parametrize("kind", COMPILERS)
def test_an_engine_is_installed_where_the_program_that_hashes_cannot_be_made(world: World, kind: str) -> None:
    body, sentence = COMPILERS[kind]
    program(world.bin / "cc", body)
    done = world.install()
    assert [p.name for p in done.build.bin.iterdir() if "hash" in p.name] == []
    assert re.search(f"(?s)first load as a split takes longer.*{sentence}", world.said[-1])


FAILURES = {
    "compiler error": ("echo 'x.cpp:1: error: no such thing'; exit 2", r"exit status 2\).*no such thing.*full log is"),
    "early error": (
        "echo 'x.cpp:1: error: no such thing'; seq 1 40; echo 'ninja: build stopped'; exit 1",
        r"no such thing\n…\n30\n.*build stopped",
    ),
    "disk full": ("echo 'fatal error: error writing to x: No space left on device'; seq 1 40; exit 1", r"filled up"),
    "memory": ("echo 'c++: fatal error: Killed signal terminated program cc1plus'; exit 1", r"--jobs 1"),
    "nothing made": ("true", r"llama-server"),
    "no programs run": (GOOD_BUILD + "\nprintf '#!/bin/sh\\nexit 4' > $folder/bin/llama-server", r"does not run here"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_build_leaves_nothing_and_says_why(world: World, kind: str) -> None:
    body, sentence = FAILURES[kind]
    world.cmake(build=body)
    with pytest.raises(BuildFailed, match=f"(?s){sentence}"):
        world.install()
    assert world.left() == []


def test_a_failed_build_with_force_keeps_the_old_one(world: World) -> None:
    done = world.install()
    world.cmake(build="exit 1")
    with pytest.raises(BuildFailed):
        world.install(force=True)
    assert world.install().was_there
    assert (done.build.bin / "llama-server").exists()


def test_a_failed_configuration_is_told_as_such(world: World) -> None:
    world.cmake(configure="echo 'CMake Error: no CUDA'; exit 1")
    with pytest.raises(BuildFailed, match=r"(?s)could not be configured.*no CUDA"):
        world.install()
    assert world.left() == []
    program(world.bin / "nvcc", "")
    with pytest.raises(BuildFailed, match=r"(?s)cuBLAS with its headers too.*no CUDA"):
        world.install(flavor="cuda")


def test_a_build_that_takes_for_ever_is_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cmake(build="echo $$ > $folder.pid; sleep 600")
    monkeypatch.setattr(build_module, "BUILD_TIMEOUT_S", 0.3)
    with pytest.raises(BuildFailed, match="not done in time"):
        world.install()
    assert world.left() == []


def test_too_little_room_is_said_before_anything_is_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**6))
    with pytest.raises(BuildFailed, match=r"takes 0\.6 GB.*has 0\.0 GB"):
        world.install()
    assert world.calls == []


def test_an_unusable_store_is_named(world: World) -> None:
    world.home.root.mkdir()
    world.store.write_text("a file")
    with pytest.raises(BuildFailed, match=r"engine, cannot be used: it is not a folder"):
        world.install()


def test_another_source_than_the_pinned_one_is_not_built(world: World) -> None:
    world.sdist.write_bytes(b"other")
    with pytest.raises(BuildFailed, match="not the pinned source"):
        world.install()
    assert world.calls == []
    assert world.left() == []


def test_an_unknown_flavour_is_refused(world: World) -> None:
    with pytest.raises(UnknownFlavor):
        world.install(flavor="tpu")


def test_what_a_killed_build_left_is_cleared_by_the_next(world: World) -> None:
    (world.store / ".work-dead" / "build").mkdir(parents=True)
    (world.store / ".old-dead").mkdir()
    world.install()
    assert world.left() == [build_key(world.pin, "cpu")]


def test_a_second_install_waits_for_the_first_and_takes_its_build(world: World) -> None:
    world.store.mkdir(parents=True)
    lock = FileLock.acquire(world.store / ".lock")
    assert lock is not None
    results: list[Installed] = []
    waiting = threading.Thread(target=lambda: results.append(world.install()))
    waiting.start()
    deadline = time.monotonic() + 60
    while not any("waiting for it" in sentence for sentence in world.said):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    other = World(world.folder / "other")
    other.pin = world.pin
    made = install(other.request(sdist=world.sdist), lambda _: None, lambda *_: None).build.folder
    made.rename(world.store / made.name)  # as the first one would have
    lock.release()
    waiting.join(60)
    assert [result.was_there for result in results] == [True]
    assert world.calls == []


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_build_leaves_no_compiler_and_no_files(world: World, number: signal.Signals) -> None:
    # As ninja does it: the compiler is in a group of its own, and its parent ends it when told to end.
    compiler = 'setsid sleep 600 & child=$!; echo $child > {0}/compiler; trap "kill $child; exit 130" TERM INT; wait'
    world.cmake(build=compiler.format(world.folder))
    script = f"""
import sys
from pathlib import Path
from tests.integration.test_engine_install import World
world = World(Path({str(world.folder)!r}))
world.cmake(build={compiler.format(world.folder)!r})
try:
    world.install()
except KeyboardInterrupt:
    sys.exit(130)
"""
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.getcwd()})
    try:
        deadline = time.monotonic() + 60
        while not (world.folder / "compiler").exists() or not (world.folder / "compiler").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        compiler_pid = int((world.folder / "compiler").read_text())
        assert psutil.pid_exists(compiler_pid)
        process.send_signal(number)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while lives(compiler_pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert world.left() == []
