"""The host's side of one lease: a `job` stream to one worker, which lends its RPC server for as long as the stream lives.

    lease = HostLease(open_stream, worker, "anna", ask, say=show, on_lost=lost)
    ready = await lease.open()       # the worker's RPC server listens
    await lease.close()              # and ends with the stream

Owns the stream, the task that reads it and the one that notices silence. Owner: the event loop. logic/job_wire.py has the words.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from agentmesh.core.errors import AgentMeshError, ProtocolError
from agentmesh.core.tasks import TaskSet
from agentmesh.core.units import HOUR_MS, KIB
from agentmesh.inference.logic.job_wire import (
    JOB_SILENCE_S,
    MAX_SENTENCE_CHARS,
    JobAsk,
    JobSaid,
    JobState,
    shown,
)
from agentmesh.inference.logic.rpc_limits import MAX_JOB_CHARS
from agentmesh.inference.logic.split_limits import MAX_DEVICES_OF_A_NODE
from agentmesh.inference.logic.terms import highest_term
from agentmesh.inference.rpc.errors import WorkerLost, WorkerRefused
from agentmesh.inference.split.parts import OpenStream
from agentmesh.mesh.streams import FrameStream, StreamKind

# A worker's longest word: a READY with all its devices. JobAsk, with a thousand files, may be longer; only what is read is bounded so.
MAX_SAID_BYTES: Final = 16 * KIB

_said = msgspec.msgpack.Decoder(JobSaid)


@dataclass(frozen=True, slots=True)
class LeaseLimits:
    """The bounds of a lease, in seconds.

    Attributes:
        open_s: for the stream, and again for what is asked to be taken.
        silence_s: without a word. Counted in steps of which a machine that slept loses only one.
        stuck_s: of waiting with the same sentence, apart from minutes that it counts: one step of hashing or fetching a large file.
        wait_s: of waiting in all, whatever it says; and no longer than `stuck_s` and what the files take at `fetch_bytes_per_s`.
        end_s: for the worker to end its RPC server and then the stream, once this side has ended it.
        words: in one `silence_s`. A worker says one each two seconds, and more while it fetches.
    """

    open_s: float = 15.0
    silence_s: float = JOB_SILENCE_S
    stuck_s: float = 1_800.0
    wait_s: float = 12 * HOUR_MS / 1000
    fetch_bytes_per_s: float = 2_000_000.0  # on a slower line the next start goes on where this one was given up
    end_s: float = 8.0
    words: int = 200


DEFAULT_LIMITS: Final = LeaseLimits()
_STEPS: Final = 10  # of a silence
_MINUTES: Final = re.compile(r" \(\d+ min\)$")  # how long a worker has said the same; no progress


class WorkerTermSeen(WorkerRefused):
    """The worker has served a newer host of this model."""

    def __init__(self, message: str, seen_term: int) -> None:
        super().__init__(message)
        self.seen_term = seen_term


class HostLease:
    """See the module. `open` once; `close` at any time, also twice.

    Args:
        name: of the worker, for sentences.
        say: told each new sentence of a worker that is not ready yet.
        on_lost: called once, with a sentence, if an open lease ends otherwise than by `close`.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        worker: bytes,
        name: str,
        ask: JobAsk,
        *,
        say: Callable[[str], None] = lambda _: None,
        on_lost: Callable[[str], None] = lambda _: None,
        limits: LeaseLimits = DEFAULT_LIMITS,
    ) -> None:
        self.sentence = "asked"
        self._open_stream = open_stream
        self._worker = worker
        self._name = name
        self._ask = ask
        self._say = say
        self._on_lost = on_lost
        self._limits = limits
        fetching_s = sum(file.size_bytes for file in ask.files) / limits.fetch_bytes_per_s
        self._wait_s = min(limits.wait_s, limits.stuck_s + fetching_s)
        self._stream: FrameStream | None = None
        self._tasks = TaskSet(f"lease of {name}")
        self._ready: asyncio.Future[JobSaid] | None = None
        self._is_open = False  # READY was said
        self._over = False  # lost, or closed
        self._quiet_steps = 0
        self._words = 0
        self._same_s = 0.0
        self._waited_s = 0.0

    async def open(self) -> JobSaid:
        """Ask, and wait until the worker is ready: its READY. Nothing is left of it when this fails.

        Raises:
            WorkerTermSeen: it has served a newer host.
            WorkerRefused: it does not take part, and says why.
            WorkerLost: it cannot be reached, fell silent, or does not come to an end of waiting.
        """
        try:
            stream = self._stream = await self._ask_worker()
            self._ready = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._listen(stream), name="listen")
            self._tasks.spawn(self._watch(), name="watch")
            return await self._ready
        except BaseException:
            self._over = True
            if self._ready is not None and self._ready.done() and not self._ready.cancelled():
                self._ready.exception()  # looked at, whoever is cancelled meanwhile
            if self._stream is not None:
                self._stream.abort()
            await self._tasks.close()
            raise

    async def close(self) -> None:
        """Give it back: the stream is ended and the worker's own end awaited, so that its RPC server is gone."""
        was_open = not self._over and self._stream is not None
        self._over = True
        self.sentence = "given back" if was_open else self.sentence
        await self._tasks.close()
        if self._stream is None:
            return
        try:
            if was_open:
                with contextlib.suppress(AgentMeshError, TimeoutError):
                    async with asyncio.timeout(self._limits.end_s):
                        await self._stream.end()
                        while await self._stream.read_frame() is not None:
                            pass
        finally:
            self._stream.abort()

    # ------------------------------------------------------------------ within

    async def _ask_worker(self) -> FrameStream:
        limits, stream = self._limits, None
        try:
            async with asyncio.timeout(limits.open_s):
                stream = await self._open_stream(self._worker, StreamKind.JOB)
            async with asyncio.timeout(limits.open_s):
                await FrameStream(stream).write_struct(self._ask)
        except TimeoutError:
            if stream is not None:
                stream.abort()
            raise WorkerLost(f"The worker {self._name} did not answer within {limits.open_s:g} s.") from None
        except AgentMeshError as error:
            raise WorkerLost(f"The worker {self._name} cannot be reached: {error.message}") from error
        except BaseException:
            if stream is not None:
                stream.abort()
            raise
        return FrameStream(stream, limit=MAX_SAID_BYTES)

    async def _listen(self, stream: FrameStream) -> None:
        try:
            while (said := await stream.read_struct(_said)) is not None:
                self._quiet_steps = 0
                self._words += 1
                if self._words > self._limits.words:
                    raise ProtocolError("It says more than a lease allows.")
                self._on_said(said)
                if self._over:
                    return
            self._fail(WorkerLost(f"The worker {self._name} ended the lease."))
        except AgentMeshError as error:
            self._fail(WorkerLost(f"The worker {self._name} is gone: {error.message}"))

    async def _watch(self) -> None:
        """Silence is counted in steps, not by the clock: what came while this machine slept is read before it counts again."""
        limits = self._limits
        step_s = limits.silence_s / _STEPS
        step = 0
        while not self._over:
            await asyncio.sleep(step_s)
            step += 1
            if step % _STEPS == 0:
                self._words = 0
            self._quiet_steps += 1
            if self._quiet_steps > _STEPS:
                self._fail(WorkerLost(f"The worker {self._name} has said nothing for {limits.silence_s:g} s."))
            elif self._is_waiting:
                self._same_s += step_s
                self._waited_s += step_s
                if self._same_s > limits.stuck_s or self._waited_s > self._wait_s:
                    sentence = f"The worker {self._name} does not become ready; it said last: {self.sentence}"
                    self._fail(WorkerLost(sentence))

    @property
    def _is_waiting(self) -> bool:
        return self._ready is not None and not self._ready.done()

    def _on_said(self, said: JobSaid) -> None:
        sentence = shown(said.sentence, MAX_SENTENCE_CHARS).strip()
        if said.state in (JobState.REFUSED, JobState.ENDED):
            self._fail(self._refusal(said, sentence))
        elif said.state is JobState.READY and self._ready is not None and self._is_waiting:
            if (wrong := _unusable(said)) is not None:
                self._fail(WorkerLost(f"The worker {self._name} said what cannot be: {wrong}"))
            else:
                self.sentence = "lends its RPC server"
                if not said.same_files:
                    why = f": {sentence}" if sentence else ""
                    self.sentence += f"; this node sends it the weights{why}"
                self._is_open = True
                self._ready.set_result(said)
        elif said.state is JobState.WAIT and self._is_waiting and sentence and sentence != self.sentence:
            if _MINUTES.sub("", sentence) != _MINUTES.sub("", self.sentence):
                self._same_s = 0.0
            self.sentence = sentence
            self._say(sentence)

    def _refusal(self, said: JobSaid, sentence: str) -> WorkerRefused | WorkerLost:
        why = sentence or "it did not say why."
        if said.state is JobState.ENDED:
            return WorkerLost(f"The worker {self._name} ended the lease: {why}")
        if self._ask.term <= said.seen_term <= highest_term(time.time_ns() // 1_000_000):
            return WorkerTermSeen(f"The worker {self._name} refused: {why}", said.seen_term)
        return WorkerRefused(f"The worker {self._name} refused: {why}")

    def _fail(self, error: WorkerRefused | WorkerLost) -> None:
        if self._over:
            return
        self._over = True
        self.sentence = error.message
        if self._stream is not None:
            self._stream.abort()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
        elif self._is_open:
            self._on_lost(error.message)


def _unusable(said: JobSaid) -> str | None:
    """Why a READY cannot be used."""
    if not 0 < len(said.job) <= MAX_JOB_CHARS:
        return "a job without a usable name."
    if not 0 < len(said.devices) <= MAX_DEVICES_OF_A_NODE or len(set(said.devices)) != len(said.devices):
        named = ", ".join(f"'{shown(each)}'" for each in said.devices[:MAX_DEVICES_OF_A_NODE])
        return f"an RPC server with the devices {named or '(none)'}."
    return None
