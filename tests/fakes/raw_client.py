"""A raw HTTP/1.1 client: it writes the bytes that it is given, and reads one whole response after the other."""

from __future__ import annotations

import asyncio
import json

WAIT_S = 60.0  # for what must come


class Reply:
    """A response as a client saw it."""

    def __init__(self, head: str, body: bytes) -> None:
        self.head = head
        self.body = body

    @property
    def status(self) -> int:
        return int(self.head.split(" ")[1])

    def header(self, name: str) -> str | None:
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return None

    def json(self) -> dict[str, object]:
        return json.loads(self.body)


class Client:
    """A raw client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> str:
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), WAIT_S)).decode("latin-1")

    async def exactly(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), WAIT_S)

    async def rest(self) -> bytes:
        """Until the server ends the connection."""
        return await asyncio.wait_for(self.reader.read(-1), WAIT_S)

    async def reply(self, *, has_body: bool = True) -> Reply:
        """One whole response."""
        head = await self.head()
        seen = Reply(head, b"")
        if not has_body or seen.status in (204, 100, 102):
            return seen
        if (length := seen.header("content-length")) is not None:
            seen.body = await self.exactly(int(length))
        elif seen.header("transfer-encoding") == "chunked":
            while size := int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), WAIT_S), 16):
                seen.body += await self.exactly(size)
                assert await self.exactly(2) == b"\r\n"
            assert await self.exactly(2) == b"\r\n"
        else:
            seen.body = await self.rest()
        return seen

    async def ask(self, data: bytes) -> Reply:
        await self.send(data)
        return await self.reply()

    def close(self) -> None:
        self.writer.transport.abort()
