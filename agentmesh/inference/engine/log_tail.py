"""The end of an engine's log: for error messages, and as a sign of life. The file is its guard's; this only reads."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agentmesh.core.units import KIB, MIB

LOG_FILE_BYTES: Final = 8 * MIB  # of each of two files: engines write a kilobyte for each request
TAIL_BYTES: Final = 64 * KIB
MAX_LINE_CHARS: Final = 500


def last_lines(path: Path, count: int, *, since_bytes: int = 0) -> list[str]:
    """At most `count` lines from the end of the log, oldest first, each at most 500 characters; the older file helps out.

    `since_bytes`: where in the newer file this engine's part begins; the older one is not looked at if it is not 0 and still ahead.
    """
    text, whole = _tail(path, since_bytes)
    lines = text.splitlines()
    if len(lines) < count and not whole:
        lines = _tail(path.with_name(path.name + ".1"), 0)[0].splitlines() + lines
    return [_printable(line) for line in lines if line.strip()][-count:]


def log_size(path: Path) -> int:
    """Bytes in the newer file; 0 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail(path: Path, since_bytes: int) -> tuple[str, bool]:
    """The end of one file, and whether it begins where it was asked to."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            begin = since_bytes if 0 < since_bytes <= size else 0
            file.seek(max(begin, size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode("utf-8", "replace"), begin > 0 or size > TAIL_BYTES
    except OSError:
        return "", False


def _printable(line: str) -> str:
    """Without what a terminal would act on."""
    return "".join(c if c.isprintable() else " " for c in line)[:MAX_LINE_CHARS].strip()
