"""Nodes on hosts of their own, with default settings: every interface, addresses found by themselves, cables pulled."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.fakes.network_hosts import NetworkHosts, can_make_hosts
from tests.fakes.node_process import NodeHome, Nodes, wait_for

pytestmark = pytest.mark.skipif(not can_make_hosts(), reason="network namespaces need root and iproute2")


@pytest.fixture
def hosts() -> Iterator[NetworkHosts]:
    with NetworkHosts(3) as made:
        yield made


def start(nodes: Nodes, hosts: NetworkHosts, host: int, *arguments: str) -> NodeHome:
    """A node on one of the hosts, listening wherever it would for a user."""
    home = nodes.home({"AGENTMESH_BIND_HOST": ""})
    return home.start("--name", f"host{host}", *arguments, prefix=hosts.command(host, []))


def texts(node: NodeHome) -> set[str]:
    return {post["text"] for post in node.json("blackboard", "--limit", "200")["posts"]}


def connected(node: NodeHome) -> int:
    return sum(peer["state"] == "alive" and peer["rtt_ms"] is not None for peer in node.json("status")["peers"])


@pytest.mark.timeout(500)
def test_hosts_find_each_other_and_a_pulled_cable_costs_no_post(nodes: Nodes, hosts: NetworkHosts) -> None:
    a = start(nodes, hosts, 0)
    token = base64.urlsafe_b64decode(a.invite.removeprefix("amesh1.") + "===")
    assert b"10.77.0.1:" in token, "the invite names the host's own address"
    assert b"127.0.0.1" not in token
    b = start(nodes, hosts, 1, "--join", a.invite)
    c = start(nodes, hosts, 2, "--join", b.invite)
    wait_for(lambda: all(connected(node) == 2 for node in (a, b, c)), 90, "three hosts to be connected")
    addresses = {peer["address"].rpartition(":")[0].strip("[]") for peer in a.json("status")["peers"]}
    assert {address.removeprefix("::ffff:") for address in addresses} == {"10.77.0.2", "10.77.0.3"}

    hosts.unplug(2)
    a.json("blackboard", "from a while c was cut off")
    c.json("blackboard", "from c while it was cut off")
    wait_for(lambda: connected(a) == 1 and connected(c) == 0, 90, "the cut to be noticed")
    b.json("blackboard", "from b while c was cut off")
    hosts.plug_in(2)
    everything = {f"from {name} while {'it' if name == 'c' else 'c'} was cut off" for name in "abc"}
    wait_for(lambda: all(texts(node) == everything for node in (a, b, c)), 120, "all posts to be everywhere")


def test_the_hosts_are_gone_afterwards() -> None:
    with NetworkHosts(1) as made:
        name = made.names[0]
    listed = subprocess.run(
        [shutil.which("ip") or "ip", "netns"], capture_output=True, text=True, check=True, timeout=60
    )
    assert name not in listed.stdout
