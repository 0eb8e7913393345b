"""Hosts with addresses of their own on this machine: network namespaces joined by veth pairs to one bridge. Needs root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def can_make_hosts() -> bool:
    """Whether this process may make network namespaces."""
    return os.geteuid() == 0 and shutil.which("ip") is not None and Path("/var/run").is_dir()


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class NetworkHosts:
    """`count` hosts with the addresses 10.77.0.1, 10.77.0.2, … on a network of their own, which nothing else reaches.

    The bridge lives in a namespace too, so that this machine has no part in the network.
    """

    def __init__(self, count: int) -> None:
        self._prefix = f"am{os.getpid() % 100_000}"
        self._switch = f"{self._prefix}sw"
        self.names = [f"{self._prefix}h{number}" for number in range(1, count + 1)]

    def __enter__(self) -> NetworkHosts:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for number, name in enumerate(self.names, 1):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", self._switch, "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", self._switch, "link", "set", f"p{number}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def __exit__(self, *_: object) -> None:
        for name in (*self.names, self._switch):
            _ip("netns", "delete", name, check=False)

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """`command` as it runs on host number `host` (from 0)."""
        return ["ip", "netns", "exec", self.names[host], *command]

    def unplug(self, host: int) -> None:
        """Take the host off the network."""
        _ip("-n", self._switch, "link", "set", f"p{host + 1}", "down")

    def plug_in(self, host: int) -> None:
        """Put it back."""
        _ip("-n", self._switch, "link", "set", f"p{host + 1}", "up")
