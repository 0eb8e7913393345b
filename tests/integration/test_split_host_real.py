"""The whole path of a split without nodes: leases, gateways, exits, the real llama-server and ggml-rpc-servers over a real mesh."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from agentmesh.core.units import MIB
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.process import EngineProcess
from agentmesh.inference.logic.lifecycle import State
from agentmesh.inference.logic.split import numbers_for
from agentmesh.inference.logic.split_values import Place, Share, Split
from agentmesh.inference.split.host import SplitHost
from agentmesh.inference.split.host_lease import DEFAULT_LIMITS
from tests.fakes.mesh_nodes import eventually
from tests.fakes.split_hosting import Hosting, engine_programs, hosting, listening_ports, tokens
from tests.fakes.tiny_gguf import TinyModel, write_tiny

# 119 MB: four layers that are so different from the buffers that plans over two and three nodes are sharp.
MODEL = TinyModel(name="four", context=512, layers=4, embedding=1024, heads=8, kv_heads=2, feed_forward=1408)
READY_S = 240.0
WAIT_S = 60.0
TOLD_S = 12.0  # 0.03 s alone; 15 s of an RPC server that does nothing would be noticed in another way
# Who is lost is told by the loss: nobody is given up for saying nothing, and a reply may be owed for minutes.
PATIENT = replace(DEFAULT_LIMITS, silence_s=600.0)
pytestmark = pytest.mark.timeout(900)  # 3 to 15 s each alone
SHARE = {1: 0.65, 2: 0.75}  # of the weights that each worker has room for


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "four.gguf", MODEL)[0]


async def begin(here: Hosting, model: Path) -> tuple[Split, SplitHost, EngineProcess]:
    """A llama-server that answers over all workers, which have the files."""
    for lender in here.lenders:
        lender.files.hold([model])
    plan = here.plan(model, SHARE[len(here.lenders)])
    host = await here.host(model, plan, limits=PATIENT)
    engine = here.llama_server(model, await host.open())
    await engine.start()
    await asyncio.wait_for(engine.wait_ready(), READY_S)
    return plan, host, engine


def placed_layers(here: Hosting, plan: Split) -> list[int]:
    """How many of its own layers llama-server gave each share, by its log."""
    placed = dict(re.findall(r"layer +(\d+) assigned to device (\w+)", here.log()))
    found: list[int] = []
    for share in plan.shares:
        name = "CPU" if share.place.is_host else f"RPC{plan.workers.index(share.place.node)}"
        layers = range(share.first, share.first + share.layers)
        found.append(sum(placed[str(layer)] == name for layer in layers))
    return found


async def nothing_is_left(here: Hosting, ports: set[int]) -> None:
    await eventually(lambda: all(lender.worker.status() == [] for lender in here.lenders), WAIT_S)
    await eventually(lambda: engine_programs() == set(), WAIT_S)
    await eventually(lambda: listening_ports() == ports, WAIT_S)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_split_says_what_one_machine_says_and_lies_where_the_plan_says(
    real_engine: Engine, model: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with hosting(real_engine, tmp_path, workers) as here:
        ports = listening_ports()
        alone = here.llama_server(model)
        await alone.start()
        await asyncio.wait_for(alone.wait_ready(), READY_S)
        wanted = await tokens(alone)
        await alone.stop()
        plan, host, engine = await begin(here, model)
        assert await tokens(engine) == wanted
        assert placed_layers(here, plan) == [share.layers for share in plan.shares]
        weights = model.stat().st_size
        for status in host.status():
            assert (status.same_files, status.is_blind, status.layers > 0) == (True, False, True)
            # Graphs, references, the prompt's activations (4 kB a token) and some 20 kB for each token that follows.
            assert status.out_bytes < weights / 50 < weights / 5 < status.referenced_bytes
            assert status.round_trips > 24
            assert status.counts["get_tensor"].round_trips >= 24
        began_s = time.monotonic()
        await engine.stop()
        await host.close()
        closed_s = time.monotonic() - began_s
        assert here.lost == []
        await nothing_is_left(here, ports)
        with capsys.disabled():
            counts = [(s.name, s.layers, s.out_bytes, s.round_trips) for s in host.status()]
            print(f"\n{workers} workers: {counts}; ended in {closed_s:.2f} s")


@pytest.mark.parametrize("how", ["the RPC server is killed", "the worker's node stops"])
async def test_a_worker_lost_while_it_answers_is_told_at_once_and_nothing_is_left(
    real_engine: Engine, model: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with hosting(real_engine, tmp_path, 2) as here:
        ports = listening_ports()
        _, host, engine = await begin(here, model)
        victim = here.lenders[-1]
        answer = asyncio.create_task(tokens(engine, 400))
        trips = sum(status.round_trips for status in host.status())
        await eventually(lambda: sum(status.round_trips for status in host.status()) > trips + 6, WAIT_S)
        pid = victim.worker.status()[0].pid
        assert pid is not None
        began_s = time.monotonic()
        stopping = None
        if how.startswith("the RPC"):
            os.kill(pid, signal.SIGKILL)
        else:
            stopping = asyncio.create_task(victim.node.mesh.stop())
        await eventually(lambda: here.lost != [], TOLD_S)
        lost_s = time.monotonic() - began_s
        with pytest.raises(httpx.HTTPError):
            await answer
        aborted_s = time.monotonic() - began_s
        await engine.stop(1.0)
        await host.close()
        closed_s = time.monotonic() - began_s
        if stopping is not None:
            await stopping
            ports &= listening_ports()  # the fast path of a node that is gone is gone, too
        assert len(here.lost) == 1
        assert victim.node.name in here.lost[0]
        await nothing_is_left(here, ports)
        with capsys.disabled():
            print(
                f"\n{how}: told after {lost_s:.2f} s, clients after {aborted_s:.2f} s, all ended after {closed_s:.2f} s"
            )
            print(here.lost[0])


async def test_a_worker_without_the_files_takes_the_weights_from_the_host(
    real_engine: Engine, model: Path, tmp_path: Path
) -> None:
    async with hosting(real_engine, tmp_path, 1) as here:
        host = await here.host(model, here.plan(model, SHARE[1]))
        engine = here.llama_server(model, await host.open())
        await engine.start()
        await asyncio.wait_for(engine.wait_ready(), READY_S)
        assert len(await tokens(engine, 4)) == 4
        (status,) = host.status()
        assert status.same_files is False
        assert status.out_bytes > 10_000_000
        assert status.referenced_bytes == 0
        await engine.stop()
        await host.close()
        assert here.lost == []


@pytest.mark.parametrize("counts", [(6, 7), (2, 7, 4), (0, 9, 4)])
async def test_whole_numbers_of_layers_lie_where_they_are_meant(
    real_engine: Engine, tmp_path: Path, counts: tuple[int, ...]
) -> None:
    model = write_tiny(tmp_path / "m.gguf", TinyModel(name="thirteen", layers=13))[0]
    async with hosting(real_engine, tmp_path, len(counts) - 1) as here:
        nodes = [here.node.key.public, *(lender.id for lender in here.lenders)]
        shares: list[Share] = []
        for node, count in zip(nodes, counts, strict=True):
            place = Place(node, None, MIB * 512, node == nodes[0])
            shares.append(Share(place, sum(share.layers for share in shares), count, MIB * 256))
        numbers = numbers_for(counts[1:])
        plan = Split(nodes[0], tuple(nodes[1:]), tuple(shares), numbers, sum(numbers), True, 512, 1, 0)
        host = await here.host(model, plan)
        engine = here.llama_server(model, await host.open())
        await engine.start()
        await asyncio.wait_for(engine.wait_ready(), READY_S)
        await engine.stop()
        await host.close()
        assert placed_layers(here, plan) == list(counts)


async def test_llama_server_killed_while_it_answers_comes_again_or_is_told_once(
    real_engine: Engine, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with hosting(real_engine, tmp_path, 1) as here:
        ports = listening_ports()
        _, host, engine = await begin(here, model)
        wanted = await tokens(engine, 8)
        answer = asyncio.create_task(tokens(engine, 400))
        trips = host.status()[0].round_trips
        await eventually(lambda: host.status()[0].round_trips > trips + 6, WAIT_S)
        pid = engine.status.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(httpx.HTTPError):
            await answer
        # What is lost may be told after the next one was started: only one that is ready answers.
        await eventually(
            lambda: here.lost != [] or (engine.status.pid not in (None, pid) and engine.status.state is State.READY),
            READY_S,
        )
        if not here.lost:
            assert await tokens(engine, 8) == wanted
        with capsys.disabled():
            print(f"\nkilled: {here.lost or 'it came again'}")
        await engine.stop()
        await host.close()
        assert len(here.lost) <= 1
        await nothing_is_left(here, ports)


async def test_a_worker_that_gives_less_memory_than_the_layers_take_fails_the_load_and_nothing_is_left(
    real_engine: Engine, model: Path, tmp_path: Path
) -> None:
    async with hosting(real_engine, tmp_path, 1) as here:
        ports = listening_ports()
        here.lenders[0].files.hold([model])
        plan = here.plan(model, SHARE[1])
        small = replace(plan, shares=(plan.shares[0], replace(plan.shares[1], need_bytes=MIB)))
        host = await here.host(model, small)
        engine = here.llama_server(model, await host.open())
        await engine.start()
        with pytest.raises(EngineFailed, match="alloc"):
            await asyncio.wait_for(engine.wait_ready(), READY_S)
        await engine.stop()
        await host.close()
        assert here.lost == []
        await nothing_is_left(here, ports)
