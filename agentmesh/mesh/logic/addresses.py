"""Which of a node's addresses are told to others, and in which order they are tried. Values in, values out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from agentmesh.mesh.logic.limits import MAX_BOOTSTRAP_ADDRESSES

# Interfaces of container and VM hosts lead nowhere from outside, and often exist with the same address on every machine:
# other systems advertised and tried them first.
_VIRTUAL_INTERFACES = ("docker", "br-", "veth", "virbr", "vmnet", "vboxnet", "cni", "flannel", "podman", "lxc", "lxd")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`.

    Raises:
        ValueError: there is no host, or no port between 1 and 65535.
    """
    host, separator, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not separator or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"'{address}' is not an address of the form host:port")
    return host, int(port)


def is_plausible(address: str) -> bool:
    """Whether an address from a peer may be dialled at all."""
    try:
        host, _ = split_address(address)
    except ValueError:
        return False
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return len(host) <= 253 and host.isascii()
    return not (ip.is_unspecified or ip.is_multicast or ip.is_link_local)


def advertised(interfaces: Iterable[tuple[str, str]], bind_host: str, port: int) -> tuple[str, ...]:
    """The addresses that a node listening on `bind_host` tells others, best first.

    Args:
        interfaces: (interface name, IP address) of this machine.
        bind_host: a wildcard (`0.0.0.0`, `::`) means every interface, anything else is the only address.
        port: the bound UDP port.

    Public addresses come first, private ones next; loopback only when there is nothing else (two nodes on a machine
    without a network). Link-local addresses and those of virtual bridges are left out.
    """
    if bind_host not in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return (join_address(bind_host, port),)
    ranked: list[tuple[int, str]] = []
    for name, text in interfaces:
        ip = ipaddress.ip_address(text.partition("%")[0])
        if name.startswith(_VIRTUAL_INTERFACES) or ip.is_link_local or ip.is_unspecified or ip.is_multicast:
            continue
        ranked.append((_rank(ip), join_address(str(ip), port)))
    if any(rank < _LOOPBACK_RANK for rank, _ in ranked):
        ranked = [entry for entry in ranked if entry[0] < _LOOPBACK_RANK]
    return tuple(address for _, address in sorted(ranked))[:MAX_BOOTSTRAP_ADDRESSES]


_LOOPBACK_RANK = 4


def _rank(ip: IPAddress) -> int:
    if ip.is_loopback:
        return _LOOPBACK_RANK
    if ip.is_private:
        return 1 if ip.version == 4 else 3
    return 0 if ip.version == 4 else 2


def dial_order(addresses: Iterable[str], own_networks: Iterable[str]) -> tuple[str, ...]:
    """Addresses of one peer in the order to try them: those in a network of ours first, then as the peer ranked them."""
    networks = [ipaddress.ip_network(n, strict=False) for n in own_networks]

    def is_far(address: str) -> bool:
        try:
            ip = ipaddress.ip_address(split_address(address)[0])
        except ValueError:
            return True
        return not any(ip.version == n.version and ip in n for n in networks)

    plausible = [a for a in dict.fromkeys(addresses) if is_plausible(a)]
    return tuple(sorted(plausible, key=is_far))
