"""Runs a short foreign program to its end with a bound on its time and its output. For questions, not for servers.

The program may print without end, hang, fork, or keep its pipe open in a child: it and its process group end all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final, cast

from agentmesh.inference.engine.limits import END_S, LINGER_S, MAX_OUTPUT_BYTES
from agentmesh.inference.threads import in_daemon_thread

_POLL_S: Final = 0.05
_READ_BYTES: Final = 65_536
_PIPE_BYTES: Final = 65_536  # what a pipe holds on Linux and macOS (pipe(7))


@dataclass(frozen=True)
class Ran:
    """What a program did. `output` is stdout and stderr together, at most MAX_OUTPUT_BYTES of it.

    `code` is the exit status, negative for a signal, None when it was ended for being late or for printing too much;
    `error` is set when it could not be started at all.
    """

    code: int | None
    output: str = ""
    late: bool = False
    flooded: bool = False
    error: OSError | None = None


def run_bounded(
    command: Sequence[str],
    *,
    timeout_s: float,
    environ: Mapping[str, str] | None = None,
    max_output_bytes: int = MAX_OUTPUT_BYTES,
    stop: threading.Event | None = None,
) -> Ran:
    """Run `command` in a session of its own, without input; `stop` ends it early. Never raises for what the program does."""
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=None if environ is None else dict(environ),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return Ran(None, error=error if isinstance(error, OSError) else OSError(22, str(error)))
    pipe = cast("IO[bytes]", process.stdout)
    try:
        collected, late, flooded = _collect(
            process, pipe.fileno(), timeout_s, max_output_bytes, stop or threading.Event()
        )
    finally:
        _end_group(process)
        pipe.close()
    output = collected[:max_output_bytes].decode("utf-8", "replace")
    return Ran(None if late or flooded else process.returncode, output, late=late, flooded=flooded)


async def ask(command: Sequence[str], *, timeout_s: float, environ: Mapping[str, str] | None = None) -> Ran:
    """`run_bounded` without blocking the loop. When the caller is cancelled, the program is ended before this returns."""
    loop, stop, ended = asyncio.get_running_loop(), threading.Event(), asyncio.Event()

    def work() -> Ran:
        try:
            return run_bounded(command, timeout_s=timeout_s, environ=environ, stop=stop)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(ended.set)

    try:
        return await in_daemon_thread(work, name="ask engine")
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await ended.wait()
        raise


def _collect(
    process: subprocess.Popen[bytes], descriptor: int, timeout_s: float, max_bytes: int, stop: threading.Event
) -> tuple[bytes, bool, bool]:
    """What was printed, whether the time ran out, whether there was too much of it."""
    deadline = time.monotonic() + timeout_s
    collected = bytearray()
    ended_at: float | None = None
    poller = select.poll()  # select() ends at descriptor 1,023; a node may have more
    poller.register(descriptor, select.POLLIN)
    while True:
        now = time.monotonic()
        if ended_at is None and _has_ended(process):
            ended_at = now
        if ended_at is not None and now - ended_at >= LINGER_S:
            return bytes(collected + _left_in_pipe(poller, descriptor)), False, False
        if now >= deadline or stop.is_set():
            return bytes(collected), ended_at is None, False
        if not poller.poll(_POLL_S * 1000):
            continue
        chunk = os.read(descriptor, _READ_BYTES)
        if not chunk:
            return bytes(collected), not _ends(process, deadline, stop), False
        collected += chunk
        if len(collected) > max_bytes:
            return bytes(collected), False, True


def _left_in_pipe(poller: select.poll, descriptor: int) -> bytes:
    """What was written before the end and is not read yet: on a busy machine we may come back long after. One pipe's worth."""
    left = bytearray()
    while len(left) < _PIPE_BYTES and poller.poll(0):
        chunk = os.read(descriptor, _READ_BYTES)
        if not chunk:
            break
        left += chunk
    return bytes(left)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ended. It is not reaped where that can be helped: its number must stay its own until the group is ended."""
    if hasattr(os, "waitid"):  # not on macOS before Python 3.13
        try:
            return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:  # SIGCHLD is ignored in this process: the kernel reaps
            return True
    return process.poll() is not None


def _ends(process: subprocess.Popen[bytes], deadline: float, stop: threading.Event) -> bool:
    """Whether the program, having closed its output, ends in time."""
    while not _has_ended(process):
        if time.monotonic() >= deadline or stop.is_set():
            return False
        time.sleep(_POLL_S)
    return True


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left of the program's group, then reap the program."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
