"""A host's lease of one worker: what the worker may say, and every way in which it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from agentmesh.core.errors import Unreachable
from agentmesh.inference.logic.job_wire import JobAsk, JobFile, JobSaid, JobState
from agentmesh.inference.rpc.errors import WorkerLost, WorkerRefused
from agentmesh.inference.split.host_lease import DEFAULT_LIMITS, HostLease, LeaseLimits, WorkerTermSeen
from agentmesh.mesh.streams import FrameStream, StreamKind
from agentmesh.mesh.transport import Stream
from tests.fakes.job_worker import JobWorker, MemoryWorkers, memory_workers
from tests.fakes.mesh_nodes import eventually
from tests.fakes.virtual_time import virtually

NODE = b"w" * 32
ASK = JobAsk("c" * 32, "m", 7, (JobFile(b"f" * 32, 10, "m.gguf"),), (("", 1000),), "0c1e570", (7, 0, 0))
READY = JobSaid(JobState.READY, "", "job", ("",))
QUICK = replace(DEFAULT_LIMITS, open_s=5.0, silence_s=0.3, end_s=0.3)


class Told:
    """What a lease tells, and a worker of the test's making at its other end."""

    def __init__(self, workers: MemoryWorkers, worker: JobWorker) -> None:
        self.workers, self.worker = workers, worker
        self.said: list[str] = []
        self.lost: list[str] = []

    def lease(self, ask: JobAsk = ASK, limits: LeaseLimits = DEFAULT_LIMITS) -> HostLease:
        return HostLease(
            self.workers.open_stream, NODE, "anna", ask, say=self.said.append, on_lost=self.lost.append, limits=limits
        )

    async def fails(self, error: type[Exception], match: str, limits: LeaseLimits = QUICK) -> None:
        """Opening fails so; the worker's end is over, too, and nothing was called lost."""
        with pytest.raises(error, match=match):
            await self.lease(limits=limits).open()
        await eventually(lambda: self.worker.open_now == 0)
        assert self.lost == []


async def _port() -> int:
    return 1


async def _nothing() -> None:
    pass


@asynccontextmanager
async def told(worker: JobWorker | None = None, **changes: object) -> AsyncGenerator[Told]:
    made = worker or replace(JobWorker(_port, _nothing), **changes)
    async with memory_workers() as workers:
        await workers.add(NODE, made)
        yield Told(workers, made)


def wait(sentence: str) -> JobSaid:
    return JobSaid(JobState.WAIT, sentence)


class Scripted(JobWorker):
    """Speaks frames of the test's choice."""

    def __init__(self, script: Callable[[FrameStream], object]) -> None:
        super().__init__(_port, _nothing)
        self.script = script

    async def serve(self, peer: bytes, stream: Stream) -> None:
        self.open_now += 1
        frames = FrameStream(stream)
        try:
            await frames.read_frame()
            await self.script(frames)  # pyright: ignore
        finally:
            stream.abort()
            self.open_now -= 1


@virtually
async def test_a_worker_that_gets_ready_says_so_and_the_end_of_the_stream_is_the_end_of_the_lease() -> None:
    async with told(words=(wait("fetching 10 %"), wait("fetching 10 %"), wait("fetching\x1b[2J 20 %"))) as here:
        lease = here.lease()
        ready = await lease.open()
        assert (ready.job, ready.devices) == ("job-1", ("",))
        assert here.said == ["fetching 10 %", "fetching [2J 20 %"]
        assert here.worker.asks == [ASK]
        assert lease.sentence == "lends its RPC server; this node sends it the weights"
        await lease.close()
        assert here.worker.open_now == 0  # its end was awaited
        assert here.lost == []


@virtually
async def test_closing_twice_and_without_opening_does_nothing() -> None:
    async with told() as here:
        lease = here.lease()
        await lease.close()
        lease = here.lease()
        await lease.open()
        await lease.close()
        await lease.close()
        assert here.workers.opened == [StreamKind.JOB]


@pytest.mark.parametrize("seen_term", [7, 9])
@virtually
async def test_a_newer_host_is_named_with_its_term(seen_term: int) -> None:
    refused = JobSaid(JobState.REFUSED, "A newer host has this model.", seen_term=seen_term)
    async with told(instead=refused) as here:
        with pytest.raises(WorkerTermSeen, match="The worker anna refused: A newer host") as caught:
            await here.lease().open()
        assert caught.value.seen_term == seen_term


@pytest.mark.parametrize("seen_term", [0, 6, 1 << 40, 1 << 62])
@virtually
async def test_a_term_that_cannot_be_is_a_plain_refusal(seen_term: int) -> None:
    async with told(instead=JobSaid(JobState.REFUSED, "", seen_term=seen_term)) as here:
        with pytest.raises(WorkerRefused, match="it did not say why") as caught:
            await here.lease().open()
        assert type(caught.value) is WorkerRefused


@pytest.mark.parametrize(
    "ready",
    [
        replace(JobWorker(_port, _nothing), instead=JobSaid(JobState.READY, "", "", ("",))),
        replace(JobWorker(_port, _nothing), instead=JobSaid(JobState.READY, "", "j" * 201, ("",))),
        replace(JobWorker(_port, _nothing), instead=JobSaid(JobState.READY, "", "job", ())),
        replace(JobWorker(_port, _nothing), instead=JobSaid(JobState.READY, "", "job", ("a", "a"))),
        replace(JobWorker(_port, _nothing), instead=JobSaid(JobState.READY, "", "job", tuple(map(str, range(17))))),
    ],
)
@virtually
async def test_a_ready_that_cannot_be_is_a_loss(ready: JobWorker) -> None:
    async with told(ready) as here:
        await here.fails(WorkerLost, "what cannot be")


