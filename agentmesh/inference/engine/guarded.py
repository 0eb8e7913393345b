"""One start of one engine: its guard process, and what passes between it and the node.

Owns the pipe to the guard. Knows nothing of restarts; engine/process.py starts one `Guarded` after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agentmesh.inference.engine import guard
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.leftovers import MARK_CHARS, end_recorded
from agentmesh.inference.engine.log_tail import LOG_FILE_BYTES, log_size
from agentmesh.inference.logic.engine_end import ProcessEnd

SPAWN_TIMEOUT_S: Final = 15.0  # 0.1 s alone; for a machine that swaps
ORPHAN_GRACE_MS: Final = 2_000  # SIGTERM to SIGKILL when the node is gone: all ends within 5 s


class _Spawned(msgspec.Struct):
    pid: int
    start: str


class _Exited(msgspec.Struct):
    code: int | None
    signal: int | None


class _Said(msgspec.Struct):
    """One line from the guard; one of these is set."""

    spawned: _Spawned | None = None
    exited: _Exited | None = None
    failed: str | None = None


class Guarded:
    """A running engine behind its guard. Made by `start`; over when `ended()` returned."""

    def __init__(self, process: asyncio.subprocess.Process, record: Path, pid: int, log_began_bytes: int) -> None:
        self._process = process
        self._record = record
        self._asked = False
        self.pid = pid
        self.log_began_bytes = log_began_bytes

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], *, folder: Path, name: str, log: Path
    ) -> Guarded:
        """Start the engine; returns when its program runs.

        Raises:
            EngineFailed: it could not be started; nothing of it is left.
        """
        began = log_size(log)
        record = folder / f"{name}.json"
        marked = {**environment, guard.MARK_VARIABLE: secrets.token_hex(MARK_CHARS // 2)}
        process = await _run_guard(command, marked, folder=folder, name=name, log=log)
        try:
            async with asyncio.timeout(SPAWN_TIMEOUT_S):
                said = await _next(process)
        except TimeoutError:
            said = None
        except BaseException:
            _kill(process)
            raise
        if said is not None and said.spawned is not None:
            return cls(process, record, said.spawned.pid, began)
        _kill(process)
        await process.wait()
        await asyncio.to_thread(end_recorded, record)
        why = said.failed if said is not None and said.failed else "its guard process did not get it started"
        raise EngineFailed(f"The engine {command[0]} could not be started: {why}.")

    async def ended(self) -> ProcessEnd:
        """Wait until nothing of the engine is left: how it ended."""
        said = await _next(self._process)
        await self._process.wait()
        if said is None or said.exited is None:  # the guard was killed: the engine died with it, what it forked did not
            await asyncio.to_thread(end_recorded, self._record)
            return ProcessEnd(None, None, self._asked)
        return ProcessEnd(said.exited.code, said.exited.signal, self._asked)

    def terminate(self, grace_ms: int) -> None:
        """SIGTERM to all of it, SIGKILL after the grace. Again with a shorter grace: that one counts."""
        self._tell(f"stop {grace_ms}\n")

    def kill(self) -> None:
        """SIGKILL to all of it."""
        self._tell("kill\n")

    def let_go(self) -> None:
        """The engine does not end: end its guard at least, so that nobody waits for them."""
        _kill(self._process)

    def _tell(self, word: str) -> None:
        self._asked = True
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(word.encode())


async def _run_guard(
    command: Sequence[str], environment: Mapping[str, str], *, folder: Path, name: str, log: Path
) -> asyncio.subprocess.Process:
    options = {
        "--folder": str(folder),
        "--name": name,
        "--log": str(log),
        "--log-bytes": str(LOG_FILE_BYTES),
        "--orphan-grace-ms": str(ORPHAN_GRACE_MS),
    }
    words = [word for pair in options.items() for word in pair]
    try:
        complaints = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", guard.__file__, *words, "--", *command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=complaints,
                env=dict(environment),
                start_new_session=True,
            )
        finally:
            os.close(complaints)
    except (OSError, ValueError) as error:  # ValueError: a NUL in a word
        raise EngineFailed(f"The engine {command[0]} could not be started: {error}.") from error


async def _next(process: asyncio.subprocess.Process) -> _Said | None:
    """The guard's next line; None when it has no more to say."""
    line = b"" if process.stdout is None else await process.stdout.readline()
    try:
        return msgspec.json.decode(line, type=_Said) if line else None
    except msgspec.DecodeError:
        return None


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
