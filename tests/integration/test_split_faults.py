"""Splits whose worker's files change while they are used, and whose RPC server stalls without dying."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.rpc import exit_connection
from agentmesh.inference.rpc.local_socket import LocalSocket
from agentmesh.inference.rpc.weights import Place
from tests.fakes.mesh_nodes import eventually
from tests.fakes.rpc_split import ALL_ON_WORKERS, JOB, Said, Split, say, splits
from tests.fakes.split_models import HALF, prompt_tokens, write_split_model

PROMPT = prompt_tokens(HALF, 40)
CONTROL_BYTES = 300_000
MIDDLE = 20_000_000  # of 35 MB
END_S = 100.0  # a llama-server that cannot load ends within 2 s alone
CLOSING_S = 60.0  # less than the minutes for which a reply may take; more than a busy machine needs

pytestmark = pytest.mark.timeout(400)  # half a minute where others compute


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = write_split_model(tmp_path_factory.mktemp("models") / "half.gguf", HALF)
    yield made
    made.unlink()


@pytest.fixture
async def split(real_engine: Engine, tmp_path: Path) -> AsyncIterator[Split]:
    async with splits(real_engine, tmp_path, workers=2) as made:
        yield made


async def alone(split: Split, model: Path) -> Said:
    server = await split.solo(model)
    said = await say(server, PROMPT)
    server.program.kill()
    return said


async def test_a_workers_file_that_is_replaced_in_use_is_still_served_as_it_was(split: Split, half: Path) -> None:
    """Another file took its name, as an update does; the old one is still open, and is what both have in common."""
    wanted = await alone(split, half)
    await split.hold([half])
    worker = split.workers[1]
    served = await split.serve(half, *ALL_ON_WORKERS)
    other = write_split_model(worker.folder / "other.gguf", replace(HALF, seed=77))
    other.replace(worker.files[0])
    (await say(served.server, PROMPT)).assert_as(wanted)
    await served.close()

    served = await split.serve(half, *ALL_ON_WORKERS)
    assert max(carried.sent for carried in served.carried) < CONTROL_BYTES
    (await say(served.server, PROMPT)).assert_as(wanted)
    await served.close()

    await worker.open()  # a new job looks again
    served = await split.serve(half, *ALL_ON_WORKERS)
    assert served.carried[0].sent < CONTROL_BYTES < 10_000_000 < served.carried[1].sent
    (await say(served.server, PROMPT)).assert_as(wanted)
    await served.close()


async def test_a_workers_file_that_is_written_in_use_loads_nothing_until_it_is_looked_at_again(
    split: Split, half: Path
) -> None:
    wanted = await alone(split, half)
    await split.hold([half])
    worker = split.workers[1]
    served = await split.serve(half, *ALL_ON_WORKERS)
    with worker.files[0].open("r+b") as file:
        file.seek(MIDDLE)
        file.write(b"\xff")
    (await say(served.server, PROMPT)).assert_as(wanted)  # what is loaded is loaded
    await served.close()

    failing = await split.start(half, *ALL_ON_WORKERS)
    await eventually(lambda: failing.server.program.ended, END_S)
    await eventually(lambda: len(failing.lost) > 0)
    assert "changed" in " ".join(str(end) for end in worker.ends)
    await failing.close_gateways()

    await worker.open()
    served = await split.serve(half, *ALL_ON_WORKERS)
    assert served.carried[1].sent > 10_000_000
    (await say(served.server, PROMPT)).assert_as(wanted)
    await served.close()


async def test_the_hosts_file_that_is_written_in_use_loads_nothing(split: Split, half: Path, tmp_path: Path) -> None:
    """llama-server would read the new bytes, the workers have the old ones: a model of two halves."""
    own = tmp_path / "own.gguf"
    own.write_bytes(half.read_bytes())
    await split.hold([own])
    served = await split.serve(own, *ALL_ON_WORKERS)
    await served.close()
    data = bytearray(own.read_bytes())
    for at in range(MIDDLE, len(data), 4096):
        data[at] ^= 1
    own.write_bytes(data)
    failing = await split.start(own, *ALL_ON_WORKERS)
    await eventually(lambda: failing.server.program.ended, END_S)
    await eventually(lambda: len(failing.lost) > 0)
    assert any("changed" in reason for reason in failing.lost)
    await failing.close_gateways()


@pytest.mark.parametrize("cut", [0, 1000, MIDDLE])
async def test_a_worker_with_a_file_cut_short_does_not_begin(split: Split, half: Path, cut: int) -> None:
    worker = split.workers[0]
    (worker.folder / half.name).write_bytes(half.read_bytes()[:cut])
    worker.files = [worker.folder / half.name]
    with pytest.raises(ModelFileUnusable):
        await worker.open()


async def test_an_rpc_server_that_stalls_is_seen_and_can_be_left(split: Split, half: Path) -> None:
    wanted = await alone(split, half)
    await split.hold([half])
    worker = split.workers[1]
    served = await split.serve(half, *ALL_ON_WORKERS)
    answer = asyncio.create_task(say(served.server, PROMPT, 400))
    trips = served.gateways[1].counters.round_trips
    await eventually(lambda: served.gateways[1].counters.round_trips > trips + 3)
    worker.program.process.send_signal(signal.SIGSTOP)
    await eventually(lambda: served.gateways[1].counters.overdue_s > 3)
    seen = served.gateways[1].counters.overdue_s
    await eventually(lambda: served.gateways[1].counters.overdue_s > seen + 0.4)
    # The first worker waits for the second, not the second for it.
    assert served.gateways[0].counters.overdue_s == 0
    assert not served.server.program.ended and not answer.done()

    began_s = time.monotonic()
    await served.close_gateways()
    await eventually(lambda: served.server.program.ended, CLOSING_S)
    with pytest.raises(OSError):
        await answer
    await eventually(lambda: len(worker.ends) > 0 and worker.ends[-1] is not None, CLOSING_S)
    async with asyncio.timeout(CLOSING_S):
        await worker.member.exits.remove(JOB)
    assert time.monotonic() - began_s < CLOSING_S

    await split.restart(worker)
    served = await split.serve(half, *ALL_ON_WORKERS)
    (await say(served.server, PROMPT)).assert_as(wanted)
    await served.close()


async def test_an_rpc_server_that_stalls_before_it_greets_ends_the_load(
    split: Split, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await split.hold([half])
    worker = split.workers[1]
    worker.program.process.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as impatient:
        impatient.setattr(exit_connection, "RPC_GREETING_S", 0.5)
        failing = await split.start(half, *ALL_ON_WORKERS)
        await eventually(lambda: failing.server.program.ended, END_S)
    assert any("did not answer" in reason for reason in failing.lost), failing.lost
    await failing.close_gateways()

    # Woken it would answer into a connection that is closed, twice, and die of SIGPIPE: who owns it has to start another.
    await split.restart(worker)
    served = await split.serve(half, *ALL_ON_WORKERS)
    assert len((await say(served.server, PROMPT, 4)).tokens) == 4
    await served.close()


async def test_an_rpc_server_that_stalls_while_weights_are_loaded_can_be_left(
    split: Split, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is full of weights, so the exit waits to write and the host to be heard."""
    await split.hold([half])
    worker = split.workers[1]
    send_file = LocalSocket.send_file

    async def stalling(server: LocalSocket, place: Place, start: int = 0) -> None:
        if place.part.path.is_relative_to(
            worker.folder
        ):  # the first of its weights: a whole load takes tenths of a second
            worker.program.process.send_signal(signal.SIGSTOP)
        await send_file(server, place, start)

    with monkeypatch.context() as patched:
        patched.setattr(LocalSocket, "send_file", stalling)
        failing = await split.start(half, *ALL_ON_WORKERS)
        await eventually(lambda: max(gateway.counters.overdue_s for gateway in failing.gateways) > 1, END_S)
    began_s = time.monotonic()
    await failing.close_gateways()
    await eventually(lambda: failing.server.program.ended, CLOSING_S)
    # On the worker the write still waits: its owner takes the job away and ends the RPC server, then nothing uses the files.
    removing = asyncio.create_task(worker.member.exits.remove(JOB))
    await asyncio.wait({removing}, timeout=0.2)
    worker.program.kill()
    async with asyncio.timeout(CLOSING_S):
        await removing
    assert time.monotonic() - began_s < CLOSING_S
    await split.restart(worker)
    served = await split.serve(half, *ALL_ON_WORKERS)
    assert len((await say(served.server, PROMPT, 4)).tokens) == 4
    await served.close()
