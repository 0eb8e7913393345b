"""`agentmesh engine install`: builds the pinned llama.cpp and puts it into the store, whole or not at all.

Everything happens in a working folder inside the store (same disk), under the store's lock; the last step is one rename.
`python -m agentmesh.inference.engine.build --ensure` is the same without the command line's words, for scripts and CI.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import re
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final, TypeAlias

import msgspec

from agentmesh.control.lock import FileLock
from agentmesh.core.paths import Home
from agentmesh.inference.engine.child import Stopped, run_logged
from agentmesh.inference.engine.cpu_features import cpu_features, cpu_options
from agentmesh.inference.engine.errors import BuildFailed
from agentmesh.inference.engine.limits import (
    BUILD_TIMEOUT_S,
    CHECK_TIMEOUT_S,
    CONFIGURE_TIMEOUT_S,
    CPU_BUILD_BYTES,
    CUDA_BUILD_BYTES,
    LOCK_WAIT_S,
    OTHER_BUILD_BYTES,
)
from agentmesh.inference.engine.pin import Pin, check_flavor, load_pin
from agentmesh.inference.engine.run_program import run_bounded
from agentmesh.inference.engine.source import check_sdist, download_sdist, unpack
from agentmesh.inference.engine.store import (
    RECORD,
    SERVER,
    Build,
    BuildRecord,
    build_key,
    read_build,
    store_to_build_in,
)
from agentmesh.inference.engine.tensor_hash import ensure_tensor_hash
from agentmesh.inference.engine.toolchain import ALSO_NEEDED, Toolchain, default_jobs, detect_flavor, find_toolchain
from agentmesh.inference.logic.engine_output import progress_of

NEEDED_BYTES: Final = {"cpu": CPU_BUILD_BYTES, "cuda": CUDA_BUILD_BYTES}
LOG_NAME: Final = "engine-install.log"
_WORK: Final = ".work-"
_OLD: Final = ".old-"

Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class InstallRequest:
    """What to build and where. `flavor` None: what suits the machine; `sdist` None: it is downloaded."""

    home: Home
    environ: Mapping[str, str]
    flavor: str | None = None
    jobs: int | None = None
    force: bool = False
    sdist: Path | None = None
    pin: Pin = field(default_factory=load_pin)


@dataclass(frozen=True)
class Installed:
    """The build in the store, and whether it was there already."""

    build: Build
    was_there: bool


def install(request: InstallRequest, say: Say, progress: Callable[[str, int], None]) -> Installed:
    """Build the engine unless the same build is there, and our own program beside it. `say` gets sentences, `progress` a step's
    name and percentage.

    Raises:
        BuildFailed: tools are missing, the source is not the pinned one, or a step failed; nothing is left behind.
        HomeError: the home cannot be used.
        UnknownFlavor: there is none of this name.
        KeyboardInterrupt: also for SIGTERM and SIGHUP; no compiler runs on, nothing is left behind.
    """
    done = _install(request, say, progress)
    with _signals_interrupt():
        ensure_tensor_hash(done.build.bin, request.home, request.environ, request.home.logs / LOG_NAME, say)
    return done


def _install(request: InstallRequest, say: Say, progress: Callable[[str, int], None]) -> Installed:
    flavor = _flavor(request, say)
    store = store_to_build_in(request.home, request.environ)
    target = store / build_key(request.pin, flavor)
    if not request.force and (there := read_build(target)) is not None:
        return Installed(there, was_there=True)
    request.home.prepare()  # the log goes there
    _make_store(store)
    with _locked(store, say), _signals_interrupt():
        if not request.force and (there := read_build(target)) is not None:
            return Installed(there, was_there=True)
        _clear_leftovers(store)
        _check_space(store, flavor)
        work = store / f"{_WORK}{secrets.token_hex(4)}"
        work.mkdir(mode=0o700)
        try:
            ready = _build(request, flavor, work, say, progress)
            _put(ready, target, store)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    build = read_build(target)
    if build is None:
        raise BuildFailed(f"The build in {target} disappeared again; is something cleaning {store}?")
    return Installed(build, was_there=False)


def _flavor(request: InstallRequest, say: Say) -> str:
    if request.flavor is not None:
        return check_flavor(request.flavor)
    flavor, why = detect_flavor(request.environ)
    say(f"building for {flavor}: {why}")
    return flavor


def _make_store(store: Path) -> None:
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(store, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it cannot be written")
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise BuildFailed(f"The folder for engines, {store}, cannot be used: {reason}.") from error


@contextlib.contextmanager
def _locked(store: Path, say: Say) -> Generator[None]:
    path = store / ".lock"
    lock = FileLock.acquire(path)
    if lock is None:
        say("another `agentmesh engine install` is building; waiting for it")
        lock = FileLock.acquire(path, LOCK_WAIT_S)
    if lock is None:
        raise BuildFailed(f"Another build has held {path} for {LOCK_WAIT_S / 3600:.0f} hours; end it, then try again.")
    with lock:
        yield


@contextlib.contextmanager
def _signals_interrupt() -> Generator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, so that the clean-up runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _clear_leftovers(store: Path) -> None:
    """Remove what a killed build left. We hold the lock: whatever has such a name belongs to nobody."""
    for entry in store.iterdir():
        if entry.name.startswith((_WORK, _OLD)):
            shutil.rmtree(entry, ignore_errors=True)


def _check_space(store: Path, flavor: str) -> None:
    needed = NEEDED_BYTES.get(flavor, OTHER_BUILD_BYTES)
    free = shutil.disk_usage(store).free
    if free < needed:
        raise BuildFailed(
            f"Building the {flavor} engine takes {needed / 1e9:.1f} GB for a while, and {store} has {free / 1e9:.1f} GB. "
            "Free some, or point AGENTMESH_HOME at another disk."
        )


def _build(request: InstallRequest, flavor: str, work: Path, say: Say, progress: Callable[[str, int], None]) -> Path:
    """Everything from the source to the finished folder, which is returned."""
    started = time.monotonic()
    tools = find_toolchain(flavor, request.environ)
    log = _new_log(request.home)
    say(f"the full log is {log}")
    sdist = request.sdist
    if sdist is None:
        progress("downloading the source", 0)
        sdist = download_sdist(request.pin.source, work, log, request.environ)
    else:
        check_sdist(sdist, request.pin.source)
    progress("unpacking the source", 0)
    unpack(sdist, request.pin.source, work / "source", lambda _: None)
    _compile(request, flavor, tools, work, log, progress)
    ready = _collect(request.pin, work)
    _check_runs(ready, log)
    record = BuildRecord(
        flavor=flavor,
        commit=request.pin.source.commit,
        source_sha256=request.pin.source.sha256,
        system=sys.platform,
        machine=platform.machine(),
        cpu_features=tuple(sorted(cpu_features())),
        options=(*request.pin.options(flavor), *cpu_options()),
        built_at=int(time.time()),
        build_s=round(time.monotonic() - started, 1),
    )
    (ready / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    return ready


def _new_log(home: Home) -> Path:
    try:
        log = home.logs / LOG_NAME
        log.write_bytes(b"")
    except OSError as error:
        raise BuildFailed(f"The log folder {home.logs} cannot be written: {error.strerror}.") from error
    return log


def _compile(
    request: InstallRequest,
    flavor: str,
    tools: Toolchain,
    work: Path,
    log: Path,
    progress: Callable[[str, int], None],
) -> None:
    generator = ("-G", tools.generator) if tools.generator else ()
    options = (*request.pin.options(flavor), *cpu_options())
    folder = work / "build"
    progress("configuring", 0)
    configured = run_logged(
        (tools.cmake, *generator, "-S", str(work / "source"), "-B", str(folder), *options),
        log=log,
        environ=tools.environ,
        timeout_s=CONFIGURE_TIMEOUT_S,
    )
    _check_step("configured", configured, log, work, ALSO_NEEDED.get(flavor, ""))
    shown = -1

    def follow(line: str) -> None:
        nonlocal shown
        percent = progress_of(line)
        if percent is not None and percent > shown:
            shown = percent
            progress("compiling", percent)

    jobs = request.jobs or default_jobs()
    targets = request.pin.build.targets
    compiled = run_logged(
        (tools.cmake, "--build", str(folder), "--parallel", str(jobs), "--target", *targets),
        log=log,
        environ=tools.environ,
        timeout_s=BUILD_TIMEOUT_S,
        on_line=follow,
    )
    _check_step("compiled", compiled, log, work)


def _check_step(what: str, step: Stopped, log: Path, work: Path, hint: str = "") -> None:
    if step.code == 0:
        return
    if re.search(r"no space left on device|disk quota exceeded", step.tail, re.IGNORECASE):
        raise BuildFailed(f"The disk of {work.parent} filled up; free some space and run the command again.")
    if re.search(r"killed signal terminated|out of memory|fatal error: Killed", step.tail, re.IGNORECASE):
        hint = "The compiler ran out of memory: try `agentmesh engine install --jobs 1`."
    why = "it was not done in time" if step.late else f"exit status {step.code}"
    raise BuildFailed(f"llama.cpp could not be {what} ({why}). {hint}\n{step.tail}\nThe full log is {log}.")


def _collect(pin: Pin, work: Path) -> Path:
    """The finished folder: the programs and llama.cpp's licence."""
    ready = work / "ready"
    try:
        (ready / "bin").mkdir(parents=True)
        for program in pin.build.targets:
            (work / "build" / "bin" / program).rename(ready / "bin" / program)
        shutil.copyfile(work / "source" / "LICENSE", ready / "LICENSE")
    except OSError as error:
        raise BuildFailed(f"The build made no usable {error.filename}: {error.strerror}.") from error
    return ready


