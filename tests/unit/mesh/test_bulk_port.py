"""How a node tells where it takes bulk streams, and what becomes of a peer's word."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.mesh.bulk_wiring import bulk_target
from agentmesh.mesh.logic.bulk_limits import BULK_ADDRESSES
from agentmesh.mesh.logic.handshake_common import introduction_of, parse_message
from agentmesh.mesh.logic.handshake_messages import Auth, Welcome
from agentmesh.mesh.peers import PeerFacts

AUTH = Auth(bytes(32), bytes(32), bytes(64), 1, "old", (), False)
WELCOME = Welcome((), (), "old", "mesh", (), False, "", (), 1)


@pytest.mark.parametrize("message", [AUTH, WELCOME])
def test_a_peer_of_before_the_fast_path_names_no_port(message: Auth | Welcome) -> None:
    elements = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    parsed = parse_message(msgspec.msgpack.encode(elements[:-1]))
    assert isinstance(parsed, Auth | Welcome)
    assert parsed.bulk_port == 0


@pytest.mark.parametrize(("said", "kept"), [(-1, 0), (0, 0), (1, 1), (65_535, 65_535), (65_536, 0), (2**60, 0)])
def test_a_port_that_is_none_counts_as_none(said: int, kept: int) -> None:
    assert introduction_of("x", (), False, said).bulk_port == kept


def facts(seen_at: str, *addresses: str) -> PeerFacts:
    return PeerFacts("x", addresses, True, seen_at, 7, 4_000)


def test_the_bulk_port_is_tried_where_the_peer_was_seen_and_where_it_says_it_is() -> None:
    target = bulk_target(facts("198.51.100.1:9", "192.0.2.1:5", "[2001:db8::1]:5", "198.51.100.1:5"), ["192.0.2.0/24"])
    assert target.addresses == ("192.0.2.1:4000", "198.51.100.1:4000", "[2001:db8::1]:4000")
    assert target.seen_ms == 7


def test_few_addresses_are_tried_and_none_that_lead_nowhere() -> None:
    many = [f"198.51.100.{number}:1" for number in range(20)]
    assert len(bulk_target(facts("", *many), []).addresses) == BULK_ADDRESSES
    assert bulk_target(facts("nonsense", "224.0.0.1:1", "0.0.0.0:1"), []).addresses == ()
