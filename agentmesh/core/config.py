"""The home's config.toml: what the user set once. The command line goes before it.

Owns names, types and defaults of the settings; what they do is said where they are used.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import msgspec

from agentmesh.core.errors import InvalidInput
from agentmesh.core.units import DAY_MS, parse_duration_ms

MAX_CONFIG_BYTES: Final = 1024 * 1024
DEFAULT_CONSOLE_PORT: Final = 3131
DEFAULT_API_PORT: Final = 9337
DEFAULT_IDLE_EXIT_MS: Final = 2 * DAY_MS  # as long as a post lives: what was posted here has been offered to others


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of a home; None where the user set nothing."""

    name: str | None = None
    bind_host: str | None = None
    bind_port: int | None = None
    console_port: int | None = None
    api_port: int | None = None
    idle_exit: str | None = None

    @property
    def idle_exit_ms(self) -> int:
        """How long a node in the background stays after its last client."""
        return parse_duration_ms(self.idle_exit) if self.idle_exit is not None else DEFAULT_IDLE_EXIT_MS


def load_config(path: Path) -> Config:
    """The settings in `path`, or the defaults when there is no such file.

    Raises:
        InvalidInput: the file cannot be read or holds something that is no setting; the message says where.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from error
    try:
        config = msgspec.convert(tomllib.loads(data.decode("utf-8")), Config)
        _check(config)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError, InvalidInput) as error:
        raise InvalidInput(f"{path} cannot be used: {error}") from error
    return config


def _check(config: Config) -> None:
    for name in ("bind_port", "console_port", "api_port"):
        port: int | None = getattr(config, name)
        if port is not None and not 0 <= port <= 65535:
            raise InvalidInput(f"{name} is {port}; a port is a number from 0 to 65535.")
    if config.idle_exit is not None:
        parse_duration_ms(config.idle_exit)
