"""Resource addresses: read in every way that clients write them, and named in every such way when they change."""

from __future__ import annotations

import pytest

from agentmesh.blackboard.logic import mcp_uris
from agentmesh.blackboard.logic.mcp_uris import Address
from tests.unit.blackboard.test_mcp_text import post


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("blackboard://feed", Address("feed")),
        ("blackboard://feed/", Address("feed")),
        ("blackboard://post/3f2a9c01", Address("post", "3f2a9c01")),
        ("blackboard://topic/acme/shop", Address("topic", "acme/shop")),
        ("blackboard://topic/acme%2Fshop", Address("topic", "acme/shop")),
        ("blackboard://topic/", None),
        ("blackboard://post/%20", None),
        ("blackboard://feed2", None),
        ("file:///etc/passwd", None),
        ("", None),
    ],
)
def test_addresses_are_read(uri: str, address: Address | None) -> None:
    assert mcp_uris.parse(uri) == address


def test_a_post_changes_the_feed_its_topic_itself_and_what_it_answers() -> None:
    changed = mcp_uris.changed_by(post(id="a" * 32, reply_to="b" * 32, topic="acme/shop"))
    assert set(changed) == {
        "blackboard://feed",
        "blackboard://post/" + "a" * 32,
        "blackboard://post/" + "a" * 8,
        "blackboard://post/" + "b" * 32,
        "blackboard://post/" + "b" * 8,
        "blackboard://topic/acme/shop",
        "blackboard://topic/acme%2Fshop",
    }


def test_every_changed_address_is_one_that_can_be_read() -> None:
    for uri in mcp_uris.changed_by(post(reply_to="b" * 32, topic="a b/ü")):
        assert mcp_uris.parse(uri) is not None
