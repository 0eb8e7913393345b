"""The progress of a download on stderr: one line that moves in a terminal, a line every tenth elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from agentmesh.cli.output import safe_line

if TYPE_CHECKING:
    from agentmesh.inference.models.download import DownloadPlan
    from agentmesh.inference.models.source import WantedFile

REDRAW_S: Final = 0.1
STEPS: Final = 10


class DownloadProgress:
    """Called with each file's bytes so far."""

    def __init__(self, what: DownloadPlan) -> None:
        self._what = what
        self._done: dict[str, int] = {}
        self._here = 0  # what lay on the disk before: not counted in the speed
        self._started = time.monotonic()
        self._drawn = 0.0
        self._step = -1
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal and self._drawn:
            print(file=sys.stderr, flush=True)

    def __call__(self, file: WantedFile, done_bytes: int) -> None:
        if file.path not in self._done:
            self._here += done_bytes
        self._done[file.path] = done_bytes
        now = time.monotonic()
        whole = sum(self._done.values())
        if self._terminal:
            if now - self._drawn >= REDRAW_S or whole == self._what.size_bytes:
                self._drawn = now
                print(f"\r\x1b[K{self._line(whole, now)}", end="", file=sys.stderr, flush=True)
            return
        step = STEPS * whole // max(self._what.size_bytes, 1)
        if step > self._step:
            self._step = step
            print(self._line(whole, now), file=sys.stderr, flush=True)

    def _line(self, whole: int, now: float) -> str:
        from agentmesh.inference.models.download import size_text

        total = self._what.size_bytes
        speed = max(whole - self._here, 0) / max(now - self._started, 0.001)
        left = f", {(total - whole) / speed:.0f} s left" if speed > 0 and whole < total else ""
        percent = 100 * whole // max(total, 1)
        return safe_line(
            f"{self._what.id}: {percent} %, {size_text(whole)} of {size_text(total)}, {size_text(speed)}/s{left}"
        )
