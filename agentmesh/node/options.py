"""How a node was asked to run: the command line's part of its settings, before config.toml and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Which models to serve and on what. `client`: none, and no engine. Empty: what `agentmesh load` brings later.

    `split`, `draft`: fields of SplitFlags and DraftFlags, for every model named here. `lends_to…`: who may use this node's memory for
    parts of models; `streams_weights`: without fetching their files first.
    `again`: what was loaded before, too, though nobody named a model; a node in the background else loads nothing unasked.
    """

    client: bool = False
    models: tuple[str, ...] = ()
    ggufs: tuple[str, ...] = ()
    context_tokens: int | None = None
    max_vram_bytes: int | None = None
    device: str | None = None
    bin_dir: Path | None = None
    llama_flavor: str | None = None
    again: bool = False
    split: Mapping[str, Any] | None = None
    draft: Mapping[str, Any] | None = None
    lends_to_all: bool = False
    lends_to: frozenset[bytes] = frozenset()
    streams_weights: bool = False


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """None where the user named nothing; port 0 means any."""

    background: bool = False
    ready_fd: int | None = None  # the pipe to whoever started a node in the background
    join: tuple[str, ...] = ()
    name: str | None = None
    api_port: int | None = None
    console_port: int | None = None
    bind_port: int | None = None
    policy: Mapping[str, int] = field(default_factory=dict[str, int])
    serve: ServeOptions = field(default_factory=ServeOptions)
    listen_all: bool = False
    api_keys: frozenset[str] = field(default_factory=frozenset[str], repr=False)
