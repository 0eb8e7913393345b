"""Runs one long step of a build: its output goes to the log and line by line to a listener; nothing of it outlives us.

The step gets a session of its own. When we are interrupted, or its time is over, it gets SIGTERM (ninja and make then end
their compilers, which ninja keeps in groups of their own), a grace, and what is left of its descendants SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

import psutil

from agentmesh.inference.engine.errors import BuildFailed
from agentmesh.inference.engine.limits import GRACE_S, MAX_ERROR_LINES, MAX_LINE_BYTES, TAIL_LINES

_ERROR: Final = re.compile(r"\b(fatal )?error\b[: ]|undefined reference|no space left|quota exceeded", re.IGNORECASE)
_POLL_MS: Final = 250
_READ_BYTES: Final = 65_536


@dataclass(frozen=True)
class Stopped:
    """How a step ended. `code` is None when its time was over (`late`); `tail` is the last lines of its output, after the
    first ones that name an error, when those came earlier."""

    code: int | None
    tail: str
    late: bool = False


def run_logged(
    command: Sequence[str],
    *,
    log: Path,
    environ: Mapping[str, str],
    timeout_s: float,
    on_line: Callable[[str], None] | None = None,
) -> Stopped:
    """Run a step to its end.

    Raises:
        BuildFailed: it could not be started, or its log not be written.
    """
    try:
        with log.open("ab") as file:
            file.write(f"\n$ {' '.join(command)}\n".encode())
            file.flush()
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                start_new_session=True,
            )
            output = cast("IO[bytes]", process.stdout)
            try:
                tail, late = _follow(
                    process, output.fileno(), file.write, on_line or _nothing, time.monotonic() + timeout_s
                )
            finally:
                end_tree(process)
                output.close()
    except OSError as error:
        raise BuildFailed(f"{command[0]} could not be run, or its log {log} not be written: {error}.") from error
    return Stopped(None if late else process.returncode, tail, late)


def _nothing(_: str) -> None:
    pass


def _follow(
    process: subprocess.Popen[bytes],
    descriptor: int,
    write: Callable[[bytes], object],
    on_line: Callable[[str], None],
    deadline: float,
) -> tuple[str, bool]:
    """Pass output on until the program has ended; returns its last lines, and whether its time was over."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    last: deque[str] = deque(maxlen=TAIL_LINES)
    errors: list[str] = []
    rest = b""
    open_ = True
    while open_ or process.poll() is None:
        if time.monotonic() >= deadline:
            return _tail(errors, last), True
        if not open_:
            time.sleep(_POLL_MS / 1000)
        elif poller.poll(_POLL_MS):
            chunk = os.read(descriptor, _READ_BYTES)
            open_ = bool(chunk)
            write(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-MAX_LINE_BYTES:]
            for line in lines:
                text = line.decode("utf-8", "replace").rstrip("\r")
                last.append(text)
                if len(errors) < MAX_ERROR_LINES and _ERROR.search(text):
                    errors.append(text)
                on_line(text)
        elif process.poll() is not None:
            break  # ended, and silent: a child that it left may hold the pipe for ever
    if rest:
        last.append(rest.decode("utf-8", "replace"))
    return _tail(errors, last), False


def _tail(errors: list[str], last: deque[str]) -> str:
    earlier = [line for line in errors if line not in last]
    return "\n".join([*earlier, "…", *last] if earlier else last)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a step and its descendants, and reap it. Does nothing when it ended by itself."""
    if process.poll() is not None:
        return
    descendants: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        descendants = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    psutil.wait_procs(descendants, timeout=GRACE_S)
    with contextlib.suppress(psutil.Error):
        descendants += psutil.Process(process.pid).children(recursive=True)
    for left in descendants:  # psutil checks the start time: a number used again is not hit
        with contextlib.suppress(psutil.Error):
            left.kill()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
