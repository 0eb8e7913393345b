"""A model's first load as a split, with and without our program beside the engine: what llama-server hands to the gateway."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.core.units import MIB
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.logic.split import numbers_for
from agentmesh.inference.logic.split_values import Place, Share, Split
from agentmesh.inference.models.gguf import read_header
from agentmesh.inference.rpc.weights import WeightHashes
from tests.fakes.mesh_nodes import eventually
from tests.fakes.split_hosting import hosting, tokens
from tests.fakes.tensor_hash import built
from tests.fakes.tiny_gguf import TinyModel, write_tiny

# Every matrix of a layer is larger than 10 MiB: llama-server asks for the hash of each.
MODEL = TinyModel(name="wide", context=512, layers=2, embedding=2048, heads=16, kv_heads=16, feed_forward=2048)
READY_S = 240.0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("with_program", [True, False])
async def test_a_first_load_hands_no_weights_to_the_gateway(
    real_engine: Engine, tmp_path: Path, with_program: bool
) -> None:
    model = write_tiny(tmp_path / "wide.gguf", MODEL)[0]
    theirs = [t.size_bytes for t in read_header(model).tensors if t.name.startswith("blk.1.")]
    large = sum(size for size in theirs if size > 10 * MIB)
    assert large > 100_000_000 > 1_000_000 > sum(theirs) - large
    engine = replace(real_engine, tensor_hash=built(tmp_path) if with_program else None)
    try:
        async with hosting(engine, tmp_path, 1) as here:
            alone = here.llama_server(model)
            await alone.start()
            await asyncio.wait_for(alone.wait_ready(), READY_S)
            wanted = await tokens(alone, 8)
            await alone.stop()
            here.lenders[0].files.hold([model])
            nodes = [here.node.key.public, here.lenders[0].id]
            places = [Place(node, None, MIB * 999, node == nodes[0]) for node in nodes]
            shares = [Share(place, n, 1, MIB * 600) for n, place in enumerate(places)]  # one layer each
            numbers = numbers_for([1])
            plan = Split(nodes[0], (nodes[1],), tuple(shares), numbers, sum(numbers), True, 512, 1, 0)
            host = await here.host(model, plan)
            words = await host.open()
            if with_program:
                await eventually((tmp_path / "fnv.json").exists, READY_S)  # saved when all are known
            server = here.llama_server(model, words)
            await server.start()
            await asyncio.wait_for(server.wait_ready(), READY_S)
            assert await tokens(server, 8) == wanted
            (status,) = host.status()
            handed = status.counts["set_tensor"].in_bytes
            assert handed < 1_500_000 if with_program else handed > large
            assert status.counts["file_tensor"].requests >= 7
            assert status.referenced_bytes >= large
            assert status.out_bytes < 3_000_000
            await server.stop()
            await host.close()
            assert here.lost == []
            known = WeightHashes(tmp_path / "fnv.json")._known  # pyright: ignore[reportPrivateUsage]
            assert [len(names) for names in known.values()] == [7]  # none of layers that are the host's
    finally:
        for file in tmp_path.rglob("*.gguf"):
            file.unlink()
