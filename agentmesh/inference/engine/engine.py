"""The values that describe an inference engine: where one was found, and what it said it can do.

A `FoundEngine` is only a place (locate.py); an `Engine` has answered our questions (probe.py). Neither starts a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agentmesh.core.paths import Home

ORIGIN_BIN_DIR = "--bin-dir"
ORIGIN_ENVIRONMENT = "AGENTMESH_BIN_DIR"
ORIGIN_INSTALLED = "engine install"
ORIGIN_PATH = "PATH"
ORIGIN_EMBEDDED = "embedded"


@dataclass(frozen=True)
class Device:
    """One accelerator, as the engine's `--list-devices` prints it. The CPU is not listed: machine memory counts then."""

    name: str  # what `--device` takes, e.g. "CUDA0"
    description: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class EngineSearch:
    """Where to look for engines. `flavor` picks among installed builds and `llama-server-<flavor>` names, or is ORIGIN_EMBEDDED for
    that engine alone; None: any."""

    bin_dir: Path | None
    home: Home
    flavor: str | None
    environ: Mapping[str, str]


@dataclass(frozen=True)
class FoundEngine:
    """An engine's place; nothing has been run yet. `command` starts the server, without its options."""

    command: tuple[str, ...]
    origin: str
    flavor: str  # "cpu", "cuda", ...; "" when nothing but running it could tell
    rpc_server: Path | None = None
    gguf_split: Path | None = None
    imatrix: Path | None = None
    tensor_hash: Path | None = None  # ours: engine/tensor_hash.py

    @property
    def program(self) -> Path:
        """The file that is executed: llama-server, or Python for the embedded engine."""
        return Path(self.command[0])

    @property
    def is_embedded(self) -> bool:
        return self.origin == ORIGIN_EMBEDDED


@dataclass(frozen=True)
class Engine:
    """An engine that answered `--version`, `--help` and `--list-devices`."""

    command: tuple[str, ...]  # (path,), or (python, "-P", "-m", "agentmesh.inference.engine.embedded")
    rpc_server: Path | None
    gguf_split: Path | None
    imatrix: Path | None
    flavor: str  # as installed or named; else told from the devices: "cpu", "cuda", "rocm", "vulkan", "metal", "other"
    origin: str  # one of the ORIGIN_ values
    build: int | None  # llama.cpp's build number; None when --version gives none
    commit: str  # "" when --version gives none
    flags: frozenset[str]  # every option that --help names and does not call removed, e.g. "--ctx-size", "-c"
    devices: tuple[Device, ...]
    unix_sockets: bool  # the server can listen on a path that ends in .sock
    tensor_hash: Path | None = None  # ours, beside the server: engine/tensor_hash.py

    @property
    def is_embedded(self) -> bool:
        return self.origin == ORIGIN_EMBEDDED

    @property
    def has_rpc(self) -> bool:
        """Whether this engine can use RPC workers (`--rpc`) and be one (an RPC server lies beside it)."""
        return self.rpc_server is not None and "--rpc" in self.flags
