"""What this machine is for splits: its memory now, and what its engine can do.

    measure = NodeMeasure(memory, service.engine, device)
    now = await measure()

Owns which engine was found, for a minute. The version of the RPC protocol is asked of the program itself, and remembered with its file.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.limits import PROBE_TIMEOUT_S
from agentmesh.inference.engine.probe import question_environment
from agentmesh.inference.engine.run_program import ask
from agentmesh.inference.logic.election import steady_free_bytes
from agentmesh.inference.logic.split_limits import (
    FREE_STEP_BYTES,
    FREE_STEPS,
    MAX_DEVICES_OF_A_NODE,
    MIN_FREE_STEP_BYTES,
)
from agentmesh.inference.logic.split_offer import MACHINE
from agentmesh.inference.logic.split_values import NO_RPC_VERSION, DeviceFacts
from agentmesh.inference.memory import MemoryBook

ENGINE_AGE_S: Final = 60.0  # how soon an engine that was installed meanwhile is noticed
MAX_REMEMBERED: Final = 16
_PRINTED: Final = re.compile(r"RPC server v(\d{1,3})\.(\d{1,3})\.(\d{1,3})\b")

RpcVersion = tuple[int, int, int]
_Stamp = tuple[Path, int, int]
_versions: dict[_Stamp, RpcVersion] = {}


@dataclass(frozen=True, slots=True)
class Measured:
    """What is published of this machine. Free memory is what is left of what models may use."""

    devices: tuple[DeviceFacts, ...] = ()
    machine_free_bytes: int = 0
    machine_total_bytes: int = 0
    engine_commit: str = ""
    rpc_version: RpcVersion = NO_RPC_VERSION
    has_rpc: bool = False


class NodeMeasure:
    """See the module. One call at a time.

    Args:
        engine: the engine that models run on here; None: there is none.
        device: where the user lets models run; None: anywhere.
    """

    def __init__(
        self,
        memory: MemoryBook,
        engine: Callable[[], Awaitable[Engine | None]],
        device: str | None,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = memory
        self._find_engine = engine
        self._device = device
        self._now_s = now_s
        self._engine: Engine | None = None
        self._found_s = float("-inf")

    async def __call__(self) -> Measured:
        """What there is now. Nothing is awaited after memory was looked at: whatever is promised when this returns is missing from it.

        Raises:
            InvalidInput: there is no such device. EngineFailed: the engine does not tell.
        """
        if self._now_s() - self._found_s >= ENGINE_AGE_S:
            self._engine, self._found_s = await self._find_engine(), self._now_s()
        engine = self._engine
        version = NO_RPC_VERSION
        if engine is not None and engine.has_rpc and engine.rpc_server is not None:
            version = await rpc_version_of(engine.rpc_server)
        left = await self._memory.left(engine, self._device)
        return Measured(
            devices=tuple(
                DeviceFacts(room.device or "", room.free_bytes, room.total_bytes)
                for room in left.devices[:MAX_DEVICES_OF_A_NODE]
            ),
            machine_free_bytes=left.machine.free_bytes,
            machine_total_bytes=left.machine.total_bytes,
            engine_commit=engine.commit if engine is not None else "",
            rpc_version=version,
            has_rpc=version != NO_RPC_VERSION,
        )


def with_held(measured: Measured, held: Mapping[str, int], sign: int = 1) -> Measured:
    """With what parts of models take here counted as free (`sign` -1: as taken). `held`: bytes by device, "" for the machine's memory."""
    return replace(
        measured,
        devices=tuple(
            DeviceFacts(d.name, max(d.free_bytes + sign * held.get(d.name, 0), 0), d.total_bytes, d.bytes_per_s)
            for d in measured.devices
        ),
        machine_free_bytes=max(measured.machine_free_bytes + sign * held.get(MACHINE, 0), 0),
    )


def steady(published: Measured | None, now: Measured) -> Measured:
    """What to publish: figures that were published stay while they are nearly true."""
    before = {device.name: device.free_bytes for device in published.devices} if published is not None else {}
    machine = published.machine_free_bytes if published is not None else None
    return replace(
        now,
        devices=tuple(
            DeviceFacts(d.name, _steady(before.get(d.name), d.free_bytes, d.total_bytes), d.total_bytes, d.bytes_per_s)
            for d in now.devices
        ),
        machine_free_bytes=_steady(machine, now.machine_free_bytes, now.machine_total_bytes),
    )


def _steady(published: int | None, measured: int, total: int) -> int:
    # Where the user allows a little only (--max-vram), whole steps of a big machine would leave nothing of it.
    step = max(MIN_FREE_STEP_BYTES, min(FREE_STEP_BYTES, total // FREE_STEPS))
    return steady_free_bytes(published, measured, step)


async def rpc_version_of(program: Path) -> RpcVersion:
    """The version of the protocol that an RPC server speaks; zeros if it does not say.

    It prints it when it starts. It is given a port that is taken, so that it ends at once, and nobody could ever connect to it.
    """
    try:
        status = await asyncio.to_thread(program.stat)
    except OSError:
        return NO_RPC_VERSION
    stamp = (program, status.st_size, status.st_mtime_ns)
    if (known := _versions.get(stamp)) is not None:
        return known
    version = await _ask_version(program)
    if version != NO_RPC_VERSION:
        while len(_versions) >= MAX_REMEMBERED:
            del _versions[next(iter(_versions))]
        _versions[stamp] = version
    return version


async def _ask_version(program: Path) -> RpcVersion:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as taken:
        port = taken.getsockname()[1]
        # On the CPU: it would otherwise make a context on each accelerator first.
        command = (str(program), "-H", "127.0.0.1", "-p", str(port), "-d", "CPU")
        ran = await ask(command, timeout_s=PROBE_TIMEOUT_S, environ=question_environment(os.environ))
    printed = _PRINTED.search(ran.output)
    if printed is None:
        return NO_RPC_VERSION
    major, minor, patch = (int(number) for number in printed.groups())
    return (major, minor, patch) if max(major, minor, patch) <= 255 else NO_RPC_VERSION
