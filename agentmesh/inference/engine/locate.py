"""Finds engines on this machine, in the order in which they are preferred. Looks at files only; nothing is run.

Order: `--bin-dir`, `$AGENTMESH_BIN_DIR`, what `engine install` built, `PATH`, the `embedded` extra.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentmesh.inference.engine.engine import (
    ORIGIN_BIN_DIR,
    ORIGIN_EMBEDDED,
    ORIGIN_ENVIRONMENT,
    ORIGIN_INSTALLED,
    ORIGIN_PATH,
    EngineSearch,
    FoundEngine,
)
from agentmesh.inference.engine.limits import MAX_PATH_FOLDERS
from agentmesh.inference.engine.pin import FLAVORS, load_pin
from agentmesh.inference.engine.store import GGUF_SPLIT, IMATRIX, RPC_SERVERS, SERVER, builds, stores
from agentmesh.inference.engine.tensor_hash import program_name

BIN_DIR_VARIABLE: Final = "AGENTMESH_BIN_DIR"
EMBEDDED_MODULE: Final = "agentmesh.inference.engine.embedded"
EMBEDDED_PACKAGE: Final = "xllamacpp"
# Where programs lie below a folder that people name: itself, an installation, llama.cpp's own build tree.
_BELOW: Final = ("", "bin", "build/bin")


def find_engines(search: EngineSearch) -> list[FoundEngine]:
    """All engines, the preferred first, each program once. One that needs another CPU is left out (see `foreign_builds`)."""
    found: dict[tuple[str, ...], FoundEngine] = {}
    for engine in _candidates(search):
        found.setdefault(_identity(engine), engine)
    return list(found.values())


def _identity(engine: FoundEngine) -> tuple[str, ...]:
    return (os.path.realpath(engine.command[0]), *engine.command[1:])


def named_folder(search: EngineSearch) -> tuple[str, Path] | None:
    """The folder that the user named, and how: then engines are looked for nowhere else."""
    if search.bin_dir is not None:
        return ORIGIN_BIN_DIR, search.bin_dir
    named = search.environ.get(BIN_DIR_VARIABLE)
    if named and search.flavor != ORIGIN_EMBEDDED:
        return ORIGIN_ENVIRONMENT, Path(named).expanduser()
    return None


def _candidates(search: EngineSearch) -> Iterator[FoundEngine]:
    if search.flavor != ORIGIN_EMBEDDED:
        yield from _of_programs(search)
    if (embedded := _embedded()) is not None and search.flavor in (None, embedded.flavor, ORIGIN_EMBEDDED):
        yield embedded


def _of_programs(search: EngineSearch) -> Iterator[FoundEngine]:
    if search.bin_dir is not None:
        yield from _in_folder(search.bin_dir, ORIGIN_BIN_DIR, search.flavor)
    if named := search.environ.get(BIN_DIR_VARIABLE):
        yield from _in_folder(Path(named).expanduser(), ORIGIN_ENVIRONMENT, search.flavor)
    yield from _installed(search)
    for text in search.environ.get("PATH", "").split(os.pathsep)[:MAX_PATH_FOLDERS]:
        if Path(text).is_absolute():  # a relative entry would run whatever lies in the current folder
            yield from _programs(Path(text), ORIGIN_PATH, search.flavor)


def _in_folder(folder: Path, origin: str, flavor: str | None) -> Iterator[FoundEngine]:
    for below in _BELOW:
        yield from _programs((folder / below).absolute(), origin, flavor)


def _programs(folder: Path, origin: str, flavor: str | None) -> Iterator[FoundEngine]:
    """The servers in a folder. With a flavour wanted, `llama-server-<flavor>` comes before `llama-server`, which may be of
    that flavour too; else `llama-server` comes before all that are named by a flavour."""
    for name in (flavor, "") if flavor else ("", *FLAVORS):
        suffix = f"-{name}" if name else ""
        server = folder / f"{SERVER}{suffix}"
        if server.is_file():
            yield _beside(server, origin, name, suffix)


def _beside(server: Path, origin: str, flavor: str, suffix: str) -> FoundEngine:
    """The engine of a server program, with the other programs that lie beside it, those of the same flavour first."""
    folder = server.parent

    def other(*names: str) -> Path | None:
        spellings = [f"{name}{end}" for end in dict.fromkeys((suffix, "")) for name in names]
        return next((path for name in spellings if (path := folder / name).is_file()), None)

    return FoundEngine(
        command=(str(server),),
        origin=origin,
        flavor=flavor,
        rpc_server=other(*RPC_SERVERS),
        gguf_split=other(GGUF_SPLIT),
        imatrix=other(IMATRIX),
        tensor_hash=other(program_name()),
    )


def _installed(search: EngineSearch) -> Iterator[FoundEngine]:
    for build in builds(stores(search.home, search.environ), load_pin().source.commit):
        flavor = build.record.flavor
        if search.flavor in (None, flavor) and not build.record.foreign_because():
            yield _beside(build.bin / SERVER, ORIGIN_INSTALLED, flavor, "")


def foreign_builds(search: EngineSearch) -> list[tuple[Path, str]]:
    """Builds in the stores that do not run on this machine, and why."""
    every = builds(stores(search.home, search.environ), load_pin().source.commit)
    return [(build.folder, why) for build in every if (why := build.record.foreign_because())]


def _embedded() -> FoundEngine | None:
    """llama-server's code as a Python extension, when the extra is installed. It is looked up, not imported.

    -P: the folder in which a node was started must not be a place to import modules from.
    """
    try:
        if importlib.util.find_spec(EMBEDDED_PACKAGE) is None:
            return None
    except (ImportError, ValueError):  # a package of that name that is broken
        return None
    flavor = "metal" if sys.platform == "darwin" else "cpu"  # what its wheels are built with
    return FoundEngine((sys.executable, "-P", "-m", EMBEDDED_MODULE), ORIGIN_EMBEDDED, flavor)
