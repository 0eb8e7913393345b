"""One scrub worker process as the node sees it: started, set up, sent texts, ended.

Owns the process and its pipes; which text goes where is scrub.py's. Every wait is bounded here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import agentmesh
from agentmesh.blackboard import scrub_frames as frames
from agentmesh.blackboard.logic.scrub_machine import ScrubContext

# -P: the working directory is no place for imports.
WORKER_COMMAND: Final = (sys.executable, "-P", "-m", "agentmesh.blackboard.scrub_worker")
_KILLED_WITHIN_S: Final = 5.0
_PIPE_BYTES: Final = frames.MAX_ANSWER_BYTES + frames.HEADER_BYTES


class WorkerLost(Exception):
    """The worker process ended, hung or made no sense. Internal: scrub.py turns it into an error for one text."""


class WorkerProcess:
    """A running worker. `start` gives one that is ready."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdin is not None  # noqa: S101  asked for below
        assert process.stdout is not None  # noqa: S101
        self._stdin = process.stdin
        self._stdout = process.stdout

    @classmethod
    async def start(
        cls, command: Sequence[str], context: ScrubContext, *, alarm_s: float, limit_s: float
    ) -> WorkerProcess:
        """Start a worker and wait until it has imported everything and passed its own test.

        Raises:
            WorkerLost: it did not within `limit_s`, or could not be started.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # a traceback could quote the text
                env=_environment(),
                cwd="/",
                start_new_session=True,
                limit=_PIPE_BYTES,
            )
        except (OSError, ValueError) as error:
            raise WorkerLost(f"it could not be started: {error}") from error
        worker = cls(process)
        try:
            async with asyncio.timeout(limit_s):
                worker.send(frames.Setup(context, alarm_s))
                answer = await worker.receive()
            if not isinstance(answer, frames.Ready):
                raise WorkerLost(answer.reason if isinstance(answer, frames.Broken) else "it spoke out of turn")
        except TimeoutError as error:
            await worker.stop(0)
            raise WorkerLost(f"it was not ready within {limit_s:g} s") from error
        except BaseException:
            await worker.stop(0)
            raise
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None and not self._stdout.at_eof()

    def send(self, message: frames.Setup | frames.Text) -> None:
        """Hand over a frame; the caller bounds how much is outstanding, so nothing is awaited. A broken pipe shows in `receive`."""
        with suppress(OSError, RuntimeError):
            self._stdin.write(frames.encode(message))

    async def receive(self) -> frames.Ready | frames.Broken | frames.Scrubbed:
        """The next answer.

        Raises:
            WorkerLost: the worker ended or its answer makes no sense.
        """
        try:
            header = await self._stdout.readexactly(frames.HEADER_BYTES)
            body = await self._stdout.readexactly(frames.body_length(header, frames.MAX_ANSWER_BYTES))
            return frames.decode_answer(body)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise WorkerLost("it ended") from error
        except frames.FrameError as error:
            raise WorkerLost(f"it answered {error}") from error

    async def stop(self, grace_s: float) -> None:
        """Close its stdin, which ends it; kill it after `grace_s`. Nothing of it is left afterwards."""
        with suppress(OSError, RuntimeError):
            self._stdin.close()
        if grace_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace_s)
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            with suppress(TimeoutError):  # a process in uninterruptible sleep dies when the kernel lets it
                await asyncio.wait_for(self._process.wait(), _KILLED_WITHIN_S)
        with suppress(
            TimeoutError, OSError, RuntimeError
        ):  # until its end is read, the pipe stays open in the event loop
            await asyncio.wait_for(self._stdout.read(), _KILLED_WITHIN_S)


def _environment() -> dict[str, str]:
    """Small and clean: nothing of the node's secrets, nothing that changes how Python or NumPy starts."""
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(agentmesh.__file__).resolve().parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
