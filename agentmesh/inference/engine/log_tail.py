"""The end of an engine's log: for error messages, and as a sign of life. The file is its guard's; this only reads."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agentmesh.core.units import KIB, MIB

LOG_FILE_BYTES: Final = 8 * MIB  # of each of two files: engines write a kilobyte for each request
TAIL_BYTES: Final = 64 * KIB
MAX_LINE_CHARS: Final = 500


def last_lines(path: Path, count: int, *, since_bytes: int | None = None) -> list[str]:
    """At most `count` lines from the end of the log, oldest first, each at most 500 characters.

    `since_bytes`: where in the newer file they may begin; without it, or when that file has been changed for a new one since, the
    older file helps out.
    """
    size = log_size(path)
    is_same = since_bytes is not None and since_bytes <= size
    lines = _tail(path, since_bytes if is_same and since_bytes is not None else 0).splitlines()
    if len(lines) < count and not is_same and size <= TAIL_BYTES:
        lines = _tail(path.with_name(path.name + ".1"), 0).splitlines() + lines
    return [_printable(line) for line in lines if line.strip()][-count:]


def log_size(path: Path) -> int:
    """Bytes in the newer file; 0 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail(path: Path, begin: int) -> str:
    """The end of one file, from `begin` on."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(begin, size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _printable(line: str) -> str:
    """Without what a terminal would act on."""
    return "".join(c if c.isprintable() else " " for c in line)[:MAX_LINE_CHARS].strip()
