"""The line that tests and benchmarks put between hosts: what it delays, bounds and counts is what really crosses it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fakes.delay_line import DelayLine, can_make_lines

pytestmark = pytest.mark.skipif(not can_make_lines(), reason="needs root, iproute2 and /dev/net/tun")

MEGABYTE = 1_000_000


@pytest.fixture
def line() -> Iterator[DelayLine]:
    with DelayLine(2) as made:
        yield made


def _sockets(line: DelayLine, kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    """One on each host, joined."""
    with line.inside(1):
        there = socket.socket(socket.AF_INET, kind)
        there.bind((line.address(1), 0))
        if kind == socket.SOCK_STREAM:
            there.listen(1)
    with line.inside(0):
        here = socket.socket(socket.AF_INET, kind)
        here.bind((line.address(0), 0))
        here.connect(there.getsockname())
    if kind == socket.SOCK_STREAM:
        listener, (there, _) = there, there.accept()
        listener.close()
    else:
        there.connect(here.getsockname())
    for end in (here, there):
        end.settimeout(60)
    return here, there


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_round_trip_takes_what_was_asked_for_and_is_counted(line: DelayLine, kind: socket.SocketKind) -> None:
    here, there = _sockets(line, kind)
    with here, there:
        for rtt_ms in (0.0, 40.0):
            line.shape(rtt_ms=rtt_ms)
            for _ in range(60):
                time.sleep(0.1)  # an acknowledgement of before may still be on its way
                before = line.counts()
                began = time.monotonic()
                here.sendall(b"x" * 1_000)
                there.sendall(there.recv(2_000))
                assert len(here.recv(2_000)) == 1_000
                took_ms = (time.monotonic() - began) * 1_000
                assert took_ms >= rtt_ms
                crossed = line.counts().since(before)
                assert crossed.bytes_of(0, 1) >= 1_020
                assert crossed.bytes_of(1, 0) >= 1_020
                assert crossed.dropped == 0
                if took_ms < rtt_ms + 35:  # the machine may be busy, but not each time
                    break
            else:
                pytest.fail(f"no round trip took less than {rtt_ms + 35} ms")


def test_bulk_crosses_whole_in_order_and_no_faster_than_the_line(line: DelayLine) -> None:
    line.shape(rtt_ms=4, bits_per_s=80 * MEGABYTE)  # 10 MB/s
    here, there = _sockets(line, socket.SOCK_STREAM)
    data = os.urandom(3 * MEGABYTE)
    with here, there:
        began = time.monotonic()
        sender = threading.Thread(target=here.sendall, args=(data,))
        sender.start()
        got = bytearray()
        while len(got) < len(data):
            got += there.recv(1 << 18)
        took_s = time.monotonic() - began
        sender.join(60)
        assert bytes(got) == data
        assert took_s >= 0.29
        # Once, not twice: TCP sends some of it again where the line's process stands still.
        assert 3 * MEGABYTE < line.counts().bytes_of(0, 1) < 5.5 * MEGABYTE


def test_a_line_without_traffic_costs_no_processor_time(line: DelayLine) -> None:
    line.shape(rtt_ms=20)
    router = line._router  # pyright: ignore[reportPrivateUsage]
    assert router is not None

    def ticks() -> int:
        with open(f"/proc/{router.pid}/stat") as file:
            fields = file.read().rsplit(") ", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def used() -> int:
        before = ticks()
        time.sleep(0.5)
        return ticks() - before

    # Of 50. Where the machine stands still, that is charged to whoever runs: one of some looks shows none.
    assert any(used() <= 1 for _ in range(20))


def test_nothing_is_left_behind() -> None:
    with DelayLine(2) as line:
        names = line.names
        assert all(os.path.exists(f"/run/netns/{name}") for name in names)
    assert not any(os.path.exists(f"/run/netns/{name}") for name in names)
