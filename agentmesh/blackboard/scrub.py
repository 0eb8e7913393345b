"""The scrubber as the node uses it: an async front to worker processes that mask what must not be posted.

Owns the queue, the time limits and the workers' lives. A text whose scrubbing hangs or kills its worker is refused, and only
that one (it fails closed); the texts behind it go to the warm spare, in order. Knows no rule, and imports no scrubadub.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from agentmesh.blackboard import scrub_frames as frames
from agentmesh.blackboard.logic import scrub_limits as limits
from agentmesh.blackboard.logic.redaction import Masked
from agentmesh.blackboard.logic.scrub_env import secret_values
from agentmesh.blackboard.logic.scrub_machine import ScrubContext, worth_masking
from agentmesh.blackboard.scrub_process import WORKER_COMMAND, WorkerLost, WorkerProcess
from agentmesh.core.errors import EXIT_FAILED, AgentMeshError, InvalidInput
from agentmesh.core.tasks import TaskSet

_log: Final = logging.getLogger(__name__)

Scrubbed = Masked


class TextTooLong(InvalidInput):
    """The text is too long to be checked for secrets."""

    http_status: ClassVar[int] = 413


class MostlySecret(InvalidInput):
    """The text is mostly passwords, keys or tokens, so it is not posted; say in words what you found."""


class CannotScrub(InvalidInput):
    """The text could not be cleared of secrets, so it is not posted; reword it."""


class ScrubberUnavailable(AgentMeshError):
    """The text could not be checked for secrets, so it is not posted; try again."""

    exit_code: ClassVar[int] = EXIT_FAILED
    http_status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True


class ScrubberTimeout(ScrubberUnavailable):
    """Checking this text for secrets took too long or failed, so it is not posted; shorten or reword it and try again."""


@dataclass(frozen=True)
class ScrubSettings:
    """What the tests change; the defaults are the limits of logic/scrub_limits.py. Times in seconds."""

    command: Sequence[str] = WORKER_COMMAND
    text_limit_s: float = limits.TEXT_TIME_LIMIT_S
    alarm_s: float = limits.WORKER_ALARM_S
    start_limit_s: float = limits.START_LIMIT_S
    stop_limit_s: float = limits.STOP_LIMIT_S
    wait_limit_s: float = limits.WAIT_LIMIT_S
    idle_s: float = limits.IDLE_S
    spare_after_s: float = limits.SPARE_AFTER_S
    queue_limit: int = limits.QUEUE_LIMIT
    retry_start_s: float = limits.RETRY_START_AFTER_S
    spare: bool = True


@dataclass(eq=False)
class _Job:
    text: str
    answer: asyncio.Future[frames.Scrubbed] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ScrubPool:
    """Masks texts, one worker at work and one warm beside it. `close` it; it may be used from one event loop only."""

    def __init__(self, context: ScrubContext, settings: ScrubSettings | None = None) -> None:
        self._context = context
        self._settings = settings or ScrubSettings()
        self._own: deque[_Job] = deque()
        self._bulk: deque[_Job] = deque()
        self._sent: deque[_Job] = deque()
        self._number = 0
        self._worker: WorkerProcess | None = None
        self._spare: WorkerProcess | None = None
        self._starting = asyncio.Lock()
        self._starting_spare = False
        self._bulk_slots = asyncio.Semaphore(limits.BULK_AT_ONCE)
        self._work = asyncio.Event()
        self._tasks = TaskSet("scrub")
        self._serving = False
        self._closed = False
        self._failures = 0
        self._retry_at = 0.0

    # -------------------------------------------------------------- what callers use

    async def scrub(self, text: str) -> Scrubbed:
        """Mask a text that is about to be posted.

        Raises:
            TextTooLong: it is over 16 KiB. MostlySecret: little else would be left. CannotScrub: it cannot be masked.
            InvalidInput: it is not Unicode text.
            ScrubberUnavailable: no worker can be had, too many texts wait, or (ScrubberTimeout) this one hung or crashed it.
        """
        _check(text)
        if len(self._own) >= self._settings.queue_limit:
            raise ScrubberUnavailable("Too many texts wait to be checked for secrets; try again in a moment.")
        answer = await self._answer(_Job(text), self._own)
        if not answer.settled:
            raise CannotScrub
        if answer.mostly_secret:
            raise MostlySecret
        return Scrubbed(answer.text, answer.redactions)

    async def scrub_many(self, texts: Sequence[str]) -> list[Scrubbed | None]:
        """Mask texts that came from peers, in order; None: it could not be checked and must be hidden (for now: ask again).

        The node's own posts go first. Texts that are mostly secret are masked like any other: they are signed and stored already.
        """
        return list(await asyncio.gather(*(self._scrub_of_peer(text) for text in texts)))

    async def warm(self) -> None:
        """Have a worker ready, and its spare on the way. Counts as use: the workers stay for the idle time from now.

        Raises:
            ScrubberUnavailable: none can be started.
        """
        self._ensure_serving()
        self._work.set()
        try:
            async with asyncio.timeout(self._settings.wait_limit_s):
                await self._ready_worker()
        except TimeoutError as error:
            raise ScrubberUnavailable from error

    async def close(self) -> None:
        """End the workers; whoever still waits gets ScrubberUnavailable."""
        self._closed = True
        await self._tasks.close(self._settings.stop_limit_s)
        self._refuse_waiting(ScrubberUnavailable("The node is stopping; try again."))
        await self._stop_workers()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The worker at work, then its spare."""
        return tuple(worker.pid for worker in (self._worker, self._spare) if worker is not None)

    # -------------------------------------------------------------- the queue

    async def _scrub_of_peer(self, text: str) -> Scrubbed | None:
        async with self._bulk_slots:
            try:
                _check(text)
                answer = await self._answer(_Job(text), self._bulk)
            except AgentMeshError:
                return None
        return Scrubbed(answer.text, answer.redactions) if answer.settled else None

    async def _answer(self, job: _Job, queue: deque[_Job]) -> frames.Scrubbed:
        self._ensure_serving()
        queue.append(job)
        self._work.set()
        try:
            async with asyncio.timeout(self._settings.wait_limit_s):
                return await job.answer
        except TimeoutError as error:
            raise ScrubberUnavailable from error
        finally:
            if not job.answer.done():
                job.answer.cancel()

    def _ensure_serving(self) -> None:
        if self._closed:
            raise ScrubberUnavailable("The node is stopping; try again.")
        if not self._serving:
            self._serving = True
            self._tasks.spawn(self._serve(), name="serve")

    def _next_job(self) -> _Job | None:
        for queue in (self._own, self._bulk):
            while queue:
                job = queue.popleft()
                if not job.answer.done():
                    return job
        return None

    def _refuse_waiting(self, error: AgentMeshError) -> None:
        for queue in (self._sent, self._own, self._bulk):
            for job in queue:
                _refuse(job, error)
            queue.clear()

    # -------------------------------------------------------------- the one task that talks to workers

    async def _serve(self) -> None:
        try:
            while True:
                await self._some_work()
                try:
                    worker = await self._ready_worker()
                except ScrubberUnavailable as error:
                    self._refuse_waiting(error)
                    continue
                await self._feed(worker)
        except Exception:  # noqa: BLE001  task root: whoever waits is told, and the next text starts it anew
            _log.exception("the scrubber's task failed")
            self._refuse_waiting(ScrubberUnavailable())
            await self._stop_workers()
        finally:
            self._serving = False

    async def _some_work(self) -> None:
        """Wait for texts or a call of `warm`; whenever the idle time passes without, end the workers."""
        while not (self._own or self._bulk):
            self._work.clear()
            try:
                async with asyncio.timeout(self._settings.idle_s):
                    await self._work.wait()
                return
            except TimeoutError:
                await self._stop_workers()

    async def _feed(self, worker: WorkerProcess) -> None:
        """Send what waits, a few texts ahead of their answers, until nothing waits or the worker is lost."""
        while True:
            while len(self._sent) < limits.PIPELINE and (job := self._next_job()) is not None:
                self._number += 1
                self._sent.append(job)
                worker.send(frames.Text(self._number, job.text))
            if not self._sent:
                return
            try:
                async with asyncio.timeout(self._settings.text_limit_s):
                    answer = await worker.receive()
                if not isinstance(answer, frames.Scrubbed) or answer.number != self._number - len(self._sent) + 1:
                    raise WorkerLost("it answered something else")
            except (TimeoutError, WorkerLost) as error:
                await self._lost(worker, error)
                return
            job = self._sent.popleft()
            if not job.answer.done():
                job.answer.set_result(answer)

    async def _lost(self, worker: WorkerProcess, error: Exception) -> None:
        """Refuse the text that was being read, put the others back in front, let the spare take over."""
        _log.warning("a scrub worker was lost while it read a text, which is refused: %s", error or "it took too long")
        _refuse(self._sent.popleft(), ScrubberTimeout())
        self._own.extendleft(reversed(self._sent))
        self._sent.clear()
        self._worker, self._spare = self._spare, None
        await worker.stop(0)

    # -------------------------------------------------------------- workers

    async def _ready_worker(self) -> WorkerProcess:
        async with self._starting:
            for worker in (self._worker, self._spare):
                if worker is not None and not worker.running:  # killed from outside between two texts: nobody's fault
                    await worker.stop(0)
            if self._worker is None or not self._worker.running:
                self._worker, self._spare = self._spare, None
            if self._worker is None or not self._worker.running:
                self._worker = await self._started()
            if self._spare is None and self._settings.spare and not self._starting_spare:
                self._starting_spare = True
                self._tasks.spawn(self._start_spare(), name="spare")
            return self._worker

    async def _start_spare(self) -> None:
        try:
            await asyncio.sleep(self._settings.spare_after_s)
            spare = await self._started()
        except ScrubberUnavailable:
            return
        finally:
            self._starting_spare = False
        if self._closed or self._spare is not None or self._worker is None:
            await spare.stop(self._settings.stop_limit_s)
        else:
            self._spare = spare

    async def _started(self) -> WorkerProcess:
        settings, now = self._settings, asyncio.get_running_loop().time()
        if self._closed or now < self._retry_at:
            raise ScrubberUnavailable
        try:
            worker = await WorkerProcess.start(
                settings.command, self._context, alarm_s=settings.alarm_s, limit_s=settings.start_limit_s
            )
        except WorkerLost as error:
            wait_s = min(settings.retry_start_s * 2**self._failures, limits.MAX_RETRY_START_AFTER_S)
            self._failures = min(self._failures + 1, 16)
            self._retry_at = asyncio.get_running_loop().time() + wait_s
            _log.error("the scrub worker cannot start, so nothing can be posted: %s", error)
            raise ScrubberUnavailable from error
        self._failures = 0
        return worker

    async def _stop_workers(self) -> None:
        workers = [worker for worker in (self._worker, self._spare) if worker is not None]
        self._worker = self._spare = None
        await asyncio.gather(*(worker.stop(self._settings.stop_limit_s) for worker in workers))


