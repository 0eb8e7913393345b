"""A stream tells once when it is over, however it ends."""

from __future__ import annotations

import pytest

from agentmesh.core.errors import StreamClosed
from agentmesh.mesh.held_stream import HeldStream


class Inner:
    """A stream with an answer of one piece."""

    def __init__(self, *, broken: bool = False) -> None:
        self.answer = [b"", b"answer"]
        self.broken = broken

    async def read(self, max_bytes: int) -> bytes:
        if self.broken:
            raise StreamClosed
        return self.answer.pop() if self.answer else b""

    async def write(self, data: bytes) -> None:
        if self.broken:
            raise StreamClosed

    async def end(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Held:
    def __init__(self, *, broken: bool = False) -> None:
        self.times = 0
        self.stream = HeldStream(Inner(broken=broken), self.over)

    def over(self) -> None:
        self.times += 1


@pytest.mark.parametrize("end_first", [True, False])
async def test_it_is_over_when_both_directions_have_ended(end_first: bool) -> None:
    held = Held()
    if end_first:
        await held.stream.end()
    assert await held.stream.read(9) == b"answer"
    assert held.times == 0
    assert await held.stream.read(9) == b""
    if not end_first:
        assert held.times == 0
        await held.stream.end()
    assert held.times == 1
    held.stream.abort()
    assert held.times == 1


async def test_an_abort_ends_it() -> None:
    held = Held()
    held.stream.abort()
    assert held.times == 1


async def test_a_failed_read_ends_it_and_a_failed_write_does_not_yet() -> None:
    held = Held(broken=True)
    with pytest.raises(StreamClosed):
        await held.stream.write(b"x")
    assert held.times == 0
    with pytest.raises(StreamClosed):
        await held.stream.read(1)
    assert held.times == 1
