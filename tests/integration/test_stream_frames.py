"""Stream headers and frames over each of the transports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentmesh.core.errors import ProtocolError, StreamClosed
from agentmesh.mesh.logic.limits import MAX_FRAME_BYTES
from agentmesh.mesh.logic.messages import Goodbye
from agentmesh.mesh.streams import FrameStream, StreamHeader, StreamKind, open_framed, read_header
from tests.integration.transport_pairs import (
    Nodes,
    read_all,
    two_nodes,
    within,
)


@pytest.fixture(params=["memory", "quic"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def nodes(kind: str) -> AsyncIterator[Nodes]:
    async with two_nodes(kind) as pair:
        yield pair


async def test_a_stream_says_its_kind_and_frames_follow(nodes: Nodes) -> None:
    near, far = await nodes.connect()
    frames = await within(open_framed(near, StreamKind.GOSSIP))
    await frames.write_struct(Goodbye("x"))
    stream = await within(far.accept_stream())
    header = await read_header(stream)
    assert (header, header.known_kind) == (StreamHeader("gossip", 1), StreamKind.GOSSIP)
    assert await within(FrameStream(stream).read_frame()) == b"\x92\x28\xa1x"


async def test_raw_bytes_behind_a_header_are_untouched(nodes: Nodes) -> None:
    near, far = await nodes.connect()
    stream = (await within(open_framed(near, StreamKind.BLOB))).stream
    await stream.write(b"raw")
    await stream.end()
    other = await within(far.accept_stream())
    await read_header(other)
    assert await within(read_all(other)) == b"raw"


async def test_a_kind_of_a_later_version_is_told_and_not_fatal() -> None:
    assert StreamHeader("teleport", 9).known_kind is None


async def test_a_stream_that_does_not_say_its_kind_is_aborted(nodes: Nodes) -> None:
    near, far = await nodes.connect()
    stream = await within(near.open_stream())
    await stream.write(b"\x00\x00")
    with pytest.raises(ProtocolError, match="did not say"):
        await within(read_header(await within(far.accept_stream()), timeout_s=0.1))
    with pytest.raises(StreamClosed):
        await within(stream.read(1))


@pytest.mark.parametrize("bad", [b"\x00\x10\x00\x00", b"\x00\x00\x00\x00", b"\x00\x00\x00\x02\xc1\xc1"])
async def test_a_bad_header_is_refused(nodes: Nodes, bad: bytes) -> None:
    near, far = await nodes.connect()
    stream = await within(near.open_stream())
    await stream.write(bad)
    with pytest.raises(ProtocolError):
        await within(read_header(await within(far.accept_stream())))


async def test_a_frame_split_byte_by_byte_arrives_whole(nodes: Nodes) -> None:
    near, far = await nodes.stream()
    for byte in b"\x00\x00\x00\x05hello":
        await near.write(bytes([byte]))
        await asyncio.sleep(0)
    assert await within(FrameStream(far).read_frame()) == b"hello"


async def test_an_oversized_frame_is_refused_from_its_length(nodes: Nodes) -> None:
    near, far = await nodes.stream()
    await near.write((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="at most"):
        await within(FrameStream(far).read_frame())


async def test_a_stream_that_ends_inside_a_frame_is_a_protocol_error(nodes: Nodes) -> None:
    near, far = await nodes.stream()
    await near.write(b"\x00\x00\x00\x05hel")
    await near.end()
    with pytest.raises(ProtocolError, match="middle"):
        await within(FrameStream(far).read_frame())


async def test_a_frame_of_a_mebibyte_passes(nodes: Nodes) -> None:
    near, far = await nodes.stream()
    body = bytes(MAX_FRAME_BYTES)
    async with asyncio.TaskGroup() as group:
        group.create_task(within(FrameStream(near).write_frame(body)))
        assert await within(FrameStream(far).read_frame()) == body
    await FrameStream(near).write_struct(Goodbye("done"))