def machine_context(environ: Mapping[str, str] | None = None) -> ScrubContext:
    """What is known of this machine and its user, for the rules to mask."""
    environ = os.environ if environ is None else environ
    users = {environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    try:
        users.add(getpass.getuser())
    except (OSError, KeyError):  # no such user in the password file: a container with a bare uid
        _log.debug("the user has no name")
    host = socket.gethostname()
    hosts = {host, host.partition(".")[0]}
    homes = {str(Path.home()), environ.get("HOME", "")}
    homes |= {os.path.realpath(home) for home in homes if home}
    return ScrubContext(
        homes=tuple(sorted(home for home in homes if len(home) >= 4 and home.count("/") + home.count("\\") >= 1)),
        users=tuple(sorted(filter(worth_masking, users))),
        hosts=tuple(sorted(filter(worth_masking, hosts))),
        secrets=secret_values(environ),
    )


def _check(text: str) -> None:
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidInput("The text is not valid Unicode: it has half of a surrogate pair.") from error
    if size > limits.MAX_RAW_TEXT_BYTES:
        raise TextTooLong(
            f"The text has {size:,} bytes; {limits.MAX_RAW_TEXT_BYTES:,} is the most that is checked for secrets."
        )


def _refuse(job: _Job, error: AgentMeshError) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
