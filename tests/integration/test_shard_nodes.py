"""Two nodes make their shards of one outcome, each in its own home, and both run in the real llama-server."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agentmesh.core.paths import Home
from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.process import EngineProcess
from agentmesh.inference.logic.split_values import ShardRoom, Shards
from agentmesh.inference.models.gguf import read_model
from agentmesh.inference.split.shards import ShardMade, ShardMaker
from tests.fakes.tiny_gguf import QWEN3_MOE, write_tiny

START_S = 120.0  # 0.2 s on a free machine
MOE = dataclasses.replace(QWEN3_MOE, experts=16, experts_used=4, context=1024)
NODES = (b"\x01" * 32, b"\x02" * 32)
ROOMS = Shards(tuple(ShardRoom(node, 12, 1) for node in NODES), 16, 1024, 1)
# ggml's repacked kernels crash on virtual machines that announce AMX without having it (seen under Firecracker, Q8_0 only).
PLAIN = ("--no-repack", "--threads", "1")

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="am-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def answer(engine: Engine, made: ShardMade, folder: Path) -> str:
    """What the shard says to a conversation's first message."""
    plan = ServerPlan(made.path, "tiny-moe", 1024, 1, extra=PLAIN)
    process = EngineProcess(engine, plan, folder=folder / "run", log=folder / "server.log")
    await process.start()
    try:
        await asyncio.wait_for(process.wait_ready(), START_S)
        assert process.address is not None
        assert process.address.socket is not None
        transport = httpx.AsyncHTTPTransport(uds=process.address.socket)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=START_S) as http:
            body = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 16, "temperature": 0}
            reply = await http.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200
            assert reply.json()["usage"]["completion_tokens"] > 0
            return reply.json()["choices"][0]["message"]["content"]
    finally:
        await process.stop()


@pytest.mark.parametrize("parts", [1, 3], ids=["one file", "three parts"])
async def test_two_nodes_shards_of_one_outcome_load_and_answer(real_engine: Engine, folder: Path, parts: int) -> None:
    files = write_tiny(folder / "tiny-moe.gguf", MOE, parts=parts)
    made = [
        await ShardMaker.of_home(Home(folder / node.hex()[:2])).make(ROOMS, node, files, "tiny-moe") for node in NODES
    ]
    assert [one.kept_of for one in made] == ["12 of 16"] * 2
    assert made[0].key != made[1].key
    for one in made:
        facts = read_model(one.path).facts
        assert (facts.expert_count, facts.expert_used_count) == (12, 4)
        assert one.size_bytes < 0.9 * sum(file.stat().st_size for file in files)
    said = [await answer(real_engine, one, folder / f"n{number}") for number, one in enumerate(made)]
    assert said[0] != said[1], "each has experts of its own"
