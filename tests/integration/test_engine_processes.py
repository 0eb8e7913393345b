"""Engines as real processes, with an engine that misbehaves in every way that engines do."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.health import ask_engine
from agentmesh.inference.engine.log_tail import LOG_FILE_BYTES
from agentmesh.inference.engine.process import EngineProcess, EngineStatus
from agentmesh.inference.logic.lifecycle import LifecycleLimits, State
from agentmesh.inference.logic.target import EngineAddress
from tests.fakes.engine_programs import asleep
from tests.fakes.fake_engine import fake_engine

WAIT_S = 60.0  # each takes well below a second on a free machine
LIMITS = LifecycleLimits(backoff_ms=50, backoff_max_ms=100, restarts=2, grace_ms=40_000)
STALLS = dataclasses.replace(
    LIMITS, stall_ms=3_000
)  # longer than a machine with others on it makes a process stand still


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets, unlike pytest's."""
    path = Path(tempfile.mkdtemp(prefix="am-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Engines:
    """Engines of one test; all end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[EngineProcess] = []
        self.seen: list[EngineStatus] = []

    def make(
        self,
        *options: str,
        limits: LifecycleLimits = LIMITS,
        unix_sockets: bool = True,
        program: Path | None = None,
        **changes: object,
    ) -> EngineProcess:
        plan = ServerPlan(Path("/models/m.gguf"), "m", 4096, 2)
        found = fake_engine(*options, unix_sockets=unix_sockets)
        engine = EngineProcess(
            found if program is None else dataclasses.replace(found, command=(str(program),)),
            dataclasses.replace(plan, **changes),  # pyright: ignore
            folder=self.folder / "run",
            log=self.log,
            limits=limits,
            on_change=self.seen.append,
        )
        self.made.append(engine)
        return engine

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "m.log"

    @property
    def states(self) -> list[State]:
        return [status.state for status in self.seen]

    def leftovers(self) -> list[str]:
        """What remains of a stopped engine besides its log."""
        return sorted(path.name for path in (self.folder / "run").iterdir())


@pytest.fixture
async def engines(folder: Path) -> AsyncIterator[Engines]:
    made = Engines(folder)
    yield made
    for engine in made.made:
        await engine.stop(0)


async def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
        await asyncio.sleep(0.02)


async def ready(engine: EngineProcess) -> int:
    """Start it; the engine's process id once it answers."""
    await engine.start()
    await asyncio.wait_for(engine.wait_ready(), WAIT_S)
    assert engine.status.pid is not None
    return engine.status.pid


async def crash(engine: EngineProcess) -> None:
    """Let the fake engine die as its --crash-with says; returns when that was seen."""
    pid = engine.status.pid
    assert pid is not None
    os.kill(pid, signal.SIGUSR1)
    await eventually(lambda: engine.status.pid != pid, "the crash to be seen")


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def lingering(engines: Engines) -> list[int]:
    """The two processes that the fake engine said to have forked off."""

    def said() -> list[int]:
        return [int(pid) for pid in re.findall(r"^lingering process (\d+)$", engines.log.read_text(), re.MULTILINE)]

    await eventually(lambda: len(said()) >= 2, "both forks to say so")
    return said()[:2]


async def test_an_engine_starts_answers_and_ends_without_a_trace(engines: Engines) -> None:
    engine = engines.make("--ready-after", "0.2")
    pid = await ready(engine)
    assert engine.address is not None
    answer = await ask_engine(engine.address, "/v1/models")
    assert answer is not None
    assert b'"id":"m"' in answer
    await engine.stop()
    assert engines.states == [State.STARTING, State.LOADING, State.READY, State.STOPPING, State.STOPPED]
    assert not lives(pid)
    assert engines.leftovers() == []


async def test_an_engine_without_unix_sockets_listens_on_loopback_behind_a_key(engines: Engines) -> None:
    engine = engines.make(unix_sockets=False)
    await ready(engine)
    assert engine.address is not None
    assert engine.address.port is not None
    with_key = await ask_engine(engine.address, "/props")
    without = await ask_engine(EngineAddress(port=engine.address.port), "/props")
    assert (with_key or b"").startswith(b"HTTP/1.1 200 ")
    assert (without or b"").startswith(b"HTTP/1.1 401 ")
    key = engine.address.api_key or "?"
    assert all(key not in " ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))
    assert key not in engines.log.read_text()


async def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(engines: Engines) -> None:
    engine = engines.make("--ignore-sigterm")
    pid = await ready(engine)
    began = time.monotonic()
    await engine.stop(0.3)
    assert 0.3 <= time.monotonic() - began < 30  # not the grace of 40 s that it has otherwise
    assert not lives(pid)


@pytest.mark.parametrize(
    "options", [["--fork"], ["--fork", "--hold-pipes"], ["--fork", "--hold-pipes", "--ignore-sigterm"]]
)
async def test_what_an_engine_forked_off_ends_with_it(engines: Engines, options: list[str]) -> None:
    engine = engines.make(*options)
    await ready(engine)
    forked = await lingering(engines)
    assert all(lives(pid) for pid in forked)
    await asyncio.wait_for(engine.stop(0.2), 30)
    assert not any(lives(pid) for pid in forked)
    assert engines.leftovers() == []


async def test_what_a_crashed_engine_forked_off_does_not_outlive_it(engines: Engines) -> None:
    engine = engines.make("--fork", "--hold-pipes")
    await ready(engine)
    forked = await lingering(engines)
    await crash(engine)
    await eventually(lambda: State.BACKOFF in engines.states, "the crash to be seen")
    assert not any(lives(pid) for pid in forked)


async def test_a_crash_at_the_start_fails_at_once_with_the_words_of_the_log(engines: Engines) -> None:
    engine = engines.make("--crash-at-start")
    began = time.monotonic()
    with pytest.raises(EngineFailed, match=r"is not a model\n.*failed to load model"):
        await ready(engine)
    assert time.monotonic() - began < 30  # half of the time after which one that hangs is given up
    assert engine.status.state is State.FAILED
    assert engines.states == [State.STARTING, State.LOADING, State.FAILED]
    assert engines.leftovers() == []


async def test_a_lack_of_memory_is_said_in_a_sentence(engines: Engines) -> None:
    engine = engines.make("--crash-out-of-memory")
    with pytest.raises(EngineFailed, match="There was not enough memory for the model and its context"):
        await ready(engine)


async def test_an_option_that_the_engine_does_not_know_is_named(engines: Engines) -> None:
    with pytest.raises(EngineFailed, match="The engine does not know the option --no-such-thing"):
        await ready(engines.make(extra=("--no-such-thing",)))


async def test_a_program_that_is_not_there_fails_with_its_name(engines: Engines) -> None:
    engine = engines.make(program=Path("/no/such/llama-server"))
    with pytest.raises(EngineFailed, match=r"/no/such/llama-server could not be started: No such file or directory"):
        await ready(engine)
    assert engines.leftovers() == []


@pytest.mark.parametrize("how", ["exit", "abort", "kill"])
async def test_a_crash_after_ready_is_followed_by_a_new_start(engines: Engines, how: str, folder: Path) -> None:
    starts = folder / "starts"
    engine = engines.make("--crash-with", how, "--state", str(starts))
    first = await ready(engine)
    await crash(engine)
    await eventually(lambda: engines.states.count(State.READY) == 2, "the second start")
    assert engine.status.pid not in (None, first)
    assert engine.status.restarts == 1
    assert len(starts.read_text().splitlines()) == 2
    reason = next(status.reason for status in engines.seen if status.state is State.BACKOFF)
    assert {"exit": "status 1", "abort": "crashed (signal 6)", "kill": "ran out of memory"}[how] in reason


async def test_crashes_in_a_row_end_in_failed(engines: Engines) -> None:
    engine = engines.make()
    for crashes in range(1, 2 + LIMITS.restarts):
        await ready(engine)
        await crash(engine)
        assert engine.status.restarts == min(crashes, LIMITS.restarts)
    await eventually(lambda: engine.status.state is State.FAILED, "the end")
    assert engines.states.count(State.STARTING) == 1 + LIMITS.restarts
    assert "3 times in a row" in engine.status.reason
    with pytest.raises(EngineFailed, match="3 times in a row"):
        await engine.wait_ready()


async def test_a_failed_engine_can_be_started_again(engines: Engines, folder: Path) -> None:
    engine = engines.make("--crash-at-start", "--crash-first", "1", "--state", str(folder / "starts"))
    with pytest.raises(EngineFailed):
        await ready(engine)
    await ready(engine)


async def test_an_engine_that_is_never_ready_and_does_nothing_is_given_up(engines: Engines) -> None:
    with pytest.raises(EngineFailed, match="never became ready"):
        await ready(engines.make(program=asleep(engines.folder), limits=STALLS))


@pytest.mark.parametrize("sign", ["--load-noise", "--load-work"])
async def test_loading_may_take_longer_than_the_limit_without_progress(
    engines: Engines, folder: Path, sign: str
) -> None:
    engine = engines.make("--ready-when", str(folder / "loaded"), sign, limits=STALLS)
    await engine.start()
    await eventually(lambda: engine.status.state is State.LOADING, "loading")
    await asyncio.sleep(1.3 * STALLS.stall_ms / 1000)
    assert engine.status.state is State.LOADING
    (folder / "loaded").touch()
    await ready(engine)


async def test_an_engine_that_others_owe_a_reply_may_do_nothing_for_as_long(engines: Engines) -> None:
    """A worker of a split reads its part from a slow disk; that it does so is watched there."""
    owed = True
    engine = engines.make(program=asleep(engines.folder), limits=STALLS, is_owed=lambda: owed)
    await engine.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.wait_ready(), 1.5 * STALLS.stall_ms / 1000)
    assert engine.status.state is State.LOADING
    owed = False
    with pytest.raises(EngineFailed, match="never became ready"):
        await asyncio.wait_for(engine.wait_ready(), WAIT_S)


async def test_an_engine_that_stops_answering_is_replaced(engines: Engines) -> None:
    limits = dataclasses.replace(STALLS, probe_ready_ms=100, grace_ms=200)
    engine = engines.make(limits=limits)
    pid = await ready(engine)
    os.kill(pid, signal.SIGSTOP)  # as one that hangs in its driver
    await eventually(lambda: engines.states.count(State.READY) == 2, "its successor")
    assert not lives(pid)


async def test_a_stop_while_it_loads_ends_it(engines: Engines) -> None:
    engine = engines.make("--never-ready")
    await engine.start()
    await eventually(lambda: engine.status.state is State.LOADING, "loading")
    waiting = asyncio.ensure_future(engine.wait_ready())
    await asyncio.sleep(0)
    await engine.stop()
    with pytest.raises(EngineFailed, match="stopped"):
        await waiting
    assert engine.status.state is State.STOPPED


async def test_a_stop_at_once_after_the_start_leaves_nothing(engines: Engines) -> None:
    engine = engines.make("--ignore-sigterm", "--fork")
    await engine.start()
    await engine.stop(0)
    assert engine.status.state is State.STOPPED
    assert engines.leftovers() == []


async def test_a_guard_that_is_killed_takes_its_engine_with_it_and_another_is_started(engines: Engines) -> None:
    engine = engines.make("--fork")
    pid = await ready(engine)
    forked = await lingering(engines)
    guard = psutil.Process(pid).parent()
    assert guard is not None
    guard.kill()
    await eventually(lambda: engines.states.count(State.READY) == 2, "a new engine")
    assert not lives(pid)
    assert not any(lives(each) for each in forked)


async def test_the_log_of_a_talkative_engine_is_bounded(engines: Engines) -> None:
    lines = 3 * LOG_FILE_BYTES // 90
    engine = engines.make("--noise-lines", str(lines))
    await engine.start()
    await asyncio.wait_for(engine.wait_ready(), 100)
    sizes = [path.stat().st_size for path in engines.log.parent.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= LOG_FILE_BYTES
    assert engine.log_lines(3)[-1] == "srv  llama_server: model loaded"


async def test_engines_of_one_folder_do_not_touch_each_other(engines: Engines) -> None:
    first, second = engines.make(), engines.make()
    await asyncio.gather(first.start(), second.start())
    await asyncio.wait_for(asyncio.gather(first.wait_ready(), second.wait_ready()), WAIT_S)
    assert first.address != second.address
    await first.stop()
    assert second.address is not None
    assert await ask_engine(second.address, "/health") is not None
    records = [json.loads(path.read_text()) for path in (engines.folder / "run").glob("*.json")]
    assert [record["engine"]["pid"] for record in records] == [second.status.pid]
