"""A TCP connection on loopback: small reads and writes on the event loop, bulk in a thread.

A thread compares what arrives with a file (`match`), or sends a piece of a file (`send_file`); the loop touches the socket not at all
meanwhile, and cancelling the caller waits until the thread has let go of it. uvloop has no sendfile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from agentmesh.core.errors import StreamClosed
from agentmesh.inference.logic.rpc_limits import (
    BULK_BLOCK_BYTES,
    BULK_POLL_S,
    REPLY_OVERDUE_S,
    RPC_READ_BYTES,
    SEND_FILE_BYTES,
)
from agentmesh.inference.rpc.weights import Place, read_exactly, read_into
from agentmesh.inference.threads import in_daemon_thread

T = TypeVar("T")

GONE = "The program at the other end closed the connection."


class LocalSocket:
    """See the module. One task reads and one writes. `close` once, after both."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock

    @classmethod
    async def connect(cls, port: int, timeout_s: float) -> LocalSocket:
        """To 127.0.0.1. Raises: OSError; TimeoutError."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def read(self, max_bytes: int = RPC_READ_BYTES) -> bytes:
        """At least one byte, or `b""` at the end, however it came."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, max_bytes)
        except OSError:
            return b""

    async def write(self, data: bytes | memoryview) -> None:
        """Everything, waiting for the far side. Raises: StreamClosed."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except OSError as error:
            raise StreamClosed(GONE) from error

    async def match(self, place: Place, size: int, first: memoryview) -> tuple[int, bytes]:
        """Read `size` bytes (`first` of them were read already) for as long as they are those of a file.

        Returns how many were, in whole blocks, and the block that was not: `size` and nothing if all were.

        Raises:
            StreamClosed: the connection ended first, or nothing came for REPLY_OVERDUE_S.
        """
        return await _in_thread(lambda stop: self._match(place, size, bytes(first), stop))

    async def send_file(self, place: Place, start: int = 0) -> None:
        """A tensor's bytes from `start` on. Raises: StreamClosed: the connection or the file ended, or nothing went on."""
        await _in_thread(lambda stop: self._send_file(place, start, stop))

    def end(self) -> None:
        """No more data from this side."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()

    # ------------------------------------------------------------------ in a thread

    def _match(self, place: Place, size: int, first: bytes, stop: threading.Event) -> tuple[int, bytes]:
        if first != read_exactly(place, 0, len(first)):
            return 0, first
        done = len(first)
        received, read = bytearray(BULK_BLOCK_BYTES), bytearray(BULK_BLOCK_BYTES)
        while done < size:
            count = self._receive(memoryview(received)[: size - done], stop)
            read_into(place, done, memoryview(read)[:count])
            # Bytearrays are compared as memory is; views of them element by element, twenty times slower.
            if received != read if count == BULK_BLOCK_BYTES else received[:count] != read[:count]:
                return done, bytes(received[:count])
            done += count
            if stop.is_set():
                raise StreamClosed("Nobody waits for it any more.")
        return done, b""

    def _receive(self, block: memoryview, stop: threading.Event) -> int:
        """Fill `block`; how much there was to fill."""
        got = 0
        while got < len(block):
            try:
                count = self._socket.recv_into(block[got:])
            except BlockingIOError:
                self._wait(select.POLLIN, stop)
                continue
            except OSError:
                count = 0
            if not count:
                raise StreamClosed(GONE)
            got += count
        return got

    def _send_file(self, place: Place, start: int, stop: threading.Event) -> None:
        at, end = place.offset + start, place.offset + place.size
        while at < end:
            try:
                sent = os.sendfile(self._socket.fileno(), place.part.descriptor, at, min(SEND_FILE_BYTES, end - at))
            except BlockingIOError:
                self._wait(select.POLLOUT, stop)
                continue
            except OSError as error:
                raise StreamClosed(GONE) from error
            if sent == 0:
                raise StreamClosed(f"{place.part.path} is shorter than it was.")
            at += sent
            if stop.is_set():
                raise StreamClosed("Nobody waits for it any more.")

    def _wait(self, event: int, stop: threading.Event) -> None:
        poller = select.poll()
        poller.register(self._socket.fileno(), event)
        deadline_s = time.monotonic() + REPLY_OVERDUE_S
        while not poller.poll(BULK_POLL_S * 1000):
            if stop.is_set() or time.monotonic() >= deadline_s:
                raise StreamClosed("The program at the other end neither takes nor gives anything.")


async def _in_thread(function: Callable[[threading.Event], T]) -> T:
    """The function's result; a cancelled caller goes on when the thread has ended (BULK_POLL_S at most)."""
    stop = threading.Event()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def run() -> T:
        try:
            return function(stop)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(ended.set)

    try:
        return await in_daemon_thread(run, name="rpc bulk")
    except asyncio.CancelledError:
        stop.set()
        await ended.wait()
        raise


def is_own_user(sock: socket.socket) -> bool:
    """Whether the program that connected here belongs to this user; true where that cannot be looked up (not on Linux).

    Blocks for as long as /proc/net/tcp takes to read: about a millisecond.
    """
    if not sys.platform.startswith("linux"):
        return True
    host, port = sock.getpeername()[:2]
    near_host, near_port = sock.getsockname()[:2]
    wanted = f"{_hex(host)}:{port:04X} {_hex(near_host)}:{near_port:04X}"
    try:
        lines = Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]
    except OSError:
        return True
    for line in lines:
        fields = line.split()
        if f"{fields[1]} {fields[2]}" == wanted:
            return int(fields[7]) in (os.geteuid(), 0)
    return False


def _hex(host: str) -> str:
    """An IPv4 address as the kernel writes it: in the machine's byte order."""
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}"
