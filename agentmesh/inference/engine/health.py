"""Questions to an engine that runs: is it ready, and does it still do anything.

Owns a minimal HTTP client for short answers, and what counts as progress. Decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

import psutil

from agentmesh.core.units import KIB
from agentmesh.inference.engine.log_tail import log_size
from agentmesh.inference.logic.target import EngineAddress

HEALTH_TIMEOUT_S: Final = 3.0
MAX_ANSWER_BYTES: Final = 512 * KIB  # /props holds the chat template, some 30 KiB
HEALTH_HEAD_BYTES: Final = 64


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
    """Signs of life of one engine: bytes in its log, CPU time of it and its descendants."""

    def __init__(self, pid: int, log: Path) -> None:
        self._pid, self._log = pid, log
        self._log_bytes = log_size(log)
        self._cpu_s = self._all_cpu_s()

    def seen(self) -> bool:
        """Whether there was any since the last call."""
        log_bytes, cpu_s = log_size(self._log), self._all_cpu_s()
        changed = (log_bytes, cpu_s) != (self._log_bytes, self._cpu_s)
        self._log_bytes, self._cpu_s = log_bytes, cpu_s
        return changed

    def _all_cpu_s(self) -> float:
        total = 0.0
        with contextlib.suppress(psutil.Error):
            engine = psutil.Process(self._pid)
            for process in (engine, *engine.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    total += times.user + times.system
        return total
