"""What every transport does, run against each of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from aioquic.quic import events

from agentmesh.core.errors import NotAdmitted, PortInUse, ProtocolError, StreamClosed, Unreachable
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.limits import MAX_STREAMS_PER_PEER
from agentmesh.mesh.logic.transport_limits import IDLE_TIMEOUT_S
from agentmesh.mesh.quic_link import QuicLink
from agentmesh.mesh.quic_stream import QuicPeerStream
from agentmesh.mesh.streams import FrameStream
from agentmesh.mesh.transport import Connection
from tests.fakes.mesh_nodes import eventually
from tests.integration.transport_pairs import (
    WAIT_S,
    Nodes,
    echo,
    open_pair,
    read_all,
    read_exactly,
    transports,
    two_nodes,
    within,
)

NEVER_READ_BYTES = 16 * 1024 * 1024  # more than any transport may hold for a reader that does not read


@pytest.fixture(params=["memory", "quic"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def nodes(kind: str) -> AsyncIterator[Nodes]:
    async with two_nodes(kind) as pair:
        yield pair


# ------------------------------------------------------------------ connecting


async def test_both_ends_know_who_listens_and_who_dialled(nodes: Nodes) -> None:
    near, far = await nodes.connect()
    assert near.server_node == far.server_node == nodes.server_key.public
    assert (near.dialled, far.dialled) == (True, False)
    assert near.remote_address == nodes.address
    assert far.remote_address.startswith("127.0.0.1:")
    assert not near.is_closed


async def test_a_dial_that_finds_another_node_is_not_admitted(nodes: Nodes) -> None:
    with pytest.raises(NotAdmitted, match="Another node"):
        await within(nodes.client.dial(NodeKey.generate().public, nodes.address, WAIT_S))


async def test_a_dial_to_nobody_is_over_in_time(nodes: Nodes) -> None:
    # By its own time, and not by that after which any silent connection is given up.
    with pytest.raises(Unreachable):
        await within(nodes.client.dial(nodes.server_key.public, "127.0.0.1:9", 0.3), IDLE_TIMEOUT_S - 2)


async def test_a_taken_port_is_named(kind: str) -> None:
    first, second = transports(kind, NodeKey.generate(), NodeKey.generate())

    async def never(connection: Connection) -> None: ...

    port = await first.listen("127.0.0.1", 0, never)
    try:
        with pytest.raises(PortInUse, match=str(port)):
            await second.listen("127.0.0.1", port, never)
    finally:
        await within(first.close())
        await within(second.close())


async def test_a_connection_ends_with_its_handler(nodes: Nodes) -> None:
    async def brief(connection: Connection) -> None:
        return

    nodes.handler = brief
    near = await within(nodes.client.dial(nodes.server_key.public, nodes.address, WAIT_S))
    assert await within(near.wait_closed()) == "done"


async def test_a_handler_that_fails_ends_its_own_connection_only(nodes: Nodes) -> None:
    async def fails(connection: Connection) -> None:
        raise ProtocolError("no good")

    kept, _ = await nodes.connect()
    nodes.handler = fails
    near = await within(nodes.client.dial(nodes.server_key.public, nodes.address, WAIT_S))
    await within(near.wait_closed())
    assert not kept.is_closed


# ------------------------------------------------------------------ bytes


async def test_bytes_arrive_whole_and_in_order_however_they_were_written(nodes: Nodes) -> None:
    near, far = await nodes.stream()
    rng = random.Random(7)
    data = rng.randbytes(1_500_000)

    async def write() -> None:
        position = 0
        while position < len(data):
            size = rng.choice((1, 7, 1_200, 30_000, 200_000))
            await near.write(data[position : position + size])
            position += size
        await near.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(within(write()))
        received = group.create_task(within(read_all(far)))
    assert received.result() == data


async def test_a_read_gives_no_more_than_was_asked_for(nodes: Nodes) -> None:
    near, far = await nodes.stream()
    await near.write(b"abcdef")
    assert len(await within(far.read(2))) <= 2


async def test_a_stream_ended_on_one_side_goes_on_the_other_way(nodes: Nodes) -> None:
    near, far = await nodes.stream()
    await near.write(b"question")
    await near.end()
    assert await within(read_all(far)) == b"question"
    await within(far.write(b"answer"))
    await far.end()
    assert await within(read_all(near)) == b"answer"


async def test_nothing_can_be_written_after_the_end(nodes: Nodes) -> None:
    near, _ = await nodes.stream()
    await near.end()
    with pytest.raises(StreamClosed):
        await within(near.write(b"more"))


async def test_writes_of_several_tasks_do_not_mix(nodes: Nodes) -> None:
    near, far = await nodes.stream()
    frames, other = FrameStream(near), FrameStream(far)
    bodies = [bytes([number]) * 90_000 for number in range(32)]

    async def write_all() -> None:
        async with asyncio.TaskGroup() as group:
            for body in bodies:
                group.create_task(frames.write_frame(body))
        await frames.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(within(write_all()))
        found = [await within(other.read_frame()) for _ in bodies]
    assert sorted(body or b"" for body in found) == bodies
    assert await within(other.read_frame()) is None


async def test_a_writer_waits_for_a_reader_that_does_not_read_and_goes_on_when_it_does(nodes: Nodes) -> None:
    near, far = await nodes.stream()
    piece = bytes(64 * 1024)
    written = 0

    async def write() -> None:
        nonlocal written
        while written < NEVER_READ_BYTES:
            await near.write(piece)
            written += len(piece)
        await near.end()

    writer = asyncio.get_running_loop().create_task(write())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(writer), 0.5)
    assert written < 2 * 1024 * 1024
    assert len(await within(read_all(far), 90)) == NEVER_READ_BYTES
    await within(writer)


async def test_a_stream_that_nobody_reads_does_not_hold_up_another(nodes: Nodes) -> None:
    near, far = await nodes.connect()
    stuck, _ = await open_pair(near, far)

    async def write() -> None:
        while True:
            await stuck.write(bytes(64 * 1024))

    writer = asyncio.get_running_loop().create_task(write())
    await asyncio.sleep(0.2)
    assert not writer.done()
    free, other = await open_pair(near, far)
    await within(free.write(b"still here"))
    assert await within(read_exactly(other, 10)) == b"still here"
    stuck.abort()
    with pytest.raises(StreamClosed):
        await within(writer)


# ------------------------------------------------------------------ abort


async def test_an_abort_is_seen_by_reader_and_writer_of_the_far_side(nodes: Nodes) -> None:
    near, far = await nodes.stream()
    near.abort()
    with pytest.raises(StreamClosed):
        await within(far.read(10))

    async def write_until_told() -> None:
        while True:
            await far.write(b"x")
            await asyncio.sleep(0.01)

    with pytest.raises(StreamClosed):
        await within(write_until_told())


async def test_an_abort_wakes_this_side_too_and_can_be_repeated(nodes: Nodes) -> None:
    near, _ = await nodes.stream()
    reader = asyncio.get_running_loop().create_task(near.read(1))
    await asyncio.sleep(0)
    near.abort()
    near.abort()
    with pytest.raises(StreamClosed):
        await within(reader)
    with pytest.raises(StreamClosed):
        await within(near.write(b"x"))


async def test_an_abort_wakes_a_writer_that_waits(nodes: Nodes) -> None:
    near, far = await nodes.stream()

    async def write() -> None:
        while True:
            await near.write(bytes(64 * 1024))

    writer = asyncio.get_running_loop().create_task(write())
    await asyncio.sleep(0.1)
    far.abort()
    with pytest.raises(StreamClosed):
        await within(writer)


async def test_a_connection_goes_on_after_many_aborted_streams(nodes: Nodes) -> None:
    near, far = await nodes.connect()
    for number in range(2 * MAX_STREAMS_PER_PEER):
        stream, other = await open_pair(near, far)
        await within(stream.write(bytes(20_000)))
        await within(other.read(1))  # so that the rest, or much of it, has arrived and is given up
        (stream if number % 2 else other).abort()
        if number % 3 == 0:
            (other if number % 2 else stream).abort()
    stream, other = await open_pair(near, far)

    async def write() -> None:
        for _ in range(50):
            await stream.write(bytes(100_000))
        await stream.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(within(write()))
        assert len(await within(read_all(other))) == 5_000_000


async def test_a_late_word_of_a_stream_that_both_sides_gave_up_makes_no_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_nodes("quic") as nodes:
        near, far = await nodes.connect()
        assert isinstance(far, QuicLink)
        stream, other = await open_pair(near, far)
        assert isinstance(other, QuicPeerStream)
        stream.abort()
        other.abort()
        await eventually(lambda: other.stream_id not in far._streams)
        far._handle(events.StopSendingReceived(error_code=0, stream_id=other.stream_id))
        assert not far._accepted
        # However many come and go meanwhile: whoever never acknowledges a stream's end may send words of it for as long.
        monkeypatch.setattr(far.engine, "knows", lambda stream_id: stream_id == other.stream_id)
        for number in range(100, 100 + 5 * MAX_STREAMS_PER_PEER):
            far._streams[4 * number] = passing = QuicPeerStream(far, 4 * number)
            far.forget(passing)
        assert len(far._over) <= 2 * MAX_STREAMS_PER_PEER
        far._handle(events.StopSendingReceived(error_code=0, stream_id=other.stream_id))
        assert not far._accepted
        monkeypatch.undo()
        new, other = await open_pair(near, far)
        new.abort()
        other.abort()


# ------------------------------------------------------------------ many streams


async def test_two_hundred_streams_at_once_each_get_their_own_bytes_back(nodes: Nodes) -> None:
    nodes.handler = echo
    near = await within(nodes.client.dial(nodes.server_key.public, nodes.address, WAIT_S))

    async def ask(number: int) -> None:
        stream = await near.open_stream()
        question = number.to_bytes(2, "big") * 2_000
        await stream.write(question)
        await stream.end()
        assert await read_all(stream) == question

    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(within(ask(number), 90))


async def test_one_stream_too_many_waits_until_another_is_over(nodes: Nodes) -> None:
    near, far = await nodes.connect()
    pairs = [await open_pair(near, far) for _ in range(MAX_STREAMS_PER_PEER)]
    opening = asyncio.get_running_loop().create_task(near.open_stream())
    done, _ = await asyncio.wait([opening], timeout=0.2)
    assert not done
    for stream, other in pairs[: MAX_STREAMS_PER_PEER // 2 + 1]:
        stream.abort()
        other.abort()
    await within(opening)


# ------------------------------------------------------------------ closing


async def test_the_reason_of_a_close_reaches_the_far_end(nodes: Nodes) -> None:
    near, far = await nodes.connect()
    near.close("gone for lunch")
    near.close("again")
    assert await within(far.wait_closed()) == "gone for lunch"
    assert await within(near.wait_closed()) == "gone for lunch"
    assert near.is_closed
    assert far.is_closed


async def test_a_long_reason_is_cut_and_not_fatal(nodes: Nodes) -> None:
    near, far = await nodes.connect()
    near.close("ü" * 500)
    reason = await within(far.wait_closed())
    assert 0 < len(reason.encode()) <= 128
    assert set(reason) == {"ü"}


async def test_everything_that_waits_on_a_connection_wakes_when_it_closes(nodes: Nodes) -> None:
    near, far = await nodes.connect()
    stream, other = await open_pair(near, far)
    loop = asyncio.get_running_loop()
    waiting = [
        loop.create_task(call) for call in (other.read(1), far.accept_stream(), stream.read(1), near.accept_stream())
    ]
    await asyncio.sleep(0)
    near.close("over")
    results = await within(asyncio.gather(*waiting, return_exceptions=True))
    assert [type(result) for result in results] == [StreamClosed] * 4
    for end in (near, far):
        with pytest.raises(StreamClosed, match="over"):
            await within(end.open_stream())
    stream.abort()
    other.abort()


async def test_what_had_arrived_before_the_close_can_still_be_read(nodes: Nodes) -> None:
    near, far = await nodes.connect()
    stream, other = await open_pair(near, far)
    await stream.write(b"last words")
    assert await within(other.read(1)) == b"l"
    near.close("over")
    await within(far.wait_closed())
    assert await within(other.read(100)) == b"ast words"
    with pytest.raises(StreamClosed):
        await within(other.read(1))


async def test_a_transport_that_closes_ends_its_connections_on_the_far_side(nodes: Nodes) -> None:
    _, far = await nodes.connect()
    await within(nodes.client.close())
    assert await within(far.wait_closed()) == "the node stops"
