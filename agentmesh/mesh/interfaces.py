"""This machine's network interfaces, as the pure address rules need them."""

from __future__ import annotations

import socket

import psutil


def interface_addresses() -> list[tuple[str, str]]:
    """(interface name, IP address) of every interface that is up."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return [
        (name, entry.address)
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    ]


def interface_networks() -> list[str]:
    """The IPv4 networks that this machine is directly attached to, as `address/netmask`."""
    return [
        f"{entry.address}/{entry.netmask}"
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET and entry.netmask
    ]