@virtually
async def test_one_that_ends_without_a_word_or_says_that_it_has_ended() -> None:
    async def nothing(frames: FrameStream) -> None:
        await frames.end()
        await frames.read_frame()

    async with told(Scripted(nothing)) as here:
        await here.fails(WorkerLost, "The worker anna ended the lease.")
    async with told(instead=JobSaid(JobState.ENDED, "The disk is full.")) as here:
        await here.fails(WorkerLost, "ended the lease: The disk is full")


@pytest.mark.parametrize("body", [b"\xc1", b"\x93\x09\xa0\xa0", b"x" * 20_000])
@virtually
async def test_bytes_that_are_no_word_are_a_loss(body: bytes) -> None:
    async def garbage(frames: FrameStream) -> None:
        await frames.write_frame(body)
        await frames.read_frame()

    async with told(Scripted(garbage)) as here:
        await here.fails(WorkerLost, "The worker anna is gone")


@virtually
async def test_one_that_never_says_anything_is_given_up() -> None:
    async def silent(frames: FrameStream) -> None:
        await frames.read_frame()

    async with told(Scripted(silent)) as here:
        await here.fails(WorkerLost, "has said nothing for 0.3 s")


@virtually
async def test_one_that_says_wait_for_ever_is_given_up_when_its_sentence_stays_the_same() -> None:
    async def stuck(frames: FrameStream) -> None:
        for minutes in range(1_000):
            await frames.write_struct(wait(f"fetching 10 % ({minutes} min)"))
            await asyncio.sleep(0.02)

    async with told(Scripted(stuck)) as here:
        await here.fails(WorkerLost, "it said last: fetching 10 %", replace(QUICK, stuck_s=0.2))
        assert here.said[1] == "fetching 10 % (1 min)"


@virtually
async def test_even_one_with_ever_new_sentences_is_given_up_in_the_end() -> None:
    async def busy(frames: FrameStream) -> None:
        for number in range(10_000):
            await frames.write_struct(wait(f"fetching {number}"))
            await asyncio.sleep(0.02)

    async with told(Scripted(busy)) as here:
        # Files of 10 bytes: however new its sentences, no longer than they take on a slow line.
        for limits in (replace(QUICK, stuck_s=0.2, wait_s=0.5, fetch_bytes_per_s=1.0), replace(QUICK, stuck_s=0.2)):
            began_s = asyncio.get_running_loop().time()
            await here.fails(WorkerLost, "does not become ready", limits)
            assert asyncio.get_running_loop().time() - began_s < 10
        assert len(here.said) > 1


@virtually
async def test_one_that_talks_without_end_is_cut_off() -> None:
    async def flood(frames: FrameStream) -> None:
        while True:
            await frames.write_struct(JobSaid(JobState.BEAT))

    async with told(Scripted(flood)) as here:
        await here.fails(WorkerLost, "more than a lease allows", replace(QUICK, silence_s=10.0))


@virtually
async def test_a_worker_that_does_not_take_the_stream_or_cannot_be_reached_is_bounded() -> None:
    async with told() as here:
        here.workers.drop(NODE)
        await here.fails(WorkerLost, "The worker anna cannot be reached")

    async def never(_node: bytes, _kind: StreamKind) -> Stream:
        await asyncio.Event().wait()
        raise Unreachable

    lease = HostLease(never, NODE, "anna", ASK, limits=replace(QUICK, open_s=0.1))
    with pytest.raises(WorkerLost, match=r"did not answer within 0\.1 s"):
        await lease.open()


@virtually
async def test_silence_of_a_worker_that_was_ready_is_told_once() -> None:
    async with told(silent=True) as here:
        lease = here.lease(limits=QUICK)
        await lease.open()
        await eventually(lambda: here.lost != [])
        assert here.lost == ["The worker anna has said nothing for 0.3 s."]
        await eventually(lambda: here.worker.open_now == 0)
        await lease.close()
        assert len(here.lost) == 1


@virtually
async def test_a_worker_whose_machine_is_gone_is_told_at_once() -> None:
    async with told() as here:
        lease = here.lease()
        await lease.open()
        here.workers.drop(NODE)
        await eventually(lambda: len(here.lost) == 1, 2.0)
        assert "anna" in here.lost[0]
        assert lease.sentence == here.lost[0]
        await lease.close()


@virtually
async def test_a_worker_that_says_why_it_ended_is_quoted() -> None:
    async def ends(frames: FrameStream) -> None:
        await frames.write_struct(READY)
        await frames.write_struct(JobSaid(JobState.ENDED, "Its RPC server crashed."))
        await frames.read_frame()

    async with told(Scripted(ends)) as here:
        lease = here.lease()
        await lease.open()
        await eventually(lambda: here.lost == ["The worker anna ended the lease: Its RPC server crashed."], 2.0)
        await lease.close()


@virtually
async def test_closing_does_not_wait_for_a_worker_that_does_not_end() -> None:
    async with told(stubborn=True) as here:
        lease = here.lease(limits=replace(QUICK, silence_s=30.0))
        await lease.open()
        async with asyncio.timeout(3):
            await lease.close()
        assert here.lost == []


@virtually
async def test_cancelled_while_it_waits_it_leaves_nothing() -> None:
    async def stuck(frames: FrameStream) -> None:
        await frames.write_struct(wait("fetching"))
        await frames.read_frame()

    async with told(Scripted(stuck)) as here:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await here.lease().open()
        await eventually(lambda: here.worker.open_now == 0)
        assert here.lost == []
        assert here.said == ["fetching"]
