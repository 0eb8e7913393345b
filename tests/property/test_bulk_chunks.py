"""Chunks: whatever the pieces in which bytes arrive, streams come out as they went in, and a cut is never an end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.bulk_chunks import ABORT, END, LENGTH, ChunkBuffer, chunks_of
from agentmesh.mesh.logic.bulk_limits import BULK_BUFFER_BYTES, FIRST_BULK_BUFFER_BYTES, MAX_CHUNK_BYTES

WRITES = st.lists(st.binary(max_size=60_000), max_size=6)


def wire(writes: list[bytes], last: bytes = END) -> bytes:
    return b"".join(bytes(part) for data in writes for part in chunks_of(data)) + last


def feed(buffer: ChunkBuffer, data: bytes, step: int) -> bytes:
    """Put in at most `step` bytes and what there is room for; the rest comes back."""
    room = buffer.space()
    count = min(len(room), step, len(data))
    room[:count] = data[:count]
    buffer.filled(count)
    return data[count:]


def drain(buffer: ChunkBuffer, max_bytes: int) -> bytes:
    taken = bytearray()
    while (data := buffer.take(max_bytes)) is not None:
        assert 0 < len(data) <= max_bytes
        taken += data
    return bytes(taken)


def run(buffer: ChunkBuffer, data: bytes, step: int, max_bytes: int) -> bytes:
    out = bytearray()
    while data and not buffer.at_end:
        data = feed(buffer, data, step)
        out += drain(buffer, max_bytes)
    return bytes(out)


@given(WRITES, st.integers(1, 70_000), st.integers(1, 70_000), st.booleans())
def test_what_was_written_is_read_and_ends(writes: list[bytes], step: int, max_bytes: int, grows: bool) -> None:
    buffer = ChunkBuffer()
    buffer.may_grow = grows
    step, max_bytes = max(step, sum(map(len, writes)) // 200), max(max_bytes, sum(map(len, writes)) // 200)
    assert run(buffer, wire(writes), step, max_bytes) == b"".join(writes)
    assert buffer.at_end
    assert len(buffer) == 0


@given(WRITES, st.data())
def test_a_stream_cut_anywhere_has_no_end(writes: list[bytes], data: st.DataObject) -> None:
    whole = wire(writes)
    cut = data.draw(st.integers(0, len(whole) - 1))
    buffer = ChunkBuffer()
    out = run(buffer, whole[:cut], 100_000, 100_000)
    assert b"".join(writes).startswith(out)
    assert not buffer.at_end


@given(WRITES, WRITES, st.integers(0, 3), st.integers(1_000, 70_000))
def test_a_stream_that_was_not_read_out_does_not_leak_into_the_next(
    first: list[bytes], second: list[bytes], reads: int, step: int
) -> None:
    buffer = ChunkBuffer()
    data = wire(first) + wire(second)
    for _ in range(reads):
        if not buffer.is_full:
            data = feed(buffer, data, step)
        buffer.take(100)
    buffer.next_stream()
    assert drain(buffer, 100_000) + run(buffer, data, step, 100_000) == b"".join(second)
    assert buffer.at_end


@given(WRITES)
def test_an_abort_is_no_end(writes: list[bytes]) -> None:
    buffer = ChunkBuffer()
    run(buffer, wire(writes, ABORT), 100_000, 100_000)
    assert buffer.aborted
    assert not buffer.at_end


@given(st.integers(MAX_CHUNK_BYTES + 1, 2**32 - 2))
def test_a_chunk_over_the_limit_is_refused_from_its_length(length: int) -> None:
    buffer = ChunkBuffer()
    feed(buffer, LENGTH.pack(length), 4)
    with pytest.raises(ProtocolError):
        buffer.take(1)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    buffer = ChunkBuffer()
    feed(buffer, data, 200)
    try:
        drain(buffer, 50)
    except ProtocolError:
        return
    assert len(buffer) < 4 or buffer.at_end or buffer.aborted


def test_nothing_is_held_beyond_the_buffer_and_little_before_admission() -> None:
    for grows, limit in ((False, FIRST_BULK_BUFFER_BYTES), (True, BULK_BUFFER_BYTES)):
        buffer = ChunkBuffer()
        buffer.may_grow = grows
        data = wire([bytes(1_000_000)])
        while not buffer.is_full:
            data = feed(buffer, data, 5_000)
        assert len(buffer) == limit
        assert len(buffer.space()) == 0


def test_large_writes_are_cut_and_not_copied() -> None:
    data = bytes(MAX_CHUNK_BYTES * 2 + 5)
    parts = chunks_of(data)
    assert [len(part) for part in parts] == [4, MAX_CHUNK_BYTES, 4, MAX_CHUNK_BYTES, 4, 5]
    assert all(part.obj is data for part in parts if isinstance(part, memoryview))
    assert chunks_of(b"") == []
