"""How a node was asked to run: the command line's part of its settings, before config.toml and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """None where the user named nothing; port 0 means any."""

    background: bool = False
    ready_fd: int | None = None  # the pipe to whoever started a node in the background
    join: tuple[str, ...] = ()
    name: str | None = None
    api_port: int | None = None  # taken and kept for the model API; nothing listens there yet
    console_port: int | None = None
    bind_port: int | None = None
    policy: Mapping[str, int] = field(default_factory=dict[str, int])
