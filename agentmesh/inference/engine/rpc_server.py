"""One `ggml-rpc-server` on loopback, behind a guard and confined: what a host's part of a model is computed by.

    server = RpcServerProcess(program, ("CUDA0", ""), folder=home.run / "engines", log=home.logs / "rpc-server-0.log")
    await server.start()             # it listens on server.port
    reason = await server.ended()    # whoever ended it
    await server.stop(1.0)           # nothing of it is left

Owns that process. Never connects to it: an RPC server serves whoever comes first, and nobody beside.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from agentmesh.core.errors import AgentMeshError, HomeError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.engine import confine
from agentmesh.inference.engine.address import LOOPBACK, prepare_folder, unique_name
from agentmesh.inference.engine.arguments import engine_environment
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.guarded import Guarded
from agentmesh.inference.engine.log_tail import last_lines
from agentmesh.inference.logic.engine_end import SHOWN_LINES, explain_end
from agentmesh.inference.logic.target import EngineAddress

_log = logging.getLogger(__name__)

CPU_DEVICE: Final = "CPU"  # what ggml calls the machine's memory
STARTS: Final = 3  # with a port that was free a moment before
MAX_PRINTED_CHARS: Final = 300  # of its last lines
_TAKEN: Final = "Failed to create server socket"  # ggml-rpc.cpp
NOT_CONFINED_HERE: Final = f"{confine.NONE}: only Linux can"


@dataclass(frozen=True, slots=True)
class RpcServerLimits:
    """In seconds. `ready_s`: until it listens; a CUDA start takes 1-15 s. `end_s`: after SIGKILL, until nothing is left."""

    ready_s: float = 60.0
    look_s: float = 0.05
    said_s: float = 2.0  # for the first line of its log, once it listens
    end_s: float = 5.0


DEFAULT_LIMITS: Final = RpcServerLimits()


class RpcServerProcess:
    """See the module. `start` once; `stop` as often as wanted.

    Args:
        devices: which it lends, in this order; "" is the machine's memory. None given: as it decides.
        threads: of the CPU device; None: as it decides, half of the processors.
        homes: folders that it must not read; where the program lies in one, its own folder is read all the same.

    Attributes:
        confinement: what it is prevented from, in words that begin with "none" if nothing.
    """

    def __init__(
        self,
        program: Path,
        devices: Sequence[str] = (),
        *,
        folder: Path,
        log: Path,
        threads: int | None = None,
        homes: Sequence[Path] = (),
        environ: Mapping[str, str] = os.environ,
        limits: RpcServerLimits = DEFAULT_LIMITS,
    ) -> None:
        self.port = 0
        self.confinement = NOT_CONFINED_HERE
        self._program = program
        self._devices = [device or CPU_DEVICE for device in devices]
        self._folder = folder
        self._log_path = log
        self._threads = threads
        self._homes = [os.path.expanduser("~"), *map(str, homes)]  # noqa: PTH111 - pathlib raises where there is none
        self._environ = environ
        self._limits = limits
        self._confined = sys.platform == "linux"
        self._guarded: Guarded | None = None
        self._reason = ""
        self._over = asyncio.Event()
        self._tasks = TaskSet("rpc server")

    @property
    def pid(self) -> int | None:
        """Of the server itself, while there is one."""
        return self._guarded.pid if self._guarded is not None and not self._over.is_set() else None

    async def start(self) -> None:
        """Start it; returns when it listens.

        Raises:
            EngineFailed: it does not come up; the message holds what it printed last, and nothing of it is left.
        """
        try:
            try:
                prepare_folder(self._folder)
                prepare_folder(self._log_path.parent)
            except HomeError as error:
                raise _told(error) from error
            if await self._start_with_ports():
                return
            if sys.platform == "linux" and _TAKEN not in self._reason:
                # A driver that we do not know may need what it was not given. No host has said a word to it yet.
                why, self._confined = self._reason, False
                if await self._start_with_ports():
                    self.confinement = f"{confine.NONE}: confined it does not start"
                    _log.warning("the RPC server runs without confinement, since with it: %s", why)
                    return
            raise EngineFailed(self._reason)
        except BaseException:
            await self.stop(0.0)
            raise

    async def ended(self) -> str:
        """Wait until nothing of it is left: why, in sentences."""
        await self._over.wait()
        return self._reason

    async def stop(self, grace_s: float) -> bool:
        """End it: SIGTERM, SIGKILL after the grace. Whether nothing of it is left; False: the kernel does not let go of it."""
        guarded = self._guarded
        if guarded is not None and not await self._end(guarded, grace_s):
            return False
        await self._tasks.close()
        return True

    async def _end(self, guarded: Guarded, grace_s: float) -> bool:
        if not self._over.is_set():
            guarded.terminate(int(grace_s * 1000))
            try:
                async with asyncio.timeout(grace_s + self._limits.end_s):
                    await self._over.wait()
            except TimeoutError:
                _log.error("the RPC server, process %d, does not end", guarded.pid)
                return False
        return True

    def cpu_seconds(self) -> float:
        """Processor time that it and what it started have used. Looks at all processes: to be called in a thread."""
        pid = self.pid
        if pid is None:
            return 0.0
        used = 0.0
        with contextlib.suppress(psutil.Error):
            server = psutil.Process(pid)
            for process in (server, *server.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    used += times.user + times.system
        return used

    # ------------------------------------------------------------------ one start

    async def _start_with_ports(self) -> bool:
        """With other ports, where one was taken between its choice and its use."""
        for _ in range(STARTS):
            if await self._start_once():
                return True
            if _TAKEN not in self._reason:
                break
            _log.info("port %d of the RPC server was taken meanwhile", self.port)
        return False

    async def _start_once(self) -> bool:
        """Whether it listens now; else it has ended, and `_reason` says why."""
        self._over = asyncio.Event()
        self.port = free_port()
        self._guarded = None  # one before has ended
        try:
            guarded = self._guarded = await Guarded.start(
                self._command(), self._environment(), folder=self._folder, name=unique_name(), log=self._log_path
            )
        except EngineFailed as error:
            raise _told(error) from error
        self._tasks.spawn(self._watch(guarded), name="watch")
        try:
            async with asyncio.timeout(self._limits.ready_s):
                while not self._over.is_set():
                    if await asyncio.to_thread(_listens, guarded.pid, self.port):
                        await self._read_confinement(guarded)
                        return not self._over.is_set()
                    await asyncio.sleep(self._limits.look_s)
        except TimeoutError:
            if not await self._end(guarded, 0.0):
                raise EngineFailed("The RPC server neither listens nor ends.") from None
            self._reason = f"The RPC server did not listen within {self._limits.ready_s:g} s."
        return False

    async def _watch(self, guarded: Guarded) -> None:
        """Until it has ended."""
        end = await guarded.ended()
        lines = last_lines(self._log_path, SHOWN_LINES, since_bytes=guarded.log_began_bytes)
        lines = [line for line in lines if not line.startswith(confine.SAID)]
        printed = f" It printed: {' | '.join(lines)[:MAX_PRINTED_CHARS]}" if lines else ""
        # No path: hosts on other machines read this.
        self._reason = explain_end(end, lines).replace("The engine", "The RPC server") + printed
        if not end.asked:
            _log.warning("%s Its log: %s", self._reason, self._log_path)
        self._over.set()

    async def _read_confinement(self, guarded: Guarded) -> None:
        """Its wrapper said so before the server ran; the guard may not have written it yet."""
        if not self._confined:
            return
        self.confinement = f"{confine.NONE}: it did not say"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.said_s):
                while not self._over.is_set():
                    lines = last_lines(self._log_path, SHOWN_LINES * 8, since_bytes=guarded.log_began_bytes)
                    for line in lines:
                        if line.startswith(confine.SAID):
                            self.confinement = line.removeprefix(confine.SAID)
                            return
                    await asyncio.sleep(self._limits.look_s)

    def _command(self) -> list[str]:
        words = [str(self._program), "-H", LOOPBACK, "-p", str(self.port)]
        if self._threads is not None:
            words += ["-t", str(self._threads)]
        if self._devices:
            words += ["-d", ",".join(self._devices)]
        if not self._confined:
            return words
        homes = [word for home in self._homes for word in ("--home", home)]
        return [sys.executable, "-I", "-S", confine.__file__, "--port", str(self.port), *homes, "--", *words]

    def _environment(self) -> dict[str, str]:
        """Also: no gdb at a crash, and no caches of compiled shaders, which a host's code could leave something in."""
        return {
            **engine_environment(self._environ, EngineAddress(port=self.port)),
            "GGML_NO_BACKTRACE": "1",
            "MESA_SHADER_CACHE_DISABLE": "true",
            "CUDA_CACHE_DISABLE": "1",
        }


def _told(error: AgentMeshError) -> EngineFailed:
    """What a host may hear of it: no path of this machine."""
    _log.error("the RPC server could not be started: %s", error.message)
    full = os.strerror(errno.ENOSPC)
    why = f"{full} there." if full in error.message else "Its log says why."
    return EngineFailed(f"The RPC server could not be started. {why}")


def free_port() -> int:
    """A port that is free at this moment."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((LOOPBACK, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise EngineFailed(f"There is no free port for an RPC server: {error.strerror}.") from error


def _listens(pid: int, port: int) -> bool:
    """Whether this process listens there. In a thread."""
    with contextlib.suppress(psutil.Error, OSError):
        for each in psutil.Process(pid).net_connections("tcp4"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port:
                return True
    return False
