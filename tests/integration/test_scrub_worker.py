"""The scrubber with real processes: what a worker that hangs, dies or lies costs, and that none is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.blackboard.logic.redaction import Redaction
from agentmesh.blackboard.logic.scrub_env import SecretValue
from agentmesh.blackboard.logic.scrub_machine import ScrubContext
from agentmesh.blackboard.logic.scrub_rules import scrub as scrub_purely
from agentmesh.blackboard.scrub import (
    MostlySecret,
    ScrubberTimeout,
    ScrubberUnavailable,
    ScrubPool,
    ScrubSettings,
    TextTooLong,
)
from agentmesh.core.errors import EXIT_FAILED, EXIT_USAGE, InvalidInput
from benchmarks.corpus.alphabet import fill
from benchmarks.corpus.developer_text import made_lines
from benchmarks.corpus.generate import credentials, people

ROOT = Path(__file__).resolve().parents[2]
FAULTY = (sys.executable, "-m", "tests.fakes.faulty_scrub_worker")
CONTEXT = ScrubContext(users=("quentin",), secrets=(SecretValue("SHOP_KEY", "correct-horse-9"),))
LIMIT_S = 60
START_S = 100  # until the real worker answers: its imports take 2 s alone, 17 beside three that compute
HANG_S = 4.0  # after which a text that hangs is given up, where that is waited for; no other text may take as long


def faulty(*options: str, **settings: float | bool) -> ScrubPool:
    """A pool whose workers misbehave when a text says so."""
    return ScrubPool(
        CONTEXT,
        ScrubSettings(**{"command": (*FAULTY, *options), "text_limit_s": LIMIT_S, "spare_after_s": 0.0} | settings),
    )  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return Path("/proc").is_dir() is False and _signalled(pid)
    return state != "Z"


def _signalled(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition, what: str) -> None:
    for _ in range(LIMIT_S * 50):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"never: {what}")


@pytest.fixture
async def pool() -> AsyncIterator[ScrubPool]:
    pool = faulty()
    yield pool
    await pool.close()


@pytest.fixture(scope="module")
def samples() -> list[str]:
    rng = random.Random(11)
    texts = [s.text for s in (*credentials(rng, 1), *people(rng, 5))] + list(made_lines(rng, 100))
    return rng.sample(texts, 200)


async def test_the_real_worker_masks_exactly_what_the_rules_say(samples: list[str]) -> None:
    pool = ScrubPool(CONTEXT, ScrubSettings(spare=False, start_limit_s=START_S, wait_limit_s=START_S))
    try:
        answers = await asyncio.wait_for(pool.scrub_many(samples), START_S)
        assert answers == [scrub_purely(text, CONTEXT) for text in samples]
        answer = await pool.scrub(
            "quentin said that correct-horse-9 opens the shop, ask eva.stone@acme.io about the rest of it"
        )
        assert answer.text == "{{USER}} said that {{SHOP_KEY}} opens the shop, ask {{EMAIL}} about the rest of it"
        assert answer.redactions == (Redaction("EMAIL", 1), Redaction("SHOP_KEY", 1), Redaction("USER", 1))
        with pytest.raises(MostlySecret) as refused:
            await pool.scrub(fill("ghp_<an:36>", random.Random(1)))
        assert refused.value.exit_code == EXIT_USAGE
    finally:
        await pool.close()


async def test_secrets_of_the_environment_are_not_on_the_workers_command_line_or_in_its_environment(
    pool: ScrubPool,
) -> None:
    await pool.warm()
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    for file in ("cmdline", "environ"):
        assert b"correct-horse-9" not in Path(f"/proc/{pool.worker_pids[0]}/{file}").read_bytes()


async def test_a_text_that_hangs_is_refused_and_only_that_one_and_order_is_kept() -> None:
    pool = faulty(text_limit_s=HANG_S)
    finished: list[str] = []

    async def one(text: str) -> str | type[Exception]:
        try:
            answer = (await pool.scrub(text)).text
        except ScrubberTimeout as error:
            assert error.retryable
            assert error.exit_code == EXIT_FAILED
            return ScrubberTimeout
        finished.append(answer)
        return answer

    texts = [f"SLOW {i}" for i in range(6)] + ["HANG"] + [f"SLOW {i}" for i in range(6, 12)]
    try:
        answers = await asyncio.wait_for(asyncio.gather(*(one(text) for text in texts)), LIMIT_S)
    finally:
        await pool.close()
    assert answers == [ScrubberTimeout if text == "HANG" else text.lower() for text in texts]
    assert finished == [f"slow {i}" for i in range(12)]


@pytest.mark.parametrize("fault", ["DIE", "BABBLE", "HUGE"])
async def test_a_worker_that_dies_or_lies_costs_one_text(pool: ScrubPool, fault: str) -> None:
    answers = await asyncio.wait_for(pool.scrub_many(["ONE", fault, "TWO", "THREE"]), LIMIT_S)
    assert [a and a.text for a in answers] == ["one", None, "two", "three"]


async def test_a_worker_killed_in_the_middle_of_a_text_fails_closed_and_the_spare_takes_over(pool: ScrubPool) -> None:
    await pool.warm()
    await until(lambda: len(pool.worker_pids) == 2, "a warm spare")
    first, spare = pool.worker_pids
    hanging = asyncio.gather(pool.scrub("HANG"), return_exceptions=True)
    behind = asyncio.gather(pool.scrub("BEHIND"), return_exceptions=True)
    await until(lambda: len(pool._sent) == 2, "the worker has both texts")
    os.kill(first, signal.SIGKILL)
    assert isinstance((await asyncio.wait_for(hanging, LIMIT_S))[0], ScrubberTimeout)
    assert (await asyncio.wait_for(behind, LIMIT_S))[0].text == "behind"  # type: ignore[union-attr]
    assert pool.worker_pids[0] == spare


async def test_a_worker_killed_between_two_texts_costs_none(pool: ScrubPool) -> None:
    await pool.warm()
    pid = pool.worker_pids[0]
    os.kill(pid, signal.SIGKILL)
    # Its end is known before the next text comes; a text that it was sent would be refused.
    await until(lambda: pool._worker is not None and not pool._worker.running, "the worker's end is seen")
    assert (await pool.scrub("NEXT")).text == "next"


async def test_a_text_over_16_kib_or_with_half_a_surrogate_is_refused_before_any_worker(pool: ScrubPool) -> None:
    with pytest.raises(TextTooLong, match="16,385"):
        await pool.scrub("x" * 16_385)
    with pytest.raises(InvalidInput):
        await pool.scrub("\ud800")
    assert pool.worker_pids == ()
    assert await pool.scrub_many(["x" * 16_385]) == [None]


async def test_more_texts_than_the_queue_holds_are_refused_at_once() -> None:
    pool = faulty(queue_limit=3)
    try:
        results = await asyncio.gather(*(pool.scrub("SLOW") for _ in range(40)), return_exceptions=True)
        refused = [r for r in results if isinstance(r, ScrubberUnavailable)]
        assert refused
        assert len(refused) + sum(not isinstance(r, BaseException) for r in results) == 40
    finally:
        await pool.close()


@pytest.mark.parametrize("option", ["--broken", "--deaf"])
async def test_a_worker_that_cannot_start_refuses_every_text_and_is_not_started_again_at_once(option: str) -> None:
    pool = faulty(option, start_limit_s=1.5)
    try:
        for _ in range(2):
            with pytest.raises(ScrubberUnavailable):
                await asyncio.wait_for(pool.scrub("ONE"), LIMIT_S)
        assert await pool.scrub_many(["ONE"]) == [None]
        assert pool.worker_pids == ()
    finally:
        await pool.close()


async def test_a_command_that_does_not_exist_is_said_as_unavailable() -> None:
    pool = ScrubPool(CONTEXT, ScrubSettings(command=("/nonexistent/python",)))
    with pytest.raises(ScrubberUnavailable):
        await pool.scrub("ONE")
    await pool.close()


async def test_a_text_that_takes_too_much_processor_time_is_refused_long_before_the_wall_limit() -> None:
    pool = faulty(text_limit_s=LIMIT_S)
    try:
        began = time.monotonic()
        with pytest.raises(ScrubberTimeout):
            await pool.scrub("SPIN")
        assert time.monotonic() - began < LIMIT_S / 2
        assert (await pool.scrub("NEXT")).text == "next"
    finally:
        await pool.close()


async def test_idle_workers_end_and_come_back_when_needed() -> None:
    pool = faulty(idle_s=0.3)
    try:
        assert (await pool.scrub("ONE")).text == "one"
        pids = pool.worker_pids
        await until(lambda: pool.worker_pids == () and not any(alive(pid) for pid in pids), "the workers end")
        assert (await pool.scrub("TWO")).text == "two"
    finally:
        await pool.close()


async def test_closing_ends_every_worker_and_tells_who_waits() -> None:
    pool = faulty()
    await pool.warm()
    await until(lambda: len(pool.worker_pids) == 2, "a warm spare")
    pids = pool.worker_pids
    waiting = asyncio.gather(pool.scrub("HANG"), return_exceptions=True)
    await asyncio.sleep(0.05)
    await asyncio.wait_for(pool.close(), LIMIT_S)
    assert isinstance((await waiting)[0], ScrubberUnavailable)
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(ScrubberUnavailable):
        await pool.scrub("ONE")


async def test_a_caller_that_goes_away_leaves_the_others_alone(pool: ScrubPool) -> None:
    await pool.warm()
    gone = asyncio.gather(pool.scrub("SLOW"))
    stays = asyncio.gather(pool.scrub("STAYS"))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await asyncio.wait_for(stays, LIMIT_S))[0].text == "stays"


@pytest.mark.parametrize("text", ["x", "HANG"])
def test_workers_end_when_their_node_is_killed_even_in_the_middle_of_a_text(text: str) -> None:
    """The fault: SIGKILL of the node, which can close nothing. A worker hanging in a text ends by its own alarm."""
    node = (
        "import asyncio\n"
        "from tests.integration.test_scrub_worker import *\n"
        "async def main():\n"
        "    pool = ScrubPool(CONTEXT, ScrubSettings(command=FAULTY, text_limit_s=60, alarm_s=1.0, spare_after_s=0))\n"
        "    await pool.warm()\n"
        "    await until(lambda: len(pool.worker_pids) == 2, 'a spare')\n"
        "    pids = pool.worker_pids\n"
        f"    task = asyncio.gather(pool.scrub({text!r}))\n"
        "    await asyncio.wait([task], timeout=0.2)\n"
        "    print(*pids, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", node], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)
    assert len(pids) == 2
    asyncio.run(until(lambda: not any(alive(pid) for pid in pids), "the workers end"))
