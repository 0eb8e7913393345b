"""Addresses of datagrams: as text, as one source, as loopback."""

from __future__ import annotations

import pytest

from agentmesh.core.errors import Unreachable
from agentmesh.mesh.datagrams import (
    SocketAddress,
    format_address,
    is_loopback,
    normalised,
    source_of,
    source_of_text,
    split_address,
)


@pytest.mark.parametrize(
    ("address", "text", "source", "loopback"),
    [
        (("127.0.0.1", 5), "127.0.0.1:5", "127.0.0.1", True),
        (("::ffff:127.0.0.1", 5, 0, 0), "127.0.0.1:5", "127.0.0.1", True),
        (("::ffff:192.0.2.7", 5, 0, 0), "192.0.2.7:5", "192.0.2.7", False),
        (("::1", 5, 0, 0), "[::1]:5", "::", True),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "[2001:db8:1:2:3:4:5:6]:5", "2001:db8:1:2::", False),
        (("fe80::1", 5, 0, 3), "[fe80::1%3]:5", "fe80::", False),
    ],
)
def test_an_address_has_one_text_and_one_source(address: SocketAddress, text: str, source: str, loopback: bool) -> None:
    assert format_address(address) == text
    assert source_of(address) == source == source_of_text(text)
    assert is_loopback(address) is loopback


def test_hosts_of_one_network_of_version_six_are_one_source() -> None:
    assert source_of(("2001:db8::1", 1, 0, 0)) == source_of(("2001:db8::ffff:2", 9, 0, 0))
    assert source_of(("2001:db8::1", 1, 0, 0)) != source_of(("2001:db8:0:1::1", 1, 0, 0))


def test_a_text_that_is_no_address_is_its_own_source() -> None:
    assert source_of_text("memory-00:1") == "memory-00:1"


def test_a_scope_is_spelt_one_way() -> None:
    assert normalised(("fe80::1%eth0", 5, 0, 3)) == ("fe80::1", 5, 0, 3)
    assert normalised(("127.0.0.1", 5)) == ("127.0.0.1", 5)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a.example:1", ("a.example", 1)), ("[::1]:65535", ("::1", 65535)), ("1.2.3.4:9", ("1.2.3.4", 9))],
)
def test_an_address_is_split_into_host_and_port(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts


@pytest.mark.parametrize(
    "text", ["", ":", "a", "a:", ":1", "a:0", "a:65536", "a:-1", "a:1x", "a:٣", "a:" + "9" * 5_000]
)
def test_what_is_no_address_says_so(text: str) -> None:
    with pytest.raises(Unreachable, match="is not an address"):
        split_address(text)