def _check_runs(ready: Path, log: Path) -> None:
    ran = run_bounded((str(ready / "bin" / SERVER), "--version"), timeout_s=CHECK_TIMEOUT_S)
    if ran.code != 0:
        with log.open("a") as file:
            file.write(ran.output)
        raise BuildFailed(
            f"llama-server was built but does not run here (exit status {ran.code}): {ran.error or ran.output[-500:]}"
        )


def _put(ready: Path, target: Path, store: Path) -> None:
    """Rename the finished folder into place. An older build of the key is moved aside: what runs from it goes on."""
    aside = store / f"{_OLD}{secrets.token_hex(4)}"
    try:
        if target.exists():
            target.rename(aside)
        ready.rename(target)
    except OSError as error:
        raise BuildFailed(f"The build could not be put into {target}: {error.strerror}.") from error
    finally:
        if aside.exists() and not target.exists():
            aside.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def main() -> int:
    """For scripts: build what is missing, print the folder of the programs."""
    import argparse

    from agentmesh.core.errors import AgentMeshError

    parser = argparse.ArgumentParser(prog="python -m agentmesh.inference.engine.build", description=main.__doc__)
    parser.add_argument("--ensure", action="store_true", help="build only what is not there (the default)")
    parser.add_argument("--flavor", default=None)
    parser.add_argument("--jobs", type=int, default=None)
    arguments = parser.parse_args()
    say = functools.partial(print, file=sys.stderr, flush=True)
    request = InstallRequest(Home.from_environment(), os.environ, arguments.flavor, arguments.jobs)
    last = ""

    def progress(step: str, percent: int) -> None:
        nonlocal last
        line = f"{step} {percent // 10 * 10} %"
        if line != last:
            last = line
            say(line)

    try:
        done = install(request, say, progress)
    except AgentMeshError as error:
        say(error.message)
        return error.exit_code
    print(done.build.bin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
