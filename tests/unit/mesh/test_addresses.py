"""Which addresses are advertised and in which order they are dialled."""

from __future__ import annotations

import pytest

from agentmesh.mesh.logic.addresses import advertised, dial_order, is_plausible, split_address

INTERFACES = [
    ("lo", "127.0.0.1"),
    ("docker0", "172.17.0.1"),
    ("br-12ab", "172.18.0.1"),
    ("eth0", "192.168.1.7"),
    ("eth0", "fe80::1%eth0"),
    ("eth1", "8.8.4.4"),
    ("eth1", "2a00:1450::1"),
]


def test_public_addresses_come_first_and_bridges_and_link_local_never() -> None:
    assert advertised(INTERFACES, "0.0.0.0", 7000) == ("8.8.4.4:7000", "192.168.1.7:7000", "[2a00:1450::1]:7000")


def test_loopback_is_advertised_only_when_there_is_nothing_else() -> None:
    assert advertised([("lo", "127.0.0.1"), ("docker0", "172.17.0.1")], "::", 7) == ("127.0.0.1:7",)


def test_a_node_bound_to_one_address_advertises_that_one() -> None:
    assert advertised(INTERFACES, "127.0.0.1", 7000) == ("127.0.0.1:7000",)


def test_peers_in_a_network_of_ours_are_dialled_there_first() -> None:
    order = dial_order(["8.8.4.4:1", "192.168.1.9:1", "8.8.4.4:1"], ["192.168.1.7/255.255.255.0"])
    assert order == ("192.168.1.9:1", "8.8.4.4:1")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nohost",
        ":1",
        "1.2.3.4:0",
        "1.2.3.4:70000",
        "1.2.3.4:x",
        "0.0.0.0:5",
        "[fe80::1]:5",
        "224.0.0.1:5",
        "a" * 300 + ":1",
    ],
)
def test_addresses_that_lead_nowhere_are_not_dialled(bad: str) -> None:
    assert not is_plausible(bad)


@pytest.mark.parametrize(("text", "host", "port"), [("a.example:1", "a.example", 1), ("[::1]:65535", "::1", 65535)])
def test_host_and_port_are_split(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)
