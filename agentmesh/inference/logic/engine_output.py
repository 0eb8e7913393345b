"""Reads what llama.cpp's programs and build tools print: `--help`, `--version`, `--list-devices`, a build's progress.

The texts come from foreign programs: whatever they hold, these functions return something and never raise.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MAX_FLAGS: Final = 4_096
MAX_DEVICES: Final = 256
MIB: Final = 1 << 20

# "-h,    --help, --usage      print usage": names at the line's start, parted by commas.
_ENTRY: Final = re.compile(r" {0,4}(-{1,2}[A-Za-z][\w-]*(?:, {1,8}-{1,2}[A-Za-z][\w-]*)*),?(?=[ =]|$)")
_REMOVED: Final = re.compile(r"argument has been removed")
# "version: 0.5.0-dev (build 1, commit 0c1e570)"; earlier "version: 4567 (0c1e570a)"; the embedded engine gives its package's
# name and version in the place of the commit.
_NEW_VERSION: Final = re.compile(r"version:[^\n]*?\bbuild (\d{1,9})\b[^\n]*?\bcommit ([0-9a-f]{6,40})\b")
_OLD_VERSION: Final = re.compile(r"version: (\d{1,9}) \((?!unknown\b)([\w.+-]{1,40})\)", re.ASCII)
# "  CUDA0: NVIDIA H200 (143167 MiB, 142650 MiB free)"; a description may hold colons and brackets.
_DEVICE: Final = re.compile(r" +([^\s:,]{1,64}): (.{1,256}) \((\d{1,12}) MiB, (\d{1,12}) MiB free\)\s*$", re.ASCII)
_STEP_OF: Final = re.compile(r"\[(\d{1,7})/(\d{1,7})\]")
_PERCENT: Final = re.compile(r"\[ *(\d{1,3})%\]")

_FLAVOR_OF_DEVICE: Final = (
    ("cuda", "cuda"),
    ("rocm", "rocm"),
    ("hip", "rocm"),
    ("vulkan", "vulkan"),
    ("metal", "metal"),
    ("mtl", "metal"),
)


class ListedDevice(NamedTuple):
    """A line of --list-devices; sizes in bytes."""

    name: str
    description: str
    total_bytes: int
    free_bytes: int


def read_flags(help_text: str) -> frozenset[str]:
    """Every option that the help names, in all its spellings, without those that it calls removed."""
    flags: set[str] = set()
    names: list[str] = []
    words: list[str] = []

    def close() -> None:
        if not _REMOVED.search(" ".join(words)):
            flags.update(names[: MAX_FLAGS - len(flags)])

    for line in help_text.splitlines():
        found = _ENTRY.match(line)
        if found is None:
            words += line.split()
            continue
        close()
        names = [name.strip() for name in found[1].split(",")]
        words = line[found.end() :].split()
    close()
    return frozenset(flags)


def read_unix_sockets(help_text: str) -> bool:
    """Whether the server says that it listens on a path ending in .sock."""
    return re.search(r"(?i)unix socket[^\n]*(?:\n[^\n-]*)?\.sock", help_text) is not None


def read_version(text: str) -> tuple[int | None, str]:
    """(build number, commit); None and "" for what is not told. Builds without a git history call themselves 0."""
    found = _NEW_VERSION.search(text) or _OLD_VERSION.search(text)
    if found is None:
        return None, ""
    return int(found[1]) or None, found[2]


def read_devices(text: str) -> tuple[ListedDevice, ...]:
    """The devices listed. The BLAS library is listed by some builds, but is none: it has no memory of its own."""
    found: list[ListedDevice] = []
    for line in text.splitlines():
        match = _DEVICE.match(line)
        if match is not None and match[1] != "BLAS" and len(found) < MAX_DEVICES:
            found.append(ListedDevice(match[1], match[2], int(match[3]) * MIB, int(match[4]) * MIB))
    return tuple(found)


def flavor_of(devices: tuple[str, ...]) -> str:
    """The flavour that device names tell: "cpu" without any, "other" for unknown ones."""
    for name in devices:
        for prefix, flavor in _FLAVOR_OF_DEVICE:
            if name.lower().startswith(prefix):
                return flavor
    return "other" if devices else "cpu"


def progress_of(line: str) -> int | None:
    """Percent done, from a line of ninja (`[12/215] …`) or make (`[ 45%] …`)."""
    if step := _STEP_OF.match(line):
        done, total = int(step[1]), int(step[2])
        return 100 * done // total if 0 < total >= done else None
    if percent := _PERCENT.match(line):
        return min(int(percent[1]), 100)
    return None
