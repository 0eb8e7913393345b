"""The pinned llama.cpp: which source, which options, which programs. Read from pin.toml beside this file."""

from __future__ import annotations

import functools
import tomllib
from importlib import resources
from typing import Final

import msgspec

from agentmesh.inference.engine.errors import UnknownFlavor

FLAVORS: Final = ("cuda", "rocm", "metal", "vulkan", "cpu")  # in the order of preference among installed builds


class PinnedSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An sdist by name, version and SHA-256; `folder` in it holds llama.cpp, of which `parts` are unpacked."""

    distribution: str
    version: str
    sha256: str
    commit: str
    folder: str
    parts: tuple[str, ...]


class PinnedBuild(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """CMake options for every flavour, and the targets, which are also the programs' names."""

    targets: tuple[str, ...]
    options: tuple[str, ...]


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """pin.toml."""

    source: PinnedSource
    build: PinnedBuild
    flavors: dict[str, tuple[str, ...]]

    def options(self, flavor: str) -> tuple[str, ...]:
        """All CMake options of a flavour.

        Raises:
            UnknownFlavor: there is none of this name.
        """
        return (*self.build.options, *self.flavors[check_flavor(flavor)])


def check_flavor(flavor: str) -> str:
    """`flavor`, if it is one that can be built.

    Raises:
        UnknownFlavor: there is none of this name.
    """
    if flavor not in FLAVORS:
        raise UnknownFlavor(f"There is no engine flavour {flavor!r}; there are {', '.join(sorted(FLAVORS))}.")
    return flavor


@functools.cache
def load_pin() -> Pin:
    """The pin that this version of agentmesh comes with."""
    text = resources.files("agentmesh.inference.engine").joinpath("pin.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), Pin)
