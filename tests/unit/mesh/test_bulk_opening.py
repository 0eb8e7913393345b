"""A stream of bulk that could not be given to whoever asked for it is let go: a held one would keep its connection for ever."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from agentmesh.core.errors import StreamClosed
from agentmesh.mesh.admission import Admission
from agentmesh.mesh.bulk import BulkStreams, BulkSurroundings
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream

PEER = b"p" * 32


class OverQuic:
    """A stream whose first write fails or never ends."""

    def __init__(self, *, fails: bool) -> None:
        self.aborted = 0
        self.writing = asyncio.Event()
        self._fails = fails

    async def read(self, max_bytes: int) -> bytes:
        return b""

    async def write(self, data: bytes) -> None:
        self.writing.set()
        if self._fails:
            raise StreamClosed("the connection broke")
        await asyncio.Event().wait()

    async def end(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted += 1


def bulk_over(stream: Stream) -> BulkStreams:
    async def over_quic(node: bytes) -> Stream:
        return stream

    async def answers(node: bytes) -> bool:
        return True

    around = BulkSurroundings(
        where=lambda _: None, over_quic=over_quic, answers=answers, is_out=lambda _: False, publish=lambda _: None
    )
    return BulkStreams(None, cast("Admission", None), {}, around)


async def test_a_stream_that_breaks_while_it_is_opened_is_let_go() -> None:
    stream = OverQuic(fails=True)
    with pytest.raises(StreamClosed):
        await bulk_over(stream).open_stream(PEER, StreamKind.HTTP)
    assert stream.aborted == 1


async def test_a_stream_that_nobody_waits_for_any_more_is_let_go() -> None:
    stream = OverQuic(fails=False)
    opening = asyncio.ensure_future(bulk_over(stream).open_stream(PEER, StreamKind.HTTP))
    await stream.writing.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert stream.aborted == 1
