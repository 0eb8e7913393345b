"""Questions to an engine that runs: is it ready, and does it still do anything.

Owns a minimal HTTP client for short answers, and what counts as progress. Decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from agentmesh.core.units import KIB
from agentmesh.inference.engine.log_tail import log_size
from agentmesh.inference.logic.target import EngineAddress

HEALTH_TIMEOUT_S: Final = 3.0
MAX_ANSWER_BYTES: Final = 512 * KIB  # /props holds the chat template, some 30 KiB
HEALTH_HEAD_BYTES: Final = 64
# Less than this between two looks is what answering them takes, and what idle threads do.
IDLE_SHARE: Final = 0.05  # of one processor
IDLE_CPU_S: Final = 0.02  # two ticks
IDLE_BYTES: Final = 64 * KIB


async def is_healthy(address: EngineAddress, timeout_s: float = HEALTH_TIMEOUT_S) -> bool:
    """Whether /health answers 200 within that time."""
    answer = await ask_engine(address, "/health", timeout_s=timeout_s, max_bytes=HEALTH_HEAD_BYTES)
    return answer is not None and answer.split(b" ", 2)[1:2] == [b"200"]


async def ask_engine(
    address: EngineAddress, path: str, *, timeout_s: float = HEALTH_TIMEOUT_S, max_bytes: int = MAX_ANSWER_BYTES
) -> bytes | None:
    """GET `path`: the answer's head and body as they came, at most `max_bytes`; None when there was no answer in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(address, path, max_bytes)
    except (OSError, TimeoutError, ValueError):  # ValueError: uvloop's word for a path that is too long
        return None


async def _ask(address: EngineAddress, path: str, max_bytes: int) -> bytes:
    if address.socket is not None:
        reader, writer = await asyncio.open_unix_connection(address.socket)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
    try:
        key = f"Authorization: Bearer {address.api_key}\r\n" if address.api_key else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{key}\r\n".encode())
        received = b""
        while len(received) < max_bytes and (data := await reader.read(max_bytes - len(received))):
            received += data
        return received
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class Progress:
    """Signs of life of one engine: bytes in its log, CPU time of it and its descendants, bytes that they read and write.

    An engine that hangs still answers each question for its health with a 503: what that takes is no sign of life.
    """

    def __init__(self, pid: int, log: Path, now_s: Callable[[], float] = time.monotonic) -> None:
        self._pid, self._log, self._now_s = pid, log, now_s
        self._looked_s = now_s()
        self._log_bytes = log_size(log)
        self._cpu_s, self._moved_bytes = self._used()

    def seen(self) -> bool:
        """Whether there was any since the last call."""
        now_s, log_bytes = self._now_s(), log_size(self._log)
        cpu_s, moved_bytes = self._used()
        worked = cpu_s - self._cpu_s >= max(IDLE_SHARE * (now_s - self._looked_s), IDLE_CPU_S)
        moved = moved_bytes - self._moved_bytes >= IDLE_BYTES
        grown = log_bytes != self._log_bytes
        self._looked_s, self._log_bytes, self._cpu_s, self._moved_bytes = now_s, log_bytes, cpu_s, moved_bytes
        return worked or moved or grown

    def _used(self) -> tuple[float, int]:
        """(CPU seconds, bytes read and written) of all of it. Where the system does not tell bytes: 0."""
        cpu_s, moved_bytes = 0.0, 0
        with contextlib.suppress(psutil.Error):
            engine = psutil.Process(self._pid)
            for process in (engine, *engine.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    cpu_s += times.user + times.system
                    moved_bytes += _moved_bytes(process)
        return cpu_s, moved_bytes


def _moved_bytes(process: psutil.Process) -> int:
    """What it read and wrote, and what the disk gave for pages that it looked at (Linux)."""
    if sys.platform != "linux":
        return 0
    io = process.io_counters()
    return int(io.read_chars) + int(io.write_chars) + int(io.read_bytes)
