"""Real nodes that share a model, and a member of their mesh that lies and floods."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.logic.split_limits import SILENT_MS
from agentmesh.inference.logic.split_offer import SplitOffer, WantedModel, content_of, encode_split_offer
from agentmesh.inference.logic.split_values import Claim, Wish
from agentmesh.mesh.identity import encode_id
from agentmesh.mesh.logic.kinds import SPLIT
from tests.fakes.mesh_nodes import TestNode
from tests.fakes.split_nodes import MODEL, PLANNED_S, SplitNodes, complete, model_of, wait_state

HOUR_MS = 3_600_000
RECORDS = 600  # 50 a second, where the machine can
PAUSE_S = 0.02
PATIENCE_S = SILENT_MS / 1000 + PLANNED_S


@asynccontextmanager
async def member(root: Path, invite: str) -> AsyncGenerator[TestNode]:
    node = await TestNode(root, "mallory").join(invite)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


def cpu_s(process: psutil.Process) -> float:
    """Of it, and of no others that it started."""
    used = process.cpu_times()
    return used.user + used.system


def promises(content: str, engine: Engine, number: int = 0, claim: Claim | None = None) -> SplitOffer:
    """All the memory that a record can hold."""
    most = (1 << 50) - 1
    return SplitOffer(
        name="mallory",
        machine_free_bytes=most - number,
        machine_total_bytes=most,
        engine_commit=engine.commit,
        rpc_version=(7, 0, 0),
        has_rpc=True,
        lends_to_all=True,
        wants=(WantedModel(content, MODEL, Wish(), claim),),
    )


@pytest.mark.timeout(900)
async def test_a_member_that_promises_all_memory_and_never_hosts_keeps_a_model_for_a_minute_only(
    tmp_path: Path, real_engine: Engine, sharing: SplitNodes
) -> None:
    content = content_of([hashlib.sha256(sharing.file.read_bytes()).digest()])
    first = await asyncio.to_thread(sharing.lend, "lender")
    async with member(tmp_path, first.invite) as mallory:
        offer = encode_split_offer(promises(content, real_engine))
        await mallory.mesh.publish(SPLIT.name, b"", offer, HOUR_MS)
        second = await asyncio.to_thread(sharing.start, "host")
        told = await asyncio.to_thread(wait_state, second, "ready", timeout_s=PATIENCE_S)
        assert told["role"] == "host"
        assert await asyncio.to_thread(complete, second)


@pytest.mark.timeout(900)
async def test_a_flood_of_one_members_records_ends_no_split_and_takes_little(
    tmp_path: Path, real_engine: Engine, sharing: SplitNodes
) -> None:
    content = content_of([hashlib.sha256(sharing.file.read_bytes()).digest()])
    lender = await asyncio.to_thread(sharing.lend, "lender")
    host = await asyncio.to_thread(sharing.start, "host")
    await asyncio.to_thread(wait_state, host, "ready")
    victim, sender = psutil.Process(host.pid), psutil.Process()
    async with member(tmp_path, lender.invite) as mallory:
        before, own_before = cpu_s(victim), cpu_s(sender)
        began = time.monotonic()
        small = msgspec.structs.replace(promises(content, real_engine), machine_total_bytes=1 << 20)
        for number in range(RECORDS):
            said = msgspec.structs.replace(small, machine_free_bytes=number)
            await mallory.mesh.publish(SPLIT.name, b"", encode_split_offer(said), HOUR_MS)
            await asyncio.sleep(PAUSE_S)
        used_s, own_s = cpu_s(victim) - before, cpu_s(sender) - own_before
        took_s = time.monotonic() - began
        print(
            f"{RECORDS} records in {took_s:.0f} s took {used_s:.1f} s of the host's processor, {own_s:.1f} s of the sender's"
        )
        # 1.4 times as much alone. Not in seconds: how many a record takes is the machine's affair.
        assert used_s < 3 * own_s
        assert model_of(host)["state"] == "ready"
        assert await asyncio.to_thread(complete, host)


@pytest.mark.timeout(900)
async def test_who_says_that_it_hosts_and_does_not_is_named_and_ends_with_its_membership(
    tmp_path: Path, real_engine: Engine, sharing: SplitNodes
) -> None:
    content = content_of([hashlib.sha256(sharing.file.read_bytes()).digest()])
    lender = await asyncio.to_thread(sharing.lend, "lender")
    host = await asyncio.to_thread(sharing.start, "host")
    await asyncio.to_thread(wait_state, host, "ready")
    async with member(tmp_path, lender.invite) as mallory:
        claim = Claim(1_000, "d", running=True)
        await mallory.mesh.publish(
            SPLIT.name, b"", encode_split_offer(promises(content, real_engine, claim=claim)), HOUR_MS
        )
        told = await asyncio.to_thread(wait_state, host, "standby")
        author = encode_id(mallory.key.public)
        assert told["nodes"] == [author]
        assert f"({author[:8]})" in told["reason"]
        assert (await asyncio.to_thread(lender.cli, "revoke", author[:8])).code == 0
        await asyncio.to_thread(wait_state, host, "ready")
        assert await asyncio.to_thread(complete, host)
