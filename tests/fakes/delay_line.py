"""Hosts on this machine whose only way to each other is a line with a delay, a rate and counters. Needs root and iproute2.

Each host is a network namespace with one interface, `eth0` (10.78.0.1, 10.78.0.2, …). That is a TUN device, and its other end is a router in a
process of its own: a packet that leaves a host arrives half a round trip later, or when the line before it is free, in order, and counted.
So whatever two hosts say to each other, over TCP or UDP, has crossed the line. The kernel's TCP and the programs are the real ones.

    with DelayLine(2) as line:
        line.shape(rtt_ms=20)
        subprocess.run(line.command(1, ["ping", "-c", "1", "10.78.0.1"]))
        line.counts().bytes_of(0, 1)

A line that is full drops, as routers do; what was dropped is counted too.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "10.78.0"
MTU = 1_500
QUEUE_BYTES = 16 << 20  # of one host's packets on their way, beyond which they are dropped
READ_PACKETS = 64  # of one host, before the others have a turn
ANSWER_S = 60.0
IDLE_S = 60.0

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_PR_SET_TIMERSLACK = 29


def can_make_lines() -> bool:
    """Whether this process may make network namespaces and TUN devices."""
    return os.geteuid() == 0 and shutil.which("ip") is not None and os.access("/dev/net/tun", os.R_OK | os.W_OK)


@dataclass(frozen=True)
class Counts:
    """What crossed, in IP packets with their headers, by (from, to), numbered from 0."""

    packets: dict[tuple[int, int], int]
    bytes: dict[tuple[int, int], int]
    dropped: int

    def bytes_of(self, source: int, target: int) -> int:
        return self.bytes.get((source, target), 0)

    def since(self, before: Counts) -> Counts:
        """What crossed between the two."""
        packets = {key: count - before.packets.get(key, 0) for key, count in self.packets.items()}
        sizes = {key: count - before.bytes.get(key, 0) for key, count in self.bytes.items()}
        return Counts(packets, sizes, self.dropped - before.dropped)


class DelayLine:
    """`count` hosts (at most 200) and the router between them, as a context manager."""

    def __init__(self, count: int, *, mtu: int = MTU) -> None:
        prefix = f"dl{os.getpid() % 100_000}"
        self.names = [f"{prefix}h{number}" for number in range(1, count + 1)]
        self._mtu = mtu
        self._router: subprocess.Popen[str] | None = None

    def __enter__(self) -> DelayLine:
        try:
            for name in self.names:
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            self._router = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.delay_line", str(self._mtu), *self.names],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._router is not None:
            self._router.kill()
            self._router.wait(30)
            for pipe in (self._router.stdin, self._router.stdout):
                if pipe is not None:
                    pipe.close()
        for name in self.names:
            _ip("netns", "delete", name, check=False)

    @staticmethod
    def address(host: int) -> str:
        """The IP address of host number `host` (from 0)."""
        return f"{NETWORK}.{host + 1}"

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """`command` as it runs on a host."""
        return ["ip", "netns", "exec", self.names[host], *command]

    @contextmanager
    def inside(self, host: int) -> Generator[None]:
        """Sockets, threads and programs that this thread makes meanwhile belong to the host; those of before do not move."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _enter(self.names[host])
            yield
        finally:
            _set_namespace(before)
            os.close(before)

    def shape(self, *, rtt_ms: float = 0.0, bits_per_s: float = 0.0) -> None:
        """From the next packet on: the round trip between any two hosts, and what one host can send (0: no bound)."""
        self._ask({"rtt_ms": rtt_ms, "bits_per_s": bits_per_s})

    def counts(self) -> Counts:
        """Since the line was made."""
        rows, dropped = self._ask({})
        return Counts({(a, b): n for a, b, n, _ in rows}, {(a, b): size for a, b, _, size in rows}, dropped)

    def _ask(self, question: dict[str, float]) -> tuple[list[tuple[int, int, int, int]], int]:
        assert self._router is not None
        assert self._router.stdin is not None
        self._router.stdin.write(json.dumps(question) + "\n")
        self._router.stdin.flush()
        answer = self._answer()
        return answer["crossed"], answer["dropped"]

    def _answer(self) -> dict[str, Any]:
        assert self._router is not None
        assert self._router.stdout is not None
        ready, _, _ = select.select([self._router.stdout], [], [], ANSWER_S)
        line = self._router.stdout.readline() if ready else ""
        assert line, "the router between the hosts has ended"
        return json.loads(line)


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _enter(name: str) -> None:
    descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        _set_namespace(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------ the router's process


class Router:
    """Packets from device to device. One thread, asleep until something arrives or is due."""

    def __init__(self, devices: Sequence[int]) -> None:
        self._devices = list(devices)
        self._delay_s = 0.0
        self._seconds_per_byte = 0.0
        self._free_s = [0.0] * len(devices)  # when a host's last packet has left it
        self._queues: list[deque[tuple[float, int, bytes]]] = [deque() for _ in devices]  # (due, to, packet)
        self._queued = [0] * len(devices)
        self._crossed: dict[tuple[int, int], list[int]] = {}
        self._dropped = 0

    def run(self) -> None:
        """Until stdin ends, which is when whoever made the line is gone."""
        control = sys.stdin.fileno()
        source_of = {device: number for number, device in enumerate(self._devices)}
        while True:
            next_s = min((queue[0][0] for queue in self._queues if queue), default=time.monotonic() + IDLE_S)
            ready, _, _ = select.select([control, *self._devices], [], [], max(0.0, next_s - time.monotonic()))
            for descriptor in ready:
                if descriptor != control:
                    self._take(source_of[descriptor])
            self._deliver()
            if control in ready and not self._control(control):
                return

    def _take(self, source: int) -> None:
        for _ in range(READ_PACKETS):
            try:
                packet = os.read(self._devices[source], 65_536)
            except BlockingIOError:
                return
            target = packet[19] - 1 if packet[0] >> 4 == 4 else -1  # the last byte of the IPv4 target
            if not 0 <= target < len(self._devices):
                continue
            size = len(packet)
            if self._queued[source] + size > QUEUE_BYTES:
                self._dropped += 1
                continue
            leaves_s = max(time.monotonic(), self._free_s[source]) + size * self._seconds_per_byte
            self._free_s[source] = leaves_s
            queue = self._queues[source]
            due_s = max(
                leaves_s + self._delay_s, queue[-1][0] if queue else 0.0
            )  # in order, also when the delay shrinks
            queue.append((due_s, target, packet))
            self._queued[source] += size

    def _deliver(self) -> None:
        now_s = time.monotonic()
        for source, queue in enumerate(self._queues):
            while queue and queue[0][0] <= now_s:
                _, target, packet = queue.popleft()
                self._queued[source] -= len(packet)
                try:
                    os.write(self._devices[target], packet)
                except OSError:  # the host is down, or takes no more now
                    self._dropped += 1
                    continue
                count = self._crossed.setdefault((source, target), [0, 0])
                count[0] += 1
                count[1] += len(packet)

    def _control(self, descriptor: int) -> bool:
        """Answer what was asked; whether there may be more. One line at a time: the asker waits."""
        line = os.read(descriptor, 4_096)
        if not line:
            return False
        asked = json.loads(line)
        if "rtt_ms" in asked:
            self._delay_s = asked["rtt_ms"] / 2_000
            self._seconds_per_byte = 8 / asked["bits_per_s"] if asked["bits_per_s"] else 0.0
            self._free_s = [0.0] * len(self._devices)
        crossed = [(source, target, *counts) for (source, target), counts in self._crossed.items()]
        print(json.dumps({"crossed": crossed, "dropped": self._dropped}), flush=True)
        return True


def _device(name: str, address: str, mtu: int) -> int:
    _enter(name)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TUN_NO_PI))
    _ip("addr", "add", f"{address}/24", "dev", "eth0")
    _ip("link", "set", "eth0", "mtu", str(mtu), "txqueuelen", "10000", "up")
    return device


def main() -> None:
    mtu, names = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1_000, 0, 0, 0)  # 1 us, not 50
    devices = [_device(name, DelayLine.address(number), mtu) for number, name in enumerate(names)]
    print(json.dumps({"crossed": [], "dropped": 0}), flush=True)
    Router(devices).run()


if __name__ == "__main__":
    main()
