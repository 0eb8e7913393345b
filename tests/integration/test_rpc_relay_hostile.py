"""The relay and what no honest side sends: other versions of the protocol, nonsense from a client, from a host, from a peer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.inference.logic.rpc_stream import (
    Open,
    Opened,
    OpenStatus,
    RelayCommand,
    frame_of,
    opened_decoder,
)
from agentmesh.inference.logic.rpc_tensor import build_tensor
from agentmesh.inference.logic.rpc_wire import Command, build_request
from agentmesh.inference.rpc.duplex import read_frame
from agentmesh.mesh.transport import Stream
from tests.fakes.fake_rpc_server import WAIT_S, FakeRpcServer
from tests.fakes.mesh_nodes import eventually
from tests.fakes.relay_world import BIG, JOB, UP, RelayWorld, relay_worlds


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RelayWorld]:
    async with relay_worlds(tmp_path) as made:
        yield made


# ------------------------------------------------------------------ other versions, and nonsense


@pytest.mark.parametrize("fake", [{"version": (8, 0, 0)}, {"version": (7, 1, 0)}, {"hello_bytes": 4}])
async def test_an_unknown_version_is_relayed_without_looking(
    world: RelayWorld, fake: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    server = await world.server(FakeRpcServer(raw_echo=True, **fake))  # type: ignore[arg-type]
    host = await world.files("host")
    world.job(server, host)
    gateway, port = await world.gateway(host)
    for _ in range(2):
        client = await world.client(port)
        client.writer.write(b"\xfeanything at all")
        assert await asyncio.wait_for(client.reader.readexactly(16), WAIT_S) == b"\xfeanything at all"
        client.close()
    await eventually(lambda: world.ends == [None, None])
    assert [record.getMessage() for record in caplog.records if "without looking" in record.getMessage()]
    assert gateway.counters.blind_bytes > 0


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x63" + bytes(8),
        b"\x06" + b"\xff" * 8,
        b"\x0e" + (3).to_bytes(8, "little") + b"abc",
        build_request(Command.GET_ALIGNMENT, (9).to_bytes(4, "little")),
        build_request(RelayCommand.FILE_TENSOR, bytes(305)),
    ],
)
async def test_nonsense_of_a_client_ends_its_connection_and_no_other(world: RelayWorld, nonsense: bytes) -> None:
    server = await world.server()
    world.job(server)
    _, port = await world.gateway()
    for greeted in (False, True):
        client = await world.client(port)
        if greeted:
            await client.hello()
        client.writer.write(nonsense)
        assert await client.at_end()
    client = await world.client(port)
    await client.hello()
    assert (await client.alloc(8))[1] == 8


REFERENCE = build_tensor(UP, 0, (64, 128))
NONSENSE = [
    b"\xff" * 9,
    build_request(Command.HELLO, bytes(24)),
    build_request(RelayCommand.DEFLATED_PIECE, b"x"),
    build_request(RelayCommand.DEFLATED, b"\x08" + (312).to_bytes(8, "little")),
    build_request(RelayCommand.DEFLATED, b"\x0a" + (1 << 40).to_bytes(8, "little")),
    build_request(RelayCommand.DEFLATED, b"\x06" + (1 << 31).to_bytes(8, "little")),
    build_request(RelayCommand.DEFLATED, b"\x0a" + (99).to_bytes(8, "little")) + build_request(15),
    build_request(RelayCommand.FILE_TENSOR, build_tensor("../../etc/passwd", 0, (64,)) + bytes(9)),
    build_request(RelayCommand.FILE_TENSOR, build_tensor(UP, 0, (64, 127)) + bytes(9)),
    build_request(RelayCommand.FILE_TENSOR, REFERENCE + b"\0" + (4).to_bytes(8, "little")),
    b"\x06" + (1 << 31).to_bytes(8, "little") + bytes(305),
]


async def raw_host(world: RelayWorld, *, allocated: int = BIG, files: bool = True) -> tuple[Stream, FakeRpcServer]:
    """A host that speaks for itself, with a buffer."""
    server = await world.server()
    weights = await world.files("worker")
    world.job(server, weights)
    stream = await world.connection.open_stream()
    await stream.write(frame_of(Open(JOB, weights.digests if files else ())))
    opened: Opened = await asyncio.wait_for(read_frame(stream, opened_decoder), WAIT_S)
    assert (opened.status, opened.same_files) == (OpenStatus.READY, files)
    if allocated:
        await stream.write(build_request(Command.ALLOC_BUFFER, bytes(4) + allocated.to_bytes(8, "little")))
        assert await asyncio.wait_for(stream.read(24), WAIT_S)
    return stream, server


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_nonsense_of_a_host_never_reaches_the_rpc_server(world: RelayWorld, nonsense: bytes) -> None:
    stream, server = await raw_host(world)
    asked = len(server.seen)
    await stream.write(nonsense)
    await eventually(lambda: len(world.ends) == 1)
    assert world.ends != [None]
    assert len(server.seen) == asked


@pytest.mark.parametrize(
    "request_",
    [
        build_request(RelayCommand.FILE_TENSOR, REFERENCE + bytes(9)),
        build_request(Command.SET_TENSOR, bytes(306)),
        build_request(RelayCommand.DEFLATED, b"\x06" + (306).to_bytes(8, "little")),
    ],
)
async def test_a_host_that_allocated_nothing_writes_nothing(world: RelayWorld, request_: bytes) -> None:
    stream, server = await raw_host(world, allocated=0)
    asked = len(server.seen)
    await stream.write(request_)
    await eventually(lambda: len(world.ends) == 1)
    assert world.ends != [None]
    assert len(server.seen) == asked


async def test_a_host_without_the_files_refers_to_nothing(world: RelayWorld) -> None:
    stream, server = await raw_host(world, files=False)
    await stream.write(build_request(RelayCommand.FILE_TENSOR, REFERENCE + bytes(9)))
    await eventually(lambda: len(world.ends) == 1)
    assert world.ends != [None]
    assert Command.SET_TENSOR not in server.commands()


@pytest.mark.parametrize("cut", [b"\x06", build_request(RelayCommand.DEFLATED, b"\x0a" + (99).to_bytes(8, "little"))])
async def test_a_host_that_ends_in_the_middle_of_a_request_is_no_clean_end(world: RelayWorld, cut: bytes) -> None:
    stream, _ = await raw_host(world)
    await stream.write(cut)
    await stream.end()
    await eventually(lambda: len(world.ends) == 1)
    assert world.ends != [None]


@pytest.mark.parametrize("opening", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1\xc1", b"\0\0\0\3\x93\1\2"])
async def test_an_opening_that_is_none_ends_the_stream(world: RelayWorld, opening: bytes) -> None:
    server = await world.server()
    world.job(server)
    stream = await world.connection.open_stream()
    await stream.write(opening)
    with pytest.raises(Exception, match=r"reset|ended"):
        await asyncio.wait_for(read_frame(stream, opened_decoder), WAIT_S)
    assert server.connections == 0


async def test_a_later_format_of_the_stream_is_refused(world: RelayWorld) -> None:
    server = await world.server()
    world.job(server)
    stream = await world.connection.open_stream()
    await stream.write(frame_of(Open(JOB, format=2)))
    opened: Opened = await asyncio.wait_for(read_frame(stream, opened_decoder), WAIT_S)
    assert opened.status is OpenStatus.REFUSED
