"""Where built engines lie: `<store>/<key>/bin/…` with a record, put there by one rename. Read by locate, written by build.

The store of a home is `engine/` in it; `$AGENTMESH_ENGINE_CACHE` names one that several homes (or runs of CI) share.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from agentmesh.core.paths import Home
from agentmesh.inference.engine.cpu_features import cpu_features, cpu_options
from agentmesh.inference.engine.limits import MAX_BUILDS, MAX_RECORD_BYTES
from agentmesh.inference.engine.pin import FLAVORS, Pin

CACHE_VARIABLE: Final = "AGENTMESH_ENGINE_CACHE"
RECORD: Final = "build.json"
SERVER: Final = "llama-server"
RPC_SERVERS: Final = ("ggml-rpc-server", "rpc-server")  # the second name in older builds
GGUF_SPLIT: Final = "llama-gguf-split"
IMATRIX: Final = "llama-imatrix"


class BuildRecord(msgspec.Struct, frozen=True):
    """build.json: what was built, from what, for which CPU. `built_at` is in seconds since 1970."""

    flavor: str
    commit: str
    source_sha256: str
    system: str
    machine: str
    cpu_features: tuple[str, ...]
    options: tuple[str, ...]
    built_at: int
    build_s: float

    def foreign_because(self) -> str:
        """Why the build does not run on this machine; empty when it does."""
        if (self.system, self.machine) != (sys.platform, platform.machine()):
            return f"it was built for {self.system} {self.machine}"
        missing = sorted(set(self.cpu_features) - cpu_features())
        return f"it was built for a CPU with {', '.join(missing[:5])}, which this one lacks" if missing else ""


class Build(msgspec.Struct, frozen=True):
    """One build in a store."""

    folder: Path
    record: BuildRecord

    @property
    def bin(self) -> Path:
        return self.folder / "bin"


def build_key(pin: Pin, flavor: str) -> str:
    """The folder's name: the same pin, flavour, options, machine and CPU features give the same key.

    Raises:
        UnknownFlavor: there is none of this name.
    """
    parts = (
        pin.source.sha256,
        *pin.options(flavor),
        *cpu_options(),
        *pin.build.targets,
        sys.platform,
        platform.machine(),
    )
    digest = hashlib.sha256("\0".join((*parts, "", *sorted(cpu_features()))).encode()).hexdigest()
    return f"{pin.source.commit}-{flavor}-{platform.machine()}-{digest[:12]}"


def shared_store(environ: Mapping[str, str]) -> Path | None:
    """The folder that `$AGENTMESH_ENGINE_CACHE` names."""
    named = environ.get(CACHE_VARIABLE)
    return Path(named).expanduser().absolute() if named else None


def stores(home: Home, environ: Mapping[str, str]) -> list[Path]:
    """Where builds are looked up: the home's own store, then the shared one."""
    shared = shared_store(environ)
    return [home.root / "engine", *([shared] if shared else [])]


def store_to_build_in(home: Home, environ: Mapping[str, str]) -> Path:
    """Where `engine install` puts a build: the shared store when there is one."""
    return shared_store(environ) or home.root / "engine"


def read_build(folder: Path) -> Build | None:
    """The build in `folder`; None when there is none, or it is not whole."""
    try:
        record = folder / RECORD
        if record.stat().st_size > MAX_RECORD_BYTES or not (folder / "bin" / SERVER).is_file():
            return None
        return Build(folder, msgspec.json.decode(record.read_bytes(), type=BuildRecord))
    except (OSError, msgspec.DecodeError):
        return None


def builds(places: Iterable[Path], current_commit: str) -> list[Build]:
    """All builds in the stores: the pinned commit first, then by flavour (accelerators first), then the newest.

    A build that another CPU needs is among them; `foreign_because` says so.
    """
    found: dict[str, Build] = {}
    for store in places:
        try:
            names = sorted(entry.name for entry in store.iterdir() if not entry.name.startswith("."))[:MAX_BUILDS]
        except OSError:
            continue
        for name in names:
            build = read_build(store / name)
            if build is not None:
                found.setdefault(name, build)

    def order(build: Build) -> tuple[bool, int, int]:
        flavor = build.record.flavor
        rank = FLAVORS.index(flavor) if flavor in FLAVORS else len(FLAVORS)
        return build.record.commit != current_commit, rank, -build.record.built_at

    return sorted(found.values(), key=order)
